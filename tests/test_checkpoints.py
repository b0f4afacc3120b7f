import pytest
import torch

from vaelib import checkpoints


def test_what_is_saved_comes_back(tmp_path):
    tree = {"a": {"b": {"c": torch.arange(3)}, "d": torch.tensor(1.5)}, "e": torch.ones(2, 2)}
    path = tmp_path / "new" / "folder" / "run.safetensors"
    checkpoints.save(path, tree, {"step": 3, "names": ["x"]})
    loaded, header = checkpoints.load(path)
    assert header == {"step": 3, "names": ["x"]}
    assert torch.equal(loaded["a"]["b"]["c"], tree["a"]["b"]["c"])
    assert torch.equal(loaded["a"]["d"], tree["a"]["d"])
    assert torch.equal(loaded["e"], tree["e"])


def test_others_may_read_it_as_they_may_any_file(tmp_path):
    checkpoints.save(tmp_path / "run.safetensors", {"x": torch.zeros(1)}, {})
    (tmp_path / "any").touch()
    modes = {each.stat().st_mode for each in tmp_path.iterdir()}
    assert len(modes) == 1 and len([*tmp_path.iterdir()]) == 2


@pytest.mark.parametrize("fails", ["save_file", "replace"])
def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch, fails):
    """Whether the disk fills up while it writes, or the move into place is what fails."""
    path = tmp_path / "run.safetensors"
    checkpoints.save(path, {"x": torch.zeros(1)}, {})

    def fail(source, target, metadata=None):
        if fails == "save_file":
            target.write_bytes(b"half")
        raise OSError("disk full")

    where = "safetensors.torch" if fails == "save_file" else "os"
    monkeypatch.setattr(f"{where}.{fails}", fail)
    with pytest.raises(OSError, match="disk full"):
        checkpoints.save(path, {"x": torch.ones(1)}, {})
    assert checkpoints.load(path)[0]["x"] == 0
