"""Saved models: the same codes and densities in another process, and refusals in words."""

import copy
import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import skops.io
import torch
from safetensors.torch import save_file
from sklearn.compose import ColumnTransformer, make_column_selector
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    MinMaxScaler,
    OneHotEncoder,
    QuantileTransformer,
    StandardScaler,
)
from torch import nn

import vaelib
from vaelib import VAE, checkpoints, data
from vaelib.likelihoods import (
    Bernoulli,
    Categorical,
    Gaussian,
    Likelihood,
    LogCosh,
    Mixed,
    StudentT,
    VaryingSigma,
)
from vaelib.networks import conv, mlp
from vaelib.objectives import ELBO
from vaelib.settings import settings

WIDTH = 8
LIKELIHOODS = {
    "Gaussian": Gaussian,
    "Gaussian, set": lambda: Gaussian(0.3),
    "Gaussian, a column": lambda: Gaussian(torch.linspace(0.1, 1.1, WIDTH)),
    "Gaussian, learned": lambda: Gaussian(torch.full((WIDTH,), 0.7), learn=True),
    "StudentT": lambda: StudentT(0.5, learn=True, df=6.0),
    "Bernoulli": Bernoulli,
    "Categorical": Categorical,
    "LogCosh": lambda: LogCosh(2.5),
    "Mixed": lambda: Mixed((Gaussian(learn=True), 2), (Bernoulli(), 3), (Categorical(), 3)),
}
NETWORKS = {
    "mlp": lambda: mlp(WIDTH, hidden=(6, 5), n_latents=3, activation="tanh"),
    "conv": lambda: conv((WIDTH, WIDTH), n_latents=3),
}
SAVED = Path(__file__).parent / "saved" / "format_1.safetensors"


def rows(network: str, n: int = 5) -> torch.Tensor:
    """What each likelihood can score: a single 1 in each row, in the last three columns."""
    x = torch.zeros(n * (WIDTH if network == "conv" else 1), WIDTH)
    x[range(len(x)), WIDTH - 1 - torch.arange(len(x)) % 3] = 1
    return x.reshape(n, 1, WIDTH, WIDTH) if network == "conv" else x


def trained(network: str, likelihood: str, narrowed: bool = False) -> VAE:
    """As training leaves a model: no number is any more what it was built with."""
    torch.manual_seed(0)
    model = VAE(*NETWORKS[network](), LIKELIHOODS[likelihood]())
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point() and name != "open":
                tensor.add_(0.1 * torch.rand_like(tensor))
    model.open[1] = 0
    model._steps_trained = 7
    return (model.narrowed() if narrowed else model).eval()


def measured(model: VAE, x: torch.Tensor) -> list[torch.Tensor]:
    with torch.no_grad():
        q = model.encode(x)
        return [q.mu, q.logvar, model.decode(q.mu).log_prob(x), model.open]


def same(a: VAE, b: VAE, x: torch.Tensor) -> bool:
    return all(torch.equal(*pair) for pair in zip(measured(a, x), measured(b, x), strict=True))


@pytest.mark.parametrize("narrowed", [False, True], ids=["whole", "narrowed"])
@pytest.mark.parametrize(
    "network, likelihood",
    [(n, each) for n in NETWORKS for each in LIKELIHOODS if (n, each) != ("conv", "Mixed")],
)
def test_a_loaded_model_is_the_saved_one(tmp_path, network, narrowed, likelihood):
    model, x = trained(network, likelihood, narrowed), rows(network)
    vaelib.save(tmp_path / "new" / "model.safetensors", model)
    state = torch.get_rng_state()
    loaded, scaler = vaelib.load(tmp_path / "new" / "model.safetensors")
    assert torch.equal(torch.get_rng_state(), state)
    assert scaler is None and not loaded.training
    assert same(loaded, model, x)
    assert loaded.n_latents == (2 if narrowed else 3)
    assert loaded.steps_trained == model.steps_trained
    assert settings(loaded) == settings(model) and repr(loaded) == repr(model)
    assert [p.requires_grad for p in loaded.parameters()] == [True] * len([*model.parameters()])
    vaelib.save(tmp_path / "again.safetensors", loaded)
    assert same(vaelib.load(tmp_path / "again.safetensors").model, model, x)


def test_every_likelihood_is_among_those_tested():
    """But for the one whose decoder has a last layer of one's own: there, load asks for a model."""

    def kinds(base):
        found = {c for c in base.__subclasses__() if c.__module__.startswith("vaelib.")}
        return found.union(*map(kinds, found))

    public = {each for each in kinds(Likelihood) if not each.__name__.startswith("_")}
    assert {type(make()) for make in LIKELIHOODS.values()} == public - {VaryingSigma}


def test_it_has_the_precision_and_the_memory_of_a_model_just_built(tmp_path):
    model = trained("mlp", "Gaussian").double()
    vaelib.save(tmp_path / "m.safetensors", model)
    loaded = vaelib.load(tmp_path / "m.safetensors").model
    assert same(loaded, model, rows("mlp"))
    owners = {p.untyped_storage().data_ptr() for p in loaded.parameters()}
    assert len(owners) == len([*loaded.parameters()])


def test_it_is_on_the_cpu_whatever_is_torchs_default(tmp_path):
    model = trained("mlp", "Gaussian")
    vaelib.save(tmp_path / "m.safetensors", model)
    with torch.device("meta"):
        loaded = vaelib.load(tmp_path / "m.safetensors").model
    assert {tensor.device.type for tensor in loaded.state_dict().values()} == {"cpu"}
    assert same(loaded, model, rows("mlp"))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_is_saved_as_well(tmp_path, copied):
    model = copied(trained("conv", "Gaussian", narrowed=True))
    vaelib.save(tmp_path / "m.safetensors", model)
    assert same(vaelib.load(tmp_path / "m.safetensors").model, model, rows("conv"))


def test_training_goes_on_as_it_would_have(tmp_path):
    wine = data.wine()
    torch.manual_seed(0)
    model = VAE(*mlp(13), Gaussian(learn=True))

    def train(model):
        vaelib.fit(model, ELBO(), wine.x, steps=10, batch_size=32, progress=False)

    train(model)
    vaelib.save(tmp_path / "wine.safetensors", model, wine.scaler)
    loaded, scaler = vaelib.load(tmp_path / "wine.safetensors")
    assert loaded.steps_trained == 10
    train(model)
    train(loaded)
    assert loaded.steps_trained == 20
    assert same(loaded, model, wine.x)
    assert np.array_equal(scaler.inverse_transform(wine.x), wine.scaler.inverse_transform(wine.x))


IN_A_NEW_PROCESS = """
import pickle, sys
import numpy, sklearn, torch, vaelib, skops.io
def refuse(*args, **kwargs): raise AssertionError("pickle was asked")
pickle.load = pickle.loads = refuse
model, scaler = vaelib.load(sys.argv[1])
x = torch.as_tensor(scaler.transform(numpy.load(sys.argv[2])), dtype=torch.float32)
with torch.no_grad():
    q = model.encode(x)
    answers = torch.cat([q.mu, q.logvar, model.decode(q.mu).log_prob(x)[:, None]], 1)
numpy.save(sys.argv[2], answers.numpy())
"""


def test_a_new_process_gives_the_same_bits_without_pickle(tmp_path):
    wine = data.wine()
    torch.manual_seed(0)
    model = VAE(*mlp(13, hidden=(32,)), Gaussian(0.5))
    vaelib.fit(model, ELBO(), wine.x, steps=20, batch_size=32, progress=False)
    file, numbers = tmp_path / "wine.safetensors", tmp_path / "numbers.npy"
    vaelib.save(file, model, wine.scaler)
    in_units = wine.scaler.inverse_transform(wine.x)
    np.save(numbers, in_units)
    subprocess.run([sys.executable, "-c", IN_A_NEW_PROCESS, file, numbers], check=True)
    x = torch.as_tensor(wine.scaler.transform(in_units), dtype=torch.float32)
    mu, logvar, density, _ = measured(model, x)
    expected = torch.cat([mu, logvar, density[:, None]], 1)
    assert np.array_equal(np.load(numbers), expected.numpy())


# --- scalers ---

FRAME = pd.DataFrame(
    {
        "length": [1.0, 2.5, np.nan, 4.0],
        "weight": [10, 20, 30, 45],
        "kind": ["a", "b", "ü", "a"],
        "sex": pd.Categorical(["f", "m", "m", "f"]),
    }
)
NUMBERS = FRAME[["weight"]].to_numpy(float)


def numbers_and_names(*columns) -> ColumnTransformer:
    numbers = make_pipeline(SimpleImputer(), StandardScaler())
    names = OneHotEncoder(sparse_output=False)
    return ColumnTransformer([("n", numbers, columns[0]), ("k", names, columns[1])])


SCALERS = {
    "standard": (StandardScaler(), NUMBERS),
    "range": (MinMaxScaler(), NUMBERS),
    "ranks": (QuantileTransformer(n_quantiles=3), NUMBERS),
    "identity": (FunctionTransformer(), NUMBERS),
    "logarithm": (FunctionTransformer(np.log1p, np.expm1), NUMBERS),
    "one-hot": (OneHotEncoder(sparse_output=False), FRAME[["kind", "sex"]]),
    "columns": (numbers_and_names(["length", "weight"], ["kind", "sex"]), FRAME),
    "columns by type": (
        numbers_and_names(
            make_column_selector(dtype_include=np.number),
            make_column_selector(dtype_exclude=np.number),
        ),
        FRAME,
    ),
}


@pytest.mark.parametrize("name", SCALERS)
def test_scalers_come_back_without_pickle(tmp_path, monkeypatch, name):
    scaler, table = SCALERS[name]
    scaler.fit(table)

    def refuse(*args, **kwargs):
        raise AssertionError("pickle was asked")

    for function in ("dump", "dumps", "load", "loads"):
        monkeypatch.setattr(pickle, function, refuse)
    path = tmp_path / "m.safetensors"
    vaelib.save(path, trained("mlp", "Gaussian"), scaler)
    loaded = vaelib.load(path).scaler
    x = scaler.transform(table)
    assert np.array_equal(loaded.transform(table), x)
    if hasattr(scaler, "inverse_transform"):
        assert np.array_equal(loaded.inverse_transform(x), scaler.inverse_transform(x))
    # How a pickle starts that numpy or joblib would write, in protocols 2 to 5.
    found = path.read_bytes()
    assert not any(bytes([0x80, protocol, 0x95]) in found for protocol in (4, 5))
    assert not any(bytes([0x80, protocol]) + b"c" in found for protocol in (2, 3))


class Own(StandardScaler):
    pass


@pytest.mark.parametrize(
    "scaler, named",
    [
        (Own().fit(NUMBERS), "test_files.Own"),
        (FunctionTransformer(lambda x: x), "lambda"),
        (data.wine(), "a Dataset"),
        (iter([]), "list_iterator"),
    ],
    ids=["class", "function", "data set", "nothing of the kind"],
)
def test_scalers_that_would_need_pickle_are_refused_before_writing(tmp_path, scaler, named):
    path = tmp_path / "m.safetensors"
    with pytest.raises(TypeError, match=rf"(?s){named}.*scikit-learn's, such as"):
        vaelib.save(path, trained("mlp", "Gaussian"), scaler)
    assert not path.exists()


def test_a_scaler_of_an_untrusted_type_is_not_let_in(tmp_path):
    path = tmp_path / "m.safetensors"
    vaelib.save(path, trained("mlp", "Gaussian"))
    tree, header = checkpoints.load(path)
    frozen = skops.io.dumps(Own().fit(NUMBERS))
    tree["scaler"] = torch.frombuffer(bytearray(frozen), dtype=torch.uint8)
    checkpoints.save(path, tree, header)
    with pytest.raises(ValueError, match=r"m.safetensors: the scaler is not let in.*Own"):
        vaelib.load(path)


def test_without_skops_only_scalers_are_out_of_reach(tmp_path, monkeypatch):
    path = tmp_path / "m.safetensors"
    monkeypatch.setitem(sys.modules, "skops.io", None)
    vaelib.save(path, trained("mlp", "Gaussian"))
    vaelib.load(path)
    with pytest.raises(ImportError, match="pip install skops"):
        vaelib.save(path, trained("mlp", "Gaussian"), StandardScaler())


# --- what a file cannot describe ---


class OwnEncoder(nn.Module):
    n_latents = 2

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale
        self.layer = nn.Linear(WIDTH, 4)
        self.twin = self.layer  # two names for one tensor

    def forward(self, x):
        return (self.scale * self.layer(x)).chunk(2, -1)


class OwnLikelihood(Gaussian):
    pass


class OwnVAE(VAE):
    pass


def with_dropout() -> VAE:
    model = VAE(*mlp(WIDTH))
    model.encoder.body.append(nn.Dropout())
    return model


def with_one_sigma_for_two() -> VAE:
    sigma = Gaussian(learn=True)
    return VAE(*mlp(WIDTH), Mixed((sigma, 5), (sigma, 3)))


def with_parts_that_share() -> VAE:
    model = VAE(*mlp(WIDTH, hidden=(5,), batch_norm=False))
    model.decoder.body[0].bias = model.encoder.body[0].bias
    return model


OWN = {
    "encoder": (lambda: VAE(OwnEncoder(), mlp(WIDTH)[1]), "encoder (test_files.OwnEncoder)"),
    "likelihood": (
        lambda: VAE(*mlp(WIDTH), OwnLikelihood()),
        "likelihood (test_files.OwnLikelihood)",
    ),
    "part of a mixed one": (
        lambda: VAE(*mlp(WIDTH), Mixed((OwnLikelihood(), WIDTH))),
        "likelihood (vaelib.likelihoods.Mixed)",
    ),
    "model": (lambda: OwnVAE(*mlp(WIDTH)), "model (test_files.OwnVAE)"),
    "one σ for two": (with_one_sigma_for_two, "likelihood (vaelib.likelihoods.Mixed)"),
    "shared weights": (with_parts_that_share, "model (vaelib.vae.VAE)"),
    "changed": (with_dropout, "encoder (vaelib.networks.Encoder)"),
}


@pytest.mark.parametrize("name", OWN)
def test_what_is_ones_own_is_said_and_fills_a_model_that_is_passed(tmp_path, name):
    make, words = OWN[name]
    path, model = tmp_path / "m.safetensors", make().eval()
    model._steps_trained = 5
    with pytest.warns(UserWarning) as warned:
        vaelib.save(path, model)
    (warning,) = warned
    assert words in str(warning.message) and f"vaelib.load('{path}', model)" in str(warning.message)
    with pytest.raises(ValueError) as refused:
        vaelib.load(path)
    assert words in str(refused.value) and f"vaelib.load('{path}', model)" in str(refused.value)
    given = make()
    loaded = vaelib.load(path, given).model
    assert loaded is given and loaded.steps_trained == 5 and not loaded.training
    assert same(loaded, model, rows("mlp"))
    assert len([*loaded.parameters()]) == len([*model.parameters()])


@pytest.mark.parametrize(
    "given, words",
    [
        (lambda: VAE(*mlp(WIDTH, hidden=(6, 4), n_latents=3)), "activation: tanh in the file"),
        (lambda: VAE(*NETWORKS["mlp"](), Bernoulli()), "likelihood.made by: .*Gaussian"),
        (lambda: VAE(OwnEncoder(), NETWORKS["mlp"]()[1]), "encoder.layer.weight: None in the file"),
        (lambda: VAE(*NETWORKS["mlp"]()).double(), "torch.float32 .* in the file, torch.float64"),
    ],
    ids=["activation", "likelihood", "weights", "precision"],
)
def test_a_model_that_does_not_fit_is_refused_and_left_alone(tmp_path, given, words):
    path, model = tmp_path / "m.safetensors", given()
    vaelib.save(path, trained("mlp", "Gaussian"))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=rf"is of another model: .*{words}"):
        vaelib.load(path, model)
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())


# --- files that are none, or of another kind ---


def test_the_file_of_this_version_stays_readable():
    """Made by tests/saved/make.py. Never renew it: a new format gets a file of its own."""
    model, scaler = vaelib.load(SAVED)
    expected = json.loads(SAVED.with_suffix(".json").read_text("utf-8"))
    x = torch.tensor(scaler.transform(expected["rows"]), dtype=torch.float32)
    mu, _, density, _ = measured(model, x)
    torch.testing.assert_close(mu, torch.tensor(expected["codes"]))
    torch.testing.assert_close(density, torch.tensor(expected["log densities"]))
    assert model.steps_trained == expected["steps trained"]
    assert repr(model) == expected["model"]
    assert SAVED.stat().st_size < 20_000


def altered(path: Path, **changes) -> Path:
    """The file of a model whose header says something else."""
    vaelib.save(path, trained("mlp", "Gaussian"))
    tree, header = checkpoints.load(path)
    checkpoints.save(path, tree, header | changes)
    return path


def test_a_later_format_is_refused(tmp_path):
    path = altered(tmp_path / "m.safetensors", format=2, parts=None)
    with pytest.raises(ValueError, match=r"later vaelib, in format 2, .* up to 1; upgrade"):
        vaelib.load(path)


@pytest.mark.parametrize(
    "maker",
    [
        "os.system",
        "builtins.eval",
        "vaelib.files.save",
        "vaelib.data.dsprites",
        "vaelib.networks.os",
    ],
)
def test_nothing_is_called_but_vaelibs_makers(tmp_path, monkeypatch, maker):
    called = []
    monkeypatch.setattr("os.system", lambda *args, **kwargs: called.append(args))
    monkeypatch.setattr("vaelib.files.save", lambda *args, **kwargs: called.append(args))
    harm = {"made by": maker, "arguments": {"command": "true"}}
    parts = dict.fromkeys(("encoder", "decoder", "likelihood"), harm)
    path = altered(tmp_path / "m.safetensors", parts=parts)
    with pytest.raises(ValueError, match=f"cannot build .*nothing called {maker}"):
        vaelib.load(path)
    assert not called


@pytest.mark.parametrize("change", [{"n_features": 9}, {"stride": 2}])
def test_arguments_that_do_not_fit_are_refused(tmp_path, change):
    """As where a later version has other arguments, or builds other layers from them."""
    path = tmp_path / "m.safetensors"
    vaelib.save(path, trained("mlp", "Gaussian"))
    parts = checkpoints.load(path)[1]["parts"]
    parts["encoder"]["arguments"] |= change
    with pytest.raises(ValueError, match=r"cannot build the model in .*m\.safetensors"):
        vaelib.load(altered(path, parts=parts))


def test_a_checkpoint_and_a_saved_model_are_told_apart(tmp_path):
    run, saved = tmp_path / "run.safetensors", tmp_path / "model.safetensors"
    model = VAE(*mlp(13))

    def train(path):
        x = data.wine().x
        vaelib.fit(model, ELBO(), x, steps=2, batch_size=9, checkpoint=path, progress=False)

    train(run)
    vaelib.save(saved, model)
    with pytest.raises(ValueError, match=r"is a checkpoint of training.*fit or fit_seeds"):
        vaelib.load(run)
    with pytest.raises(ValueError, match="holds no run"):
        train(saved)


def cut(path):
    vaelib.save(path, trained("mlp", "Gaussian"))
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    "write",
    [
        lambda path: path.write_bytes(b""),
        cut,
        lambda path: path.write_text("a,b\n1,2\n"),
        lambda path: torch.save({}, path),
        lambda path: save_file({"x": torch.ones(2)}, path),
        lambda path: checkpoints.save(path, {"x": torch.ones(2)}, {}),
    ],
    ids=["empty", "cut", "table", "torch", "safetensors", "vaelib's"],
)
def test_foreign_files_are_refused_by_name(tmp_path, write):
    path = tmp_path / "m.safetensors"
    write(path)
    with pytest.raises(ValueError, match=r"m\.safetensors .*name another"):
        vaelib.load(path)


def test_places_that_are_no_files_are_refused(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"there is no file .*nowhere"):
        vaelib.load(tmp_path / "nowhere")
    for act in (vaelib.load, lambda path: vaelib.save(path, trained("mlp", "Gaussian"))):
        with pytest.raises(IsADirectoryError, match="name a file in it"):
            act(tmp_path)
    monkeypatch.chdir(tmp_path)
    vaelib.save("m.safetensors", trained("mlp", "Gaussian"))  # in the folder where we are
    vaelib.load("m.safetensors")


def test_what_is_no_model_is_refused(tmp_path):
    path, model = tmp_path / "m.safetensors", trained("mlp", "Gaussian")
    for wrong in (ELBO(), model.state_dict(), model.encoder, VAE):
        with pytest.raises(TypeError, match="pass the trained VAE itself"):
            vaelib.save(path, wrong)
    with pytest.raises(TypeError, match="path is a VAE; it comes first"):
        vaelib.save(model, path)
    vaelib.save(path, model)
    with pytest.raises(TypeError, match="pass the VAE that is to be filled"):
        vaelib.load(path, model.encoder)
    assert [each.name for each in tmp_path.iterdir()] == [path.name]
