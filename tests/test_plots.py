"""The palette for every eye and both themes, and plots that draw what they are given."""

import itertools

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb

from vaelib import plots

WHITE, DARK = "#ffffff", "#121212"  # the pages of sphinx-book-theme, light and dark

# Machado, Oliveira and Fernandes (2009), severity 1, for linear RGB.
SIGHT = {
    "all colours": np.eye(3),
    "protanopia": np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
    "deuteranopia": np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ]
    ),
}
TO_XYZ = np.array(
    [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
)


@pytest.fixture
def ax() -> Axes:
    with matplotlib.rc_context():
        plots.use_style()
        _, ax = plt.subplots()
        yield ax
        plt.close("all")


def linear(color: str) -> np.ndarray:
    rgb = np.array(to_rgb(color))
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def contrast(a: str, b: str) -> float:
    """As WCAG defines it, from 1 to 21."""
    dark, light = sorted((TO_XYZ @ linear(color))[1] for color in (a, b))
    return (light + 0.05) / (dark + 0.05)


def lab(rgb: np.ndarray) -> np.ndarray:
    """CIELAB, in which a distance of about 2 is just noticeable."""
    xyz = TO_XYZ @ rgb / (TO_XYZ @ np.ones(3))
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def test_contrast_is_that_of_wcag() -> None:
    assert contrast("black", "white") == pytest.approx(21)
    assert contrast("#767676", "white") == pytest.approx(4.54, abs=0.01)


@pytest.mark.parametrize("page", [WHITE, DARK])
@pytest.mark.parametrize("color", plots.PALETTE)
def test_each_colour_stands_out_on_both_pages(color: str, page: str) -> None:
    assert contrast(color, page) >= 3


@pytest.mark.parametrize("sight", SIGHT)
def test_colours_stay_apart_for_every_eye(sight: str) -> None:
    seen = [lab(np.clip(SIGHT[sight] @ linear(color), 0, 1)) for color in plots.PALETTE]
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)) > 12


def test_importing_changes_nothing_and_use_style_does() -> None:
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        assert matplotlib.rcParams["axes.spines.top"]
        plots.use_style()
        assert not matplotlib.rcParams["axes.spines.top"]
        assert to_hex(matplotlib.rcParams["figure.facecolor"]) == WHITE


def test_every_letter_has_at_least_ten_points() -> None:
    kinds = ("font.size", "fontsize", "labelsize", "titlesize")
    sizes = {name: size for name, size in plots.STYLE.items() if name.endswith(kinds)}
    assert len(sizes) == 6
    assert min(sizes.values()) >= 10


def test_latent_plane_tells_classes_apart_by_colour_and_by_shape(ax: Axes) -> None:
    z = torch.randn(9, 2, requires_grad=True, generator=torch.Generator().manual_seed(0))
    y = torch.tensor([0, 1, 2] * 3)
    plots.latent_plane(ax, z, y, names=["a", "b", "c"])
    drawn = ax.collections
    assert len(drawn) == 3
    for label, points in enumerate(drawn):
        np.testing.assert_allclose(points.get_offsets(), z.detach()[y == label])
    assert len({to_hex(points.get_facecolor()[0]) for points in drawn}) == 3
    assert len({points.get_paths()[0].vertices.tobytes() for points in drawn}) == 3
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["a", "b", "c"]


def test_latent_plane_without_names_has_no_legend(ax: Axes) -> None:
    plots.latent_plane(ax, np.zeros((2, 2)), [0, 1])
    assert ax.get_legend() is None


def test_band_shows_every_run_their_median_and_ninety_per_cent(ax: Axes) -> None:
    steps, runs = np.arange(3), np.arange(21.0)[:, None] + np.zeros(3)
    plots.band(ax, steps, torch.as_tensor(runs), label="runs", color="#D55E00")
    median, *thin = ax.lines
    assert (median.get_label(), median.get_color()) == ("runs", "#D55E00")
    np.testing.assert_array_equal(median.get_ydata(), [10, 10, 10])
    np.testing.assert_array_equal([line.get_ydata() for line in thin], runs)
    band = ax.collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == (1, 19)


def test_bands_take_the_next_colour_unless_told(ax: Axes) -> None:
    for _ in range(2):
        plots.band(ax, [0, 1], [[0, 1], [1, 2]])
    assert [ax.lines[0].get_color(), ax.lines[3].get_color()] == list(plots.PALETTE[:2])


def test_curves_hold_their_values_and_a_legend(ax: Axes) -> None:
    plots.curves(ax, [0, 1], {"train": [3, 2], "held-out": torch.tensor([4, 3])})
    np.testing.assert_array_equal(ax.lines[1].get_ydata(), [4, 3])
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["train", "held-out"]


def test_the_first_curve_is_solid_and_the_next_has_gaps(ax: Axes) -> None:
    plots.curves(ax, [0, 1], {"train": [0, 0], "held-out": [1, 1]})
    ax.legend().remove()
    ax.grid(False)
    ax.figure.canvas.draw()
    paper = np.asarray(ax.figure.canvas.buffer_rgba())[:, :, :3]

    def ink(height: float) -> np.ndarray:
        """Along the middle 80 % of the curve at `height`: where there is any."""
        (left, row), (right, _) = ax.transData.transform([(0.1, height), (0.9, height)]).astype(int)
        return (paper[len(paper) - row, left:right] != 255).any(axis=-1)

    assert ink(0).all()
    assert 0.5 < ink(1).mean() < 0.95


@pytest.mark.parametrize(
    ("z", "y", "names", "message"),
    [
        (np.zeros((4, 3)), np.zeros(4), None, r"\(4, 3\), not \(N, 2\): choose two latents"),
        (np.zeros((4, 2)), np.zeros(3), None, r"\(3,\) for 4 codes in z: pass one label for each"),
        (np.zeros((11, 2)), np.arange(11), None, "11 classes, but only 10 markers: merge"),
        (np.zeros((4, 2)), np.arange(4), ["a"], "1 names for 4 classes: pass one for each"),
        (np.full((4, 2), np.nan), np.zeros(4), None, r"8 values .* index \(0, 0\): leave them out"),
    ],
)
def test_latent_plane_refuses_with_value_and_remedy(
    ax: Axes, z: np.ndarray, y: np.ndarray, names: list[str] | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        plots.latent_plane(ax, z, y, names)


def test_band_and_curves_refuse_with_value_and_remedy(ax: Axes) -> None:
    with pytest.raises(ValueError, match=r"\(3,\) and runs \(3, 2\): pass .* one row a run"):
        plots.band(ax, np.arange(3), np.zeros((3, 2)))
    with pytest.raises(ValueError, match=r"runs holds 1 values .* index \(1, 0\)"):
        plots.band(ax, np.arange(1), [[0.0], [np.inf]])
    with pytest.raises(ValueError, match=r"'train' has shape \(2,\) and steps \(3,\): pass one"):
        plots.curves(ax, np.arange(3), {"train": [1, 2]})
