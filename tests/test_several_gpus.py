import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.overrides import TorchFunctionMode

from vaelib import VAE, checkpoints, data, fit, objectives
from vaelib.networks import mlp

pytest.importorskip("lightning_fabric")
ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "book" / "experiments" / "several_gpus.py"
import several_gpus  # noqa: E402  (it needs lightning_fabric)

RUN = {"steps": 25, "batch_size": 64}


@pytest.fixture(scope="module")
def x():
    return data.patches(size=16).x


def make_pair(objective):
    torch.manual_seed(0)
    networks = mlp(256, (64, 64), 16, "silu", batch_norm=False)
    return several_gpus.Pair(VAE(*networks), objective)


def fitted(pair, x):
    history = fit(pair.model, pair.objective, x, report_every=10, progress=False, **RUN)
    return pair.state_dict(), history


def assert_same(mine, theirs):
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        torch.testing.assert_close(value, theirs[name], rtol=1e-5, atol=1e-5, msg=name)


def test_two_processes_with_half_a_batch_each_are_one_with_the_whole(x, tmp_path):
    out = tmp_path / "record.json"
    options = {"accelerator": "cpu", "devices": 2, "out": out, "every": 10}
    options |= {"steps": RUN["steps"], "batch-size": RUN["batch_size"]}
    finished = subprocess.run(
        [sys.executable, SCRIPT, *[f"--{name}={value}" for name, value in options.items()]],
        # One thread each; and no trace of another launcher that these tests might run under.
        env={k: v for k, v in os.environ.items() if k not in ("LOCAL_RANK", "WORLD_SIZE")}
        | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert finished.returncode == 0, finished.stderr
    assert "Starting with 2 processes" in finished.stderr
    reports = json.loads(out.read_text("utf-8"))["results"]
    weights, _ = checkpoints.load(out.with_suffix(".safetensors"))

    pair = make_pair(objectives.LearnedGamma())
    start = pair.objective.log_gamma.item()
    expected, history = fitted(pair, x)
    assert_same(weights, expected)
    assert weights["objective.log_gamma"] < start - 0.02  # the objective's own parameter learns
    assert [report["step"] for report in reports] == history.steps.tolist() == [10, 20, 25]
    for name, values in history.terms.items():
        mine = torch.tensor([report[name] for report in reports])
        torch.testing.assert_close(mine, torch.from_numpy(values), rtol=1e-5, atol=1e-5, msg=name)


@pytest.fixture
def fabric():
    return several_gpus.Fabric(accelerator="cpu", devices=1)


@pytest.mark.parametrize("name", several_gpus.OBJECTIVES)
def test_one_device_is_fit(fabric, x, name):
    make = several_gpus.OBJECTIVES[name]
    pair = make_pair(make())
    with (
        pytest.warns(UserWarning, match="never came down")
        if name == "Narrowing"
        else contextlib.nullcontext()
    ):
        reports = several_gpus.train(fabric, pair, x, every=10, **RUN)
        expected, history = fitted(make_pair(make()), x)
    assert_same(pair.state_dict(), expected)
    assert [report["loss"] for report in reports] == pytest.approx(history["loss"].tolist())


def test_shares_are_equal_and_cover_the_batch():
    rows = torch.arange(12)
    parts = [rows[several_gpus.share(12, 3, rank)] for rank in range(3)]
    assert {len(part) for part in parts} == {4}
    assert torch.cat(parts).tolist() == rows.tolist()
    with pytest.raises(ValueError, match=r"batch_size is 12, which 5 devices .* multiple of 5"):
        several_gpus.share(12, 5, 0)


def test_the_second_of_two_takes_the_second_half_of_batch_and_noise(x):
    class Second(several_gpus.Fabric):
        world_size, global_rank = 2, 1

    def seen(fabric_type):
        batches = []
        pair = make_pair(objectives.ELBO())
        pair.register_forward_pre_hook(lambda module, batch: batches.append(batch))
        fabric = fabric_type(accelerator="cpu", devices=1)
        several_gpus.train(fabric, pair, x, every=10, **RUN)
        return batches

    for half, whole in zip(seen(Second), seen(several_gpus.Fabric), strict=True):
        for mine, of in zip(half, whole, strict=True):
            assert torch.equal(mine, of[32:])


def test_data_that_the_likelihood_cannot_take_are_refused_at_the_door(fabric, x):
    with pytest.raises(ValueError, match="nan"):
        several_gpus.train(
            fabric, make_pair(objectives.ELBO()), torch.full_like(x, torch.nan), every=10, **RUN
        )


def test_nothing_waits_for_the_device_between_two_reports(fabric, x):
    reads = []

    class Watch(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            name = getattr(func, "__name__", "")
            if name in ("item", "__bool__", "__float__", "__int__", "tolist", "cpu", "numpy"):
                reads.append(name)
            return func(*args, **(kwargs or {}))

    def count(steps):
        reads.clear()
        with Watch():
            run = {**RUN, "steps": steps}
            several_gpus.train(fabric, make_pair(objectives.LearnedGamma()), x, every=100, **run)
        return len(reads)

    once = count(5)
    assert once > 0  # the watch sees the report and the check at the door
    assert count(20) == once
