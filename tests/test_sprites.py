"""Held against 160 true frames, every second one of the animation published with dSprites."""

from pathlib import Path

import numpy as np
import pytest
import torch

from vaelib import sprites


def animation():
    """The classes of each frame of the animation, which sweeps one factor at a time."""

    def sweep(factor, *, start, back=False):
        rows = np.tile(start, (list(sprites.FACTORS.values())[factor], 1))
        rows[:, factor] = np.arange(len(rows))
        return rows[::-1] if back else rows

    frames = []
    for shape in (2, 1, 0):
        large = [shape, 5, 0, 0, 0]
        frames += [
            sweep(1, start=large),
            sweep(1, start=large, back=True),
            sweep(1, start=large),
            sweep(2, start=large),
        ]
        if shape == 2:  # once around the canvas
            frames += [
                sweep(4, start=large),
                sweep(3, start=[2, 5, 0, 0, 31]),
                sweep(4, start=[2, 5, 0, 31, 31], back=True),
                sweep(3, start=large, back=True),
            ]
        frames += [sweep(1, start=large, back=True)]
    return np.concatenate(frames)[::2]


CLASSES = animation()
INDEX = torch.tensor(np.ravel_multi_index(CLASSES.T, tuple(sprites.FACTORS.values())))
EVERYWHERE = torch.arange(0, sprites.N_IMAGES, 389)  # a sample with no period of the factors'


@pytest.fixture(scope="module")
def frames():
    with np.load(Path(__file__).with_name("frames.npz")) as archive:
        return torch.tensor(np.unpackbits(archive["frames"], axis=1).reshape(-1, 64, 64))


def iou(a, b):
    return (a & b).sum((1, 2)) / (a | b).sum((1, 2))


def test_true_frames_are_matched(frames):
    overlap = iou(sprites.render(sprites.values(INDEX)), frames)
    assert overlap.mean() > 0.998
    shape = torch.tensor(CLASSES[:, 0])
    assert (overlap[shape == 0] == 1).all()
    assert overlap[shape == 1].min() > 0.99
    assert overlap[shape == 2].min() > 0.98
    # The test can tell: a hundredth more or less of a single factor is a worse match.
    for factor in range(1, 5):
        moved = sprites.values(INDEX)
        moved[:, factor] = (moved[:, factor] - 0.01).abs()
        assert iou(sprites.render(moved), frames).mean() < overlap.mean() - 1e-3


def test_images_stand_in_the_order_of_the_original():
    assert np.prod(list(sprites.FACTORS.values())) == sprites.N_IMAGES
    assert sprites.classes([0, 1, 32, 1024, 40 * 1024, 6 * 40 * 1024]).tolist() == [
        [0, 0, 0, 0, 0],
        [0, 0, 0, 0, 1],
        [0, 0, 0, 1, 0],
        [0, 0, 1, 0, 0],
        [0, 1, 0, 0, 0],
        [1, 0, 0, 0, 0],
    ]
    assert sprites.classes(sprites.N_IMAGES - 1).tolist() == [[2, 5, 39, 31, 31]]
    assert sprites.classes(INDEX).tolist() == CLASSES.tolist()


def test_values_are_those_of_the_original():
    # As its README lists them; orientation runs to 2π itself, which looks like 0.
    first, last = sprites.values([0, sprites.N_IMAGES - 1])
    assert first.tolist() == [1, 0.5, 0, 0, 0]
    assert last.tolist() == [3, 1, 2 * np.pi, 1, 1]
    step = sprites.values(40 * 1024 + 1024 + 32 + 1)[0] - first
    assert step.tolist() == pytest.approx([0, 0.1, 0.16110732, 0.03225806, 0.03225806])
    assert first.dtype == torch.float64


def test_a_pixel_is_on_about_as_often_as_in_the_original():
    # The original's mean pixel is 0.042494, as computed by many who normalise it.
    drawn = sprites.render(sprites.values(EVERYWHERE))
    assert drawn.float().mean().item() == pytest.approx(0.042494, rel=0.003)


def test_any_size_shows_the_same_picture():
    values = sprites.values(EVERYWHERE[::20])
    large = sprites.render(values, 64)
    for size in (16, 32, 48):
        small = sprites.render(values, size)
        assert small.shape == (len(values), size, size)
        areas = [image.float().mean((1, 2)) for image in (small, large)]
        assert areas[0].mean().item() == pytest.approx(areas[1].mean().item(), rel=0.02)
    # A pixel of 32 stands for four of 64 and agrees with what most of them show.
    blocks = large.float().reshape(-1, 32, 2, 32, 2).mean((2, 4))
    small = sprites.render(values, 32)
    assert (small[blocks == 1] == 1).all()
    assert small[blocks == 0].float().mean() < 1e-3


def test_what_is_drawn_does_not_hang_on_rounding():
    """Ten thousand full turns change last digits, more than devices differ in, and no pixel."""
    values = sprites.values(EVERYWHERE)
    turned = values.clone()
    turned[:, 2] += 20_000 * torch.pi
    assert torch.equal(sprites.render(values), sprites.render(turned))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_cpu_and_gpu_agree():
    index = EVERYWHERE.cuda()
    values = sprites.values(index)
    assert values.is_cuda
    assert torch.equal(values.cpu(), sprites.values(EVERYWHERE))
    for size in (32, 64):
        drawn = sprites.render(values, size)
        assert drawn.is_cuda
        assert torch.equal(drawn.cpu(), sprites.render(values.cpu(), size))


def test_a_batch_is_drawn_like_its_parts():
    values = sprites.values(EVERYWHERE[:: len(EVERYWHERE) // (3 * sprites.CHUNK)])
    together = sprites.render(values)
    assert together.dtype == torch.uint8
    alone = torch.cat([sprites.render(value[None]) for value in values])
    assert torch.equal(together, alone)
    assert sprites.render(values[:0]).shape == (0, 64, 64)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        (0, 4, "shape is 4; pass 1 square"),
        (1, 0, "scale is 0; pass a number above 0"),
        (2, float("inf"), "orientation is inf; pass an angle"),
        (3, 31, "x is 31; pass a number from 0, left, to 1"),
        (4, float("nan"), "y is nan; pass a number from 0, top, to 1"),
    ],
)
def test_bad_values_are_refused(column, value, message):
    values = sprites.values([0, 1])
    values[1, column] = value
    with pytest.raises(ValueError, match=message):
        sprites.render(values)


def test_bad_arguments_are_refused_with_the_remedy():
    with pytest.raises(ValueError, match=r"shape \(2, 6\); pass \(B, 5\): shape, scale"):
        sprites.render(torch.zeros(2, 6))
    with pytest.raises(ValueError, match="size is 0; pass at least 1"):
        sprites.render(sprites.values(0), size=0)
    with pytest.raises(IndexError, match="index is 737280; pass 0 … 737279"):
        sprites.classes([0, sprites.N_IMAGES])
    with pytest.raises(IndexError, match="index is -1"):
        sprites.values(-1)
    with pytest.raises(TypeError, match=r"index is of torch.float32; pass integers"):
        sprites.values(0.5)
