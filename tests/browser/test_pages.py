"""Every page of the book as a reader meets it: wide and narrow, light and dark."""

import functools
import os
import re
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urldefrag, urljoin, urlsplit

import pytest
from pages import ROOT, pages
from PIL import Image

HTML = ROOT / "_build" / "html"
PICTURES = HTML.parent / "pictures"
SLICE = 3000  # pixels: a taller picture is cut into slices that an eye can take in
PAGES = [page.with_suffix("").as_posix() for page in pages()]
FIRST = PAGES[1]  # the first chapter
# Width and theme have nothing to do with each other, so two windows show both of each.
WINDOWS = [(page, *window) for page in PAGES for window in ((1280, "light"), (390, "dark"))]


@pytest.fixture(scope="module", params=WINDOWS, ids=lambda param: "-".join(map(str, param)))
def window(
    request: pytest.FixtureRequest, open_window: Callable[..., Any], book: str
) -> Iterator[Any]:
    """One page in one window, opened once for all tests that only look."""
    name, width, theme = request.param
    window = open_window(f"{book}{name}.html", width, theme)
    window.name, window.width, window.theme = name.replace("/", "-"), width, theme
    yield window
    window.page.context.close()


def test_nothing_goes_wrong(window: Any) -> None:
    assert window.page.evaluate("document.documentElement.dataset.theme") == window.theme
    assert window.errors == []
    assert window.blocked == set(), "a page loads nothing from outside"


def test_the_page_is_light(window: Any) -> None:
    """All that it loads but pictures, as it lies on the disk: uncompressed."""
    weight = 0
    for url in window.asked:
        path = HTML / unquote(urlsplit(url).path).lstrip("/")
        if path.suffix == ".html":
            weight += len(re.sub(r'data:image/[^"]*', "", path.read_text("utf-8")).encode())
        elif path.suffix in (".css", ".js", ".woff", ".woff2", ".ttf"):
            weight += path.stat().st_size
    assert 100_000 < weight <= (1_000_000 if window.name == "book-index" else 1_500_000)


def test_the_page_does_not_scroll_sideways(window: Any) -> None:
    assert window.page.evaluate("document.documentElement.scrollWidth") <= window.width


def test_images_load_and_say_what_they_show(window: Any) -> None:
    bad = """[...document.images]
        .filter((image) => !image.naturalWidth || !image.alt.trim())
        .map((image) => `${image.src.slice(0, 99)} alt=${image.alt}`)"""
    assert window.page.evaluate(bad) == []


def test_maths_is_typeset(window: Any) -> None:
    raw = """() => [...document.querySelectorAll(".math:not(mjx-container *)")]
        .filter((formula) => !formula.querySelector("mjx-math"))
        .map((formula) => formula.textContent)"""
    assert window.page.evaluate(raw) == [], "formulas left as they were written"
    assert window.page.locator("mjx-merror").all_inner_texts() == []


def test_pictures(window: Any) -> None:
    """For people to look at, in _build/pictures: a window's worth of each page.

    VAE_PICTURES=1 takes the whole pages, which takes minutes.
    """
    name = f"{window.name}-{window.width}-{window.theme}"
    for old in PICTURES.glob(f"{name}-*.png"):
        old.unlink()
    before = window.page.viewport_size
    height = before["height"]
    if os.environ.get("VAE_PICTURES") == "1":
        # The window itself grows to the page's height: in a small one, what sticks to the window's
        # edge would lie across the middle of the picture.
        height = window.page.evaluate("document.documentElement.scrollHeight")
        window.page.set_viewport_size({"width": window.width, "height": height})
    for number, top in enumerate(range(0, height, SLICE), start=1):
        path = PICTURES / f"{name}-{number}.png"
        clip = {"x": 0, "y": top, "width": window.width, "height": min(SLICE, height - top)}
        window.page.screenshot(path=path, clip=clip)
        darkest, lightest = Image.open(path).convert("L").getextrema()
        assert lightest - darkest > 50, "a blank picture"
    window.page.set_viewport_size(before)


RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice", "experimental"]


def test_accessibility(window: Any, packages: Path) -> None:
    """All of axe's rules, on all pages, nothing left out."""
    window.page.evaluate((packages / "axe-core" / "axe.min.js").read_text("utf-8"))
    if window.name != FIRST.replace("/", "-"):
        # The letters of code are coloured alike on every page, and are most of a page's nodes: one
        # page is looked at with them, the others without, in a fifth of the time.
        window.page.evaluate(
            """document.querySelectorAll(".highlight pre")
                .forEach((node) => { node.textContent = node.textContent; })"""
        )
    found = window.page.evaluate(
        """async (rules) =>
        (await axe.run(document, {runOnly: rules, resultTypes: ["violations"]})).violations""",
        RULES,
    )
    serious = [
        f"{violation['id']}: {node['target']} {node['html'][:150]}"
        for violation in found
        if violation["impact"] in ("serious", "critical")
        for node in violation["nodes"]
    ]
    assert serious == []


class _Document(HTMLParser):
    """The places one can link to in a page, and the links in it."""

    def __init__(self) -> None:
        super().__init__()
        self.targets, self.links = {""}, set[str]()  # no fragment: the page's top

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = dict(attributes)
        self.targets |= {values.get("id") or "", values.get("name") or ""}
        if tag == "a" and values.get("href"):
            self.links.add(values["href"])


@functools.cache
def document(path: Path) -> _Document:
    parser = _Document()
    parser.feed(path.read_text("utf-8"))
    return parser


@pytest.mark.parametrize("page", PAGES)
def test_links_inside_the_book_lead_somewhere(book: str, page: str) -> None:
    links = document(HTML / f"{page}.html").links
    assert len(links) > 3  # the theme's own at least
    broken = []
    for link in links:
        url, fragment = urldefrag(urljoin(f"{book}{page}.html", link))
        if not url.startswith(book):
            continue
        path = HTML / unquote(urlsplit(url).path).lstrip("/")
        if not path.is_file() or (
            path.suffix == ".html" and unquote(fragment) not in document(path).targets
        ):
            broken.append(link)
    assert broken == []
