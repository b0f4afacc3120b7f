import hashlib
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import requests
import torch
from sklearn.datasets import load_breast_cancer, load_digits, load_sample_images, load_wine

from vaelib import data, likelihoods
from vaelib import sprites as drawn


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


def test_patches_are_cut_from_both_photographs():
    found = data.patches(n=200, size=6)
    assert found.x.shape == (200, 36)
    assert found.target_names == ("china", "flower")
    assert found.y.tolist() == [0] * 100 + [1] * 100
    for photograph, image in enumerate(load_sample_images().images):
        grey = torch.tensor(image.mean(-1) / 255).float()
        places = grey.unfold(0, 6, 1).unfold(1, 6, 1).reshape(-1, 36)
        patches = found.x[found.y == photograph]
        assert max((places - patch).abs().amax(1).min() for patch in patches[:5]) < 1e-6
        assert len(patches.unique(dim=0)) > 95
    assert torch.equal(found.x, data.patches(n=200, size=6).x)
    assert not torch.equal(found.x, data.patches(n=200, size=6, seed=1).x)


def test_patches_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="size is 428; pass 1 … 427"):
        data.patches(size=428)
    with pytest.raises(ValueError, match="n is 3; pass an even number"):
        data.patches(n=3)
    with pytest.raises(ValueError, match=r"n is 430; pass an even number.* of at most 428"):
        data.patches(n=430, size=427)


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


def test_sprites_are_a_random_subset_with_their_factors():
    found = data.sprites(300, size=32, seed=4)
    assert found.x.shape == (300, 1, 32, 32)
    assert found.x.dtype == torch.float32
    assert found.x.unique().tolist() == [0, 1]
    assert len(found.feature_names) == 32 * 32
    images = drawn.render(found.factors.double(), 32)[:, None]
    # The factors are float32, so now and then a pixel on an edge falls to the other side.
    assert (images != found.x).float().mean() < 1e-4
    assert torch.equal(found.y, found.factors[:, 0].long() - 1)
    assert found.target_names == ("square", "ellipse", "heart")
    # Chosen over the whole data set, none twice, by the seed alone.
    assert len(found.factors.unique(dim=0)) == 300
    assert [len(column.unique()) for column in found.factors.T] == [3, 6, 40, 32, 32]
    assert torch.equal(found.factors, data.sprites(300, size=8, seed=4).factors)
    assert not torch.equal(found.factors, data.sprites(300, size=8, seed=5).factors)
    with pytest.raises(ValueError, match="n is 0; pass 1 … 737280"):
        data.sprites(0)


class Server(BaseHTTPRequestHandler):
    """Serves one file, in ranges where asked, and breaks off where told to."""

    body = b""
    ranges = True
    breaks_after = None
    requests: list[str]

    def do_GET(self):
        asked = self.headers.get("Range", "bytes=0-")
        self.requests.append(asked)
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if self.ranges else 0
        if start >= len(self.body):
            self.send_error(416)
            return
        self.send_response(206 if self.ranges else 200)
        self.send_header("Content-Length", str(len(self.body) - start))
        self.end_headers()
        self.wfile.write(self.body[start:][: self.breaks_after])

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """A file in the original's format, of every 7,001st image; its metadata are a pickle too."""
    index = torch.arange(0, drawn.N_IMAGES, 7001)
    path = tmp_path_factory.mktemp("original") / "small.npz"
    np.savez_compressed(
        path,
        metadata=np.array({"filler": np.random.default_rng(0).bytes(400_000)}, dtype=object),
        imgs=drawn.render(drawn.values(index)).numpy(),
        latents_classes=np.insert(drawn.classes(index).numpy(), 0, 0, axis=1),
        latents_values=np.insert(drawn.values(index).numpy(), 0, 1, axis=1),
    )
    return index, path.read_bytes()


@pytest.fixture
def server(archive, monkeypatch):
    class Here(Server):
        body = archive[1]
        requests = []  # noqa: RUF012 (one list for all requests is what is wanted)

    with ThreadingHTTPServer(("127.0.0.1", 0), Here) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setattr(
            data, "DSPRITES_URL", f"http://127.0.0.1:{server.server_port}/small.npz"
        )
        monkeypatch.setattr(data, "DSPRITES_SHA256", hashlib.sha256(Here.body).hexdigest())
        yield Here
        server.shutdown()


def test_the_original_is_downloaded_once_and_read(server, archive, tmp_path, monkeypatch):
    index, _ = archive
    whole = data.dsprites(len(index), folder=tmp_path)
    assert whole.x.shape == (len(index), 1, 64, 64)
    for values in drawn.values(index):  # each image stands by its factors
        row = (whole.factors - values).abs().sum(1).argmin()
        torch.testing.assert_close(whole.factors[row], values.float())
        assert torch.equal(whole.x[row, 0], drawn.render(values[None])[0].float())
        assert whole.y[row] == values[0] - 1
    # The choice is that of `sprites`, were the data set as small as this archive.
    monkeypatch.setattr(data, "N_IMAGES", len(index))
    for seed in (0, 1):
        chosen = data.sprites(20, size=8, seed=seed).factors
        places = torch.cdist(chosen.double(), drawn.values(range(len(index)))).argmin(1)
        found = data.dsprites(20, seed=seed, folder=tmp_path)
        torch.testing.assert_close(found.factors, drawn.values(index[places]).float())
    assert server.requests == ["bytes=0-"]
    with pytest.raises(ValueError, match=f"n is 999; pass 1 … {len(index)}"):
        data.dsprites(999, folder=tmp_path)


def test_an_interrupted_download_goes_on(server, tmp_path):
    server.breaks_after = 150_000
    for _ in range(2):
        with pytest.raises(requests.RequestException):
            data.dsprites(5, folder=tmp_path)
    assert [path.name for path in Path(tmp_path).iterdir()] == ["dsprites.npz.part"]
    server.breaks_after = None
    assert len(data.dsprites(5, folder=tmp_path)) == 5
    # What came is kept in blocks of 64 KiB, two of which fit before each break.
    block = 2**16
    assert server.requests == ["bytes=0-", f"bytes={2 * block}-", f"bytes={4 * block}-"]
    assert [path.name for path in Path(tmp_path).iterdir()] == ["dsprites.npz"]


def test_a_server_that_cannot_go_on_sends_the_whole(server, tmp_path):
    server.ranges = False
    (tmp_path / "dsprites.npz.part").write_bytes(b"the start of it")
    assert len(data.dsprites(5, folder=tmp_path)) == 5


def test_a_download_that_only_lacked_its_last_step_is_taken(server, tmp_path):
    (tmp_path / "dsprites.npz.part").write_bytes(server.body)
    assert len(data.dsprites(5, folder=tmp_path)) == 5


def test_a_file_that_is_not_the_original_is_refused_and_fetched_anew(server, tmp_path):
    (tmp_path / "dsprites.npz.part").write_bytes(b"something else")
    with pytest.raises(ValueError, match="does not match the known hash"):
        data.dsprites(5, folder=tmp_path)
    assert list(Path(tmp_path).iterdir()) == []
    assert len(data.dsprites(5, folder=tmp_path)) == 5
    (tmp_path / "dsprites.npz").write_bytes(b"gone bad on the disk")
    assert len(data.dsprites(5, folder=tmp_path)) == 5


def test_a_server_s_error_is_raised(server, tmp_path, monkeypatch):
    monkeypatch.setattr(server, "do_GET", lambda self: self.send_error(404))
    with pytest.raises(requests.HTTPError, match="404"):
        data.dsprites(5, folder=tmp_path)


def test_the_original_s_address_and_hash_are_of_the_right_form():
    assert data.DSPRITES_URL.startswith("https://github.com/google-deepmind/dsprites-dataset/")
    assert len(bytes.fromhex(data.DSPRITES_SHA256)) == hashlib.sha256().digest_size


def test_importing_vaelib_brings_neither_scikit_learn_nor_a_downloader():
    heavy = "{'sklearn', 'pooch', 'requests'} & set(sys.modules)"
    code = f"import sys, vaelib, vaelib.sprites; sys.exit(str({heavy}) if {heavy} else 0)"
    subprocess.run([sys.executable, "-c", code], check=True)
