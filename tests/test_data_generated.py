import pytest
import torch

from vaelib import data, likelihoods


def test_the_mixed_table_has_columns_of_three_kinds():
    table = data.mixed(500)
    numbers, bits, kinds = table.x[:, :6], table.x[:, 6:9], table.x[:, 9:]
    assert table.x.shape == (500, 13) == (len(table), len(table.feature_names))
    assert table.feature_names[5:10] == ("number 5", "bit 0", "bit 1", "bit 2", "kind a")
    torch.testing.assert_close(numbers.mean(0), torch.zeros(6), atol=1e-5, rtol=0)
    torch.testing.assert_close(numbers.var(0, correction=0), torch.ones(6))
    likelihoods.Bernoulli().check(bits)
    likelihoods.Categorical().check(kinds)
    assert ((bits == 0) | (bits == 1)).all()
    # In original units the numbers have their own scales, and 0 and 1 are what they were.
    original = table.original(table.x)
    assert torch.equal(original[:, 6:], table.x[:, 6:])
    spread = torch.logspace(-1, 3, 6)
    torch.testing.assert_close(original[:, :6].std(0), spread, rtol=0.1, atol=0)
    torch.testing.assert_close(original[:, :6].mean(0), 10 * spread, rtol=0.02, atol=0)


def test_the_mixed_table_comes_from_the_population_that_its_docstring_states():
    table = data.mixed(200_000)
    angles = torch.arange(6) * torch.pi / 6
    u = torch.stack([angles.cos(), angles.sin()])
    expected = 0.81 * u.T @ u + 0.19 * torch.eye(6)
    torch.testing.assert_close(table.x[:, :6].T.cov(), expected, atol=0.01, rtol=0)
    # Two latents, and noise: the other four eigenvalues are the noise's variance.
    torch.testing.assert_close(
        torch.linalg.eigvalsh(table.x[:, :6].T.cov())[:4],
        torch.full((4,), 0.19),
        atol=0.005,
        rtol=0,
    )
    assert torch.bincount(table.y) / len(table) == pytest.approx([1 / 3] * 3, abs=0.01)
    # The class with its centre at 90°: number 3 looks there, bits at 60° and 120° follow it.
    top = table.x[table.y == 0]
    torch.testing.assert_close(top[:, 3].mean(), torch.tensor(0.9 * 1.28**0.5), atol=0.02, rtol=0)
    assert top[:, 7].mean() == pytest.approx(top[:, 8].mean().item(), abs=0.02)
    generator = torch.Generator().manual_seed(0)
    z = torch.tensor([0.0, 1.28**0.5]) + 0.6 * torch.randn(200_000, 2, generator=generator)
    toward = torch.tensor([[1, 1], [-1, 1], [-1, -1], [1, -1]]) / 2**0.5
    kinds = torch.softmax(3 * z @ toward.T, 1).mean(0)
    torch.testing.assert_close(top[:, 9:].mean(0), kinds, atol=0.01, rtol=0)
    bit = torch.sigmoid(3 * z @ torch.tensor([0.5, 0.75**0.5])).mean()
    torch.testing.assert_close(top[:, 7].mean(), bit, atol=0.01, rtol=0)


def test_a_seed_makes_a_mixed_table_anew():
    assert torch.equal(data.mixed(50, seed=1).x, data.mixed(50, seed=1).x)
    assert not torch.equal(data.mixed(50, seed=1).x, data.mixed(50, seed=2).x)


def intrinsic_dimension(x):
    """Facco et al. (2017): the nearer the second neighbour to the first, the higher."""
    distances = torch.cdist(x.double(), x.double()).topk(3, largest=False).values
    return 1 / (distances[:, 2] / distances[:, 1]).log().mean().item()


@pytest.mark.parametrize("d", [1, 2, 4])
def test_a_manifold_has_its_dimension_and_is_bent(d):
    table = data.manifold(d, n_features=12, n=2000, noise=0)
    assert table.x.shape == (2000, 12)
    assert table.factors.shape == (2000, d)
    assert intrinsic_dimension(table.x) == pytest.approx(d, rel=0.15)
    torch.testing.assert_close(table.x.var(0, correction=0), torch.ones(12))
    # A linear method needs more: what d principal components leave is far from nothing.
    left = torch.linalg.svdvals(table.x).square()[d:].sum() / (2000 * 12)
    assert left > 0.15
    # The factors are what it was made from: neighbours there are neighbours in the table.
    nearest = torch.cdist(table.factors, table.factors).topk(2, largest=False).indices[:, 1]
    near = (table.x - table.x[nearest]).norm(dim=1).median()
    far = (table.x - table.x.roll(1, 0)).norm(dim=1).median()
    assert near < 0.25 * far


def test_a_manifold_s_noise_is_what_was_asked_for():
    clean, noisy = (data.manifold(2, 12, n=5000, noise=noise) for noise in (0, 0.1))
    torch.testing.assert_close(clean.factors, noisy.factors)
    noise = (noisy.x - clean.x).std(0)
    torch.testing.assert_close(noise, torch.full((12,), 0.1), rtol=0.05, atol=0)
    assert not torch.equal(noisy.x, data.manifold(2, 12, n=5000, noise=0.1, seed=1).x)


def test_another_seed_draws_from_the_same_manifold():
    a, b = (data.manifold(1, 6, n=3000, noise=0, seed=seed) for seed in (0, 1))
    # In their own units, before standardising, the nearest point of the other draw lies close.
    one, other = a.original(a.x), b.original(b.x)
    assert torch.cdist(one, other).amin(1).median() < 0.01 * one.norm(dim=1).median()


def test_manifolds_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="n_dimensions is 5 and n_features 5; pass"):
        data.manifold(5, 5)
    with pytest.raises(ValueError, match="n_dimensions is 0"):
        data.manifold(0)
    with pytest.raises(ValueError, match="noise is -1"):
        data.manifold(noise=-1)
