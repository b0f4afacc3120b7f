"""Breaks a copy of vaelib in one place at a time, and tells which breaks its tests do not notice.

    python tools/mutants.py [NAME …]      (all of mutants.txt, or the sections of these names)

mutants.txt has sections, each of one file of vaelib or of one class or function in it:

    [geco.Geco] test_geco.py -k "not slow"          what pytest is to run for them
    old text → new text        # what a reader would say is wrong

The old text stands exactly once in that file, class or function; ↵ is the end of a line in it, and
` && ` joins two changes to one mutant. A mutant is killed when a test fails, or hangs; one that
cannot even be imported ends the run. Fails below 95 %.
"""

from __future__ import annotations

import ast
import importlib
import multiprocessing
import os
import re
import shlex
import shutil
import sys
import tempfile
import time
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ENOUGH = 0.95
TIMEOUT = 300  # seconds; on a busy machine the tests of a section take some 60
# Imported once, for all the processes that run tests; vaelib itself is each one's own.
COMMON = ("torch", "scipy.stats", "sklearn.decomposition", "sklearn.manifold")
NEEDED = ("conftest.py", "pyproject.toml", "vaelib", "tests", "tools", "book/experiments")


@dataclass(frozen=True)
class Mutant:
    """One wrong library: which edits make it, what is wrong with it, which tests should tell."""

    where: str
    edits: tuple[tuple[str, str], ...]
    why: str
    tests: tuple[str, ...]

    @property
    def names(self) -> set[str]:
        """What it can be asked for by: its section's name, and its file's."""
        return {self.where, self.where.split(".")[0]}


def read(text: str) -> list[Mutant]:
    """The mutants of a list in the form that this module's docstring tells.

    Raises:
        ValueError: a line is neither a section nor a mutant, or a section names no tests.
    """
    mutants: list[Mutant] = []
    where, tests = "", ()
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        if section := re.fullmatch(r"\[([\w.]+)\] (.+)", line):
            where, tests = section[1], tuple(shlex.split(section[2]))
            continue
        code, _, why = line.partition("  # ")
        edits = tuple(tuple(edit.split(" → ")) for edit in code.replace("↵", "\n").split(" && "))
        if not where or not why or any(len(edit) != 2 or edit[0] == edit[1] for edit in edits):
            raise ValueError(
                f"line {number} is {line!r}; needed is [file.Class] tests, or old → new  # why"
            )
        mutants.append(Mutant(where, edits, why.strip(), tests))
    return mutants


def mutate(source: str, mutant: Mutant) -> str:
    """The source of a module with the mutant's edits made.

    Raises:
        ValueError: an old text does not stand there exactly once.
        SyntaxError: what comes out is no Python.
    """
    lines, first, last = source.splitlines(keepends=True), 0, None
    name = mutant.where.partition(".")[2]
    if name:
        nodes = [node for node in ast.parse(source).body if getattr(node, "name", "") == name]
        if len(nodes) != 1:
            raise ValueError(f"{mutant.where} stands there {len(nodes)} times, and not once")
        first, last = nodes[0].lineno - 1, nodes[0].end_lineno
    scope = "".join(lines[first:last])
    for old, new in mutant.edits:
        if scope.count(old) != 1:
            raise ValueError(f"{mutant.where} has {old!r} {scope.count(old)} times, and not once")
        scope = scope.replace(old, new)
    mutated = "".join(lines[:first]) + scope + ("".join(lines[last:]) if last else "")
    compile(mutated, mutant.where, "exec")
    return mutated


def _pytest(folder: Path, tests: tuple[str, ...]) -> None:
    """In a process of its own: runs tests in a folder, into a log, and exits as pytest does."""
    os.chdir(folder / "tests")
    sys.path.insert(0, str(folder))
    # What is imported already is another copy of the library, or tests of it.
    for name in [*sys.modules]:
        if name.partition(".")[0] in ("vaelib", "conftest") or name.startswith("test_"):
            del sys.modules[name]
    sys.dont_write_bytecode = True  # a stale .pyc could stand for a change within the same second
    options = ("-x", "-q", "-p", "no:cacheprovider", "-W", "ignore")
    with (folder / "log.txt").open("w") as log, redirect_stdout(log), redirect_stderr(log):
        code = pytest.main([*options, *tests])
    sys.exit(code)


def outcome(folder: Path, tests: tuple[str, ...]) -> str:
    """How these tests end in a folder: `passed`, `failed`, `hung`, or `broken` if none ran."""
    # Forked, so that torch is imported once and not for each mutant.
    process = multiprocessing.get_context("fork").Process(target=_pytest, args=(folder, tests))
    process.start()
    process.join(TIMEOUT)
    if process.is_alive():
        process.kill()
        process.join()
        return "hung"
    return {0: "passed", 1: "failed"}.get(process.exitcode or 0, "broken")


def survivors(root: Path, mutants: list[Mutant]) -> list[Mutant]:
    """Tries each mutant on a copy of the project at `root`, prints a table, returns who survived.

    Raises:
        ValueError: an old text does not stand where it should, before anything is run.
        RuntimeError: tests fail on the library as it is, or a mutant cannot be imported.
    """
    alive = []
    sources = {m.where: root / "vaelib" / f"{m.where.split('.')[0]}.py" for m in mutants}
    mutated = [mutate(sources[m.where].read_text("utf-8"), m) for m in mutants]
    with tempfile.TemporaryDirectory() as folder_name:
        folder = Path(folder_name)
        for name in filter(lambda name: (root / name).exists(), NEEDED):
            copy = shutil.copytree if (root / name).is_dir() else shutil.copy
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            copy(root / name, folder / name)
        for tests in dict.fromkeys(m.tests for m in mutants):
            if outcome(folder, tests) != "passed":
                log = (folder / "log.txt").read_text("utf-8")
                raise RuntimeError(
                    f"{shlex.join(tests)} must pass before mutants are tried:\n{log}"
                )
        for mutant, source in zip(mutants, mutated, strict=True):
            path = folder / sources[mutant.where].relative_to(root)
            start, before = time.perf_counter(), path.read_text("utf-8")
            path.write_text(source, "utf-8")
            result = outcome(folder, mutant.tests)
            path.write_text(before, "utf-8")
            if result == "broken":
                log = (folder / "log.txt").read_text("utf-8")
                raise RuntimeError(f"{mutant.where}, {mutant.why}: cannot be run:\n{log}")
            if result == "passed":
                alive.append(mutant)
            verdict = {"passed": "SURVIVED", "failed": "killed  ", "hung": "hung    "}[result]
            seconds = time.perf_counter() - start
            print(f"{verdict} {seconds:5.1f} s  {mutant.where:28} {mutant.why}", flush=True)
    return alive


def main() -> None:
    """Try all mutants, or the sections named, and fail when too many survive."""
    mutants, names = read(Path(__file__).with_suffix(".txt").read_text("utf-8")), set(sys.argv[1:])
    if unknown := names - {name for m in mutants for name in m.names}:
        sys.exit(f"mutants.txt has no section {', '.join(unknown)}")
    mutants = [m for m in mutants if not names or names & m.names]
    for name in COMMON:
        importlib.import_module(name)
    alive = survivors(ROOT, mutants)
    killed = len(mutants) - len(alive)
    print(f"\n{killed} of {len(mutants)} killed, {killed / len(mutants):.1%}")
    for mutant in alive:
        edits = " && ".join(f"{old} → {new}" for old, new in mutant.edits)
        print(f"  survived: {mutant.where}, {mutant.why}: {edits}")
    sys.exit(0 if killed >= ENOUGH * len(mutants) else 1)


if __name__ == "__main__":
    main()
