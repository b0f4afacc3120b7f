"""How the book's figures look: one palette, one matplotlib style, and the three plots that recur.

A chapter calls :func:`use_style` once, after its imports. Importing this module changes nothing, so
that a reader who borrows ``vaelib`` keeps the style of their own notebook.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
import torch
from cycler import cycler
from matplotlib.axes import Axes
from numpy.typing import ArrayLike

Values = ArrayLike | torch.Tensor

# Okabe and Ito's blue, vermilion, bluish green and reddish purple, and a grey. They stay apart for
# colour-blind readers, and keep a contrast of 3:1 both on white paper and on the book's dark page;
# the same authors' orange, sky blue and yellow do not.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#6B6B6B")
# Shapes and dashes tell apart what colour cannot: in print, and beyond five classes or curves.
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p", "<", "h")
# Lengths of dash and gap in line widths; the first is solid.
DASHES: tuple[tuple[float, ...], ...] = ((), (5, 1.5), (1.5, 1.2), (6, 1.5, 1.5, 1.5))

_INK = "#262626"
_AXIS = "#8c8c8c"
STYLE: dict[Any, Any] = {
    # Seven inches at 144 dots fill the book's column: change the height only, and letters have one
    # size throughout the book.
    "figure.figsize": (7.0, 3.4),
    "figure.dpi": 144,
    "figure.constrained_layout.use": True,
    # An opaque page: on a transparent one, a notebook's dark theme swallows the black letters.
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "font.size": 11,
    "axes.titlesize": 11.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 11,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
    "legend.fontsize": 10,
    "legend.frameon": False,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _AXIS,
    "xtick.color": _AXIS,
    "ytick.color": _AXIS,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#e9e9e9",
    "grid.linewidth": 0.8,
    "axes.prop_cycle": cycler(color=PALETTE),
    "lines.linewidth": 2.0,
    "lines.markersize": 5,
    "image.cmap": "cividis",
}


def use_style() -> None:
    """Give every figure drawn from here on the book's style (changes ``matplotlib.rcParams``)."""
    matplotlib.rcParams.update(STYLE)


def color(index: int) -> str:
    """The palette's colour for the class or curve ``index``; it starts again after the last."""
    return PALETTE[index % len(PALETTE)]


def to_numpy(values: Values) -> np.ndarray:
    """A numpy array from a tensor, on any device and in any graph, or from anything array-like."""
    return values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)


def latent_plane(ax: Axes, z: Values, y: Values, names: Sequence[str] | None = None) -> None:
    """Scatter codes, one colour and one marker for each class.

    Args:
        ax: where to draw.
        z: (N, 2), the codes.
        y: (N,), their classes.
        names: a name for each class, in the order of the sorted labels; with it comes a legend.

    Raises:
        ValueError: for shapes that do not fit, codes that are not finite, or too many classes.
    """
    z, y = to_numpy(z), to_numpy(y)
    if z.ndim != 2 or z.shape[1] != 2:
        raise ValueError(f"z has shape {z.shape}, not (N, 2): choose two latents, as in z[:, :2]")
    if y.shape != z.shape[:1]:
        raise ValueError(f"y has shape {y.shape} for {len(z)} codes in z: pass one label for each")
    _refuse_non_finite("z", z)
    for index, members in enumerate(class_members(y, names)):
        ax.scatter(
            z[members, 0],
            z[members, 1],
            s=22,
            color=color(index),
            marker=MARKERS[index],
            label=None if names is None else names[index],
            alpha=0.8,
            linewidths=0,
        )
    ax.set(xlabel="$z_1$", ylabel="$z_2$")
    if names is not None:
        ax.legend(handletextpad=0.2)


def band(
    ax: Axes, steps: Values, runs: Values, label: str | None = None, color: str | None = None
) -> None:
    """Draw many runs: each of them thin, their median, and the band that holds 90 % of them.

    Args:
        ax: where to draw.
        steps: (R,), the horizontal axis.
        runs: (S, R), one row a run, as `fit_seeds` reports them.
        label: what the legend calls the median.
        color: of all of it; the next of the palette, unless told.

    Raises:
        ValueError: for shapes that do not fit, or a run that is not finite, since percentiles over
            NaN would hide the runs that diverged.
    """
    steps, runs = to_numpy(steps), to_numpy(runs)
    if runs.ndim != 2 or steps.shape != runs.shape[1:]:
        raise ValueError(
            f"steps has shape {steps.shape} and runs {runs.shape}: pass (R,) and (S, R), "
            "one row a run"
        )
    _refuse_non_finite("runs", runs)
    low, middle, high = np.percentile(runs, [5, 50, 95], axis=0)
    (median,) = ax.plot(steps, middle, color=color, label=label, zorder=3)
    ax.plot(steps, runs.T, color=median.get_color(), linewidth=0.6, alpha=0.35)
    ax.fill_between(steps, low, high, color=median.get_color(), alpha=0.15, linewidth=0)


def curves(ax: Axes, steps: Values, values: Mapping[str, Values]) -> None:
    """Draw labelled curves, told apart by dashes as well as by colour.

    Args:
        ax: where to draw.
        steps: (S,), the horizontal axis.
        values: (S,) for each label.

    Raises:
        ValueError: for a curve whose shape is not that of ``steps``.
    """
    steps = to_numpy(steps)
    for index, (label, curve) in enumerate(values.items()):
        curve = to_numpy(curve)
        if curve.shape != steps.shape:
            raise ValueError(
                f"{label!r} has shape {curve.shape} and steps {steps.shape}: "
                "pass one value for each step"
            )
        ax.plot(steps, curve, label=label, linestyle=(0, DASHES[index % len(DASHES)]))
    ax.legend()


def class_members(y: np.ndarray, names: Sequence[str] | None = None) -> list[np.ndarray]:
    """For each class in ``y`` (N,), in the order of the sorted labels, its members' indices."""
    labels = np.unique(y)
    if len(labels) > len(MARKERS):
        raise ValueError(
            f"{len(labels)} classes, but only {len(MARKERS)} markers: merge classes or draw fewer"
        )
    if names is not None and len(names) != len(labels):
        raise ValueError(f"{len(names)} names for {len(labels)} classes: pass one for each")
    return [np.flatnonzero(y == label) for label in labels]


def _refuse_non_finite(what: str, values: np.ndarray) -> None:
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        raise ValueError(
            f"{what} holds {len(bad)} values that are not finite, the first at index "
            f"{tuple(bad[0].tolist())}: leave them out, and tell the reader"
        )
