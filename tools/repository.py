"""The repository's address: what notebooks say because of it, and how it is changed everywhere.

The address stands in _config.yml. Run as a script with a new address, writes that one wherever the
old one stands: _config.yml, badges, setup cells, README.md, CITATION.cff, pyproject.toml, …

    python tools/repository.py https://github.com/owner/name
"""

import os
import re
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent

# Nothing in an address may need quoting in JSON, YAML, TOML or a shell.
ADDRESS = re.compile(
    r"https://github\.com(/[\w.-]+){2}"
    r"|https://(?!github\.com/)[\w.-]+(:\d+)?(/[\w.~-]+){2,}"
    r"|file://(/[\w.~-]+){2,}",
    re.ASCII,
)
PRUNED = {"_build", "node_modules", "__pycache__"}

SETUP_CELL = """\
# On Colab: fetch vaelib, and only vaelib; torch, numpy and the rest stay as they are.
import importlib.util

if importlib.util.find_spec("vaelib") is None:
    %pip install --quiet --no-deps "vaelib @ git+{url}"\
"""
COLAB_LINK = "[Open in Colab](https://colab.research.google.com/github/{slug}/blob/{branch}/{path})"


def repository(root: Path = ROOT) -> dict[str, str]:
    """The address (`url`) and the `branch` that _config.yml states."""
    return yaml.safe_load((root / "_config.yml").read_text("utf-8"))["repository"]


def slug(url: str) -> str:
    """The owner and name at the end of an address: what Colab and Binder call a repository by."""
    return "/".join(url.split("/")[-2:])


def setup_cell(root: Path = ROOT) -> str:
    """Source of each chapter's first code cell."""
    return SETUP_CELL.format(url=repository(root)["url"])


def colab_link(path: Path, root: Path = ROOT) -> str:
    """The line under a chapter's title; `path` is the notebook's, relative to `root`."""
    config = repository(root)
    return COLAB_LINK.format(
        slug=slug(config["url"]), branch=config["branch"], path=path.as_posix()
    )


def _texts(root: Path) -> list[Path]:
    """Files of the checkout, without what was built, installed or hidden."""
    found = []
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in PRUNED and not name.startswith(".")]
        found += [Path(folder, name) for name in names]
    return sorted(found)


def change(new: str, root: Path = ROOT) -> list[Path]:
    """Write the address `new` wherever the present one stands; returns the files that changed."""
    old = repository(root)["url"]
    # An address ends where no further letter follows: owner/name is not owner/name-2.
    address = re.compile(re.escape(old) + r"(?![\w-])")
    service = re.compile(
        rf"(colab\.research\.google\.com/github|mybinder\.org/v2/gh)/{re.escape(slug(old))}(?![\w-])"
    )
    changed = []
    for path in _texts(root):
        try:
            before = path.read_bytes().decode("utf-8")  # bytes: line ends stay as they are
        except UnicodeDecodeError:
            continue
        after = address.sub(lambda _: new, before)
        after = service.sub(lambda found: f"{found[1]}/{slug(new)}", after)
        if after != before:
            path.write_bytes(after.encode("utf-8"))
            changed.append(path.relative_to(root))
    return changed


def main() -> None:
    """Change the address to the one named on the command line."""
    url = sys.argv[1] if len(sys.argv) == 2 else ""
    if not ADDRESS.fullmatch(url) or url.endswith(".git"):
        sys.exit(
            f"Not a repository's address: {url!r}. Give the one that a browser shows, without a "
            "trailing slash or .git:\n  make repository URL=https://github.com/owner/name\n"
            "or, to try things out, a local one: file:///path/to/name"
        )
    changed = change(url)
    print(f"The repository is {url}; files changed: {len(changed)}")
    for path in changed:
        print(f"  {path}")
    if not url.startswith("https://github.com/"):
        print(
            "Mind: Colab and Binder open repositories on GitHub only; their links lead nowhere now."
        )


if __name__ == "__main__":
    main()
