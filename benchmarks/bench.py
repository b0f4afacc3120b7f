"""How close training is to its limit, and how it grows: measured in one run, side by side.

    make bench
    python benchmarks/bench.py --device cuda --out gpu/benchmarks.json

In each round all contestants take their turn, so that a machine whose speed drifts slows all of
them alike. Times are medians over the rounds, ratios the medians of each round's own.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import json
import logging
import multiprocessing
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch and tqdm are imported
os.environ["TQDM_DISABLE"] = "1"

import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from vaelib import VAE, History, data, fit, fit_seeds, loop, records
from vaelib.graphs import graphed
from vaelib.networks import conv, mlp
from vaelib.objectives import ELBO, Narrowing

PYTHAE = importlib.util.find_spec("pythae") is not None  # of the extra [bench]
Run = Callable[[int], Any]  # so many steps
Make = Callable[[], Run]


class Case(NamedTuple):
    """A network, its data, and how many steps are a measurement."""

    name: str
    make: Callable[[], VAE]
    x: Tensor
    batch_size: int
    steps: int


def table(x: Tensor, batch_norm: bool = True) -> Case:
    return Case("13-8-4-2", lambda: VAE(*mlp(13, batch_norm=batch_norm)), x, 32, 2000)


def wide(batch_size: int = 128, n_latents: int = 10) -> Case:
    def make() -> VAE:
        return VAE(*mlp(1024, (256, 256), n_latents, batch_norm=False))

    x = data.sprites(max(2000, batch_size), size=32).x.flatten(1)
    return Case("1024-256-256-10", make, x, batch_size, 300)


def images(batch_size: int = 128, size: int = 64) -> Case:
    x = data.sprites(max(256, batch_size), size=size).x
    return Case("conv 64 × 64", lambda: VAE(*conv(size)), x, batch_size, 16)


# --- contestants: each makes a model, untimed, and returns a function that trains it -----------
#
# A model for each measurement, since how long a step takes depends on the weights: a bare step
# that goes on and on with its one batch ends in denormal numbers, at half the speed.


def plain(step: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
    """In the place of `graphed`: the step as it is."""
    return step


def whole(history: History) -> None:
    """Passes on an interrupt, which a run takes for its own."""
    if history.interrupted:
        raise KeyboardInterrupt


def take(case: Case, device: str, eager: bool) -> Run:
    """The bare step: modules, backward, optimiser, one fixed batch with its noise; no more."""
    model, objective = case.make().to(device), ELBO().to(device)
    model.validate_args = False
    x, eps = case.x[: case.batch_size].to(device), model.noise(case.batch_size)
    cuda = device == "cuda"
    adam = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True, capturable=cuda)

    def step() -> dict[str, Tensor]:
        adam.zero_grad()
        loss = objective(model, x, eps)["loss"]
        loss.backward()
        adam.step()
        return {"loss": loss.detach()}

    recorded = step if eager else graphed(step, x.device)
    return lambda steps: [recorded() for _ in range(steps)]


def ours(case: Case, device: str, objective: Callable[[], Any] = ELBO, eager: bool = False) -> Run:
    """`fit`, its start included; it reports as seldom as a long run does."""
    x, model = case.x.to(device), case.make().to(device)

    def run(steps: int) -> None:
        each = {"steps": steps, "batch_size": case.batch_size, "report_every": 100}
        with mock.patch.object(loop, "graphed", plain) if eager else nothing():
            whole(fit(model, objective(), x, **each))

    return run


def on(device: torch.device, make: Callable[[], VAE]) -> VAE:
    return make().to(device)


def stacked(case: Case, n: int) -> Run:
    """`fit_seeds` on so many, its start included."""

    def run(steps: int) -> None:
        each = {"steps": steps, "batch_size": case.batch_size, "report_every": 100}
        make = partial(on, case.x.device, case.make)
        whole(fit_seeds(make, ELBO(), case.x, seeds=range(n), **each).history)

    return run


def decoding(case: Case, device: str) -> Run:
    """What narrowing adds to a step: another decoding, without gradients."""
    model, x = case.make().to(device), case.x[: case.batch_size].to(device)
    z = model.noise(len(x))

    def run(steps: int) -> None:
        with torch.no_grad():
            for _ in range(steps):
                (x - model.decode(z).mean).square().flatten(1).sum(1)

    return run


def loader(case: Case, device: str) -> Run:
    """The loop of most tutorials."""
    model, objective = case.make().to(device), ELBO().to(device)
    adam = torch.optim.Adam(model.parameters(), lr=1e-3)
    batches = DataLoader(TensorDataset(case.x), case.batch_size, shuffle=True, drop_last=True)

    def forever() -> Iterator[Tensor]:
        while True:
            for (x,) in batches:
                yield x

    def run(steps: int) -> None:
        total = 0.0
        for _, x in zip(range(steps), forever(), strict=False):
            adam.zero_grad()
            loss = objective(model, x.to(device))["loss"]
            loss.backward()
            adam.step()
            total += loss.item()

    return run


def pythae(case: Case, device: str) -> Run:
    """The same networks in pythae's VAE and trainer."""
    from pythae.data.datasets import BaseDataset
    from pythae.models import VAE as Theirs
    from pythae.models import VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder
    from pythae.trainers import BaseTrainer, BaseTrainerConfig

    class Encoder(BaseEncoder):
        def __init__(self, encoder: torch.nn.Module) -> None:
            super().__init__()
            self.encoder = encoder

        def forward(self, x: Tensor) -> ModelOutput:
            mu, logvar = self.encoder(x)
            return ModelOutput(embedding=mu, log_covariance=logvar)

    class Decoder(BaseDecoder):
        def __init__(self, decoder: torch.nn.Module) -> None:
            super().__init__()
            self.decoder = decoder

        def forward(self, z: Tensor) -> ModelOutput:
            return ModelOutput(reconstruction=self.decoder(z))

    logging.disable(logging.WARNING)
    shape = tuple(case.x.shape[1:])
    epoch = len(case.x) // case.batch_size

    model = case.make()

    def run(steps: int) -> None:
        config = VAEConfig(input_dim=shape, latent_dim=model.n_latents, reconstruction_loss="mse")
        # An epoch of just the steps asked for, from the rows over and over where they are few.
        rows = case.x.repeat(-(-steps // epoch), *[1] * len(shape))[: steps * case.batch_size]
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            how = BaseTrainerConfig(
                output_dir=folder,
                num_epochs=1,
                per_device_train_batch_size=case.batch_size,
                learning_rate=1e-3,
                no_cuda=device == "cpu",
            )
            their = Theirs(config, Encoder(model.encoder), Decoder(model.decoder))
            BaseTrainer(
                their, BaseDataset(rows, torch.zeros(len(rows))), training_config=how
            ).train()

    return run


# --- measuring ---------------------------------------------------------------------------------

nothing = contextlib.nullcontext


class Measure(NamedTuple):
    device: str
    rounds: int
    budget: float  # share of the steps, to rehearse

    def steps(self, steps: int) -> int:
        return max(2, round(steps * self.budget))

    def seconds(self, make: Make, steps: int) -> float:
        run = make()
        self.wait()
        start = time.perf_counter()
        run(steps)
        self.wait()
        return time.perf_counter() - start

    def wait(self) -> None:
        if self.device == "cuda":  # the host runs ahead of it
            torch.cuda.synchronize()

    def alternate(self, runs: dict[str, Make], steps: int) -> dict[str, list[float]]:
        """Milliseconds a step of each, one for each round, after a round to warm up."""
        for make in runs.values():
            self.seconds(make, max(2, steps // 4))
        rounds = [
            {k: self.seconds(make, steps) for k, make in runs.items()} for _ in range(self.rounds)
        ]
        return {name: [each[name] / steps * 1e3 for each in rounds] for name in runs}


def ratio(over: list[float], under: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(over, under, strict=True))


def step(measure: Measure) -> dict[str, Any]:
    """(a) A step of `fit`, of a DataLoader loop and of pythae against the bare step."""
    found = {}
    cuda = measure.device == "cuda"
    cases = [table(data.wine().x), wide(), images(64), images(1024)] if cuda else []
    for case in cases or [table(data.wine().x), wide(), images()]:
        runs = {
            "bare": partial(take, case, measure.device, eager=not cuda),
            "fit": partial(ours, case, measure.device),
        }
        if cuda:
            runs["fit, eager"] = partial(ours, case, measure.device, eager=True)
            runs["bare, eager"] = partial(take, case, measure.device, eager=True)
        runs["DataLoader"] = partial(loader, case, measure.device)
        if PYTHAE:
            runs["pythae"] = partial(pythae, case, measure.device)
        # On a GPU as many as it takes for the recording of the step not to count.
        steps = 2000 * 64 // max(64, case.batch_size) if cuda else case.steps
        times = measure.alternate(runs, measure.steps(steps))
        found[f"{case.name}, batch {case.batch_size}"] = {
            "ms": {name: statistics.median(each) for name, each in times.items()},
            "share": {name: ratio(times["bare"], each) for name, each in times.items()},
        }
    return found


def seeds(measure: Measure) -> dict[str, Any]:
    """(b) Seeds a second, of all at once against one after the other."""
    found = {}
    for batch_norm in (True, False):
        case = table(data.wine().x.to(measure.device), batch_norm)
        runs: dict[str, Make] = {"lone": partial(ours, case, measure.device)}
        runs |= {str(n): partial(stacked, case, n) for n in (8, 32, 128)}
        if PYTHAE:
            runs["pythae"] = partial(pythae, case._replace(x=case.x.cpu()), measure.device)
        times = measure.alternate(runs, measure.steps(1000))
        found["with batch norm" if batch_norm else "without"] = {
            "ms": {name: statistics.median(each) for name, each in times.items()},
            "times faster than lone": {
                n: int(n) * ratio(times["lone"], times[n]) for n in ("8", "32", "128")
            },
            "times faster than pythae": {
                n: int(n) * ratio(times["pythae"], times[n]) for n in ("8", "32", "128")
            }
            if "pythae" in times
            else {},
        }
    return found


def narrowing(measure: Measure) -> dict[str, Any]:
    """(c) A step of narrowing against a plain one, and what its second decoding alone costs."""
    found = {}
    for case in (table(data.wine().x, batch_norm=False), wide(), images()):
        # A target in reach, at which gates close and reopen, as they do in a run.
        tau = 0.5 * float(case.x.flatten(1).var(0).sum())
        runs: dict[str, Make] = {
            "plain": partial(ours, case, measure.device),
            "narrowing": partial(ours, case, measure.device, partial(Narrowing, tau)),
            "second decoding": partial(decoding, case, measure.device),
        }
        times = measure.alternate(runs, measure.steps(case.steps))
        found[f"{case.name}, batch {case.batch_size}"] = {
            "ms": {name: statistics.median(each) for name, each in times.items()},
            "ratio": ratio(times["narrowing"], times["plain"]),
            "bound": 1 + ratio(times["second decoding"], times["plain"]),
        }
    return found


def growth(measure: Measure) -> dict[str, Any]:
    """(d) Milliseconds a step against one size at a time."""

    def ms(cases: dict[int, Case], steps: int) -> dict[str, float]:
        runs = {str(n): partial(ours, case, measure.device) for n, case in cases.items()}
        times = measure.alternate(runs, measure.steps(steps))
        return {size: statistics.median(each) for size, each in times.items()}

    rows = torch.randn(1_000_000, 13, generator=torch.Generator().manual_seed(0))
    return {
        "batch": ms({n: wide(n) for n in (16, 64, 256, 1024)}, 40),
        "latents": ms({n: wide(n_latents=n) for n in (2, 8, 32, 128)}, 100),
        "image size": ms({n: images(32, n) for n in (16, 32, 64, 128)}, 20),
        "rows of data": ms({n: table(rows[:n]) for n in (10**3, 10**4, 10**5, 10**6)}, 2000),
    }


def high_water() -> float:
    """The most memory that this process ever held, in MB."""
    try:  # getrusage counts what its parent held before, too
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1e3 for line in lines if line.startswith("VmHWM"))
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def peak(what: str, device: str) -> float:
    """Peak memory in MB of a few steps, of this process or of the GPU."""
    case = images()
    before = high_water()
    if what == "bare step":
        take(case, device, eager=device != "cuda")(4)
    elif what == "fit":
        ours(case, device)(4)
    elif what.startswith("20,000 images"):
        kind = torch.uint8 if "bytes" in what else torch.float32
        x = torch.zeros(20_000, 1, 64, 64, dtype=kind)
        ours(case._replace(x=x), device)(4)
    else:
        wine = data.wine().x.to(device)
        n = int(what.split()[0])
        stacked(table(wine), n)(100)
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    return high_water() - before


def memory(measure: Measure) -> dict[str, float]:
    """(e) What a run takes at most, beside what the imports took."""
    names = ["bare step", "fit", "20,000 images as floats", "20,000 images as bytes"]
    names += ["1 seed", "32 seeds"]
    found = {}
    for name in names:
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=spawn) as pool:
            found[name] = pool.submit(peak, name, measure.device).result()
    return found


def imports(measure: Measure) -> dict[str, float]:
    """(f) Seconds to import torch, and vaelib, each in a fresh interpreter."""

    def seconds(name: str) -> float:
        code = (
            f"import time; t = time.perf_counter(); import {name}; print(time.perf_counter() - t)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, check=True, text=True
        )
        return float(done.stdout)

    for name in ("torch", "vaelib"):
        seconds(name)
    rounds = [(seconds("torch"), seconds("vaelib")) for _ in range(measure.rounds)]
    torch_, vaelib_ = (list(each) for each in zip(*rounds, strict=True))
    return {
        "torch": statistics.median(torch_),
        "vaelib": statistics.median(vaelib_),
        "ratio": ratio(vaelib_, torch_),
    }


PARTS = {part.__name__: part for part in (step, seeds, narrowing, growth, memory, imports)}


def goals(results: dict[str, Any], cuda: bool) -> list[dict[str, Any]]:
    """What was aimed at, what came of it, and whether that is good enough."""
    rows = []

    def goal(
        what: str, value: float, least: float | None = None, most: float | None = None
    ) -> None:
        met = value >= least if least is not None else value <= most  # type: ignore[operator]
        aim = f"≥ {least:g}" if least is not None else f"≤ {most:g}"
        rows.append({"what": what, "goal": aim, "value": value, "met": met})

    for name, each in results.get("step", {}).items():
        if not cuda:
            goal(f"fit, share of the bare step: {name}", each["share"]["fit"], least=0.97)
        elif name.endswith("batch 64"):
            faster = each["ms"]["fit, eager"] / each["ms"]["fit"]
            goal(f"graph, times faster than eager: {name}", faster, least=5)
        elif name.endswith("1024"):
            goal(f"fit, share of the limit: {name}", each["share"]["fit"], least=0.5)
    for name, each in results.get("seeds", {}).items():
        value = each["times faster than lone"]["32"]
        goal(f"32 seeds at once, times faster than in turn: {name}", value, least=12)
    for name, each in results.get("narrowing", {}).items():
        goal(f"a narrowing step in plain steps: {name}", each["ratio"], most=1.2)
    for sizes in [results["growth"]["rows of data"]] if "growth" in results else []:
        goal(
            "a step on 1,000,000 rows, in steps on 1,000",
            sizes["1000000"] / sizes["1000"],
            most=1.1,
        )
    if "imports" in results:
        goal("import vaelib, in imports of torch", results["imports"]["ratio"], most=1.3)
    return rows


def machine(device: str) -> dict[str, Any]:
    """What all this was measured on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(line.split(": ")[1] for line in lines if line.startswith("model name"))
    except (OSError, StopIteration, IndexError):
        cpu = platform.processor() or platform.machine()
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else "CPU",
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": platform.system(),
        "load": os.getloadavg()[0],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cpu", help="or cuda")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--budget", type=float, default=1.0, help="share of the steps, to rehearse")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--out", type=Path, default=Path("book/results/benchmarks.json"))
    arguments = parser.parse_args()

    # So short a narrowing never comes down to its τ.
    for message in ("the error never came down", "all gates are closed"):
        warnings.filterwarnings("ignore", message=message)
    measure = Measure(arguments.device, arguments.rounds, arguments.budget)
    unfinished = arguments.out.with_suffix(".unfinished.json")
    results: dict[str, Any] = {"machine": machine(arguments.device)}
    if unfinished.exists():  # a run that was stopped goes on after its last part
        results = json.loads(unfinished.read_text("utf-8"))["results"]
    for name in arguments.parts:
        if name in results:
            continue
        start = time.perf_counter()
        results[name] = PARTS[name](measure)
        records.write(unfinished, results, arguments.device)
        print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)
    results["goals"] = goals(results, arguments.device == "cuda")
    records.write(arguments.out, results, arguments.device)
    unfinished.unlink()
    print("\nof", ", ".join(f"{key} {value}" for key, value in results["machine"].items()))
    for row in results["goals"]:
        verdict = "met" if row["met"] else "MISSED"
        print(f"{row['value']:8.3f}  {row['goal']:7} {verdict:7} {row['what']}")


if __name__ == "__main__":
    main()
