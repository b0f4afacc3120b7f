import math

import pytest
import torch

from vaelib import VAE, data, fit, fit_seeds
from vaelib.networks import mlp
from vaelib.objectives import ELBO
from vaelib.schedules import Capacity, Cyclical, FreeBits, Schedule, Warmup

X = data.wine().x
KL = torch.tensor([0.5, 2.5, 1.0])  # 4 nats, a power of 2, so that a weight times it is exact
RUN = {"steps": 40, "batch_size": 32, "lr": 1e-2, "report_every": 5, "progress": False}
FRACTIONS = [0.1, 1 / 3, 0.5, 0.55, 0.999, 1.0]
SCHEDULES = {
    "warm-up": lambda: Warmup(fraction=0.8),
    "cyclical": lambda: Cyclical(cycles=3, fraction=0.9),
    "capacity": lambda: Capacity(1.5, steps=30),
    "free bits": lambda: FreeBits(0.5),
}


def course(schedule, steps, kl=KL):
    """What the schedule returns at each step of a run."""
    schedule.begin(steps)
    return torch.stack([schedule(kl) for _ in range(steps)])


def step_of(schedule, steps, step, kl=KL):
    """What it returns at one step, without the way there."""
    schedule.begin(steps)
    schedule.step.fill_(step - 1)
    return schedule(kl).item()


# --- courses -----------------------------------------------------------------------------------


def test_without_a_schedule_the_kl_is_the_sum():
    assert course(Schedule(), 3).tolist() == [4, 4, 4]


def test_warmup_rises_linearly_and_stays():
    assert (course(Warmup(steps=4), 6) / 4).tolist() == [0.25, 0.5, 0.75, 1, 1, 1]
    assert (course(Warmup(fraction=0.5), 4) / 4).tolist() == [0.5, 1, 1, 1]


def test_cyclical_rises_holds_and_starts_again():
    weights = course(Cyclical(cycles=2, ramp=0.5, steps=8), 10) / 4
    assert weights.tolist() == [0.5, 1, 1, 1, 0.5, 1, 1, 1, 1, 1]
    weights = course(Cyclical(cycles=2, ramp=1.0, fraction=1.0), 8) / 4
    assert weights.tolist() == [0.25, 0.5, 0.75, 1, 0.25, 0.5, 0.75, 1]


def test_capacity_is_the_distance_from_a_target_that_rises():
    assert course(Capacity(8.0, steps=4), 6).tolist() == [2, 0, 2, 4, 4, 4]
    assert course(Capacity(2.0, fraction=0.5), 4).tolist() == [3, 2, 2, 2]


def test_free_bits_charge_only_what_exceeds_the_allowance():
    kl = KL.clone().requires_grad_()
    charged = FreeBits(1.0)(kl)
    assert charged.item() == 1.0 + 2.5 + 1.0
    charged.backward()
    assert kl.grad[:2].tolist() == [0, 1]
    assert FreeBits(0.0)(KL) == KL.sum()
    assert course(FreeBits(1.0), 3).tolist() == [4.5, 4.5, 4.5]  # it is the same all along


# --- ends --------------------------------------------------------------------------------------


@pytest.mark.parametrize("fraction", FRACTIONS)
def test_every_schedule_reaches_its_end_exactly_for_any_run(fraction):
    for steps in range(1, 201):
        length = math.ceil(fraction * steps)
        assert length <= steps
        for step in {length, steps}:
            assert step_of(Warmup(fraction=fraction), steps, step) == 4
            assert step_of(Capacity(4.0, fraction=fraction), steps, step) == 0
        if length > 1:
            assert step_of(Warmup(fraction=fraction), steps, length - 1) < 4
            assert step_of(Capacity(4.0, fraction=fraction), steps, length - 1) > 0


@pytest.mark.parametrize("ramp", [0.01, 0.3, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("cycles", [1, 2, 3, 4, 7, 13])
def test_cycles_end_at_a_weight_of_1_for_any_run(cycles, ramp):
    for steps in range(1, 201):
        for fraction in FRACTIONS:
            schedule = Cyclical(cycles, ramp, fraction=fraction)
            length = math.ceil(fraction * steps)
            assert step_of(schedule, steps, length) == 4
            assert step_of(schedule, steps, steps) == 4
            if length % cycles == 0:  # then each cycle ends on a step of the run
                for cycle in range(1, cycles):
                    assert step_of(schedule, steps, cycle * length // cycles) == 4


@pytest.mark.parametrize("make", [Warmup, Cyclical, lambda steps: Capacity(4.0, steps=steps)])
def test_a_length_in_steps_ends_exactly_there_too(make):
    end = 0.0 if isinstance(make(steps=1), Capacity) else 4.0
    for length in range(1, 201):
        for steps in (length, length + 1, 3 * length):
            assert step_of(make(steps=length), steps, length) == end
            assert step_of(make(steps=length), steps, steps) == end


def test_the_whole_course_is_what_single_steps_say():
    for schedule in (Warmup(fraction=0.7), Cyclical(3, 0.4, fraction=0.9), Capacity(9.0, steps=20)):
        by_steps = [step_of(schedule, 23, step) for step in range(1, 24)]
        assert course(schedule, 23).tolist() == by_steps


# --- refusals ----------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [Warmup, Cyclical, lambda steps: Capacity(1.0, steps=steps)])
def test_a_schedule_longer_than_the_run_is_refused(make):
    make(steps=40).begin(40)
    with pytest.raises(ValueError, match=r"takes 41 steps, but the run has only 40.*never end"):
        make(steps=41).begin(40)
    model = VAE(*mlp(13))
    with pytest.raises(ValueError, match=r"takes 41 steps, but the run has only 40"):
        fit(model, ELBO(schedule=make(steps=41)), X, **RUN)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Warmup(), "steps=None and fraction=None; give one"),
        (lambda: Warmup(steps=3, fraction=0.5), "steps=3 and fraction=0.5; give one"),
        (lambda: Warmup(steps=0), "steps is 0"),
        (lambda: Warmup(fraction=0.0), "fraction of the run is 0.0"),
        (lambda: Warmup(fraction=1.1), "fraction of the run is 1.1"),
        (lambda: Warmup(fraction=math.nan), "fraction of the run is nan"),
        (lambda: Cyclical(), "give one of them"),
        (lambda: Cyclical(cycles=0, steps=4), "cycles is 0"),
        (lambda: Cyclical(ramp=0.0, steps=4), "ramp is 0.0"),
        (lambda: Cyclical(ramp=1.5, steps=4), "ramp is 1.5"),
        (lambda: Capacity(-1.0, steps=4), "nats is -1.0.*never negative"),
        (lambda: Capacity(1.0), "give one of them"),
        (lambda: FreeBits(-0.1), "nats is -0.1.*never negative"),
        (lambda: FreeBits(math.nan), "nats is nan"),
    ],
)
def test_bad_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# --- modes and runs ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "schedule", [Warmup(steps=4), Cyclical(cycles=2, ramp=1.0, steps=4), Capacity(4.0, steps=4)]
)
def test_a_schedule_goes_on_in_training_mode_and_is_at_its_end_in_eval_mode(schedule):
    expected = course(schedule, 4).tolist()
    schedule.begin(4)
    seen = []
    for _ in range(4):
        seen.append(schedule(KL).item())
        schedule.eval()
        assert [schedule(KL).item() for _ in range(3)] == 3 * expected[-1:]
        schedule.train()
    assert seen == expected
    assert len(set(seen)) > 1


def test_outside_a_run_a_schedule_stands_at_its_end():
    for schedule, end in (
        (Warmup(steps=4), 4),
        (Cyclical(steps=4), 4),
        (Capacity(4.0, steps=4), 0),
    ):
        assert schedule.eval()(KL) == end
        assert schedule.train()(KL) == end


def test_each_run_starts_the_schedule_anew():
    objective = ELBO(schedule=Warmup(fraction=1.0))
    for steps in (40, 20):
        torch.manual_seed(0)
        history = fit(VAE(*mlp(13)), objective, X, **{**RUN, "steps": steps, "report_every": 1})
        weights = (history["loss"] - history["reconstruction"]) / history["kl"].sum(1)
        assert weights.tolist() == pytest.approx([(i + 1) / steps for i in range(steps)], abs=1e-4)
        assert objective.schedule.step == steps


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_objective_weighs_what_the_schedule_returns(name):
    torch.manual_seed(0)
    model, eps = VAE(*mlp(13)).eval(), torch.randn(len(X), 2)
    schedule = SCHEDULES[name]()
    terms = ELBO(3.0, schedule).eval()(model, X, eps)
    expected = terms["reconstruction"] + 3 * SCHEDULES[name]().eval()(terms["kl"])
    torch.testing.assert_close(terms["loss"], expected)


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_run_that_died_goes_on_where_its_schedule_was(name, tmp_path):
    """The same weights, bit for bit, and the same history as a run that did not die."""

    def run(**options):
        torch.manual_seed(0)
        model, objective = VAE(*mlp(13)), ELBO(2.0, SCHEDULES[name]())
        history = fit(model, objective, X, **RUN, **options)
        return {**model.state_dict(), **objective.state_dict()}, history

    def die(step):
        if step == 15:
            raise MemoryError

    checkpoint = tmp_path / "run.safetensors"
    with pytest.raises(MemoryError):
        run(checkpoint=checkpoint, on_report=die)
    resumed, history = run(checkpoint=checkpoint)
    whole, expected = run()
    for key, value in whole.items():
        assert torch.equal(value, resumed[key]), key
    for term in expected.terms:
        assert (history[term] == expected[term]).all(), term


@pytest.mark.parametrize("name", SCHEDULES)
def test_under_fit_seeds_each_run_has_the_schedule_of_the_lone_run(name):

    # Without batch norm, which cancels μ's bias: where free bits silence the KL as well, nothing
    # but rounding would train it, and no two runs agree.
    def make_model():
        return VAE(*mlp(13, batch_norm=False))

    run, seeds = {**RUN, "batch_size": 16}, [0, 3]
    runs = fit_seeds(make_model, ELBO(2.0, SCHEDULES[name]()), X, seeds=seeds, **run)
    for i, seed in enumerate(seeds):
        torch.manual_seed(seed)
        model, objective = make_model(), ELBO(2.0, SCHEDULES[name]())
        history = fit(model, objective, X, seed=seed, **run)
        for lone, stacked in ((model, runs.models[i]), (objective, runs.objectives[i])):
            for key, value in lone.state_dict().items():
                torch.testing.assert_close(
                    value, stacked.state_dict()[key], rtol=0, atol=1e-4, msg=key
                )
        assert history["loss"].tolist() == pytest.approx(runs.history["loss"][i].tolist(), rel=1e-4)


def test_a_path_of_allowances_trains_at_once():
    allowances = [0.0, 0.5, 2.0]
    objectives = [ELBO(schedule=FreeBits(nats)) for nats in allowances]
    run = {**RUN, "steps": 150}
    runs = fit_seeds(lambda: VAE(*mlp(13)), objectives, X, seeds=[0, 0, 0], **run)
    kl = runs.history["kl"][:, -5:].mean(1)  # (runs, latents)
    assert kl[2].min() > 1.5 > kl[0].min()
    assert (kl.sum(1)[1:] > kl.sum(1)[:-1]).all()


# --- knobs -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Schedule(), Warmup(fraction=1.0)),
        (Warmup(fraction=1.0), Warmup(fraction=0.5)),
        (Warmup(steps=10), Warmup(steps=11)),
        (Warmup(fraction=1.0), Cyclical(fraction=1.0)),
        (Cyclical(fraction=1.0), Cyclical(fraction=0.5)),
        (Cyclical(steps=10), Cyclical(steps=11)),
        (Cyclical(2, fraction=1.0), Cyclical(3, fraction=1.0)),
        (Cyclical(ramp=0.5, fraction=1.0), Cyclical(ramp=0.9, fraction=1.0)),
        (Capacity(4.0, fraction=1.0), Capacity(5.0, fraction=1.0)),
        (Capacity(4.0, fraction=1.0), Capacity(4.0, fraction=0.5)),
        (Capacity(4.0, steps=10), Capacity(4.0, steps=11)),
        (Schedule(), FreeBits(0.8)),
        (FreeBits(0.8), FreeBits(1.2)),
    ],
)
def test_every_knob_changes_the_loss(one, other):
    assert not torch.equal(course(one, 20), course(other, 20))
