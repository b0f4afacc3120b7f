"""The setup cell on a machine like Colab's: it fetches vaelib when missing, and nothing else.

A fresh environment far from the checkout has what Colab has. A chapter's own cell, unchanged, asks
for the repository's address, which git is told to find in a local repository. pip reaches no
registry, so a cell that wanted anything but vaelib would fail.
"""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

import pytest
import repository
from IPython.core.inputtransformer2 import TransformerManager
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
CHAPTER = ROOT / "book" / "foundations" / "log_variance.ipynb"  # the quickest one
ON_COLAB = ["torch", "numpy", "scikit-learn", "matplotlib", "tqdm", "safetensors", "ipykernel"]
# To run the notebook as Colab does, and to build vaelib: pip would fetch hatchling for that.
TOOLS = ["nbclient", "pip", "setuptools", "hatchling"]

# Runs a notebook on the Python that runs this; the last line says where its packages came from.
RUN = """
import sys, nbformat
from nbclient import NotebookClient
notebook = nbformat.read(sys.argv[1], as_version=4)
notebook.cells.append(nbformat.v4.new_code_cell('''
import json, numpy, torch, vaelib
print(json.dumps({module.__name__: module.__file__ for module in (numpy, torch, vaelib)}))
'''))
NotebookClient(notebook, kernel_name="python3", timeout=300).execute()
print(notebook.cells[-1].outputs[-1].text)
"""

# Without the settings of whoever runs the tests.
CLEAN = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith(("GIT_", "PIP_", "PYTHON", "JUPYTER"))
} | {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}


def copy_distributions(names: list[str], environment: Path) -> None:
    """Put distributions, and all they need, from this environment into another one.

    By hard links where the disk allows: that takes seconds and no room, where installing PyTorch
    takes minutes and gigabytes. pip never writes into a file, it puts another in its place.
    """
    queue, seen = list(names), set()
    while queue:
        name = queue.pop()
        if name in seen:
            continue
        seen.add(name)
        found = distribution(name)
        wanted = [Requirement(line) for line in found.requires or []]
        queue += [each.name for each in wanted if not each.marker or each.marker.evaluate()]
        for file in found.files or []:
            origin = Path(os.path.normpath(found.locate_file(file)))
            target = environment / origin.relative_to(sys.prefix)
            target.parent.mkdir(parents=True, exist_ok=True)
            if origin.is_file() and not target.exists():
                try:
                    os.link(origin, target)
                except OSError:
                    shutil.copy2(origin, target)


def installed(environment: Path) -> dict[str, int]:
    """Name and identity on disk of each distribution: a reinstalled one has another identity."""
    records = environment.glob("lib/python*/site-packages/*.dist-info/RECORD")
    return {record.parent.name: record.stat().st_ino for record in records}


@pytest.fixture
def colab(tmp_path: Path) -> Path:
    """A fresh environment with what Colab has."""
    environment = tmp_path / "colab"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    copy_distributions(ON_COLAB + TOOLS, environment)
    return environment


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A git repository with the package as it stands in the working tree."""
    if shutil.which("git") is None:
        pytest.skip("git is missing, so the setup cell was not tested")
    folder = tmp_path / "repository"
    shutil.copytree(
        ROOT / "vaelib", folder / "vaelib", ignore=shutil.ignore_patterns("__pycache__")
    )
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    author = ["-c", "user.name=reader", "-c", "user.email=reader@localhost"]
    for command in (["init", "--quiet"], ["add", "."], [*author, "commit", "--quiet", "-m", "all"]):
        subprocess.run(["git", "-C", folder, *command], check=True, env=CLEAN)
    return folder


@pytest.mark.skipif(not CHAPTER.exists(), reason="no chapter yet to run as on Colab")
def test_a_chapter_fetches_vaelib_alone_and_runs(
    tmp_path: Path, colab: Path, published: Path
) -> None:
    before = installed(colab)
    assert not any(name.startswith("vaelib") for name in before)

    notebook = shutil.copy(CHAPTER, tmp_path)
    result = subprocess.run(
        [colab / "bin" / "python", "-c", RUN, notebook],
        cwd=tmp_path,
        env=CLEAN
        | {
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": f"url.{published.as_uri()}.insteadOf",
            "GIT_CONFIG_VALUE_0": repository.repository()["url"],
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_NO_INDEX": "1",
            "PIP_NO_BUILD_ISOLATION": "0",  # pip reads it as `build isolation: 0`
            "CUDA_VISIBLE_DEVICES": "",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stdout

    for name, file in json.loads(result.stdout.strip().split("\n")[-1]).items():
        assert Path(file).is_relative_to(colab), f"{name} came from {file}"
    after = installed(colab)
    assert [name.split("-")[0] for name in after.keys() - before.keys()] == ["vaelib"]
    assert {name: after.get(name) for name in before} == before


@pytest.mark.parametrize("present", [True, False])
def test_the_setup_cell_acts_only_when_vaelib_is_missing(
    present: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    magics = []

    class Shell:
        def run_line_magic(self, *words: str) -> None:
            magics.append(" ".join(words))

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if present else None)
    code = TransformerManager().transform_cell(repository.setup_cell())
    exec(code, {"get_ipython": Shell})
    url = repository.repository()["url"]
    fetch = f'pip install --quiet --no-deps "vaelib @ git+{url}"'
    assert magics == ([] if present else [fetch])
