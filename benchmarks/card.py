"""What only a graphics card can tell: each part returns what its record is to hold.

`tools/gpu.py` calls the parts one by one and writes after each, most valuable first.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import bench
import numpy as np
import torch

from vaelib import VAE, data, fit, loop
from vaelib.networks import mlp
from vaelib.objectives import ELBO, Narrowing

ROOT = Path(__file__).resolve().parent.parent
MARK = 100  # steps between two looks at the clock, of which the first is left out
Result = dict[str, Any]


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def machine(device: str, budget: float) -> Result:
    """Versions and the card, and what it does at most: of a matrix product and of a copy."""
    found = bench.machine(device) | {"torch": torch.__version__, "cuda": torch.version.cuda}
    if device == "cuda":
        query = "clocks.sm,clocks.mem,clocks.max.sm,power.limit,driver_version"
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"]
            found["nvidia-smi"] = f"{query}: {subprocess.check_output(command, text=True).strip()}"
    n = max(64, round(8192 * budget))
    a, b = torch.randn(n, n, device=device), torch.randn(n, n, device=device)

    def rate(work: Callable[[], Any], per_call: float) -> float:
        work()
        wait(device)
        start = time.perf_counter()
        for _ in range(5):
            work()
        wait(device)
        return per_call * 5 / (time.perf_counter() - start)

    found["TFLOP/s of float32"] = rate(lambda: a @ b, 2 * n**3) / 1e12
    found["GB/s of a copy, read and written"] = rate(lambda: a.copy_(b), 8 * n * n) / 1e9
    return found


def graphs(device: str, budget: float) -> Result:
    """For every objective: how far a graph's losses are from those of plain steps, relatively."""
    sys.path.insert(0, str(ROOT / "tests"))
    import cases

    found: Result = {}
    exact = {"enabled": True, "deterministic": True, "allow_tf32": False}
    for name in cases.CASES:
        case = cases.Case(name, device)
        with torch.backends.cudnn.flags(**exact), replays(device) as count:
            recorded = case.fit(steps=40)[2]
            n = count()
            with mock.patch.object(loop, "graphed", bench.plain):
                plain = case.fit(steps=40)[2]
        apart = max(
            float(np.max(np.abs(recorded[k] - v) / (1e-3 + np.abs(v))))
            for k, v in plain.terms.items()
        )
        found[name] = {"largest difference": apart, "replays": n}
    return found


@contextlib.contextmanager
def replays(device: str) -> Iterator[Callable[[], int]]:
    """Counts how often a graph ran."""
    if device != "cuda":
        yield lambda: 0
        return
    real = torch.cuda.CUDAGraph.replay
    with mock.patch.object(
        torch.cuda.CUDAGraph, "replay", autospec=True, side_effect=real
    ) as replay:
        yield lambda: replay.call_count


def steady(run: Callable[[int], Any], steps: int) -> float:
    """Milliseconds a step of a run by vaelib between its first report and its last."""
    times: list[float] = []
    report = loop.Loop._report

    def timed(self: loop.Loop) -> None:
        report(self)  # waits for the device
        times.append(time.perf_counter())

    with mock.patch.object(loop.Loop, "_report", timed):
        run(MARK + steps)
    return (times[-1] - times[0]) / steps * 1e3


def bare(run: Callable[[int], Any], steps: int, device: str) -> float:
    """The same of a loop of one's own."""
    run(50)
    wait(device)
    start = time.perf_counter()
    run(steps)
    wait(device)
    return (time.perf_counter() - start) / steps * 1e3


def kernels(case: bench.Case, device: str) -> float:
    """Milliseconds that the kernels of one step take by themselves, by torch's profiler."""
    from torch.profiler import ProfilerActivity, profile

    run = bench.take(case, device, eager=False)
    run(20)
    wait(device)
    kinds = [ProfilerActivity.CUDA if device == "cuda" else ProfilerActivity.CPU]
    with profile(activities=kinds) as seen:
        run(20)
        wait(device)
    events = seen.key_averages()
    total = sum(
        getattr(e, "self_device_time_total", 0) if device == "cuda" else e.self_cpu_time_total
        for e in events
    )
    return total / 20 / 1e3


def fused(case: bench.Case, device: str) -> Callable[[int], Any]:
    """A DataLoader's loop with what costs nothing: one fused kernel for Adam, pinned rows."""
    adam = torch.optim.Adam
    with mock.patch.object(torch.optim, "Adam", lambda p, lr: adam(p, lr=lr, fused=True)):
        return bench.loader(case, device)


def cases_of(budget: float) -> list[bench.Case]:
    wine = bench.table(data.wine().x, batch_norm=False)
    return [wine, bench.wide(), bench.images(64), bench.images(1024)] if budget == 1 else [wine]


def step(device: str, budget: float) -> Result:
    """A step of `fit`, as a graph and as it is, against the bare step and its kernels alone."""
    return {f"{c.name}, batch {c.batch_size}": step_of(c, device, budget) for c in cases_of(budget)}


def length(budget: float) -> int:
    """Steps of a measurement: whole reports."""
    return max(MARK, round(300 * budget / MARK) * MARK)


def step_of(case: bench.Case, device: str, budget: float) -> dict[str, float]:
    n = length(budget)
    runs: dict[str, Callable[[], float]] = {
        "fit": lambda: steady(bench.ours(case, device), n),
        "fit, eager": lambda: steady(bench.ours(case, device, eager=True), n),
        "bare": lambda: bare(bench.take(case, device, eager=False), n, device),
        "bare, eager": lambda: bare(bench.take(case, device, eager=True), n, device),
        "DataLoader, fused Adam": lambda: bare(fused(case, device), n // 2, device),
    }
    rounds = [{k: run() for k, run in runs.items()} for _ in range(3)]
    ms = {k: statistics.median(each[k] for each in rounds) for k in runs}
    return ms | {"kernels alone": kernels(case, device)}


def seeds(device: str, budget: float) -> Result:
    """Milliseconds a step of so many wine networks at once."""
    case = bench.table(data.wine().x.to(device), batch_norm=False)
    n = length(budget)
    counts = (1, 8, 32, 128, 512) if budget == 1 else (1, 8)
    return {str(k): steady(bench.stacked(case, k), n) for k in counts}


def narrowing(device: str, budget: float) -> Result:
    """A step of narrowing against a plain one, both as graphs."""
    found: Result = {}
    n = length(budget)
    for case in cases_of(budget)[:3]:
        tau = 0.5 * float(case.x.flatten(1).var(0).sum())
        plain = steady(bench.ours(case, device), n)
        narrow = steady(bench.ours(case, device, lambda tau=tau: Narrowing(tau)), n)
        found[case.name] = {"plain": plain, "narrowing": narrow, "ratio": narrow / plain}
    return found


def compiled(device: str, budget: float) -> Result:
    """torch.compile of loss and gradient, mode reduce-overhead: its first call, then a step."""
    found: Result = {}
    for case in cases_of(budget)[:2]:
        model, objective = case.make().to(device), ELBO().to(device)
        model.validate_args = False
        x, eps = case.x[: case.batch_size].to(device), model.noise(case.batch_size)
        adam = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
        step = torch.compile(
            lambda x, eps, m=model, o=objective: o(m, x, eps)["loss"], mode="reduce-overhead"
        )

        def run(steps: int, step: Any = step, adam: Any = adam, x: Any = x, eps: Any = eps) -> None:
            for _ in range(steps):
                adam.zero_grad()
                step(x, eps).backward()
                adam.step()

        start = time.perf_counter()
        run(3)
        wait(device)
        first = time.perf_counter() - start
        ms = bare(run, max(20, round(300 * budget)), device)
        found[case.name] = {"seconds of the first three steps": first, "ms": ms}
    return found


def jax(device: str, budget: float) -> Result:
    """The same wine network and the middling one in JAX, whole runs compiled."""
    if importlib.util.find_spec("jax") is None:
        return {"skipped": "no jax here"}
    import peer_jax

    found: Result = {}
    steps = max(20, round(2000 * budget))
    wine, wide = data.wine().x.numpy(), bench.wide().x.numpy()
    for name, x, widths, batch, n in (
        ("wine, 1", wine, (13, 8, 4, 2), 32, 1),
        ("wine, 32", wine, (13, 8, 4, 2), 32, 32),
        ("wine, 512", wine, (13, 8, 4, 2), 32, 512),
        ("1024-256-256-10, 1", wide, (1024, 256, 256, 10), 128, 1),
    ):
        run = peer_jax.trainer(x, widths, batch, n)
        first, again = run(steps), run(steps)
        found[name] = {"seconds of the first run": first, "ms": again / steps * 1e3}
    return found


def level(device: str, budget: float) -> Result:
    """Memory that torch holds after each of many short runs, in MB: it stays level."""
    n, held = max(4, round(50 * budget)), []
    for i in range(n):
        torch.manual_seed(i)
        model = VAE(*mlp(13)).to(device)
        fit(model, ELBO(), data.wine().x, steps=20, batch_size=32, progress=False)
        held.append(torch.cuda.memory_reserved() / 1e6 if device == "cuda" else 0.0)
    return {"after run 5": held[min(4, n - 1)], f"after run {n}": held[-1]}


def tests(device: str, budget: float) -> Result:
    """tests/test_gpu.py, in a process of its own; last, since one of them spoils a recording."""
    command = [sys.executable, "tests/test_gpu.py", "-v"]
    where = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=where, capture_output=True, text=True)
    lines = done.stderr.splitlines()
    print(done.stderr)
    return {"outcome": lines[-1] if lines else "", "passed": sum("ok" in x[-3:] for x in lines)}


PARTS = (machine, graphs, step, seeds, narrowing, level, jax, compiled, tests)
