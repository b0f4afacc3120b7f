import json
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

from vaelib import records


def test_a_record_says_where_it_comes_from(tmp_path, monkeypatch):
    path = tmp_path / "book" / "results" / "gates.json"
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "run.py"), "--seed", "3"])
    monkeypatch.chdir(tmp_path)
    records.write(path, {"open": [3, 4]})
    record = records.read("gates")
    assert record["results"] == {"open": [3, 4]}
    assert record["command"] == "python run.py --seed 3"
    assert record["versions"]["torch"] == torch.__version__
    assert record["device"]
    assert [each.name for each in path.parent.iterdir()] == ["gates.json"]


def test_a_record_names_the_device_that_computed_it(tmp_path, monkeypatch):
    """Which is the CPU of a machine with a graphics card, too, where it was asked for."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a card")
    for device, named in {"cpu": "CPU, ", "cuda": "a card", "cuda:1": "a card"}.items():
        records.write(tmp_path / "record.json", [], device)
        assert json.loads((tmp_path / "record.json").read_text())["device"].startswith(named)


def test_a_record_is_found_from_any_folder_of_the_checkout(tmp_path, monkeypatch):
    records.write(tmp_path / "book" / "results" / "a.json", [1])
    (tmp_path / "book" / "balance").mkdir()
    monkeypatch.chdir(tmp_path / "book" / "balance")
    assert records.read("a")["results"] == [1]


def test_a_write_that_fails_leaves_the_record_as_it_was(tmp_path):
    path = tmp_path / "a.json"
    records.write(path, [1])
    with pytest.raises(TypeError):
        records.write(path, [object()])
    assert json.loads(path.read_text())["results"] == [1]


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


def test_without_a_checkout_the_record_is_fetched(tmp_path, monkeypatch):
    records.write(tmp_path / "raw/main/book/results/far.json", [2])
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=tmp_path)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(records, "REPOSITORY", f"http://127.0.0.1:{server.server_port}")
        assert records.read("far")["results"] == [2]
        server.shutdown()
    assert records.read("far")["results"] == [2]  # from the cache
