"""What a reader does on the pages: opens chapters, searches, tabs, copies, prints, reads offline.

Few pages stand for all: what the theme and tools/book_html.py do is the same on each of them.
"""

import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from pages import ROOT, pages
from playwright.sync_api import Page, expect

HTML = ROOT / "_build" / "html"
Open = Callable[..., Any]
CHAPTER = "book/narrowing/gates.html"  # the most formulas, and figures, code, a player, exercises
LAST = "book/practice/several_gpus.html"  # the furthest down the list of chapters
# Each width once, both themes.
WIDTHS = [(390, "dark"), (768, "light"), (1280, "dark"), (1440, "light")]


@pytest.fixture(scope="module")
def on(open_window: Open, book: str) -> Any:
    """Opens a page of the book, the same page at the same size only once."""
    windows: dict[str, Any] = {}

    def on(page: str, width: int = 1280, theme: str = "light", **options: Any) -> Page:
        key = json.dumps([page, width, theme, options])
        if key not in windows:
            windows[key] = open_window(f"{book}{page}", width, theme, **options)
        assert windows[key].errors == []
        return windows[key].page

    yield on
    for window in windows.values():
        window.page.context.close()


# --- Finding one's way ---------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "theme"), WIDTHS)
def test_the_chapters_open_close_and_lead_on(
    visit: Open, book: str, width: int, theme: str
) -> None:
    page = visit(f"{book}{CHAPTER}", width, theme).page
    button = page.get_by_role("button", name="Chapters")
    chapters = page.get_by_role("link", name="How much should the KL weigh?")
    wide = width >= 992
    expect(chapters).to_be_visible() if wide else expect(chapters).not_to_be_in_viewport()
    button.click()
    expect(chapters).to_be_hidden() if wide else expect(chapters).to_be_in_viewport()
    button.click() if wide else page.keyboard.press("Escape")
    expect(chapters).to_be_visible() if wide else expect(chapters).not_to_be_in_viewport()
    if not wide:
        button.press("Enter")
    chapters.click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("How much should the KL weigh?")


@pytest.mark.parametrize(("width", "theme"), WIDTHS)
def test_the_contents_of_the_page_open_and_lead_on(
    visit: Open, book: str, width: int, theme: str
) -> None:
    page = visit(f"{book}{CHAPTER}", width, theme).page
    button = page.get_by_role("button", name="On this page")
    link = page.locator(".bd-sidebar-secondary, dialog[open]").get_by_role("link", name="Summary")
    if width < 1200:
        expect(link).not_to_be_in_viewport()
        button.click()
    expect(link).to_be_in_viewport()
    link.click()
    expect(page.get_by_role("heading", name="Summary")).to_be_in_viewport()
    assert page.url.endswith("#summary")


def test_logo_search_and_the_chapter_one_reads_are_in_sight(on: Open) -> None:
    page = on(LAST, 1440)
    sidebar = page.locator(".bd-sidebar-primary")
    expect(sidebar.get_by_role("img", name="Practical VAEs").first).to_be_in_viewport(ratio=1)
    expect(sidebar.get_by_role("button", name="Search")).to_be_in_viewport(ratio=1)
    expect(sidebar.locator("li.current")).to_be_in_viewport(ratio=0.9)


@pytest.mark.parametrize(
    ("words", "chapter"),
    [("geco", "narrowing/geco"), ("β-VAE", "balance/beta"), ("free bits", "balance/schedules")],
)
def test_a_method_s_name_finds_its_chapter_first(on: Open, words: str, chapter: str) -> None:
    page = on(LAST, 1440)
    page.locator(".bd-sidebar-primary").get_by_role("button", name="Search").click()
    page.get_by_role("searchbox").fill(words)
    page.keyboard.press("Enter")
    first = page.locator("#search-results li a").first
    assert f"/{chapter}.html" in first.evaluate("node => node.href")
    page.go_back()


def test_the_index_names_methods(on: Open) -> None:
    page = on("genindex.html")
    page.locator("table.indextable").get_by_role("link", name="GECO", exact=True).click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("Ask for an error")


@pytest.mark.parametrize(("width", "theme"), WIDTHS)
def test_the_theme_can_be_switched(visit: Open, book: str, width: int, theme: str) -> None:
    opened = visit(f"{book}book/index.html", width, theme)
    colors = {"light": "rgb(255, 255, 255)", "dark": "rgb(18, 18, 18)"}
    background = "getComputedStyle(document.body).backgroundColor"
    assert opened.page.evaluate(background) == colors.pop(theme)
    (other,) = colors.values()
    for _ in range(3):  # light, dark, as the system has it
        opened.page.locator("button.theme-switch-button:visible").click()
        if opened.page.evaluate(background) == other:
            break
    assert opened.page.evaluate(background) == other
    assert opened.errors == []


# --- Keyboard and touch --------------------------------------------------------------------------


def test_the_tab_key_stops_at_what_can_be_used(on: Open) -> None:
    """Formulas are no stops, the focus is seen at each one, and the exercises are not far."""
    page = on(CHAPTER)
    page.locator("article h1").click()
    for _ in range(40):
        page.keyboard.press("Tab")
        stop = page.evaluate(
            """() => {
                const {tagName, className} = document.activeElement;
                const {outlineStyle, boxShadow} = getComputedStyle(document.activeElement);
                return {tagName, className, seen: outlineStyle !== "none" || boxShadow !== "none"};
            }"""
        )
        assert stop["tagName"] != "MJX-CONTAINER"
        assert stop["seen"], stop
    stops = page.locator(":is(a[href], button, summary, input, [tabindex='0']):visible").count()
    formulas = page.locator(".bd-article mjx-container").count()
    assert formulas > 100
    assert stops < 300, f"{stops} stops, with {formulas} formulas"


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_folds_are_named_and_answer_the_keyboard(on: Open, theme: str) -> None:
    page = on(CHAPTER, 1280, theme)
    names = [each.get_attribute("aria-label") for each in page.locator(".toggle-button").all()]
    assert names and all(name.startswith("Solution to Exercise") for name in names)
    assert len({*names}) == len(names)
    button = page.get_by_role("button", name=names[0])
    solution = page.locator(f"[id='{button.get_attribute('data-target')}']")
    closed = solution.bounding_box()["height"]
    button.press("Enter")
    expect(button).to_have_attribute("aria-expanded", "true")
    assert solution.bounding_box()["height"] > closed + 20
    button.press("Enter")
    expect(button).to_have_attribute("aria-expanded", "false")
    setup = page.locator("summary", has_text="Setup: fetch vaelib, on Colab").first
    setup.click()
    expect(page.locator("details[open] pre").first).to_contain_text("%pip install")
    setup.click()


def test_what_scrolls_sideways_scrolls_by_keyboard_and_has_a_name(on: Open) -> None:
    page = on("book/balance/showdown.html", 390, "dark")
    figure = page.get_by_role("region", name=re.compile("^Figure")).first
    figure.focus()
    for _ in range(5):
        page.keyboard.press("ArrowRight")
    page.wait_for_function("node => node.scrollLeft > 50", arg=figure.element_handle())
    names = [each.get_attribute("aria-label") for each in page.get_by_role("region").all()]
    assert len({*names}) == len(names)


def test_code_can_be_copied_without_a_pointer_that_hovers(visit: Open, book: str) -> None:
    options = {"has_touch": True, "is_mobile": True}
    page = visit(f"{book}{CHAPTER}", 390, **options).page
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    button = page.locator(".bd-article button.copybtn:visible").first
    assert float(button.evaluate("node => getComputedStyle(node).opacity")) == 1
    button.tap()
    code = button.locator("xpath=../pre").inner_text().strip()
    assert page.evaluate("navigator.clipboard.readText()").strip() == code


# --- Wide and narrow -----------------------------------------------------------------------------

# How many letters fit a line of each piece of code, were each 0.602 em wide (DejaVu Sans Mono).
ROOM = """() => [...document.querySelectorAll(".cell_input pre")]
    .filter((node) => node.offsetParent)
    .map((node) => {
        const { fontSize, paddingLeft, paddingRight } = getComputedStyle(node);
        const width = node.clientWidth - parseFloat(paddingLeft) - parseFloat(paddingRight);
        return Math.floor(width / (0.602 * parseFloat(fontSize)));
    })"""


@pytest.mark.parametrize("width", [768, 1024, 1280, 1366, 1440])
def test_a_line_of_88_letters_fits(on: Open, width: int) -> None:
    page = on("book/foundations/likelihoods.html")
    page.set_viewport_size({"width": width, "height": 900})
    assert min(page.evaluate(ROOM)) >= 88


def test_figures_on_a_phone_keep_a_size_that_can_be_read(on: Open) -> None:
    page = on("book/balance/showdown.html", 390, "dark")
    shares = page.evaluate(
        """() => [...document.querySelectorAll(".bd-article .wide img")].map((image) =>
            image.getBoundingClientRect().width / (image.naturalWidth * 96 / 144))"""
    )
    assert len(shares) > 1
    assert min(shares) >= 0.79  # a tick of 9 pt is 9.5 pixels high, and was 6.6 or 3


def test_a_table_s_numbers_stand_under_one_another(on: Open) -> None:
    page = on("book/narrowing/five_datasets.html")
    rows = page.locator(".text_html table").nth(1).locator("tr")
    rights = {}
    for row in rows.all()[1:4]:
        cells = row.locator("td").all()
        for column, cell in enumerate(cells[1:], 1):
            box = cell.bounding_box()
            rights.setdefault(column, set()).add(round(box["x"] + box["width"]))
            style = cell.evaluate(
                "node => [getComputedStyle(node).textAlign, getComputedStyle(node).paddingLeft]"
            )
            assert style[0] == "right" and float(style[1][:-2]) >= 8
    assert all(len(each) == 1 for each in rights.values())


def test_notation_shows_whole_meanings_on_a_phone(on: Open) -> None:
    page = on("book/notation.html", 390, "dark")
    for cell in page.locator("#losses tbody tr > :nth-child(3)").all():
        box = cell.bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 390


@pytest.mark.parametrize("width", [390, 1280])
def test_no_blank_line_under_headings_and_no_line_begins_with_a_comma(on: Open, width: int) -> None:
    page = on(CHAPTER, width, "dark")
    lines = """(nodes) => nodes.map((node) => {
        const range = document.createRange();
        range.selectNodeContents(node.firstChild);
        return node.getBoundingClientRect().height - range.getBoundingClientRect().height;
    })"""
    assert max(page.locator(".bd-article :is(h2, h3)").evaluate_all(lines)) < 20
    assert page.locator(".unbroken").count() > 10
    torn = """(nodes) => nodes.filter((node) => node.getClientRects().length > 1).length"""
    assert page.locator(".unbroken").evaluate_all(torn) == 0


# --- Paper ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "theme"), [(390, "dark"), (1280, "light"), (1280, "dark")])
def test_paper_is_light_and_cuts_nothing_off(on: Open, width: int, theme: str) -> None:
    page = on(CHAPTER, width, theme)
    page.emulate_media(media="print", color_scheme=theme)
    expect(page.locator("html")).to_have_attribute("data-theme", "light")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert (
        page.locator(".bd-article .wide img").first.evaluate("n => getComputedStyle(n).filter")
        == "none"
    )
    clipped = (
        """(nodes) => nodes.filter((node) => node.scrollWidth > node.clientWidth + 1).length"""
    )
    assert page.locator(".cell_input pre:visible").evaluate_all(clipped) == 0
    for hidden in (".bd-sidebar-primary", ".bd-header-article", ".controls", "button.copybtn"):
        expect(page.locator(hidden).first).to_be_hidden()
    inside = page.locator("figure, .vaelib-player").evaluate_all(
        "(nodes) => nodes.every((node) => getComputedStyle(node).breakInside === 'avoid')"
    )
    assert inside
    page.emulate_media(media="screen", color_scheme=theme)
    expect(page.locator("html")).to_have_attribute("data-theme", theme)


def test_a_dark_page_prints_to_a_light_pdf(on: Open) -> None:
    page = on(CHAPTER, 1280, "dark")
    page.evaluate("""() => addEventListener("beforeprint", () => {
        window.printed = document.documentElement.dataset.theme; })""")
    assert page.pdf().startswith(b"%PDF")
    assert page.evaluate("window.printed") == "light"
    expect(page.locator("html")).to_have_attribute("data-theme", "dark")


# --- From the disk, without a network ------------------------------------------------------------


def test_a_page_from_the_disk_asks_for_nothing_outside(visit: Open, book: str) -> None:
    opened = visit((HTML / CHAPTER).as_uri(), offline=True)
    assert opened.blocked == set() and opened.errors == []
    assert opened.page.locator(".math mjx-math").count() > 100
    fonts = (
        "[...document.fonts].filter((font) => font.status === 'loaded').map((font) => font.family)"
    )
    loaded = "".join(opened.page.evaluate(fonts))
    assert "MJXTEX" in loaded and "Font Awesome" in loaded
    opened.page.get_by_role("button", name="Play").first.click()
    opened.page.get_by_role("link", name="next").click()
    expect(opened.page.get_by_role("heading", level=1)).to_contain_text("Ask for an error")


def test_the_root_leads_to_the_first_page(visit: Open, book: str) -> None:
    page = visit(f"{book}404.html").page
    expect(page.get_by_role("heading")).to_have_text("There is no such page")
    page.get_by_role("link").click()
    page.wait_for_url("**/book/index.html")
    page.goto(book)
    page.wait_for_url("**/book/index.html")


def test_references_read_as_the_text_cites_them(on: Open) -> None:
    page = on("book/references.html")
    labels = page.locator(".citation .label").all_inner_texts()
    assert "Kingma and Welling, 2014" in labels
    assert all(re.fullmatch(r"[^\d$\\{}]+, \d{4}", label) for label in labels), labels
    assert "$" not in page.locator(".bd-article").inner_text()


# --- What the HTML says, page by page ------------------------------------------------------------

WRITTEN = [page.with_suffix(".html") for page in pages()]


def test_each_page_says_what_it_is_and_leads_nowhere_that_is_not_there() -> None:
    seen: dict[str, set[str]] = {"title": set(), "description": set()}
    for name in WRITTEN:
        page = (HTML / name).read_text("utf-8")
        (title,) = re.findall("<title>(.*?)</title>", page)
        (description,) = re.findall(r'<meta name="description" content="(.*?)"', page)
        assert len(description) > 40
        for kind, text in (("title", title), ("description", description)):
            assert text not in seen[kind]
            seen[kind].add(text)
        assert '<html lang="en"' in page and page.count("<h1") >= 1
        assert f'property="og:title" content="{title.split(" &#8212; ")[0]}"' in page
        assert not re.findall(r'href="[^"]*your_name[^"]*"', page)
    assert "Practical VAEs" in seen["title"]
