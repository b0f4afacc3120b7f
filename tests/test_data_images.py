import pytest
import torch
from sklearn.datasets import load_sample_images

from vaelib import data
from vaelib import sprites as drawn


def test_patches_are_cut_from_both_photographs():
    found = data.patches(n=200, size=6)
    assert found.x.shape == (200, 36)
    assert found.target_names == ("china", "flower")
    assert found.y.tolist() == [0] * 100 + [1] * 100
    for photograph, image in enumerate(load_sample_images().images):
        grey = torch.tensor(image.mean(-1) / 255).float()
        places = grey.unfold(0, 6, 1).unfold(1, 6, 1).reshape(-1, 36)
        patches = found.x[found.y == photograph]
        assert max((places - patch).abs().amax(1).min() for patch in patches[:5]) < 1e-6
        assert len(patches.unique(dim=0)) > 95
    assert torch.equal(found.x, data.patches(n=200, size=6).x)
    assert not torch.equal(found.x, data.patches(n=200, size=6, seed=1).x)


def test_patches_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="size is 428; pass 1 … 427"):
        data.patches(size=428)
    with pytest.raises(ValueError, match="n is 3; pass an even number"):
        data.patches(n=3)
    with pytest.raises(ValueError, match=r"n is 430; pass an even number.* of at most 428"):
        data.patches(n=430, size=427)


def test_sprites_are_a_random_subset_with_their_factors():
    found = data.sprites(300, size=32, seed=4)
    assert found.x.shape == (300, 1, 32, 32)
    assert found.x.dtype == torch.float32
    assert found.x.unique().tolist() == [0, 1]
    assert len(found.feature_names) == 32 * 32
    images = drawn.render(found.factors.double(), 32)[:, None]
    # The factors are float32, so now and then a pixel on an edge falls to the other side.
    assert (images != found.x).float().mean() < 1e-4
    assert torch.equal(found.y, found.factors[:, 0].long() - 1)
    assert found.target_names == ("square", "ellipse", "heart")
    # Chosen over the whole data set, none twice, by the seed alone.
    assert len(found.factors.unique(dim=0)) == 300
    assert [len(column.unique()) for column in found.factors.T] == [3, 6, 40, 32, 32]
    assert torch.equal(found.factors, data.sprites(300, size=8, seed=4).factors)
    assert not torch.equal(found.factors, data.sprites(300, size=8, seed=5).factors)
    with pytest.raises(ValueError, match="n is 0; pass 1 … 737280"):
        data.sprites(0)
