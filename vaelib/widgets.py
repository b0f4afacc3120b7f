"""Figures that move: a player that steps through frames in the page, without kernel or network.

:func:`player` makes one piece of HTML from panels: :func:`scatter`, :func:`lines`, :func:`bars`. It
holds the numbers (JSON), the code that draws them (``player.js``, plain JavaScript) and a still
picture for places that run no scripts. It works in the rendered book, in Colab, in JupyterLab and
in a saved notebook; equal panels give equal HTML.
"""

import base64
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.markers import MarkerStyle
from matplotlib.ticker import MaxNLocator
from PIL import Image  # matplotlib depends on it

from vaelib import plots

# The digits of player.js's numbers to the base 64, in their order.
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
MAX_BYTES = 400_000  # a chapter's notebook may weigh 1.5 MB, and has other figures


@dataclass(frozen=True)
class Panel:
    """One drawing of a player: all frames for ``player.js``, and any of them by matplotlib."""

    title: str
    n_frames: int
    spec: dict[str, Any]
    draw: Callable[[Axes, int], object]


def scatter(
    title: str,
    points: plots.Values,
    classes: plots.Values,
    names: Sequence[str],
    xlabel: str = "z₁",
    ylabel: str = "z₂",
    reach: plots.Values = (),
) -> Panel:
    """Points that move, one colour and one marker for each class.

    Both axes have one range, so that a latent that collapses is seen to collapse.

    Args:
        title: as for every panel, what stands above it.
        points: (F, N, 2), where each of N points is in each of F frames.
        classes: (N,), the class of each point.
        names: a name for each class, in the order of the sorted labels.
        reach: as for every panel, values that the axis (here both) reaches to at least. Players
            that are to be compared need one and the same scale: give them the values of all.
    """
    points, classes = _array(f"{title!r}: points", points, "FN2"), plots.to_numpy(classes)
    if classes.shape != points.shape[1:2] or points.shape[2] != 2:
        raise ValueError(
            f"{title!r}: points has shape {points.shape} and classes {classes.shape}: "
            "pass (F, N, 2) and (N,)"
        )
    x, y = _axis(points, xlabel, reach), _axis(points, ylabel, reach)
    marks = [
        {
            "name": names[index],
            "color": plots.color(index),
            "shape": _svg_shape(plots.MARKERS[index]),
            "points": _packed(points[:, members], x, y),
        }
        for index, members in enumerate(plots.class_members(classes, names))
    ]

    def draw(ax: Axes, frame: int) -> None:
        plots.latent_plane(ax, points[frame], classes, names)
        ax.set(xlim=x["limits"], ylim=y["limits"], xlabel=xlabel, ylabel=ylabel)

    return Panel(title, len(points), {"kind": "scatter", "x": x, "y": y, "marks": marks}, draw)


def lines(
    title: str,
    x: plots.Values,
    series: Mapping[str, plots.Values],
    xlabel: str = "epoch",
    ylabel: str = "nats per sample",
    reach: plots.Values = (),
) -> Panel:
    """Curves with one value a frame: faint as a whole, strong up to the current frame.

    Args:
        x: (F,), where each frame lies on the horizontal axis.
        series: a curve (F,) for each label.
        reach: values that the vertical axis reaches to at least.
    """
    x = _array(f"{title!r}: x", x, "F")
    ys = {name: _array(f"{title!r}: {name!r}", values, "F") for name, values in series.items()}
    for name, values in ys.items():
        if len(values) != len(x):
            raise ValueError(
                f"{title!r}: {name!r} has {len(values)} values, but x has {len(x)}: "
                "pass one for each frame"
            )
    if not ys:
        raise ValueError(f"{title!r}: there are no curves: pass at least one")
    x_axis, y_axis = _axis(x, xlabel), _axis(np.stack([*ys.values()]), ylabel, reach)
    curves = [
        {
            "name": name,
            "color": plots.color(index),
            "dash": plots.DASHES[index % len(plots.DASHES)],
            "values": _rounded(values, y_axis),
        }
        for index, (name, values) in enumerate(ys.items())
    ]

    def draw(ax: Axes, frame: int) -> None:
        plots.curves(ax, x, ys)
        ax.axvline(x[frame], color="#8c8c8c", linewidth=0.8)
        ax.set(ylim=y_axis["limits"], xlabel=xlabel, ylabel=ylabel)

    axes = {"x": x_axis, "y": y_axis, "at": _rounded(x, x_axis)}
    return Panel(title, len(x), {"kind": "lines", "curves": curves} | axes, draw)


def bars(
    title: str,
    heights: plots.Values,
    labels: Sequence[str],
    ylabel: str = "nats per sample",
    reach: plots.Values = (),
) -> Panel:
    """Bars from zero, such as a spectrum.

    Args:
        heights: (F, K), the height of each of K bars in each of F frames.
        labels: a short label for each bar.
        reach: values that the vertical axis reaches to at least.
    """
    heights = _array(f"{title!r}: heights", heights, "FK")
    if len(labels) != heights.shape[1]:
        raise ValueError(
            f"{title!r}: {len(labels)} labels for {heights.shape[1]} bars: pass one for each"
        )
    y = _axis(np.append(heights, 0.0), ylabel, reach)

    def draw(ax: Axes, frame: int) -> None:
        ax.bar(labels, heights[frame], width=0.7)
        ax.set(ylim=y["limits"], ylabel=ylabel)

    columns = {"labels": [*labels], "color": plots.color(0), "heights": _rounded(heights, y)}
    return Panel(title, len(heights), {"kind": "bars", "y": y} | columns, draw)


class Player:
    """A figure that plays; as the last expression of a cell it shows itself."""

    def __init__(self, html: str, title: str) -> None:
        self.html, self.title = html, title

    def _repr_html_(self) -> str:
        return self.html

    def __repr__(self) -> str:  # stored beside the HTML, so it must not repeat it
        return f"<Player {self.title!r}>"


def player(
    panels: Sequence[Panel], frames: Sequence[str], *, title: str, alt: str, start: int = -1
) -> Player:
    """A figure of one or more panels that plays, steps and scrubs through its frames.

    Args:
        panels: what to draw, each with one drawing for each frame.
        frames: what the slider says in each frame, such as "epoch 12 of 60" or "β = 0.5".
        title: a short heading above the panels.
        alt: what there is to see, in words, for readers who do not see it.
        start: the frame shown first; the last, unless told.

    Raises:
        ValueError: for panels whose frames disagree, an empty title or alt, a start beyond the
            frames, or more numbers than a page should carry.
    """
    if not title.strip() or not alt.strip():
        raise ValueError(f"title is {title!r} and alt {alt!r}: say in words what there is to see")
    if not panels:
        raise ValueError("there are no panels: pass at least one")
    for panel in panels:
        if panel.n_frames != len(frames):
            raise ValueError(
                f"panel {panel.title!r} has {panel.n_frames} frames, but there are {len(frames)} "
                "labels: pass one label for each frame, and panels with equally many frames"
            )
    if not -len(frames) <= start < len(frames):
        raise ValueError(f"start is {start}: choose one of the {len(frames)} frames")
    start %= len(frames)
    specs = [{"title": panel.title} | panel.spec for panel in panels]
    data = {"frames": [*frames], "start": start, "panels": specs}
    # "<" as an escape, so that no text in the data can end the script element.
    payload = json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    still = base64.b64encode(_still(panels, start)).decode()
    package = files("vaelib")
    # JupyterLab leaves the keyboard alone inside elements marked data-lm-suppress-shortcuts.
    html = f"""\
<figure class="vaelib-player" aria-label="{escape(alt)}" data-lm-suppress-shortcuts="true">
<figcaption>{escape(title)}</figcaption>
<img src="data:image/png;base64,{still}" alt="{escape(alt)}">
<script type="application/json">{payload}</script>
<style>{(package / "player.css").read_text("utf-8")}</style>
<script>{(package / "player.js").read_text("utf-8")}</script>
</figure>"""
    if (size := len(html.encode())) > MAX_BYTES:
        raise ValueError(
            f"the player takes {size / 1000:.0f} kB of {MAX_BYTES / 1000:.0f} kB: "
            "show every second frame, or fewer points"
        )
    return Player(html, title)


def _still(panels: Sequence[Panel], frame: int) -> bytes:
    """One frame as a PNG."""
    columns = min(2, len(panels))
    rows = math.ceil(len(panels) / columns)
    with matplotlib.rc_context(plots.STYLE):
        figure = Figure(figsize=(7, 2.9 * rows), dpi=96)
        for index, panel in enumerate(panels):
            ax = figure.add_subplot(rows, columns, index + 1)
            panel.draw(ax, frame)
            ax.set_title(panel.title)
        drawing, png = io.BytesIO(), io.BytesIO()
        figure.savefig(drawing, format="png")
    # 64 colours look the same and take a quarter of the bytes.
    Image.open(drawing).convert("RGB").quantize(64).save(png, format="png", optimize=True)
    return png.getvalue()


def _array(what: str, values: plots.Values, shape: str) -> np.ndarray:
    """``values`` as finite float64 with a dimension for each letter of ``shape``."""
    array = plots.to_numpy(values).astype(np.float64)
    if array.ndim != len(shape) or array.size == 0:
        raise ValueError(f"{what} has shape {array.shape}: pass ({', '.join(shape)}), F frames")
    bad = np.argwhere(~np.isfinite(array))
    if len(bad):
        raise ValueError(f"{what} is not finite, first in frame {bad[0][0]}: end the frames before")
    return array


def _axis(values: np.ndarray, label: str, reach: plots.Values = ()) -> dict[str, Any]:
    """Limits with a little room (none below a least value of zero), ticks and decimals."""
    values = np.append(values, plots.to_numpy(reach))
    if not np.isfinite(values).all():
        raise ValueError(f"reach of the axis {label!r} is not finite: pass numbers it can show")
    low, high = float(values.min()), float(values.max())
    span = high - low or abs(high) or 1.0
    low, high = low - 0.04 * span * (low != 0), high + 0.04 * span
    # At least 500 steps over the axis: finer than a page shows.
    decimals = max(0, math.ceil(math.log10(500 / span)))
    ticks = MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    return {
        "label": label,
        "limits": [round(low, decimals + 1), round(high, decimals + 1)],
        "ticks": [[round(t, 9), f"{t:g}".replace("-", "−")] for t in ticks if low <= t <= high],
        "decimals": decimals,
    }


def _packed(points: np.ndarray, x: dict[str, Any], y: dict[str, Any]) -> list[str]:
    """Points (F, N, 2) as one text a frame: two letters a coordinate, in 4095ths of its axis.

    Finer than a page shows, and a third of what decimal numbers take.
    """
    low, high = np.array([x["limits"], y["limits"]]).T
    steps = np.round((points - low) / (high - low) * 4095).astype(int)
    letters = np.frombuffer(LETTERS.encode(), np.uint8)[np.stack([steps // 64, steps % 64], -1)]
    return [frame.tobytes().decode() for frame in letters]


def _rounded(values: np.ndarray, axis: dict[str, Any]) -> Any:
    return (np.round(values, axis["decimals"]) + 0.0).tolist()  # + 0.0 turns -0.0 into 0.0


def _svg_shape(marker: str) -> str:
    """matplotlib's marker as the data of an SVG path one unit wide."""
    style = MarkerStyle(marker)
    outline = np.asarray(style.get_path().transformed(style.get_transform()).to_polygons()[0])
    return "M" + " ".join(f"{x:.2f},{-y:.2f}" for x, y in outline) + "Z"
