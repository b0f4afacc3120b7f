"""A player plays, steps and answers the keyboard: one made here, and each one in the built book."""

import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from pages import ROOT, pages
from playwright.sync_api import Locator, expect

from vaelib import widgets

HTML = ROOT / "_build" / "html"
MARK = 'class="vaelib-player"'
Open = Callable[..., Any]

F, N = 7, 12
RNG = np.random.default_rng(0)
POINTS = RNG.normal(size=(F, N, 2))
LOSS = np.linspace(30, 12, F)
SPECTRUM = RNG.uniform(-1, 2, size=(F, 4))


def player(**options: Any) -> str:
    # So long that the legend takes more lines than its neighbour's.
    names = [f"growers of the {ordinal} region" for ordinal in ("first", "second", "third")]
    panels = [
        widgets.scatter("Plane", POINTS, np.arange(N) % 3, names),
        widgets.lines("Loss", np.arange(F), {"train": LOSS, "held-out": LOSS + 1}),
        widgets.lines("KL", np.arange(F), {"train": np.arange(F) / 7}),
        widgets.bars("Spectrum", SPECTRUM, ["1", "2", "3", "4"]),
    ]
    frames = [f"epoch {frame} of {F - 1}" for frame in range(F)]
    described = {"title": "Title", "alt": "Four panels."}
    return widgets.player(panels, frames, **(described | options)).html


def document(*outputs: str) -> str:
    """A page that follows the reader's theme, as a notebook's does."""
    return f"""<!doctype html><html lang="en"><title>Player</title>
        <meta name="viewport" content="width=device-width">
        <style>
            :root {{ color-scheme: light dark; font-family: sans-serif; }}
            body {{ background: Canvas; }}
        </style>
        {"".join(f"<div>{output}</div>" for output in outputs)}"""


def players_in_the_book() -> list[tuple[str, int]]:
    found = []
    for page in pages():
        path = (HTML / page).with_suffix(".html")
        count = path.read_text("utf-8").count(MARK) if path.is_file() else 0
        found += [(page.with_suffix(".html").as_posix(), index) for index in range(count)]
    return found


@pytest.fixture(scope="module")
def pages_of_the_book(open_window: Open, book: str) -> Iterator[Open]:
    """Opens a page of the book, its time standing still; the same page at one size only once."""
    windows: dict[str, Any] = {}

    def open_page(page: str, **options: Any) -> Any:
        key = f"{page} {sorted(options.items())}"
        if key not in windows:
            windows[key] = open_window(book + page, clock=True, **options)
            windows[key].stop_clock()
        return windows[key]

    yield open_page
    for window in windows.values():
        window.page.context.close()


def opener(request: pytest.FixtureRequest, page: str, index: int) -> Open:
    def show(**options: Any) -> Locator:
        """Opens the page of a player, its time standing still, and returns the player."""
        if page == "made here":
            opened = request.getfixturevalue("visit")(document(player()), clock=True, **options)
            opened.stop_clock()
        else:
            opened = request.getfixturevalue("pages_of_the_book")(page, **options)
        assert opened.errors == []
        figure = opened.page.locator(".vaelib-player").nth(index)
        if figure.get_by_role("button", name="Pause").count():
            figure.get_by_role("button", name="Pause").click()
        return figure

    return show


@pytest.fixture
def show(request: pytest.FixtureRequest) -> Open:
    return opener(request, "made here", 0)


@pytest.fixture(
    params=[("made here", 0), *players_in_the_book()], ids=lambda param: f"{param[0]}-{param[1]}"
)
def show_each(request: pytest.FixtureRequest) -> Open:
    """As `show`, for the player made here and for each in the book: what the theme could break."""
    return opener(request, *request.param)


def slider(figure: Locator) -> Locator:
    return figure.get_by_role("slider")


def frame(figure: Locator) -> int:
    return int(slider(figure).input_value())


def last(figure: Locator) -> int:
    return int(slider(figure).get_attribute("max"))


def button(figure: Locator, name: str) -> Locator:
    return figure.get_by_role("button", name=name, exact=True)


def drawing(figure: Locator) -> str:
    return figure.locator(".stage").inner_html()


def wait(figure: Locator, milliseconds: int) -> None:
    figure.page.clock.run_for(milliseconds)


def test_it_stands_still_on_its_first_frame(show_each: Open) -> None:
    figure = show_each()
    first = frame(figure)
    wait(figure, 30_000)
    assert frame(figure) == first
    expect(button(figure, "Play")).to_be_visible()
    expect(figure.locator("img")).to_have_count(0)  # the still has made way
    assert figure.get_attribute("aria-label").strip()
    assert figure.locator("figcaption").inner_text().strip()


def test_it_says_which_frame_it_shows(show_each: Open) -> None:
    figure = show_each()
    said = []
    for key in ("Home", "End"):
        slider(figure).press(key)
        said.append(slider(figure).get_attribute("aria-valuetext"))
        assert said[-1] == figure.locator(".label").inner_text()
    assert said[0] != said[1]


def test_it_plays_from_the_start_to_the_end_and_stops(show_each: Open) -> None:
    figure = show_each()
    slider(figure).press("End")
    button(figure, "Play").click()
    assert frame(figure) == 0
    seen = [frame(figure)]
    while button(figure, "Pause").count():
        wait(figure, 80)
        seen.append(frame(figure))
        assert len(seen) < 1000, "it never stops"
    assert sorted(set(seen)) == list(range(last(figure) + 1))  # each frame, in order
    assert seen == sorted(seen)
    assert 1 < len(seen) * 0.08 < 15  # seconds
    wait(figure, 30_000)
    assert frame(figure) == last(figure)


def test_every_frame_is_drawn(show: Open) -> None:
    figure = show()
    slider(figure).press("Home")
    drawn = {drawing(figure)}
    for _ in range(last(figure)):
        button(figure, "One step forward").click()
        drawn.add(drawing(figure))
    assert len(drawn) == last(figure) + 1


def test_it_pauses_and_goes_on(show: Open) -> None:
    figure = show()
    slider(figure).press("Home")
    button(figure, "Play").click()
    wait(figure, 1500)
    button(figure, "Pause").click()
    paused = frame(figure)
    assert 0 < paused < last(figure)
    wait(figure, 30_000)
    assert frame(figure) == paused
    button(figure, "Play").click()
    assert frame(figure) == paused
    wait(figure, 800)
    assert frame(figure) > paused


def test_buttons_step_and_end_at_the_ends(show: Open) -> None:
    figure = show()
    slider(figure).press("Home")
    button(figure, "One step back").click()
    assert frame(figure) == 0
    button(figure, "One step forward").click()
    assert frame(figure) == 1
    button(figure, "One step back").click()
    assert frame(figure) == 0
    slider(figure).press("End")
    button(figure, "One step forward").click()
    assert frame(figure) == last(figure)


def test_dragging_the_slider_shows_its_frame_and_pauses(show: Open) -> None:
    figure = show()
    button(figure, "Play").click()
    before = drawing(figure)
    slider(figure).fill("2")
    assert frame(figure) == 2
    assert drawing(figure) != before
    expect(button(figure, "Play")).to_be_visible()


KEYS = ["Home", "ArrowLeft", "ArrowRight", "ArrowRight", "ArrowLeft", "End"]


def frames_after(figure: Locator, focused: Locator) -> list[int]:
    frames = []
    for key in KEYS:
        focused.press(key)
        frames.append(frame(figure))
    return frames


def test_the_keyboard_steps(show_each: Open) -> None:
    figure = show_each()
    assert frames_after(figure, slider(figure)) == [0, 0, 1, 2, 1, last(figure)]


def test_the_keyboard_steps_from_a_button_too(show: Open) -> None:
    figure = show()
    assert frames_after(figure, button(figure, "Play")) == [0, 0, 1, 2, 1, last(figure)]


def test_space_plays_and_pauses(show_each: Open) -> None:
    figure = show_each()
    slider(figure).press("Home")
    slider(figure).press("Space")
    wait(figure, 1500)
    assert frame(figure) > 0
    slider(figure).press("Space")
    paused = frame(figure)
    wait(figure, 30_000)
    assert frame(figure) == paused


def test_space_on_a_button_presses_that_button(show: Open) -> None:
    figure = show()
    slider(figure).press("Home")
    button(figure, "One step forward").press("Space")
    assert frame(figure) == 1
    button(figure, "Play").press("Space")
    expect(button(figure, "Pause")).to_be_visible()


def test_keys_with_a_modifier_are_left_to_the_browser(show: Open) -> None:
    figure = show()
    slider(figure).press("Home")
    button(figure, "Play").press("Alt+End")
    assert frame(figure) == 0


@pytest.mark.parametrize(("motion", "delay"), [("no-preference", 250), ("reduce", 700)])
def test_less_motion_for_those_who_ask_for_it(visit: Open, motion: str, delay: int) -> None:
    panel = widgets.bars("Bars", np.arange(40)[:, None], ["1"])
    many = widgets.player([panel], [*map(str, range(40))], title="Title", alt="One bar.")
    opened = visit(document(many.html), clock=True, reduced_motion=motion)
    opened.stop_clock()
    figure = opened.page.locator(".vaelib-player")
    button(figure, "Play").click()
    wait(figure, delay - 10)
    assert frame(figure) == 0
    wait(figure, 20)
    assert frame(figure) == 1


# The page behind a node, and what a mixed or half transparent paint looks like on it: red, green
# and blue of 255 each. A canvas mixes colours as the screen does.
PAINTED = """(node, property) => {
    let page = node;
    while (/, 0\\)$/.test(getComputedStyle(page).backgroundColor)) page = page.parentElement;
    const pixel = new OffscreenCanvas(1, 1).getContext("2d");
    const paint = (color) => {
        pixel.fillStyle = color;
        pixel.fillRect(0, 0, 1, 1);
        return [...pixel.getImageData(0, 0, 1, 1).data].slice(0, 3);
    };
    return [getComputedStyle(page).backgroundColor, getComputedStyle(node)[property]].map(paint);
}"""


def luminance(rgb: list[int]) -> float:
    scaled = np.array(rgb) / 255
    linear = np.where(scaled <= 0.04045, scaled / 12.92, ((scaled + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def contrast(node: Locator, paint: str) -> float:
    dark, light = sorted(luminance(rgb) for rgb in node.evaluate(PAINTED, paint))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_it_is_readable_in_both_themes(show_each: Open, theme: str) -> None:
    figure = show_each(theme=theme)
    page = luminance(figure.evaluate(PAINTED, "color")[0])
    assert page > 0.9 if theme == "light" else page < 0.02
    for text in figure.locator("svg text").all():
        assert contrast(text, "fill") >= 4.5
    for text in figure.locator("figcaption, strong, .legend > span, .label").all():
        assert contrast(text, "color") >= 4.5
    for mark in figure.locator(".legend .filled, rect.filled").all():
        assert contrast(mark, "fill") >= 3
    for curve in figure.locator(".legend .curve").all():
        assert contrast(curve, "stroke") >= 3


def test_the_focus_is_visible(show_each: Open) -> None:
    figure = show_each()
    button(figure, "One step back").focus()
    for _ in range(3):
        figure.page.keyboard.press("Tab")
        outline = "getComputedStyle(document.activeElement).outlineStyle"
        assert figure.page.evaluate(outline) == "solid"
    expect(slider(figure)).to_be_focused()


@pytest.mark.parametrize("width", [1280, 390])
def test_panels_line_up_and_nothing_sticks_out(show_each: Open, width: int) -> None:
    figure = show_each(width=width)
    boxes = [svg.bounding_box() for svg in figure.locator(".panel > svg").all()]
    assert len({round(box["width"]) for box in boxes}) == 1
    columns = len({round(box["x"]) for box in boxes})
    assert columns == (1 if width == 390 else min(2, len(boxes)))
    for left, right in zip(boxes[::columns], boxes[columns - 1 :: columns], strict=False):
        assert left["y"] == pytest.approx(right["y"], abs=1)  # drawings of a row align
    for text in figure.locator("svg text").all():
        outside, inside = text.locator("xpath=..").bounding_box(), text.bounding_box()
        assert inside["x"] >= outside["x"] - 1
        assert inside["x"] + inside["width"] <= outside["x"] + outside["width"] + 1
        assert inside["height"] >= 11  # pixels
    for control in figure.locator("button").all():
        assert min(control.bounding_box()["width"], control.bounding_box()["height"]) >= 36


# --- Below, only the player made here: what it draws is known ---------------------------------


def to_data(svg: Locator, axis: str) -> Callable[[float], float]:
    """From SVG coordinates to data, by the numbers that stand at the axis's ticks."""
    anchor = {"x": "middle", "y": "end"}[axis]
    ticks = []
    for text in svg.locator(f"text[text-anchor={anchor}]").all():
        label = text.inner_html().replace("−", "-")
        if re.fullmatch(r"-?[\d.]+", label):
            ticks.append((float(text.get_attribute(axis)), float(label)))
    slope, offset = np.polyfit(*zip(*ticks, strict=True), 1)
    raised = 4.5 if axis == "y" else 0  # text stands a little below its tick
    return lambda position: slope * (position + raised) + offset


def attributes(nodes: Locator, *names: str) -> np.ndarray:
    return np.array([[float(node.get_attribute(n)) for n in names] for node in nodes.all()])


@pytest.mark.parametrize("shown", [0, 3, F - 1])
def test_what_is_drawn_is_the_data(visit: Open, shown: int) -> None:
    figure = visit(document(player(start=shown))).page.locator(".vaelib-player")
    plane, loss, _, spectrum = figure.locator(".panel > svg").all()

    moved = [mark.get_attribute("transform") for mark in plane.locator(".filled").all()]
    drawn = np.array([re.match(r"translate\(([\d.]+),([\d.]+)\)", t).groups() for t in moved])
    x, y = to_data(plane, "x"), to_data(plane, "y")
    drawn = np.array([[x(float(px)), y(float(py))] for px, py in drawn])
    by_class = np.argsort(np.arange(N) % 3, kind="stable")
    np.testing.assert_allclose(drawn, POINTS[shown, by_class], atol=0.02)

    x, y = to_data(loss, "x"), to_data(loss, "y")
    dots = [[x(cx), y(cy)] for cx, cy in attributes(loss.locator("circle"), "cx", "cy")]
    np.testing.assert_allclose(dots, [[shown, LOSS[shown]], [shown, LOSS[shown] + 1]], atol=0.1)
    whole, so_far = loss.locator("path.curve").all()[:2]
    assert whole.get_attribute("d").count(",") == F
    assert so_far.get_attribute("d").count(",") == shown + 1
    values = figure.locator(".panel").nth(1).locator("b").all_inner_texts()
    assert [float(value) for value in values] == pytest.approx(
        [LOSS[shown], LOSS[shown] + 1], abs=0.051
    )

    y = to_data(spectrum, "y")
    for (top, height), value in zip(
        attributes(spectrum.locator("rect"), "y", "height"), SPECTRUM[shown], strict=True
    ):
        assert [y(top + height), y(top)] == pytest.approx(sorted([0, value]), abs=0.02)


def test_the_same_player_twice_makes_two_players(visit: Open) -> None:
    opened = visit(document(player(), player()))
    one, two = opened.page.locator(".vaelib-player").all()
    slider(one).press("Home")
    assert (frame(one), frame(two)) == (0, F - 1)
    for figure in (one, two):
        assert figure.locator(".stage").count() == figure.locator(".controls").count() == 1
    assert opened.errors == []


def test_it_leaves_nothing_behind_in_the_page_s_own_names(visit: Open) -> None:
    names = "Object.getOwnPropertyNames(window).sort()"
    assert visit(document(player())).page.evaluate(names) == visit(document("")).page.evaluate(
        names
    )


@pytest.mark.parametrize("where", ["in its place", "in the head"])
def test_a_notebook_that_inserts_its_outputs_gets_a_player_too(visit: Open, where: str) -> None:
    """Inserted HTML runs no scripts, so notebooks make them anew, not all at the same place."""
    page = visit(document("")).page
    page.evaluate(
        """([html, where]) => {
            const output = document.createElement("div");
            output.innerHTML = html;
            document.body.append(output);
            for (const script of output.querySelectorAll("script:not([type])")) {
                const anew = document.createElement("script");
                anew.textContent = script.textContent;
                if (where === "in the head") document.head.append(anew);
                else script.replaceWith(anew);
            }
        }""",
        [player(), where],
    )
    expect(page.locator(".vaelib-player .controls")).to_be_visible()


def test_without_scripts_there_is_a_still_picture(visit: Open) -> None:
    page = visit(document(player()), java_script_enabled=False).page
    expect(page.get_by_role("img", name="Four panels.")).to_be_visible()
    assert page.locator("img").bounding_box()["width"] > 600
    expect(page.get_by_role("button")).to_have_count(0)


def test_paper_has_no_buttons(visit: Open) -> None:
    page = visit(document(player())).page
    page.emulate_media(media="print")
    expect(page.locator(".stage")).to_be_visible()
    expect(page.locator(".controls")).to_be_hidden()


def test_on_a_narrow_screen_the_controls_stay_in_sight(visit: Open) -> None:
    page = visit(document(player()), width=390).page
    assert page.locator(".vaelib-player").bounding_box()["height"] > 900  # taller than the window
    controls = page.locator(".controls").bounding_box()
    assert controls["y"] + controls["height"] <= 900


def test_text_in_the_data_stays_text(visit: Open) -> None:
    nasty = "</script><img src=x onerror='window.broken = 1'>"
    panel = widgets.bars(nasty, [[1], [2]], ["1"])
    page = visit(document(widgets.player([panel], ["1", nasty], title=nasty, alt=nasty).html)).page
    assert page.locator(".label").inner_text() == nasty
    assert page.locator("img").count() == 0
    assert page.evaluate("window.broken") is None
