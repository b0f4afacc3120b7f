"""What a lone run and stacked ones share: the data let in, modules made ready, and the loop."""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vaelib.door import numbers, slices
from vaelib.history import History
from vaelib.loop import Loop, Plan
from vaelib.objective import Objective
from vaelib.sampling import Sampler, anew
from vaelib.settings import checksum, settings
from vaelib.vae import VAE

Terms = dict[str, Tensor]


class Pair(nn.Module):
    """A model and its objective as one module, so that all that a run learns has one owner."""

    def __init__(self, model: VAE, objective: Objective) -> None:
        super().__init__()
        self.model = model
        self.objective = objective

    def forward(self, x: Tensor, *noise: Tensor) -> Terms:
        """The objective's terms for a batch x (B, …)."""
        return self.objective(self.model, x, *noise)


class Data(NamedTuple):
    """What a run is handed, on the device."""

    x: Tensor
    weights: Tensor | None
    held_out: Tensor | None


def admitted(pair: Pair, x: Any, weights: Any, held_out: Any, plan: Plan) -> Data:
    """Lets the data in, and refuses what cannot be done with them."""
    model, objective = pair.model, pair.objective
    if plan.patience and held_out is None:
        raise ValueError("patience is for the loss of held-out rows; pass held_out as well")
    if plan.patience and not objective.comparable:
        raise ValueError(
            f"the multiplier of {type(objective).__name__} moves, so its losses at two steps can't "
            "be compared; leave patience out, or end the run by on_report"
        )
    batch_norm = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())
    if plan.batch_size == 1 and batch_norm:
        raise ValueError(
            "batch_size is 1, and batch norm needs two samples to compare; pass more, or build the "
            "networks with batch_norm=False"
        )
    if not any(parameter.requires_grad for parameter in pair.parameters()):
        raise ValueError("all weights of the model are frozen; leave some with requires_grad=True")
    x = objective.admit(model, x, bytes_stay=True).detach()
    if held_out is not None:
        held_out = objective.admit(model, held_out, name="held_out").detach()
    if weights is None:
        return Data(x, None, held_out)
    shares = torch.as_tensor(numbers(weights, "weights"), dtype=torch.float64).to(x.device)
    if shares.shape != x.shape[:1]:
        shape = tuple(shares.shape)
        raise ValueError(f"weights has shape {shape}; pass one number for each of {len(x)} rows")
    bad = ~((shares >= 0) & shares.isfinite())
    if bad.any() or not shares.any():
        found = shares[bad][0].item() if bad.any() else "0 for all rows"
        raise ValueError(f"weights are {found}; pass finite numbers, none below 0, not all 0")
    return Data(x, shares / shares.max(), held_out)


def _refuse_used(pair: Pair) -> None:
    """Refuses an objective that has learned from another model, and one that diverged."""
    name = type(pair.objective).__name__
    if any(tensor.isnan().any() for tensor in pair.objective.state_dict().values()):
        raise ValueError(f"{name} holds NaN from a run that diverged; make a new one")
    if pair.objective.learns and pair.objective._used and not pair.model.steps_trained:
        raise ValueError(
            f"{name} has learned from another model already, and this one is new; make a new "
            f"{name} for each model"
        )


@contextlib.contextmanager
def prepared(pairs: list[Pair], steps: int) -> Iterator[None]:
    """Puts all in training mode; no batch is checked any more, since the whole data were."""
    before = [pair.model.validate_args for pair in pairs]
    try:
        for pair in pairs:
            _refuse_used(pair)
            pair.objective.begin(pair.model, steps)
            pair.objective._used = True
            pair.model.validate_args = False
            pair.train()
        with torch.enable_grad():
            yield
        for pair in pairs:
            pair.objective.end(pair.model)
    finally:
        for pair, validate_args in zip(pairs, before, strict=True):
            pair.model.validate_args = validate_args
            pair.eval()


def train(
    pairs: list[Pair],
    data: Data,
    plan: Plan,
    forward: Callable[..., Terms],
    code: nn.Module,
    parameters: Mapping[str, Tensor],
    buffers: dict[str, Tensor],
    stack: bool,
) -> History:
    """Trains what the tensors hold, by `forward`, whose mode is that of the module `code`."""
    model, objective = pairs[0].model, pairs[0].objective
    behind = [pair.model.steps_trained for pair in pairs]
    seeds = [anew(seed, steps) for seed, steps in zip(plan.seeds, behind, strict=True)]
    sampler = Sampler(model, objective, data.x, plan.batch_size, seeds, stack, data.weights)

    def first_look() -> None:
        if type(objective).admit is not Objective.admit:
            return  # x is not what the model takes
        if remark := model.likelihood.remark(data.x):
            warnings.warn(remark, stacklevel=2)

    loop = Loop(
        plan=plan,
        forward=forward,
        held_out=None
        if data.held_out is None
        else _judge(data.held_out, pairs, plan, forward, code),
        first_look=first_look,
        parameters=parameters,
        buffers=buffers,
        sampler=sampler,
        behind=behind,
        identity=_identity(pairs, data, plan, parameters) if plan.checkpoint else {},
    )
    try:
        return loop.run()
    finally:
        loop.watch.restore(loop.state)
        for pair, before in zip(pairs, loop.behind, strict=True):
            pair.model._steps_trained = before + loop.step


def _judge(
    rows: Tensor | None,
    pairs: list[Pair],
    plan: Plan,
    forward: Callable[..., Terms],
    code: nn.Module,
) -> Callable[[], Terms] | None:
    """What tells the terms of held-out rows, in eval mode and with the same noise each time."""
    if rows is None:
        return None
    generator = torch.Generator(rows.device).manual_seed(0)
    noise = pairs[0].objective.noise(pairs[0].model, len(rows), generator)

    @torch.no_grad()
    def held_out() -> Terms:
        code.eval()
        total: Terms = {}
        for part in slices(rows, at_least=plan.batch_size):
            batch = [each[part] for each in (rows, *noise)]
            share = len(batch[0]) / len(rows)
            if code is not pairs[0]:  # the same rows and noise for each seed of a stack
                batch = [each.expand(len(pairs), *each.shape) for each in batch]
            for name, value in forward(*batch).items():
                total[name] = total.get(name, 0) + share * value
        code.train()
        return total

    return held_out


def _identity(
    pairs: list[Pair], data: Data, plan: Plan, parameters: Mapping[str, Tensor]
) -> dict[str, Any]:
    """What a checkpoint must agree on to be this run's, as JSON gives it back."""
    objectives = [settings(pair.objective) for pair in pairs]
    alike = all(each == objectives[0] for each in objectives)
    rows = {k: None if each is None else checksum(each) for k, each in data._asdict().items()}
    identity = {
        "model": settings(pairs[0].model),
        "objective": objectives[0] if alike else objectives,
        **rows,
        "parameters": {
            name: {"shape": [*p.shape], "type": str(p.dtype), "trained": p.requires_grad}
            for name, p in parameters.items()
        },
        **{name: getattr(plan, name) for name in ("batch_size", "seeds", "lr", "patience")},
    }
    return json.loads(json.dumps(identity))
