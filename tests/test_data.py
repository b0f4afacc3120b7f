import pytest
import torch
from sklearn.datasets import load_breast_cancer, load_digits, load_wine

from vaelib import data, likelihoods


@pytest.mark.parametrize(
    ("load", "bunch"), [(data.wine, load_wine()), (data.breast_cancer, load_breast_cancer())]
)
def test_tables_are_standardised_unless_asked_otherwise(load, bunch):
    table = load()
    assert table.x.dtype == torch.float32
    torch.testing.assert_close(table.x.mean(0), torch.zeros(table.x.shape[1]), atol=1e-5, rtol=0)
    torch.testing.assert_close(table.x.var(0, correction=0), torch.ones(table.x.shape[1]))
    torch.testing.assert_close(load(standardize=False).x, torch.tensor(bunch.data).float())


@pytest.mark.parametrize(
    ("load", "bunch"),
    [
        (data.wine, load_wine()),
        (data.breast_cancer, load_breast_cancer()),
        (data.digits, load_digits()),
        (lambda: data.wine(standardize=False), load_wine()),
    ],
)
def test_original_units_come_back(load, bunch):
    dataset = load()
    x = torch.tensor(bunch.data).float()
    torch.testing.assert_close(dataset.original(dataset.x), x, rtol=1e-5, atol=1e-4)
    assert torch.equal(dataset.y, torch.tensor(bunch.target))
    assert len(dataset) == len(x)
    assert dataset.feature_names == tuple(bunch.feature_names)
    assert len(dataset.target_names) == dataset.y.max() + 1


def test_digits_are_grey_in_the_unit_interval():
    digits = data.digits()
    assert digits.x.shape == (1797, 64)
    assert digits.x.min() == 0
    assert digits.x.max() == 1
    # Every pixel is scaled alike: one that never reaches full black must not be stretched to it.
    torch.testing.assert_close(digits.x * 16, torch.tensor(load_digits().data).float())


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
