"""Training: a lone model, or many seeds at once, by one loop.

Nothing in a step waits for the device. Reports are read off it every so many steps. On an NVIDIA
GPU the step runs as a CUDA graph.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from vaelib.history import History
from vaelib.loop import Plan
from vaelib.objective import Objective
from vaelib.runs import Pair, Terms, admitted, prepared, train
from vaelib.settings import attributes, name_of, settings
from vaelib.vae import VAE


class Runs(NamedTuple):
    """What `fit_seeds` returns: a trained model and objective for each seed, and their history."""

    models: list[VAE]
    objectives: list[Objective]
    history: History


def fit(
    model: VAE,
    objective: Objective,
    x: Any,
    *,
    steps: int,
    batch_size: int,
    lr: float = 1e-3,
    seed: int = 0,
    weights: Any = None,
    held_out: Any = None,
    patience: int | None = None,
    report_every: int | None = None,
    on_report: Callable[[int], Any] | None = None,
    checkpoint: str | Path | None = None,
    progress: bool = True,
) -> History:
    """Trains a model in place with Adam and leaves it in eval mode.

    Every epoch runs through a new random order of the data in batches of one size; samples that
    do not fill a last batch wait for the next epoch. An interrupt (Ctrl-C, a notebook's stop
    button) ends the run after the step at hand and keeps what was learned. A second call trains
    the model further, with Adam started anew, and other batches and noise than the first.

    Args:
        model: the VAE, on the device on which to train; x follows it there.
        objective: `objective(model, batch, *noise)` returns the terms, with "loss" among them.
        x: the data, (N, …): a tensor, an array, or a frame of numbers. Of uint8, such as black and
            white images, it stays so on the device, and its batches become floats.
        steps: length of the run, in batches.
        batch_size: samples a step, at most N.
        lr: Adam's learning rate.
        seed: of the data's order and the noise. Not of the weights, which the model has already,
            nor of dropout, which draws from torch's own generator.
        weights: (N,), not negative: a row of weight 2 comes as often as two rows of weight 1.
        held_out: rows like x, (M, …), that are not trained on. Their terms are reported too.
        patience: end the run after so many reports without a lower held-out loss, and bring back
            the weights of the lowest.
        report_every: steps between two reports; a hundredth of the run where not given.
        on_report: called with the step at each report, the model in eval mode, gradients off. The
            run ends where it returns True.
        checkpoint: a .safetensors file, written at the first report, at others once some seconds
            have passed, at the end, and on an interrupt. Where it exists already the run goes on
            from there, bit for bit on the CPU; so does a longer run of the same settings.
        progress: show a progress bar once a run takes more than two seconds.

    Raises:
        TypeError: model, objective or data are of a kind that the run cannot take.
        ValueError: data or arguments that the run cannot take, or another run's checkpoint.
        FloatingPointError: at a report, the loss is no longer finite.
    """
    _refuse_kinds(model, objective)
    pair = Pair(model, objective.to(next(model.parameters()).device))

    validate_args = model.validate_args

    def look(step: int) -> Any:
        pair.eval()
        model.validate_args = validate_args  # whatever is asked there comes through the door
        with torch.no_grad():
            answer = on_report(step)  # type: ignore[misc]
        model.validate_args = False
        pair.train()
        return answer

    plan = Plan(
        steps,
        batch_size,
        lr,
        [seed],
        patience,
        report_every,
        on_report and look,
        checkpoint,
        progress,
    )
    data = admitted(pair, x, weights, held_out, plan)
    with prepared([pair], plan.steps):
        forward = functools.partial(objective, model)
        parameters, buffers = dict(pair.named_parameters()), dict(pair.named_buffers())
        return train([pair], data, plan, forward, pair, parameters, buffers, stack=False)


def fit_seeds(
    make_model: Callable[[], VAE],
    objective: Objective | Sequence[Objective],
    x: Any,
    *,
    steps: int,
    batch_size: int,
    seeds: Sequence[int] = range(20),
    lr: float = 1e-3,
    weights: Any = None,
    held_out: Any = None,
    patience: int | None = None,
    report_every: int | None = None,
    checkpoint: str | Path | None = None,
    progress: bool = True,
) -> Runs:
    """Trains one model per seed, all at once, by stacking their weights (`torch.func`).

    Each run is the lone run `torch.manual_seed(seed); model = make_model(); fit(model, …,
    seed=seed)`, up to rounding. On a CPU, twenty small networks cost about as much as three.
    Patience counts for each seed by itself. A seed whose loss leaves the numbers is named in a
    warning and in `History.diverged`; the others go on.

    Args:
        make_model: builds a fresh model; called once for each seed.
        objective: copied for each seed, so that each learns its own state; or one for each, of
            one kind with different numbers, such as the values of β along a path.
        seeds: one run each. They may repeat, to tell what the objectives do from what seeds do.

    The other arguments, the errors and the interrupt are those of `fit`.
    """
    if not hasattr(seeds, "__len__"):
        raise TypeError(f"seeds is {seeds!r}; pass a sequence, such as range(5)")
    if len(seeds) == 0:
        raise ValueError("seeds is empty; pass at least one, e.g. seeds=range(20)")
    models = _made(make_model, seeds)
    device = next(models[0].parameters()).device
    given = [objective] if isinstance(objective, Objective | type) else [*objective]
    for each in given:
        _refuse_kinds(models[0], each)
    objectives = given * len(models) if isinstance(objective, Objective) else given
    _refuse_different(objectives, len(models))
    pairs = [
        Pair(model, copy.deepcopy(each).to(device))
        for model, each in zip(models, objectives, strict=True)
    ]
    plan = Plan(steps, batch_size, lr, [*seeds], patience, report_every, None, checkpoint, progress)
    data = admitted(pairs[0], x, weights, held_out, plan)
    with prepared(pairs, plan.steps):
        parameters, buffers = stack_module_state(pairs)
        template = copy.deepcopy(pairs[0]).to("meta")  # lends its code; the state is handed in
        forward = functools.partial(_stacked(template), (parameters, buffers))
        try:
            history = train(pairs, data, plan, forward, template, parameters, buffers, stack=True)
        finally:
            for i, pair in enumerate(pairs):
                state = {**parameters, **buffers}
                pair.load_state_dict({name: t[i].detach() for name, t in state.items()})
    return Runs(models, [pair.objective for pair in pairs], history)


def _stacked(template: Pair) -> Callable[..., Terms]:
    """One forward for all seeds; says in words where networks can't be stacked."""

    @vmap
    def replicas(state: tuple[dict[str, Tensor], ...], *batch: Tensor) -> Terms:
        return functional_call(template, state, batch)

    def forward(*args: Any) -> Terms:
        try:
            return replicas(*args)
        except RuntimeError as error:
            if "vmap" not in str(error) and "atching rule" not in str(error):
                raise
            raise ValueError(
                "fit_seeds trains all seeds as one stack, and these networks cannot be stacked: "
                "dropout draws noise that no seed rules, and LSTMs, for one, have no stacked form. "
                "Train them one after another, by fit. In torch's words: "
                + str(error).partition("\n")[0]
            ) from error

    return forward


def _made(make_model: Callable[[], VAE], seeds: Sequence[int]) -> list[VAE]:
    """A model for each seed, none of which shares weights with another."""
    if isinstance(make_model, nn.Module) or not callable(make_model):
        raise TypeError(
            f"make_model is a {type(make_model).__name__}; pass a function that builds a new model "
            "at each call, such as lambda: VAE(*mlp(13))"
        )
    models: list[VAE] = []
    with torch.random.fork_rng():
        for seed in seeds:
            torch.manual_seed(seed)
            models.append(make_model())
            _refuse_kinds(models[-1], None)
    owners: dict[int, int] = {}
    for i, model in enumerate(models):
        for tensor in (*model.parameters(), *model.buffers()):
            if owners.setdefault(id(tensor), i) != i:
                raise ValueError(
                    f"make_model gave models {owners[id(tensor)]} and {i} the same weights; "
                    "have it build new networks at each call, such as lambda: VAE(*mlp(13))"
                )
    for i, model in enumerate(models):
        if _traits(model) != _traits(models[0]):
            raise ValueError(
                f"make_model built models 0 and {i} differently: {models[0]} and {model}; "
                "train each kind by a call of its own"
            )
    return models


def _refuse_kinds(model: Any, objective: Any) -> None:
    """Refuses what is no model or no objective, such as a class in place of an instance."""
    if not isinstance(model, VAE):
        raise TypeError(
            f"the model is {_kind(model)}; pass a VAE, such as VAE(*networks.mlp(n_features))"
        )
    if objective is not None and not isinstance(objective, Objective):
        raise TypeError(
            f"the objective is {_kind(objective)}; pass an instance, such as objectives.ELBO(), or "
            "one of a subclass of objectives.Objective"
        )


def _kind(thing: Any) -> str:
    return f"the class {thing.__name__}" if isinstance(thing, type) else f"a {type(thing).__name__}"


def _refuse_different(objectives: list[Objective], n: int) -> None:
    """One vmapped forward serves all, so only tensors may tell objectives apart."""
    if len(objectives) != n:
        raise ValueError(f"{len(objectives)} objectives for {n} seeds; pass one, or one for each")

    for i, each in enumerate(objectives):
        if _traits(each) != _traits(objectives[0]):
            raise ValueError(
                f"objectives 0 and {i} are of different kinds: {objectives[0]} and {each}; "
                "train each kind by a call of its own"
            )


def _traits(module: nn.Module) -> list[Any]:
    """All but the values of its tensors, of a module and its parts."""
    passing = "training", "validate_args"
    return [
        *((n, [*t.shape], str(t.dtype)) for n, t in module.state_dict().items()),
        *(
            (name, settings({k: v for k, v in attributes(m).items() if k not in passing}))
            for m in module.modules()
            if (name := name_of(type(m)))
        ),
    ]
