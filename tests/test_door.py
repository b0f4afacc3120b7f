"""What people bring: arrays, frames, other types. Right, or refused in words that help."""

import warnings

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from scipy import sparse
from sklearn.datasets import load_wine
from sklearn.preprocessing import OneHotEncoder

import vaelib
from vaelib import VAE, data, door, fit, fit_seeds, metrics
from vaelib.likelihoods import Bernoulli, Categorical, Gaussian
from vaelib.networks import conv, mlp
from vaelib.objectives import ELBO, OptimalSigma

RUN = {"steps": 6, "batch_size": 16, "progress": False}
TABLE = np.random.default_rng(0).integers(0, 5, (40, 5)).astype(float)
X = torch.tensor(TABLE).float()


def model(n_features=5, likelihood=None):
    torch.manual_seed(0)
    return VAE(*mlp(n_features), likelihood)


FORMS = {
    "doubles": TABLE,
    "a tensor of doubles": torch.tensor(TABLE),
    "whole numbers": TABLE.astype(int),
    "a tensor of whole numbers": torch.tensor(TABLE).int(),
    "bytes": TABLE.astype(np.uint8),
    "half precision": torch.tensor(TABLE).half(),
    "bfloat16": torch.tensor(TABLE).bfloat16(),
    "big-endian": TABLE.astype(">f4"),
    "backwards": TABLE[::-1].copy()[::-1],
    "lists": TABLE.tolist(),
    "a list of tensors": [*X],
    "objects": TABLE.astype(object),
    "pandas": pd.DataFrame(TABLE, columns=[*"abcde"]),
    "pandas, mixed": pd.DataFrame(TABLE).astype({0: int, 1: "Int64", 2: "float32"}),
    "pandas, names that repeat": pd.DataFrame(TABLE, columns=[*"aabbc"]),
    "polars": pl.DataFrame(TABLE),
    "polars, mixed": pl.DataFrame(TABLE).cast({"column_0": pl.Int8, "column_1": pl.Float32}),
    "masked, nothing masked": np.ma.masked_array(TABLE),
    "read-only": np.broadcast_to(TABLE, TABLE.shape),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_table_of_numbers_is_the_same_at_every_door(form):
    x, vae = FORMS[form], model()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        eps = torch.zeros(40, 2)
        assert torch.equal(vae(x, eps).reconstruction, vae(X, eps).reconstruction)
        assert torch.equal(vae.encode(x).mu, vae.encode(X).mu)
        Gaussian().check(x)
        assert torch.equal(ELBO()(vae, x, eps)["loss"], ELBO()(vae, X, eps)["loss"])
        assert torch.equal(metrics.active_units(vae, x), metrics.active_units(vae, X))
        noise = torch.zeros(3, 40, 2)
        bounds = [metrics.iwae_bound(vae, each, 3, eps=noise) for each in (x, X)]
        assert torch.equal(*bounds)
        assert metrics.beta_eff(vae, ELBO(), x) == metrics.beta_eff(vae, ELBO(), X)
        trust = [metrics.trustworthiness(each, X[:, :2]) for each in (x, X)]
        assert trust[0] == pytest.approx(trust[1])
        assert metrics.knn_accuracy(x, TABLE[:, 0]) == metrics.knn_accuracy(X, X[:, 0])
        histories = [fit(model(), ELBO(), each, **RUN) for each in (x, X)]
        np.testing.assert_array_equal(*[each["loss"] for each in histories])
        runs = fit_seeds(lambda: VAE(*mlp(5)), ELBO(), x, seeds=[0], held_out=x, **RUN)
    np.testing.assert_allclose(runs.history["loss"][0], histories[0]["loss"], rtol=1e-4)


def test_bits_may_be_booleans():
    bits = TABLE > 2
    frame = pd.get_dummies(pd.DataFrame({"a": [*"xyzx"] * 10, "n": range(40)}))
    vae = model(likelihood=Bernoulli())
    assert torch.equal(vae.encode(bits).mu, vae.encode(torch.tensor(bits).float()).mu)
    assert door.as_tensor(frame.values).shape == (40, 4)  # objects: whole numbers and booleans
    assert door.as_tensor(pd.DataFrame(bits)).dtype == torch.float32


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (pd.DataFrame({"n": [1.0, 2], "make": ["ford", "opel"]}), r"column 'make' of x is 'ford'"),
        (pl.DataFrame({"n": [1.0, 2], "make": ["ford", "opel"]}), r"column 'make'.*OneHotEncoder"),
        (np.array([["1", "2"]]), "x is of type <U1.*OneHotEncoder"),
        ([[1, "b"]], "x is of type <U"),
        (np.array([[1, "b"]], object), r"x is 'b' at \[0, 1\], which is no number"),
        (pd.DataFrame({"d": pd.to_datetime(["2020-01-01"])}), "column 'd' of x holds dates.*days"),
        (np.zeros((2, 2), complex), "x is of type complex128.*real"),
        (sparse.csr_matrix(np.eye(3)), r"sparse csr_matrix; pass x\.toarray\(\)"),
        (torch.eye(3).to_sparse(), r"sparse tensor; pass x\.to_dense\(\)"),
        (data.wine(), r"x is a whole Dataset; pass its rows, x\.x"),
        (load_wine(), r"x is a whole Bunch; pass its rows, x\.data"),
        ({"a": [1, 2]}, "x is a dict; pass the data themselves"),
        (None, "x is a NoneType; pass the data themselves"),
        ("train.csv", "x is a str; pass the data themselves"),
        (iter([1]), "pass the data themselves"),
        (torch.utils.data.DataLoader(X), "x is a DataLoader; pass the data themselves"),
    ],
)
def test_what_holds_no_numbers_is_refused_with_the_remedy(x, message):
    for take in (
        model(),
        model().encode,
        Gaussian().check,
        lambda x: fit(model(), ELBO(), x, **RUN),
    ):
        with pytest.raises(TypeError, match=message):
            take(x)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (X[0], r"x has shape \(5,\).*reshape\(1, -1\) is one sample"),
        (pd.Series([1.0, 2]), r"x has shape \(2,\).*reshape\(-1, 1\) a single column"),
        (torch.tensor(3.0), r"x has shape \(\): pass a table"),
        (X[:0], r"x has shape \(0, 5\), and so no numbers"),
        (pd.DataFrame({"a": []}), "no numbers"),
        ([[1, 2], [3]], "the rows of x differ in length"),
        (X[:, :4], "x has 4 columns.*built for 5.*n_features=4"),
        (torch.zeros(16, 1, 32, 32), r"pass x\.flatten\(1\), and build it with n_features=1024"),
        (torch.zeros(16, 7, 5), r"n_features=35"),
        (X.reshape(40, 5, 1), r"built for \(B, 5\); pass x\.flatten\(1\)$"),
        (torch.zeros(4, 5, device="meta"), r"x is on meta, the model on cpu.*x\.to\('cpu'\)"),
        (np.where(TABLE > 3, np.nan, TABLE), r"x\[\d, \d\] is nan"),
        (np.ma.masked_array(TABLE, TABLE > 3), r"x\[\d, \d\] is nan"),
        (pd.DataFrame(TABLE).astype("Int64").replace(4, pd.NA), r"x\[\d, \d\] is nan"),
        (pl.DataFrame({c: [1.0, None] for c in "abcde"}), r"x\[1, 0\] is nan"),
        (X.double() * 1e300, r"is inf"),
    ],
)
def test_shapes_and_gaps_are_refused_with_the_remedy(x, message):
    for take in (model(), model().encode, lambda x: fit(model(), ELBO(), x, **RUN)):
        with warnings.catch_warnings(), pytest.raises(ValueError, match=message):
            warnings.simplefilter("ignore")
            take(x)


def test_images_are_refused_with_the_way_to_turn_them():
    vae = VAE(*conv(8, channels=3, n_latents=2))
    for shape, remedy in {
        (4, 192): r"pass x\.reshape\(-1, 3, 8, 8\)$",
        (4, 8, 8, 3): r"channels come first; pass x\.permute\(0, 3, 1, 2\)",
        (3, 8, 8): r"one sample; pass a batch of it, x\[None\]",
        (4, 1, 8, 8): "build it with image_size and channels that fit",
    }.items():
        with pytest.raises(ValueError, match=remedy):
            vae.encode(torch.zeros(shape))


def test_metrics_refuse_what_would_answer_wrongly():
    holes = X.clone()
    holes[3, 1] = torch.nan
    with pytest.raises(ValueError, match=r"x\[3, 1\] is nan"):
        metrics.active_units(model(), holes)
    with pytest.raises(ValueError, match=r"z\[3, 1\] is nan"):
        metrics.knn_accuracy(holes, X[:, 0])
    with pytest.raises(ValueError, match="y has shape \\(39,\\); pass a class for each of 40 rows"):
        metrics.knn_accuracy(X, X[:39, 0])
    with pytest.raises(ValueError, match="k is 40; with 40 rows it must lie between 1 and 39"):
        metrics.knn_accuracy(X, X[:, 0], k=40)
    with pytest.raises(ValueError, match="k is 20; with 40 rows it must lie between 1 and 19"):
        metrics.trustworthiness(X, X, k=20)
    with pytest.raises(ValueError, match="x has 40 rows, z 39"):
        metrics.trustworthiness(X, X[:39])


def test_classes_may_have_any_names():
    wine = data.wine()
    names = np.array(wine.target_names)[wine.y]
    expected = metrics.knn_accuracy(wine.x, wine.y)
    assert (
        metrics.knn_accuracy(wine.x, names) == metrics.knn_accuracy(wine.x, wine.y - 7) == expected
    )


def test_one_hot_code_without_a_class_is_refused_with_the_encoder_s_settings():
    kinds = np.array([["a"], ["b"], ["c"]])
    for encoder in (OneHotEncoder(drop="first"), OneHotEncoder(handle_unknown="ignore")):
        encoder.fit(kinds)
        rows = encoder.transform(np.array([["a"], ["b"]] if encoder.drop else [["z"]])).toarray()
        with pytest.raises(ValueError, match="drop=None and handle_unknown='error'"):
            Categorical().check(rows)


def test_a_column_that_float32_merges_is_named():
    seconds = 1.7e9 + np.arange(200.0)
    with pytest.warns(UserWarning, match="column 1 of x has 200 values, of which 3 are left in fl"):
        door.as_tensor(np.c_[TABLE[:, 0].repeat(5), seconds])
    with pytest.warns(UserWarning, match="column 0 of x"):
        door.as_tensor(torch.arange(20_000_000, 20_000_050)[:, None])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        door.as_tensor(np.random.default_rng(0).normal(size=(100_000, 2)))
        door.as_tensor(seconds[:, None], torch.empty(0, dtype=torch.float64))
        door.as_tensor((seconds - seconds.mean())[:, None])
    assert not caught


def test_data_of_another_scale_than_sigma_are_named_at_the_first_report():
    grey = torch.tensor(load_wine().data).float() * 100
    with pytest.warns(UserWarning, match=r"σ is 1, while.*standard deviation of \d.*standardise"):
        fit(model(13), ELBO(), grey, **RUN)
    with pytest.warns(UserWarning, match=r"standard deviation of 0\.0"):
        fit(model(), ELBO(), X / 1e3, **RUN)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(model(13), OptimalSigma(), grey, **RUN)  # finds its own
        fit(model(13, Gaussian(1e4)), ELBO(), grey, **RUN)  # was told
        fit(model(), ELBO(), X, **RUN)
    assert not caught


def test_numbers_that_an_objective_admits_itself_have_no_scale():
    class Numbered(ELBO):
        def admit(self, model, numbers, **how):
            return numbers

        def forward(self, model, numbers, eps=None):
            return super().forward(model, X[numbers[:, 0].long()], eps)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(model(), Numbered(), torch.arange(40.0)[:, None], **RUN)
    assert not caught


def test_numpy_s_whole_numbers_are_whole_numbers():
    n = np.int64
    vae = VAE(*mlp(n(5), (n(8),), n(2)))
    run = {"steps": n(6), "batch_size": n(16), "report_every": n(2), "progress": False}
    fit(vae, ELBO(), X, seed=n(3), held_out=X, patience=n(2), **run)
    assert vae.steps_trained == 6
    fit_seeds(lambda: VAE(*mlp(5)), ELBO(), X, seeds=np.arange(2), **run)
    VAE(*conv(np.int32(8), n(1), n(2)))
    metrics.iwae_bound(vae, X, n(2))
    assert metrics.knn_accuracy(X, X[:, 0], k=n(3)) <= 1
    assert len(data.sprites(n(3), size=n(8), seed=n(1))) == 3
    assert len(data.mixed(n(20), seed=n(1))) == 20
    vaelib.schedules.Warmup(steps=n(3)).begin(n(5))
    vaelib.gates.Gates(n(3))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"steps": 10.5}, TypeError, "steps is 10.5; pass a whole number"),
        ({"steps": 0}, ValueError, "steps is 0"),
        ({"batch_size": "32"}, TypeError, "batch_size is '32'"),
        ({"seed": 1.5}, TypeError, "seed is 1.5"),
        ({"report_every": 0}, ValueError, "report_every is 0"),
        ({"report_every": -1}, ValueError, "report_every is -1"),
        ({"lr": 0}, ValueError, "lr is 0"),
        ({"lr": float("nan")}, ValueError, "lr is nan"),
        ({"patience": 0, "held_out": X}, ValueError, "patience is 0"),
        ({"patience": 3}, ValueError, "pass held_out as well"),
        ({"batch_size": 1}, ValueError, "batch norm needs two samples.*batch_norm=False"),
        ({"objective": ELBO}, TypeError, r"is the class ELBO; pass an instance"),
        ({"objective": torch.nn.MSELoss()}, TypeError, "is a MSELoss"),
        ({"model": VAE}, TypeError, "the model is the class VAE"),
        ({"model": mlp(5)}, TypeError, r"the model is a tuple; pass a VAE"),
    ],
)
def test_arguments_of_another_kind_are_refused(changes, error, message):
    call = {"model": model(), "objective": ELBO(), "x": X, **RUN, **changes}
    with pytest.raises(error, match=message):
        fit(**call)


def test_a_model_in_bfloat16_reports():
    vae = model().bfloat16()
    history = fit(vae, ELBO(), TABLE, **RUN)
    assert history["loss"].dtype == np.float32 and np.isfinite(history["loss"]).all()


def test_large_data_are_measured_in_batches(monkeypatch):
    """The same numbers, from no more than so many at a time."""
    vae, eps = model().eval(), torch.randn(3, 40, 2)
    whole = metrics.iwae_bound(vae, X, 3, eps), metrics.active_units(vae, X)
    weight, trust = (
        metrics.beta_eff(vae, ELBO(0.3), X),
        metrics.trustworthiness(X, vae.encode(X).mu),
    )
    seen = []
    vae.encoder.register_forward_hook(lambda _, x, __: seen.append(len(x[0])))
    monkeypatch.setattr(door, "BATCH", 35)
    parts = metrics.iwae_bound(vae, X, 3, eps), metrics.active_units(vae, X)
    torch.testing.assert_close(parts, whole)
    assert metrics.beta_eff(vae, ELBO(0.3), X) == pytest.approx(weight, rel=1e-5)
    assert max(seen) == 7
    from sklearn import manifold

    expected = manifold.trustworthiness(X.numpy(), vae.encode(X).mu.detach().numpy())
    assert trust == pytest.approx(expected, abs=1e-12)


def test_generated_rows_are_whole_where_the_data_are_and_say_where_they_leave_their_range():
    wine = data.wine()
    whole = wine.feature_names.index("proline")
    rows = wine.x[:5] + 0.01
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        measured = wine.as_measured(rows)
    assert torch.equal(measured[:, whole], measured[:, whole].round())
    assert torch.equal(measured[:, 0], wine.original(rows)[:, 0])
    with pytest.warns(UserWarning, match=r"outside the range.*proline \(5\)"):
        wine.as_measured(rows + 10)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.bool, torch.float32])
def test_what_follows_no_model_stays_on_its_device(dtype):
    """As where a likelihood without weights of its own looks at data on a card."""
    x = torch.zeros(4, 5, dtype=dtype, device="meta")
    assert door.as_tensor(x, bytes_stay=True).device == x.device
