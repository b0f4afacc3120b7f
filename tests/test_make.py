"""The Makefile and its tools, each run on a small copy of the checkout."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import repository
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

ROOT = Path(__file__).parent.parent
INHERITED = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith(("MAKE", "MFLAGS", "PIP_")) and name != "PYTHON"
}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What the tools need, and a book of one page."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt", "_config.yml", "README.md"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "tools", tmp_path / "tools")
    shutil.copytree(ROOT / "book" / "images", tmp_path / "book" / "images")
    shutil.copy(ROOT / "book" / "references.bib", tmp_path / "book")
    (tmp_path / "book" / "index.md").write_text("# A book\n")
    (tmp_path / "_toc.yml").write_text("format: jb-book\nroot: book/index\n")
    return tmp_path


@pytest.fixture
def installed(checkout: Path) -> Path:
    """A checkout whose .venv stands for the one that runs these tests."""
    binaries = checkout / ".venv" / "bin"
    binaries.mkdir(parents=True)
    (binaries / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (binaries / "python").chmod(0o755)
    shutil.copy(Path(sys.executable).with_name("jupyter-book"), binaries)
    (checkout / ".venv" / ".installed").write_text(f"{checkout}\n")
    return checkout


def run(*command: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder, stdout and stderr as one text."""
    return subprocess.run(
        command,
        cwd=cwd,
        env=INHERITED | environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
    )


def write_notebook(path: Path, *sources: str) -> None:
    """A notebook of code cells with metadata as an editor leaves it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kernelspec = {"display_name": "mine", "name": "python3"}
    cells = [new_code_cell(source) for source in sources]
    nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": kernelspec}), path)


# --- make .venv --------------------------------------------------------------------------------


def bare_path(folder: Path) -> Path:
    """A folder for PATH with the tools of a bare machine, and no Python."""
    folder.mkdir()
    for name in ("make", "sh", "cat", "head", "rm"):
        (folder / name).symlink_to(str(shutil.which(name)))
    return folder


def test_a_machine_without_python_is_told_what_to_do(checkout: Path) -> None:
    result = run("make", "book", cwd=checkout, PATH=str(bare_path(checkout / "bin")))
    assert result.returncode != 0
    assert "needs Python 3.11 or newer" in result.stdout
    assert "Found: none." in result.stdout
    assert "make book PYTHON=/path/to/python3.12" in result.stdout


def test_pythons_that_will_not_do_are_named_with_the_reason(checkout: Path) -> None:
    path = bare_path(checkout / "bin")
    old = "import sys; sys.version = '3.9.2 (x)'; sys.version_info = (3, 9, 2); exec(sys.argv[2])"
    no_venv = "import sys; sys.modules['ensurepip'] = None; exec(sys.argv[2])"
    for name, lie in (("python3", old), ("python3.12", no_venv)):
        (path / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "{lie}" "$@"\n')
        (path / name).chmod(0o755)
    result = run("make", "book", cwd=checkout, PATH=str(path))
    assert result.returncode != 0
    assert f"python3 ({path}/python3): 3.9.2, too old" in result.stdout
    assert "cannot make virtual environments (Debian and Ubuntu: apt install" in result.stdout
    assert not (checkout / ".venv").exists()

    # One that was named is the only one looked at.
    result = run("make", "book", "PYTHON=python3", cwd=checkout, PATH=str(path))
    assert "3.9.2, too old" in result.stdout
    assert "python3.12 (" not in result.stdout


def test_an_offline_registry_is_told_as_such_and_leaves_no_stamp(checkout: Path) -> None:
    offline = {
        "PYTHON": sys._base_executable,  # type: ignore[attr-defined]
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_INDEX_URL": "http://127.0.0.1:9/simple",  # nothing listens there
        "PIP_RETRIES": "0",
    }
    result = run("make", "book", cwd=checkout, **offline)
    assert result.returncode != 0
    assert "Step failed: installing the packages of constraints.txt" in result.stdout
    assert "the package registry was\nnot reached" in result.stdout
    assert not (checkout / ".venv" / ".installed").exists()


def test_nothing_is_installed_twice_unless_the_folder_moved(installed: Path) -> None:
    plan = ("make", "--dry-run", "types")
    assert "install.sh" not in run(*plan, cwd=installed).stdout
    # Times are set, since on a fast machine two files written one after the other have one time.
    bounds, stamp = installed / "constraints.txt", installed / ".venv" / ".installed"
    later = stamp.stat().st_mtime + 10
    os.utime(bounds, (later, later))
    assert "install.sh" in run(*plan, cwd=installed).stdout
    os.utime(stamp, (later + 10, later + 10))
    assert "install.sh" not in run(*plan, cwd=installed).stdout
    moved = installed.rename(installed.with_name("moved"))
    assert "install.sh" in run(*plan, cwd=moved).stdout


# --- make book ---------------------------------------------------------------------------------


def test_a_build_is_never_stale_and_never_forgives_a_warning(installed: Path) -> None:
    page = installed / "book" / "index.md"
    page.write_text("# A book\n\n{ref}`nowhere`\n")
    for _ in range(2):
        result = run("make", "book", cwd=installed)
        assert result.returncode != 0
        assert "nowhere" in result.stdout
    page.write_text("# A book\n")
    result = run("make", "book", cwd=installed)
    assert result.returncode == 0, result.stdout
    assert f"Open {installed}/_build/html/book/index.html" in result.stdout

    # A logo that changed is shown, though no page changed.
    logo = installed / "book" / "images" / "logo.svg"
    logo.write_text(logo.read_text() + "<!-- new -->")
    run("make", "book", cwd=installed)
    assert "<!-- new -->" in (installed / "_build" / "html" / "_static" / "logo.svg").read_text()


def test_what_leads_to_the_repository_is_there_once_it_has_an_address(installed: Path) -> None:
    """Launch buttons, Colab links, canonical address, card and map: with the placeholder, none."""
    page = Path("book/chapter.ipynb")
    (installed / "_toc.yml").write_text(
        "format: jb-book\nroot: book/index\nparts:\n- chapters:\n  - file: book/chapter\n"
    )
    html, build = installed / "_build" / "html", installed / ".venv" / "bin" / "jupyter-book"
    address = "https://ada.github.io/vaes/"
    leads = {  # what the page says, and whether the placeholder's page says it too
        "colab.research.google.com": False,
        "mybinder.org": False,
        f'rel="canonical" href="{address}book/chapter.html"': False,
        f'property="og:image" content="{address}four_panels.png"': False,
        'property="og:title" content="Why?"': True,
        'name="description" content="Because it says in a sentence': True,
    }
    text = "Because it says in a sentence, long enough, what it is about."
    for url in (repository.repository(installed)["url"], "https://github.com/ada/vaes"):
        repository.change(url, installed)
        title = f"# Why?\n\n{repository.colab_link(page, installed)}\n\n{text}"
        metadata = {"kernelspec": {"display_name": "Python 3", "name": "python3"}}
        notebook = new_notebook(cells=[new_markdown_cell(title)], metadata=metadata)
        nbformat.write(notebook, installed / page)
        # Not by make: pyproject.toml changed with the address, and make would install anew.
        result = run(sys.executable, build, "build", "-W", "-n", ".", cwd=installed)
        assert result.returncode == 0, result.stdout
        written = (html / page).with_suffix(".html").read_text()
        published = "ada" in url
        for lead, always in leads.items():
            assert (lead in written) == (published or always), lead
        sitemap = html / "sitemap.xml"
        assert sitemap.exists() == published
    assert f"<loc>{address}book/chapter.html</loc>" in sitemap.read_text()
    assert f'href="{address}book/index.html"' in (html / "404.html").read_text()


def test_a_page_without_html_is_named(checkout: Path) -> None:
    script = (sys.executable, "tools/pages.py")
    result = run(*script, cwd=checkout)
    assert result.returncode == 1
    assert "book/index.md" in result.stdout
    html = checkout / "_build" / "html" / "book" / "index.html"
    html.parent.mkdir(parents=True)
    html.touch()
    assert run(*script, cwd=checkout).returncode == 0

    toc = checkout / "_toc.yml"
    toc.write_text(toc.read_text() + "parts:\n- chapters:\n  - file: book/part/no_such_page\n")
    result = run(*script, cwd=checkout)
    assert result.returncode == 1
    assert "'book/part/no_such_page'" in result.stdout


# --- make execute ------------------------------------------------------------------------------


def test_execute_writes_outputs_and_nothing_about_the_machine(installed: Path) -> None:
    path = installed / "book" / "good.ipynb"
    look = (
        "import os; print([os.environ[name] for name in ('CUDA_VISIBLE_DEVICES', 'TQDM_DISABLE')])"
    )
    write_notebook(path, look, "1 + 1")
    ids = [cell.id for cell in nbformat.read(path, 4).cells]
    result = run("make", "execute", "NB=book/good.ipynb", cwd=installed)
    assert result.returncode == 0, result.stdout
    assert "s  book/good.ipynb" in result.stdout

    notebook = nbformat.read(path, 4)
    assert notebook.cells[0].outputs[0].text == "['', '1']\n"
    assert notebook.cells[1].outputs[0].data == {"text/plain": "2"}
    assert [cell.execution_count for cell in notebook.cells] == [1, 2]
    assert [cell.id for cell in notebook.cells] == ids
    assert all(cell.metadata == {} for cell in notebook.cells)
    assert re.fullmatch(r"[0-9a-f]{16}", notebook.metadata.pop("made_with"))
    assert notebook.metadata == {
        "kernelspec": {
            "display_name": "Python 3 (ipykernel)",
            "language": "python",
            "name": "python3",
        },
        "language_info": {"name": "python"},
    }
    assert not path.with_name("good.ipynb.new").exists()


def test_execute_stores_no_widget_but_what_it_shows_at_its_start(installed: Path) -> None:
    path = installed / "book" / "live.ipynb"
    slider = "import ipywidgets; ipywidgets.interact(lambda x: print('at', x), x=(0, 3));"
    write_notebook(path, slider, "1 + 1")
    result = run("make", "execute", "NB=book/live.ipynb", cwd=installed)
    assert result.returncode == 0, result.stdout

    notebook = nbformat.read(path, 4)
    assert [output.text for output in notebook.cells[0].outputs] == ["at 1\n"]
    assert notebook.cells[1].outputs[0].data == {"text/plain": "2"}
    assert "widgets" not in notebook.metadata
    assert "widget" not in json.dumps([cell.outputs for cell in notebook.cells])


def test_execute_names_the_cell_that_failed_and_leaves_the_file(installed: Path) -> None:
    path = installed / "book" / "bad.ipynb"
    write_notebook(path, "x = 1", "assert x == 2, 'x is one'")
    before = path.read_bytes()
    result = run("make", "execute", "NB=book/bad.ipynb", cwd=installed)
    assert result.returncode != 0
    assert "book/bad.ipynb, left as it was: code cell 2 failed" in result.stdout
    assert "x is one" in result.stdout
    assert path.read_bytes() == before

    result = run("make", "execute", "NB=book/none.ipynb", cwd=installed)
    assert result.returncode != 0
    assert "Not a notebook: book/none.ipynb" in result.stdout


# --- make mutants ------------------------------------------------------------------------------


def test_mutants_of_a_file_that_has_none_are_not_all_killed(installed: Path) -> None:
    result = run("make", "mutants", "NAMES=plots", cwd=installed)
    assert result.returncode != 0
    assert "mutants.txt has no section plots" in result.stdout


# --- make repository ---------------------------------------------------------------------------


def test_repository_changes_the_address_everywhere(checkout: Path) -> None:
    path = Path("book/part/chapter.ipynb")
    (checkout / path).parent.mkdir()
    cells = [
        new_markdown_cell(f"# Why?\n\n{repository.colab_link(path, checkout)}"),
        new_code_cell(repository.setup_cell(checkout)),
        new_markdown_cell(f"not this one: {repository.repository(checkout)['url']}-2"),
    ]
    nbformat.write(new_notebook(cells=cells), checkout / path)
    old = repository.repository(checkout)["url"]
    for url in ("https://github.com/ada/vaes", "file:///srv/git/vaes", old):
        changed = repository.change(url, checkout)
        assert {path, Path("_config.yml"), Path("README.md"), Path("pyproject.toml")} <= set(
            changed
        )
        assert repository.repository(checkout)["url"] == url
        title, setup, other = nbformat.read(checkout / path, 4).cells
        assert title.source.endswith(repository.colab_link(path, checkout))
        assert setup.source == repository.setup_cell(checkout)
        assert f'"vaelib @ git+{url}"' in setup.source
        assert other.source.endswith(f"{old}-2")
        assert f"/{repository.slug(url)}/blob/" in (checkout / "README.md").read_text()
        assert repository.change(url, checkout) == []
    assert (checkout / "README.md").read_bytes() == (ROOT / "README.md").read_bytes()


@pytest.mark.parametrize(
    "url",
    [
        "",
        "ada/vaes",
        "git@github.com:ada/vaes",
        "https://github.com/ada",
        "https://github.com/ada/vaes/",
        "https://github.com/ada/vaes.git",
        "https://github.com/ada/vaes/tree/main",
        "https://github.com/ada/va es",
        'https://github.com/ada/va"es',
        "file:///vaes",
    ],
)
def test_repository_refuses_what_is_no_address(checkout: Path, url: str) -> None:
    before = (checkout / "_config.yml").read_bytes()
    result = run(sys.executable, "tools/repository.py", url, cwd=checkout)
    assert result.returncode == 1
    assert repr(url) in result.stdout
    assert "make repository URL=https://github.com/owner/name" in result.stdout
    assert (checkout / "_config.yml").read_bytes() == before
