"""What things were made of."""

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from vaelib import VAE, data, fit
from vaelib.gates import Gates
from vaelib.likelihoods import Gaussian, Mixed
from vaelib.networks import conv, mlp
from vaelib.objectives import ELBO, ComputedGamma, Narrowing
from vaelib.schedules import Warmup
from vaelib.settings import differences, settings

X = data.wine().x
RUN = {"steps": 20, "batch_size": 32, "progress": False}


def make(likelihood=None, **changes):
    torch.manual_seed(0)
    return VAE(*mlp(13, **changes), likelihood)


def test_reprs_tell_what_a_thing_was_made_of_and_is_now():
    assert repr(make()) == "VAE(mlp(n_features=13, n_latents=2), Gaussian(sigma=1), 2 latents)"
    model = make(Gaussian(torch.ones(13), learn=True))
    assert "Gaussian(sigma=[1, 1, 1, …], learn=True)" in repr(model)
    assert repr(ELBO(0.3, Warmup(fraction=0.5))) == "ELBO(beta=0.3, schedule=Warmup(fraction=0.5))"
    narrowing = Narrowing(20, push=2.0)
    assert repr(narrowing) == "Narrowing(tau=20, push=2, highest=50)"
    model = make()
    model.open[0] = 0
    assert "1 of 2 latents open" in repr(model)
    objective = ComputedGamma()
    fit(model, objective, X, **RUN)
    assert f"Gaussian(sigma={model.likelihood.sigma:.4g})" in repr(model)


def test_settings_are_arguments_and_attributes_and_parts():
    class Own(ELBO):
        def __init__(self, kind, *, scale=2.0):
            super().__init__(0.5)
            self.offset, self.scale = 3, scale

    found = settings(Own(len))
    assert found["made by"].endswith("Own")
    assert (found["kind"], found["scale"], found["offset"]) == ("builtins.len", 2.0, 3)
    assert found["schedule"] == {"made by": "vaelib.schedules.Schedule"}
    assert settings(Own(len)) == found != settings(Own(len, scale=1.0))
    assert "training" not in found


def test_large_tensors_are_told_by_a_checksum():
    one, other = (settings(torch.full((2000,), value)) for value in (1.0, 2.0))
    assert one["shape"] == [2000] and one != other == settings(torch.full((2000,), 2.0))
    assert settings(torch.ones(2)) == settings(np.ones(2)) == [1.0, 1.0]


def test_differences_name_the_place_and_both_values():
    old = {"a": {"b": [1, 2], "c": None}, "d": "x" * 99}
    new = {"a": {"b": [1, 3], "c": 0.5}, "d": "y"}
    assert differences(old, new) == [
        "a.b.1: 2 in the file, 3 here",
        "a.c: None in the file, 0.5 here",
        f"d: {'x' * 59}… in the file, y here",
    ]
    assert differences(old, old) == []
    assert differences({"a": [1]}, {"a": [1, 2]}) == ["a: [1] in the file, [1, 2] here"]


def test_a_copy_remembers_too_and_pickles():
    objective = Narrowing(20, push=2.0)
    for again in (copy.deepcopy(objective), pickle.loads(pickle.dumps(objective))):
        assert settings(again) == settings(objective)
    model = pickle.loads(pickle.dumps(make(activation="silu")))
    assert repr(model).startswith("VAE(mlp(n_features=13, n_latents=2, activation='silu')")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ELBO("1"), "beta of ELBO is '1'; pass a number"),
        (lambda: ELBO(1, 0.5), "schedule of ELBO is 0.5; pass a Schedule or None"),
        (lambda: mlp(5.0), "n_features of mlp is 5.0; pass a whole number"),
        (lambda: mlp(5, 8), "hidden of mlp is 8; pass a sequence, each a whole number"),
        (lambda: conv("64"), "image_size of conv is '64'; pass a whole number or a pair of a w"),
        (lambda: Gaussian("a"), "sigma of Gaussian is 'a'; pass a number or a Tensor"),
        (
            lambda: Mixed(Gaussian(), 5),
            r"parts of Mixed is Gaussian\(sigma=1\); pass a pair of a L",
        ),
        (lambda: Gates(2.5), "n of Gates is 2.5; pass a whole number"),
        (lambda: Warmup(steps="5"), "steps of Warmup is '5'; pass a whole number or None"),
        (lambda: VAE(nn.Linear(5, 2), nn.Linear(2, 5)), "Linear, has no n_latents.*networks.mlp"),
    ],
)
def test_arguments_of_another_kind_are_refused_by_name(make, message):
    with pytest.raises(TypeError, match=message):
        make()


def test_numbers_of_numpy_and_torch_are_numbers():
    assert ELBO(np.float32(0.5)).beta == ELBO(torch.tensor(0.5)).beta == 0.5
    assert mlp(np.int64(5), [np.int8(3)])[0].n_latents == 2


def test_a_class_of_one_s_own_may_say_what_it_likes():
    class Mine(ELBO):
        def __init__(self, beta: "no such kind" = "1") -> None:  # noqa: F722
            super().__init__(float(beta))

    assert Mine().beta == 1
