import pytest
import torch
from scipy import stats
from torch import distributions, nn

from vaelib import VAE, data, fit, fit_seeds
from vaelib.likelihoods import Gaussian, StudentT, VaryingSigma
from vaelib.networks import mlp
from vaelib.objectives import ELBO, LearnedGamma

RUN = {"steps": 20, "batch_size": 32, "lr": 1e-2, "progress": False}


def varying():
    encoder, decoder = mlp(13)
    decoder.output = nn.Linear(decoder.output.in_features, 26)
    return VAE(encoder, decoder, VaryingSigma())


# --- StudentT ----------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [0.7, torch.linspace(0.2, 3, 13, dtype=torch.float64)])
@pytest.mark.parametrize("df", [2.5, 4.0, 30.0])
def test_student_t_is_scipys(df, sigma):
    x, decoded = 5 * torch.randn(2, 6, 13, dtype=torch.float64)
    likelihood = StudentT(sigma, df=df).double()
    scale = torch.as_tensor(sigma).expand(13)
    expected = stats.t.logpdf(x, df, loc=decoded, scale=scale).sum(-1)
    torch.testing.assert_close(
        likelihood(decoded).log_prob(x), torch.as_tensor(expected), rtol=1e-5, atol=1e-5
    )
    torch.testing.assert_close(likelihood(decoded).mean, decoded)


def test_samples_of_student_t_follow_its_density():
    torch.manual_seed(0)
    decoded = torch.tensor([[-1.0, 2.0]], dtype=torch.float64)
    samples = StudentT(0.5, df=4.0).double()(decoded).sample((20_000,))[:, 0]
    for column, loc in zip(samples.T, decoded[0], strict=True):
        assert stats.kstest(column.numpy(), stats.t(4, loc.item(), 0.5).cdf).pvalue > 1e-3


def test_student_t_is_a_gaussian_where_df_is_large():
    x, decoded = torch.randn(2, 6, 13, dtype=torch.float64)
    nearly = StudentT(0.7, df=1e6).double()(decoded).log_prob(x)
    torch.testing.assert_close(
        nearly, Gaussian(0.7).double()(decoded).log_prob(x), rtol=1e-4, atol=1e-4
    )


def test_outliers_hardly_move_the_sigma_of_a_student_t():
    torch.manual_seed(0)
    residuals = 0.5 * distributions.StudentT(4.0).sample((2000, 1))
    residuals[:20] = 100.0
    found = {}
    for likelihood in (StudentT(learn=True), Gaussian(learn=True)):
        optimizer = torch.optim.Adam(likelihood.parameters(), lr=0.05)
        for _ in range(400):
            optimizer.zero_grad()
            (-likelihood(torch.zeros(2000, 1)).log_prob(residuals)).mean().backward()
            optimizer.step()
        found[type(likelihood)] = likelihood.sigma.item()
    assert found[StudentT] == pytest.approx(0.5, abs=0.06)
    assert found[Gaussian] > 5


def test_sigma_is_only_learned_on_request():
    assert list(StudentT(0.5).parameters()) == []
    assert [p.shape for p in StudentT(torch.ones(13), learn=True).parameters()] == [(13,)]
    assert StudentT(0.5).sigma.item() == pytest.approx(0.5)


def test_what_student_t_refuses():
    for sigma in (0.0, torch.tensor([1.0, -1.0])):
        with pytest.raises(ValueError, match="sigma must be positive"):
            StudentT(sigma)
    with pytest.raises(ValueError, match=r"df is 2\.0, but there is a variance only above 2"):
        StudentT(df=2.0)


def test_an_objective_that_sets_a_gaussians_sigma_refuses_a_student_t():
    with pytest.raises(ValueError, match="sets the one σ of a Gaussian"):
        fit(VAE(*mlp(13), StudentT()), LearnedGamma(), data.wine().x, **RUN)


# --- VaryingSigma ------------------------------------------------------------------------------


def test_varying_sigma_is_a_gaussian_with_the_decoders_own_sigma():
    x, mean, raw = torch.randn(3, 6, 13)
    sigma = 0.1 + torch.log1p(raw.exp())
    expected = distributions.Normal(mean, sigma).log_prob(x).sum(-1)
    p = VaryingSigma(floor=0.1)(torch.cat([mean, raw], -1))
    torch.testing.assert_close(p.log_prob(x), expected)
    torch.testing.assert_close(p.mean, mean)
    assert p.sample().shape == x.shape


def test_varying_sigma_keeps_its_floor():
    decoded = torch.cat([torch.zeros(4, 3), torch.full((4, 3), -1e4)], 1)
    x = torch.zeros(4, 3)
    ceiling = Gaussian(0.05)(x).log_prob(x)
    torch.testing.assert_close(VaryingSigma()(decoded).log_prob(x), ceiling)


def test_varying_sigma_finds_noise_that_depends_on_z():
    """Noise of 0.2 where z < 0, and of 1 where z > 0."""
    torch.manual_seed(0)
    z = torch.randn(4000, 1)
    x = torch.where(z < 0, 0.2, 1.0) * torch.randn(4000, 1)
    decoder = nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 2))
    optimizer = torch.optim.Adam(decoder.parameters(), lr=0.02)
    for _ in range(300):
        optimizer.zero_grad()
        (-VaryingSigma()(decoder(z)).log_prob(x)).mean().backward()
        optimizer.step()
    sigma = VaryingSigma()(decoder(torch.tensor([[-1.0], [1.0]]))).stddev
    torch.testing.assert_close(sigma, torch.tensor([[0.2], [1.0]]), rtol=0.15, atol=0)


def test_what_varying_sigma_refuses():
    with pytest.raises(ValueError, match="floor must be positive, got 0"):
        VaryingSigma(floor=0)
    with pytest.raises(ValueError, match="has 13 outputs, VaryingSigma needs two a feature"):
        VaryingSigma()(torch.zeros(4, 13))


# --- both --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make_model", [varying, lambda: VAE(*mlp(13), StudentT(torch.ones(13), learn=True))]
)
def test_many_seeds_train_as_one_does(make_model):
    x = data.wine().x
    together = fit_seeds(make_model, ELBO(), x, seeds=[4, 7], **RUN).models[0]
    torch.manual_seed(4)
    alone = make_model()
    fit(alone, ELBO(), x, seed=4, **RUN)
    for name, weight in alone.state_dict().items():
        torch.testing.assert_close(weight, together.state_dict()[name], rtol=0, atol=1e-4)


def test_every_knob_changes_the_loss():
    x, decoded = torch.randn(6, 7), torch.randn(6, 14)
    pairs = [
        (StudentT(1.0)(decoded[:, :7]), StudentT(0.5)(decoded[:, :7])),
        (StudentT(df=4.0)(decoded[:, :7]), StudentT(df=5.0)(decoded[:, :7])),
        (VaryingSigma(0.05)(decoded), VaryingSigma(0.2)(decoded)),
    ]
    for one, other in pairs:
        assert (one.log_prob(x) - other.log_prob(x)).abs().max() > 1e-3
