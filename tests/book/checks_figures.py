"""Checks of figures, still ones and those that move; see checks.py."""

import re
from html.parser import HTMLParser
from pathlib import Path

from cells import bundles, code_cells, markdown
from nbformat import NotebookNode

MIN_ALT = 30  # letters; "Plot of the loss" describes nothing


def figures_described(notebook: NotebookNode, path: Path) -> list[str]:
    """Each image has alt text (what is to be seen), a caption (what it means) and a name."""
    problems = []
    for name, cell in code_cells(notebook):
        images = sum(any(kind.startswith("image/") for kind in bundle) for bundle in bundles(cell))
        if not images:
            continue
        described = cell.metadata.get("mystnb", {})
        alt = described.get("image", {}).get("alt", "").strip()
        caption = described.get("figure", {}).get("caption", "").strip()
        if images > 1:
            problems.append(f"{name} shows {images} images, but metadata describes one: split it")
        if len(alt) < MIN_ALT:
            problems.append(f"{name} has the alt text {alt!r}: say what one would see")
        if not caption:
            problems.append(f"{name} has no caption in metadata.mystnb.figure")
        if alt and alt == caption:
            problems.append(f"{name} repeats its caption as alt text: say what one would see")
        if not described.get("figure", {}).get("name", "").startswith("fig-"):
            problems.append(f"{name} needs a metadata.mystnb.figure.name that starts with fig-")
    for alt, source in re.findall(r"!\[(.*?)\]\((.*?)\)", markdown(notebook)):
        if len(alt.strip()) < MIN_ALT:
            problems.append(f"the image {source} has the alt text {alt!r}: say what one would see")
    return problems


class _Figures(HTMLParser):
    """Collects players' labels and captions, and what a page would load from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.players: list[dict[str, str]] = []
        self.loaded: list[str] = []
        self._in_player = self._in_caption = False

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = {key: value or "" for key, value in attributes}
        if tag == "figure" and "vaelib-player" in values.get("class", "").split():
            self._in_player = True
            self.players.append({"label": values.get("aria-label", ""), "caption": ""})
        self._in_caption = self._in_caption or (self._in_player and tag == "figcaption")
        if tag != "a":
            links = [values.get("src", ""), values.get("href", "")]
            self.loaded += [link for link in links if re.match(r"(https?:)?//", link)]

    def handle_endtag(self, tag: str) -> None:
        self._in_caption = self._in_caption and tag != "figcaption"
        self._in_player = self._in_player and tag != "figure"

    def handle_data(self, data: str) -> None:
        if self._in_caption:
            self.players[-1]["caption"] += data


def players_described(notebook: NotebookNode, path: Path) -> list[str]:
    """Figures that move have a label and a caption, and no output loads anything from elsewhere."""
    problems = []
    for name, cell in code_cells(notebook):
        for bundle in bundles(cell):
            figures = _Figures()
            figures.feed(bundle.get("text/html", ""))
            problems += [
                f"{name} loads {link}: outputs must work offline" for link in figures.loaded
            ]
            for player in figures.players:
                if len(player["label"].strip()) < MIN_ALT:
                    label = player["label"]
                    problems.append(f"{name} shows a player with the aria-label {label!r}")
                if not player["caption"].strip():
                    problems.append(f"{name} shows a player without a figcaption")
    return problems
