import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import requests
import torch

from vaelib import data
from vaelib import sprites as drawn
from vaelib.data import download, images


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
            download, "DSPRITES_URL", f"http://127.0.0.1:{server.server_port}/small.npz"
        )
        monkeypatch.setattr(download, "DSPRITES_SHA256", hashlib.sha256(Here.body).hexdigest())
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
    monkeypatch.setattr(images, "N_IMAGES", len(index))
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
