"""Which samples and which noise each training step sees, for one seed or many."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from vaelib.objective import Objective
from vaelib.vae import VAE


def anew(seed: int, steps_trained: int) -> int:
    """A seed of other draws for each run of one model; for its first run the seed itself."""
    # An odd stride: torch's generator on a CPU heeds the lower 32 bits alone.
    return (seed + 2_654_435_769 * steps_trained) % 2**63


class Sampler:
    """Draws batches and noise, for each seed from a generator of its own.

    It draws whole epochs ahead, several where they are short, and gathers a few batches at a
    time, so that a step only takes its slice. The generators' states at the start of such a
    block are then all there is to save.

    Args:
        model: whose precision the batches get.
        objective: says which noise goes with a batch.
        x: the data, (N, …).
        batch_size: samples in a batch, at most N.
        seeds: one generator each.
        stack: seeds in front of each batch, (S, B, …); else the one seed's, (B, …).
        weights: (N,), how often a row is to come beside the others; alike where not given.
    """

    GATHERED = 2**20  # bytes, a few batches: many hide the cost of a call, few stay in a cache

    def __init__(
        self,
        model: VAE,
        objective: Objective,
        x: Tensor,
        batch_size: int,
        seeds: Sequence[int],
        stack: bool,
        weights: Tensor | None = None,
    ) -> None:
        if not 1 <= batch_size <= len(x):
            raise ValueError(
                f"batch_size is {batch_size}, but must lie between 1 and the {len(x)} samples of x"
            )
        self.model, self.objective, self.x = model, objective, x
        self.dtype = next(model.parameters()).dtype  # of batches; x may be uint8
        self.batch_size, self.seeds = batch_size, list(seeds)
        self.axis = 1 if stack else 0  # of the steps; a stack has its seeds in front
        self.batches = len(x) // batch_size  # in an epoch
        self.epochs = -(-64 // self.batches)  # in a block: 64 batches or more
        self.block = self.batches * self.epochs
        step = len(self.seeds) * batch_size * x[0].numel() * self.dtype.itemsize
        self.gathered = max(1, min(self.block, self.GATHERED // step))
        self.generators = [torch.Generator(x.device).manual_seed(seed) for seed in self.seeds]
        # Where each row's share of an epoch ends, in double precision: there may be millions.
        self.shares = None if weights is None else (weights / weights.sum()).cumsum(0) * len(x)

    def steps(self, start: int, stop: int) -> Iterator[tuple[Tensor, ...]]:
        """Yields batch and noise of each step: (B, …), or (S, B, …) where seeds are stacked."""
        for step in range(start, stop):
            position = step % self.block
            gathered = position % self.gathered
            if position == 0 or step == start:
                self.states = self._generator_states()
                order, *noise = self._draw()
                indices = order.split(self.gathered, self.axis)
                noise_of = [each.unbind(self.axis) for each in noise]
            if gathered == 0 or step == start:
                gathering = self.x[indices[position // self.gathered]]
                batches = gathering.to(self.dtype).unbind(self.axis)
            yield batches[gathered], *[each[position] for each in noise_of]

    def _epoch(self, g: torch.Generator) -> Tensor:
        """The rows of an epoch, (N,), in random order."""
        n, device = len(self.x), self.x.device
        order = torch.randperm(n, generator=g, device=device)
        if self.shares is None:
            return order
        # Systematic sampling: a row whose share is 2.3 comes twice, or three times, and 2.3 times
        # on average; whole shares come as often as they say.
        offset = torch.rand((), generator=g, device=device, dtype=torch.float64)
        marks = torch.arange(n, device=device) + offset
        return torch.searchsorted(self.shares, marks, right=True).clamp(max=n - 1)[order]

    def _draw(self) -> list[Tensor]:
        """The order and the noise of a block, each (steps, B, …), or (S, steps, B, …)."""
        size = self.batches * self.batch_size
        draws = []
        for g in self.generators:
            orders = [self._epoch(g)[:size] for _ in range(self.epochs)]
            noise = self.objective.noise(self.model, size * self.epochs, g)
            draws.append((torch.cat(orders), *noise))
        return [
            (torch.stack(each) if self.axis else each[0]).unflatten(
                self.axis, (self.block, self.batch_size)
            )
            for each in zip(*draws, strict=True)
        ]

    def _generator_states(self) -> dict[str, Tensor]:
        return {str(i): g.get_state() for i, g in enumerate(self.generators)}

    def save(self, step: int) -> dict[str, Tensor]:
        """The generators' states at the start of the block that `step` is to go on in."""
        return self._generator_states() if step % self.block == 0 else self.states

    def load(self, states: dict[str, Tensor]) -> None:
        """Goes back to the start of a saved block."""
        for i, g in enumerate(self.generators):
            g.set_state(states[str(i)])
