import pytest
import torch

from vaelib import VAE, fit
from vaelib.networks import mlp
from vaelib.objectives import ELBO
from vaelib.sampling import Sampler


def test_every_sample_is_used():
    """Samples that do not fill an epoch's last batch come in another epoch."""
    seen = set()

    class Watch(ELBO):
        def forward(self, model, x, eps=None):
            seen.update(x[:, 0].long().tolist())
            return super().forward(model, x, eps)

    x = torch.zeros(50, 13)
    x[:, 0] = torch.arange(50)
    fit(VAE(*mlp(13)), Watch(), x, steps=30, batch_size=16, progress=False)
    assert seen == set(range(50))


@pytest.mark.parametrize("start", [0, 7, 63, 64, 65, 100])
def test_a_sampler_goes_on_where_another_stopped(start):
    """Also in the middle of a block of epochs, at its last step and at the first of the next."""

    def sampler():
        return Sampler(VAE(*mlp(13)), ELBO(), torch.randn(178, 13), 32, [3, 4], stack=True)

    first, second = sampler(), sampler()
    second.x = first.x
    steps = list(first.steps(0, 140))
    second.load(saved(first, start))
    for expected, found in zip(steps[start:], second.steps(start, 140), strict=True):
        assert [each.shape for each in found] == [(2, 32, 13), (2, 32, 2)]
        for one, other in zip(expected, found, strict=True):
            assert torch.equal(one, other)


def saved(sampler, step):
    """What a sampler like this one would save after `step` steps."""
    again = Sampler(sampler.model, sampler.objective, sampler.x, 32, sampler.seeds, stack=True)
    for _ in again.steps(0, step):
        pass
    return again.save(step)
