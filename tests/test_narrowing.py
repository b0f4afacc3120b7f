import pytest
import torch

from vaelib import VAE, data, metrics
from vaelib.divergences import gaussian_kl
from vaelib.networks import conv, mlp
from vaelib.objectives import ELBO, Narrowing

X = data.wine().x
KEPT = [0, 3]


@pytest.fixture
def model():
    torch.manual_seed(0)
    return VAE(*mlp(13, n_latents=4)).double().eval()


@pytest.fixture
def batch():
    g = torch.Generator().manual_seed(1)
    return [
        torch.randn(32, 13, generator=g, dtype=torch.float64),
        torch.randn(32, 4, generator=g, dtype=torch.float64),
        torch.rand(32, 4, generator=g, dtype=torch.float64),
    ]


def begun(model, *args, logits=(2.0, -1.0, 0.0, 4.0), **kwargs):
    """An objective for this model whose gates are as undecided as these logits say."""
    objective = Narrowing(*args, **kwargs).double()
    objective.begin(model, 10)
    objective.gates.phi.data = torch.tensor(logits, dtype=torch.float64) / objective.gates.speed
    return objective


def by_hand(model, objective, x, eps, u):
    """SSE and KL of each sample as a function of its gates, and the gates drawn."""
    mu, logvar = model.encoder(x)
    z = mu + (0.5 * logvar).exp() * eps

    def sse(b):
        return (model.decoder(z * b) - x).square().sum(-1)

    def kl(b):
        return (gaussian_kl(mu, logvar) * b).sum(-1)

    return sse, kl, (u < objective.gates.probabilities).double()


@pytest.mark.parametrize("met", [True, False])
def test_narrowing_is_its_formula_in_nats_per_sample(met, model, batch):
    objective = begun(model, 1e6 if met else 1e-6, push=0.25)
    geco, gates = objective.geco, objective.gates
    geco.log_lam.fill_(0.5)
    lam, tau = geco.lam.item(), geco.tau.item()
    sse, kl, b = by_hand(model, objective, *batch)
    terms = objective(model, *batch)
    expected = kl(b).mean() + lam * (sse(b).mean() - tau)
    if met:
        expected = expected + lam * 0.25 * tau * gates.probabilities.sum()
    torch.testing.assert_close(terms["loss"], expected)
    torch.testing.assert_close(terms["error"], sse(b).mean())
    torch.testing.assert_close(terms["kl"].sum(), kl(b).mean())
    assert terms["kl"].shape == terms["p"].shape == (4,)
    torch.testing.assert_close(terms["p"], gates.probabilities)
    assert terms["lam"] == lam


@pytest.mark.parametrize("kind", ["mlp", "linear", "no batch norm", "conv"])
def test_the_narrowed_model_equals_the_gated_one(kind):
    torch.manual_seed(0)
    networks, shape = {
        "mlp": (mlp(13, n_latents=4), (13,)),
        "linear": (mlp(13, hidden=(), n_latents=4), (13,)),
        "no batch norm": (mlp(13, n_latents=4, batch_norm=False), (13,)),
        "conv": (conv((12, 9), n_latents=4), (1, 12, 9)),
    }[kind]
    model = VAE(*networks).double()
    x = torch.randn(64, *shape, dtype=torch.float64)
    eps = torch.randn(64, 4, dtype=torch.float64)
    model(x)  # moves batch norm's averages
    model.eval()
    all_open = model(x, eps)
    model.open[[1, 2]] = 0
    gated, narrow = model(x, eps), model.narrowed()
    cut = narrow(x, eps[:, KEPT])
    assert narrow.n_latents == 2 and narrow.open.tolist() == [1, 1]
    for one, other in [
        (gated.q.mu[:, KEPT], cut.q.mu),
        (gated.q.logvar[:, KEPT], cut.q.logvar),
        (gated.kl[:, KEPT], cut.kl),
        (gated.p.mean, cut.p.mean),
        (gated.reconstruction, cut.reconstruction),
        (
            metrics.iwae_bound(model, x, 3, eps.expand(3, -1, -1)),
            metrics.iwae_bound(narrow, x, 3, eps[:, KEPT].expand(3, -1, -1)),
        ),
    ]:
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    assert gated.kl[:, [1, 2]].abs().max() == 0
    assert not metrics.active_units(model, x, threshold=0)[[1, 2]].any()
    assert (all_open.p.mean - gated.p.mean).abs().max() > 1e-3
    narrow.train()
    ELBO()(narrow, x)["loss"].backward()
    assert all(p.grad is not None for p in narrow.parameters())
    assert all(p.grad is None for p in model.parameters())
