import subprocess
import sys

import pytest
import torch
from sklearn.datasets import load_breast_cancer, load_digits, load_wine

from vaelib import data


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


def test_importing_vaelib_brings_neither_scikit_learn_nor_a_downloader():
    heavy = "{'sklearn', 'pooch', 'requests'} & set(sys.modules)"
    code = f"import sys, vaelib, vaelib.sprites; sys.exit(str({heavy}) if {heavy} else 0)"
    subprocess.run([sys.executable, "-c", code], check=True)
