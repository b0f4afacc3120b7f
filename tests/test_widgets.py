"""What a player's HTML holds; how it behaves in a page is tested in tests/browser."""

import base64
import io
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from vaelib import plots, widgets

F, N = 5, 6
RNG = np.random.default_rng(0)
POINTS = RNG.normal(size=(F, N, 2))
CLASSES = np.array([0, 1, 2] * 2)
NAMES = ["a", "b", "c"]
FRAMES = [f"epoch {frame} of 4" for frame in range(F)]


def panels() -> list[widgets.Panel]:
    return [
        widgets.scatter("Plane", POINTS, CLASSES, NAMES),
        widgets.lines("Loss", np.arange(F), {"train": 20 - np.arange(F), "held-out": np.ones(F)}),
        widgets.bars("Spectrum", POINTS[:, :4, 0], ["1", "2", "3", "4"]),
    ]


def make(**changes: object) -> widgets.Player:
    options = {"panels": panels(), "frames": FRAMES, "title": "Title", "alt": "Three panels."}
    return widgets.player(**(options | changes))


def data(player: widgets.Player) -> dict:
    html = player._repr_html_()
    return json.loads(re.search(r'<script type="application/json">(.*?)</script>', html, re.S)[1])


def unpacked(frames: list[str], x: dict, y: dict) -> np.ndarray:
    """Points (F, N, 2) from player.js's texts of two letters a coordinate."""
    digits = np.array([[widgets.LETTERS.index(letter) for letter in text] for text in frames])
    shares = (64 * digits[:, ::2] + digits[:, 1::2]).reshape(len(frames), -1, 2) / 4095
    low, high = np.array([x["limits"], y["limits"]]).T
    return low + shares * (high - low)


def test_every_point_of_every_frame_is_there_to_within_a_dot() -> None:
    spec = data(make())["panels"][0]
    span = spec["x"]["limits"][1] - spec["x"]["limits"][0]
    for index, mark in enumerate(spec["marks"]):
        assert (mark["name"], mark["color"]) == (NAMES[index], plots.PALETTE[index])
        drawn = unpacked(mark["points"], spec["x"], spec["y"])
        np.testing.assert_allclose(drawn, POINTS[:, index == CLASSES], atol=span / 4095)
    assert len({mark["shape"] for mark in spec["marks"]}) == 3


def test_curves_and_bars_are_there() -> None:
    _, loss, spectrum = data(make())["panels"]
    assert loss["at"] == [0, 1, 2, 3, 4]
    assert [curve["values"] for curve in loss["curves"]] == [[20, 19, 18, 17, 16], [1] * 5]
    assert loss["curves"][0]["dash"] != loss["curves"][1]["dash"]
    np.testing.assert_allclose(spectrum["heights"], POINTS[:, :4, 0], atol=0.01)


def test_axes_hold_all_frames_and_points_share_one_range() -> None:
    plane, loss, spectrum = data(make())["panels"]
    assert plane["x"]["limits"] == plane["y"]["limits"]
    low, high = plane["x"]["limits"]
    assert low < POINTS.min() < POINTS.max() < high
    assert loss["x"]["limits"][0] == 0  # starts at zero, so no room below
    low, high = spectrum["y"]["limits"]
    assert low < 0 < high  # zero, where bars start, is in sight
    for axis in (plane["x"], loss["x"], loss["y"], spectrum["y"]):
        ticks = [value for value, _ in axis["ticks"]]
        assert axis["limits"][0] <= min(ticks) < max(ticks) <= axis["limits"][1]


def test_players_with_one_reach_have_one_scale() -> None:
    """Each panel's own numbers span less than what all players together hold."""

    def axes(scale: float, reach: tuple[float, ...]) -> list[list[float]]:
        plane = widgets.scatter("Plane", scale * POINTS, CLASSES, NAMES, reach=reach)
        loss = widgets.lines("Loss", np.arange(F), {"a": scale * np.arange(F)}, reach=reach)
        spectrum = widgets.bars("Spectrum", scale * np.ones((F, 1)), ["1"], reach=reach)
        specs = plane.spec["x"], plane.spec["y"], loss.spec["y"], spectrum.spec["y"]
        return [spec["limits"] for spec in specs]

    assert axes(0.1, (-5, 7)) == axes(1, (-5, 7)) == [[-5.48, 7.48]] * 4
    assert axes(0.1, ()) != axes(1, ())
    assert axes(100, (-5, 7))[2][1] > 400  # and what does not fit is not cut


def test_bars_that_are_all_positive_stand_on_the_axis() -> None:
    assert widgets.bars("Spectrum", [[1, 3], [2, 1]], ["1", "2"]).spec["y"]["limits"][0] == 0


@pytest.mark.parametrize("value", [0.0, 3.0, -1e-9, 1e7])
def test_a_curve_that_never_moves_has_an_axis(value: float) -> None:
    limits = widgets.lines("Flat", [0, 1], {"a": [value, value]}).spec["y"]["limits"]
    assert limits[0] <= value < limits[1]


def test_numbers_are_short() -> None:
    numbers = re.findall(r"-?\d+\.\d+", json.dumps(data(make())["panels"][2]["heights"]))
    assert max(map(len, numbers)) <= 6  # -1.234


def test_the_last_frame_is_shown_first_unless_told() -> None:
    assert data(make())["start"] == F - 1
    assert data(make(start=2))["start"] == 2
    assert data(make(start=-2))["start"] == 3


def test_tensors_serve_as_well_as_arrays() -> None:
    tensor = torch.tensor(POINTS, requires_grad=True)
    other = [widgets.scatter("Plane", tensor, torch.tensor(CLASSES), NAMES), *panels()[1:]]
    assert make(panels=other).html == make().html


def test_equal_panels_give_equal_html_without_ids() -> None:
    assert make().html == make().html
    assert not re.search(r"\sid=", make().html)


def test_nothing_is_loaded_from_elsewhere() -> None:
    links = set(re.findall(r"https?://[^\"'\s]+", make().html))
    assert links == {"http://www.w3.org/2000/svg"}  # a namespace, never fetched


def test_the_still_is_a_small_picture_of_the_first_frame_shown() -> None:
    def still(**changes: object) -> bytes:
        return base64.b64decode(re.search(r"base64,([^\"]+)", make(**changes).html)[1])

    assert Image.open(io.BytesIO(still())).size == (672, 556)
    assert len(still()) < 40_000
    assert still(start=0) != still()


def test_sixty_epochs_of_the_wines_fit() -> None:
    points = RNG.normal(size=(61, 178, 2)).cumsum(0)
    plane = widgets.scatter("Plane", points, np.arange(178) % 3, NAMES)
    curves = [widgets.lines("Loss", np.arange(61), {"a": RNG.normal(size=61)}) for _ in range(3)]
    player = make(panels=[plane, *curves], frames=[f"epoch {e} of 60" for e in range(61)])
    assert len(player.html.encode()) < 110_000


def test_text_cannot_break_out_of_the_html() -> None:
    nasty = '</script><b>&"'
    player = make(panels=[widgets.bars(nasty, [[1], [2]], [nasty])], frames=[nasty, "2"], alt=nasty)
    assert data(player)["panels"][0]["title"] == nasty
    assert "<b>" not in player.html
    assert 'alt="&lt;/script&gt;&lt;b&gt;&amp;&quot;"' in player.html


def test_the_plain_text_beside_the_html_is_short() -> None:
    assert repr(make()) == "<Player 'Title'>"


def test_the_reader_s_own_style_is_left_alone() -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)  # not a copy: reading the backend chooses one
    make()
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: widgets.scatter("P", POINTS[0], CLASSES, NAMES),
            r"'P': points has shape \(6, 2\): pass \(F, N, 2\)",
        ),
        (
            lambda: widgets.scatter("P", np.zeros((F, N, 3)), CLASSES, NAMES),
            r"'P': points has shape \(5, 6, 3\) and classes \(6,\): pass \(F, N, 2\) and \(N,\)",
        ),
        (
            lambda: widgets.scatter("P", POINTS, CLASSES[:5], NAMES),
            r"classes \(5,\): pass \(F, N, 2\) and \(N,\)",
        ),
        (
            lambda: widgets.scatter("P", POINTS, CLASSES, NAMES[:2]),
            "2 names for 3 classes: pass one for each",
        ),
        (
            lambda: widgets.lines("L", np.arange(F), {"a": [1, 2]}),
            "'L': 'a' has 2 values, but x has 5: pass one for each frame",
        ),
        (
            lambda: widgets.lines("L", [0, 1, 2], {"a": [1, 2, np.nan]}),
            "'L': 'a' is not finite, first in frame 2: end the frames before",
        ),
        (lambda: widgets.lines("L", [0, 1], {}), "'L': there are no curves: pass at least one"),
        (
            lambda: widgets.bars("B", [[1]], ["1"], "kg", reach=(0, np.inf)),
            "reach of the axis 'kg' is not finite: pass numbers it can show",
        ),
        (
            lambda: widgets.bars("B", np.ones((2, 3)), ["1"]),
            "'B': 1 labels for 3 bars: pass one for each",
        ),
        (lambda: make(frames=FRAMES[1:]), "'Plane' has 5 frames, but there are 4 labels"),
        (lambda: make(panels=[]), "no panels: pass at least one"),
        (lambda: make(start=5), "start is 5: choose one of the 5 frames"),
        (lambda: make(alt=" "), "alt ' ': say in words"),
        (lambda: make(title=""), "title is ''.*: say in words"),
        (
            lambda: make(
                panels=[widgets.scatter("P", RNG.normal(size=(5, 20000, 2)), [0] * 20000, ["a"])]
            ),
            "of 400 kB: show every second frame, or fewer points",
        ),
    ],
)
def test_bad_input_is_refused_with_value_and_remedy(build: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
