"""Sweeps of cheap runs: here, on processes of this machine, and on the workers of a Dask cluster.

The experiments themselves are swept in test_experiments_five.py.
"""

import ast
import json
import logging
import os
import shutil
import signal
import sys
import threading
import time
from argparse import ArgumentParser, Namespace
from pathlib import Path

import cloudpickle
import dask
import joblib
import pytest
import shared
from distributed import KilledWorker, LocalCluster
from joblib.externals.loky.process_executor import TerminatedWorkerError

ROOT = Path(__file__).parent.parent
EXPERIMENTS = ROOT / "book" / "experiments"
LOCAL = {"dashboard_address": "127.0.0.1:0", "silence_logs": logging.CRITICAL}

# So that workers need not import this file, and PyTorch with it.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.fixture(autouse=True)
def at_most_two_minutes():
    def stop(signum, frame):
        raise TimeoutError("a sweep hangs")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(120)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def scheduler():
    """Of two worker processes, where a run may cost one of them and no more."""
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 1}),
        LocalCluster(n_workers=2, threads_per_worker=1, processes=True, **LOCAL) as cluster,
    ):
        yield cluster.scheduler_address


@pytest.fixture(params=["loky", "dask"])
def arguments(request, tmp_path):
    """Two processes, either way."""
    address = request.getfixturevalue("scheduler") if request.param == "dask" else None
    out = tmp_path / "record.json"
    return Namespace(out=out, backend=request.param, scheduler=address, jobs=2)


def alone(out):
    return Namespace(out=out, backend="loky", scheduler=None, jobs=1)


def results(out):
    return json.loads(out.read_text("utf-8"))["results"]


def test_each_result_is_written_as_it_arrives_and_in_the_order_of_the_plan(tmp_path):
    out = tmp_path / "record.json"
    out.write_text('{"results": {"b": {"2": "kept"}, "no plan has it": {"9": "kept"}}}', "utf-8")

    def recorded():
        return sum(len(rows) for rows in results(out).values())

    plan = [("a", "1"), ("a", "2"), ("b", "1"), ("b", "2"), ("c", "1")]
    reverse = dict.fromkeys(plan[:4][::-1], (recorded,))
    assert shared.sweep(alone(out), plan, reverse)["a", "1"] == 4
    assert [*results(out)] == ["a", "b", "no plan has it"]
    assert [*results(out)["a"].items()] == [("1", 4), ("2", 3)]
    assert [*results(out)["b"].items()] == [("1", 2), ("2", "kept")]


def wait_for(n, out):
    """Until there are n runs in a record of two levels; in a worker."""
    end = time.monotonic() + 60
    while not out.exists() or sum(map(len, results(out).values())) < n:
        assert time.monotonic() < end, f"{out} never has {n} results"
        time.sleep(0.01)


def test_a_killed_worker_s_run_is_taken_up_and_none_is_repeated(arguments, tmp_path, monkeypatch):
    out, log, at_death = arguments.out, tmp_path / "log", tmp_path / "at death"
    monkeypatch.chdir(tmp_path)  # and the cluster's workers are elsewhere
    arguments.out = Path("record.json")

    def run(folder):
        assert folder.parent.parent == tmp_path  # wherever the worker was started
        assert "shared" not in sys.modules  # which a machine of a cluster does not have
        with log.open("a") as file:
            print(folder.name, file=file)
        if folder.name == "b mortal" and not folder.exists():
            wait_for(2, out)
            folder.mkdir(parents=True)
            shutil.copy(out, at_death)
            os.kill(os.getpid(), signal.SIGKILL)
        return "taken up" if folder.exists() else "undisturbed"

    plan = [("b", "mortal"), *[("a", str(i)) for i in range(6)]]
    tasks = {key: (run, shared.unfinished(arguments.out, key)) for key in plan}
    expected = {"b": {"mortal": "taken up"}, "a": dict.fromkeys(map(str, range(6)), "undisturbed")}
    for _ in range(2):
        swept = shared.sweep(arguments, plan, tasks)
        assert json.dumps(results(arguments.out)) == json.dumps(expected)
        assert [swept[key] for key in plan] == ["taken up"] + ["undisturbed"] * 6
        assert not list(tmp_path.glob("record.unfinished"))
        lines = log.read_text().split("\n")
        assert lines.count("b mortal") == 2
        assert [lines.count(f"a {name}") for name in results(at_death)["a"]] == [1] * len(
            results(at_death)["a"]
        )


def test_a_run_that_kills_all_its_workers_ends_the_sweep_and_no_result_is_lost(arguments, tmp_path):
    out, log = arguments.out, tmp_path / "log"

    def poison():
        wait_for(3, out)
        with log.open("a") as file:
            print("died", file=file)
        os.kill(os.getpid(), signal.SIGKILL)

    plan = [("a", "poison"), ("a", "1"), ("a", "2"), ("a", "3")]
    tasks = dict.fromkeys(plan, (os.getpid,)) | {plan[0]: (poison,)}
    died = {"loky": TerminatedWorkerError, "dask": KilledWorker}[arguments.backend]
    with pytest.raises(died):
        shared.sweep(arguments, plan, tasks)
    assert (
        log.read_text().split() == ["died"] * {"loky": shared.DEATHS, "dask": 2}[arguments.backend]
    )
    assert [*results(out)["a"]] == ["1", "2", "3"]
    assert os.getpid() not in results(out)["a"].values()


def test_an_error_in_a_run_ends_the_sweep(arguments):
    def fail():
        raise ZeroDivisionError("in a run")

    with pytest.raises(ZeroDivisionError, match="in a run"):
        shared.sweep(arguments, [("a",), ("b",)], {("a",): (fail,), ("b",): (fail,)})
    assert not arguments.out.exists()


def test_the_one_worker_of_a_cluster_does_the_work(tmp_path):
    with LocalCluster(n_workers=1, threads_per_worker=1, processes=False, **LOCAL) as cluster:
        there = Namespace(
            out=tmp_path / "record.json",
            backend="dask",
            scheduler=cluster.scheduler_address,
            jobs=1,
        )
        shared.sweep(there, [("a",)], {("a",): (threading.get_ident,)})
    assert results(there.out)["a"] != threading.get_ident()


def test_workers_of_several_threads_are_refused(tmp_path):
    """Their runs would seed one generator under each other's feet."""
    with LocalCluster(n_workers=1, threads_per_worker=2, processes=False, **LOCAL) as cluster:
        there = Namespace(
            out=tmp_path / "record.json",
            backend="dask",
            scheduler=cluster.scheduler_address,
            jobs=1,
        )
        with pytest.raises(ValueError, match=r"has 2 threads.*--nthreads 1"):
            shared.sweep(there, [("a",)], {("a",): (int,)})


@pytest.mark.parametrize(
    ("line", "jobs"), [("", joblib.cpu_count()), ("--device cuda", 1), ("--jobs 3", 3)]
)
def test_a_sweep_takes_every_core_and_one_process_on_a_gpu(monkeypatch, line, jobs):
    monkeypatch.setattr(sys, "argv", ["sweep.py", *line.split()])
    parser = ArgumentParser()
    parser.add_argument("--device", default="cpu")
    arguments = shared.parse(parser)
    assert (arguments.backend, arguments.jobs, arguments.budget) == ("loky", jobs, 1.0)


@pytest.mark.parametrize("line", ["--backend dask", "--scheduler tcp://127.0.0.1:8786"])
def test_dask_and_its_address_go_together(monkeypatch, capsys, line):
    monkeypatch.setattr(sys, "argv", ["sweep.py", *line.split()])
    with pytest.raises(SystemExit):
        shared.parse(ArgumentParser())
    assert "--backend dask and --scheduler ADDRESS go together" in capsys.readouterr().err


def test_experiments_need_no_more_than_a_machine_with_a_gpu_has():
    """Dask is needed where it is chosen only, and nothing of Jupyter anywhere."""
    names = ["shared", "showdown", "sprites", "five_datasets"]
    sources = [(EXPERIMENTS / f"{name}.py").read_text("utf-8") for name in names]
    for chapter in ("balance/showdown", "narrowing/five_datasets", "narrowing/narrowing"):
        cells = json.loads((ROOT / "book" / f"{chapter}.ipynb").read_text("utf-8"))["cells"]
        sources += [
            "".join(cell["source"])
            for cell in cells
            if "experiment" in cell["metadata"].get("tags", [])
        ]
    imported = set()
    for statement in (each for source in sources for each in ast.parse(source).body):
        if isinstance(statement, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in statement.names}
        elif isinstance(statement, ast.ImportFrom):
            imported.add(statement.module.split(".")[0])
    there = {"torch", "numpy", "sklearn", "joblib", "matplotlib", "tqdm", "vaelib"}
    there |= {"scipy"}  # which scikit-learn brings
    assert imported - sys.stdlib_module_names - {"shared"} <= there
    assert {"torch", "joblib", "vaelib"} <= imported
