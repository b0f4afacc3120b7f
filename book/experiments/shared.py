"""What the experiments share: a chapter's own cells, and a sweep over many runs.

A sweep writes every run into its record as soon as it is done, and skips what the
record holds: stopped, it goes on with the same command. Where its runs take place:

    python book/experiments/showdown.py                    one process for each core
    python book/experiments/showdown.py --jobs 1           this process alone
    python book/experiments/showdown.py --backend dask --scheduler tcp://node1:8786

The last is for a Dask cluster, whose workers need vaelib and one thread each. Where
they see the folder of --out, a run whose worker died goes on from its last checkpoint.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import joblib
from joblib.externals.loky.process_executor import TerminatedWorkerError
from tqdm import tqdm

from vaelib import records

BOOK = Path(__file__).parent.parent
DEATHS = 3  # of workers: in a sweep here, and with Dask in a run

Key = tuple[str, ...]  # where a run stands in the record: ("digits", "narrow", "5")


def chapter(name: str) -> dict[str, Any]:
    """What the cells tagged `experiment` of a chapter define; balance/showdown."""
    # As in the notebook itself. Workers cannot import what belongs to `__main__`, so it
    # is sent to them whole: they need neither the chapter nor these files.
    names: dict[str, Any] = {"__name__": "__main__"}
    notebook = json.loads((BOOK / f"{name}.ipynb").read_text("utf-8"))
    for cell in notebook["cells"]:
        if "experiment" in cell["metadata"].get("tags", []):
            exec("".join(cell["source"]), names)
    return names


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The arguments, with those that every sweep takes."""
    parser.add_argument(
        "--budget",
        type=float,
        default=1.0,
        help="of the recorded runs' steps: 0.1 rehearses, 100 goes far beyond",
    )
    parser.add_argument("--jobs", type=int, help="one a core by default; on a GPU one")
    parser.add_argument("--backend", choices=["loky", "dask"], default="loky")
    parser.add_argument("--scheduler", metavar="ADDRESS", help="of the Dask cluster")
    arguments = parser.parse_args()
    if (arguments.backend == "dask") != bool(arguments.scheduler):
        parser.error("--backend dask and --scheduler ADDRESS go together")
    if arguments.jobs is None:
        on_cpu = getattr(arguments, "device", "cpu") == "cpu"
        arguments.jobs = joblib.cpu_count() if on_cpu else 1
    return arguments


def done(out: Path, depth: int) -> dict[Key, Any]:
    """The results in a record, by keys of `depth` names; none where there is none."""
    tree = json.loads(out.read_text("utf-8"))["results"] if out.exists() else {}
    results = {(): tree}
    for _ in range(depth):
        results = {
            (*key, name): branch
            for key, node in results.items()
            for name, branch in node.items()
        }
    return results


def unfinished(out: Path, key: Key) -> Path | None:
    """The folder for a run's checkpoints, which is deleted once the run is recorded.

    None where safetensors is missing, which writes them: there, runs start anew.
    """
    there = importlib.util.find_spec("safetensors")
    return out.resolve().with_suffix(".unfinished") / " ".join(key) if there else None


def sweep(
    arguments: argparse.Namespace, plan: list[Key], tasks: dict[Key, tuple[Any, ...]]
) -> dict[Key, Any]:
    """Runs the tasks that the record lacks, and returns all of its results.

    Args:
        arguments: what `parse` returned, with the record's path as `out`.
        plan: the record's keys in its order, whatever the order of arrival.
        tasks: a function and its arguments for each key, all of them picklable.
    """
    results = done(arguments.out, len(plan[0]))
    todo = {key: task for key, task in tasks.items() if key not in results}
    # Even the last of them never here, or it might take this process along.
    jobs, deaths = min(arguments.jobs, len(todo)), 0
    with tqdm(total=len(todo)) as bar:
        while todo:
            try:
                for key, result in _run(arguments, jobs, todo):
                    results[key] = result
                    device = getattr(arguments, "device", "cpu")
                    records.write(arguments.out, _tree(results, plan), device)
                    if folder := unfinished(arguments.out, key):
                        shutil.rmtree(folder, ignore_errors=True)
                        with contextlib.suppress(OSError):  # it holds other runs'
                            folder.parent.rmdir()
                    del todo[key]
                    bar.update()
            except TerminatedWorkerError as error:
                deaths += 1
                if deaths == DEATHS:
                    raise
                bar.write(f"Going on with {len(todo)} runs: {error}", sys.stderr)
            except KeyboardInterrupt:
                bar.write("Stopped; the same command goes on from here.", sys.stderr)
                sys.exit(130)
    return results


def _run(
    arguments: argparse.Namespace, jobs: int, tasks: dict[Key, tuple[Any, ...]]
) -> Iterator[tuple[Key, Any]]:
    """The results of the tasks as they arrive."""

    def named(key, function, *its):  # in here, so that it is sent like a chapter's own
        return key, function(*its)

    with contextlib.ExitStack() as stack:
        if arguments.backend == "dask":
            import cluster  # only here: it needs distributed

            where = {
                "backend": stack.enter_context(cluster.backend(arguments.scheduler))
            }
        else:
            where = {"backend": "loky", "n_jobs": jobs}
            if jobs > 1:
                os.environ["TQDM_DISABLE"] = "1"  # for workers: one bar here is enough
        # In batches of one, or results would wait for each other.
        yield from joblib.Parallel(
            return_as="generator_unordered", batch_size=1, **where
        )([joblib.delayed(named)(key, *task) for key, task in tasks.items()])


def _tree(results: dict[Key, Any], plan: list[Key]) -> dict[str, Any]:
    """Results as nested dicts: those of the plan in its order, then any others."""
    tree: dict[str, Any] = {}
    for key in sorted(results, key=lambda key: plan.index(key) if key in plan else 1e9):
        *branches, name = key
        node = tree
        for branch in branches:
            node = node.setdefault(branch, {})
        node[name] = results[key]
    return tree
