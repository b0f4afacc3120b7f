"""Which pages the book has, read from _toc.yml; run as a script, checks that each became HTML."""

import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent


def _entries(node: Any) -> list[str]:
    """Names under `root:` and `file:`, in reading order, however deep parts and sections go."""
    if isinstance(node, list):
        return [name for item in node for name in _entries(item)]
    if not isinstance(node, dict):
        return []
    here = [node[key] for key in ("root", "file") if key in node]
    return here + [name for value in node.values() for name in _entries(value)]


def pages(root: Path = ROOT) -> list[Path]:
    """Source files of all pages in the order of _toc.yml, relative to `root`.

    Raises:
        FileNotFoundError: an entry has neither a notebook nor a Markdown file.
    """
    found = []
    for name in _entries(yaml.safe_load((root / "_toc.yml").read_text("utf-8"))):
        sources = [Path(name + suffix) for suffix in ("", ".ipynb", ".md")]
        source = next((path for path in sources if (root / path).is_file()), None)
        if source is None:
            raise FileNotFoundError(
                f"_toc.yml lists {name!r}, but there is no {name}.ipynb and no {name}.md: "
                "write the page or take its line out of _toc.yml"
            )
        found.append(source)
    return found


def notebooks(root: Path = ROOT) -> list[Path]:
    """The pages that are notebooks, in the order of _toc.yml, relative to `root`."""
    return [page for page in pages(root) if page.suffix == ".ipynb"]


def main() -> None:
    """Name the file to open, or fail when a page of _toc.yml has no HTML."""
    html = ROOT / "_build" / "html"
    # A build can end well and have written nothing: Jupyter Book 2, say, ignores _toc.yml.
    missing = [page for page in pages() if not (html / page).with_suffix(".html").is_file()]
    if missing:
        names = "\n  ".join(str(page) for page in missing)
        sys.exit(f"These pages of _toc.yml have no HTML under {html}:\n  {names}")
    print(f"All {len(pages())} pages are there. Open {html / pages()[0].with_suffix('.html')}")


if __name__ == "__main__":
    main()
