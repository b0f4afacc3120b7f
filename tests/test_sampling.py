"""Which rows come, and how often."""

import numpy as np
import pytest
import torch

from vaelib import VAE, data, fit, fit_seeds
from vaelib.networks import mlp
from vaelib.objectives import ELBO, ComputedGamma, Robust
from vaelib.sampling import Sampler

X = data.wine().x
RUN = {"steps": 20, "batch_size": 32, "progress": False}


def make(likelihood=None, **changes):
    torch.manual_seed(0)
    return VAE(*mlp(13, **changes), likelihood)


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


def test_whole_weights_are_repeated_rows():
    """In each epoch, to the row; and fractions on average."""
    seen = []

    class Count(ELBO):
        def forward(self, model, x, eps=None):
            seen.append(x[:, 0])
            return super().forward(model, x, eps)

    x = torch.arange(8.0)[:, None].expand(8, 13)
    weights = torch.tensor([1.0, 3, 0, 1, 1, 0, 1, 1])
    run = {**RUN, "batch_size": 4}
    fit(make(), Count(), x, weights=weights, **run)
    for epoch in torch.cat(seen).reshape(10, 8):
        assert torch.equal(epoch.long().bincount(minlength=8), weights.long())
    seen.clear()
    weights = torch.rand(8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    fit(make(), Count(), x, weights=weights.numpy() * 1e6, **{**run, "steps": 4000})
    shares = torch.cat(seen).long().bincount(minlength=8) / 16000
    torch.testing.assert_close(shares.double(), weights / weights.sum(), atol=3e-3, rtol=0)


@pytest.mark.parametrize("objective", [ELBO, ComputedGamma, lambda: Robust(0.1)])
def test_weighted_rows_teach_what_repeated_rows_teach(objective):
    x = torch.cat([X[:40], X[40:80].repeat(5, 1)])
    weights = torch.cat([torch.ones(40), torch.full((40,), 5.0)])
    run = {"seeds": range(8), "lr": 1e-2, **RUN, "steps": 400}
    losses = []
    for rows, share in ((x, None), (X[:80], weights), (X[:80], None)):
        history = fit_seeds(lambda: VAE(*mlp(13)), objective(), rows, weights=share, **run).history
        losses.append(history["reconstruction"][:, -30:].mean(1))
    repeated, weighted, plain = losses
    spread = repeated.std() + weighted.std()
    assert abs(repeated.mean() - weighted.mean()) < spread
    assert abs(repeated.mean() - plain.mean()) > abs(repeated.mean() - weighted.mean())


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (np.ones(10), r"weights has shape \(10,\); pass one number for each of 178 rows"),
        (np.ones((178, 1)), r"weights has shape \(178, 1\)"),
        (-np.ones(178), r"weights are -1\.0; pass finite numbers, none below 0"),
        (np.full(178, np.nan), "weights are nan"),
        (np.zeros(178), "weights are 0 for all rows"),
    ],
)
def test_weights_that_weigh_nothing_are_refused(weights, message):
    with pytest.raises(ValueError, match=message):
        fit(make(), ELBO(), X, weights=weights, **RUN)
