import functools
import itertools
import math

import pytest
import torch
from torch.func import functional_call, stack_module_state, vmap

from vaelib import gates
from vaelib.gates import Gates

N = 6


def u_like(u):
    return torch.rand(u.shape, generator=generator(99), dtype=u.dtype)


UNBIASED = {
    "arm": gates.arm,
    "disarm": gates.disarm,
    "ar": gates.ar,
    "reinforce": gates.reinforce,
    "leave-one-out": lambda f, logits, u: gates.reinforce(f, logits, u, u_like(u)),
}
BIASED = {"straight-through": gates.straight_through, "hard concrete": gates.hard_concrete}
ALL = UNBIASED | BIASED


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def uniform(*shape, seed=0):
    return torch.rand(*shape, generator=generator(seed), dtype=torch.float64)


def problem(seed):
    """A random non-linear F of six gates, smooth enough for all estimators, and logits."""
    g = generator(seed)
    inward = 2 * torch.randn(N, 8, generator=g, dtype=torch.float64)
    outward = torch.randn(8, generator=g, dtype=torch.float64)
    logits = 1.5 * torch.randn(N, generator=g, dtype=torch.float64)
    return lambda b: (b @ inward - 1).tanh() @ outward + b.sum(-1).square() / 4, logits


def exact(f, logits):
    """dE[F]/dγ, from all 2^6 states of the gates."""
    states = torch.tensor([*itertools.product([0.0, 1.0], repeat=N)], dtype=torch.float64)
    logits = logits.clone().requires_grad_()
    p = torch.sigmoid(logits)
    probability = torch.where(states == 1, p, 1 - p).prod(-1)
    return torch.autograd.grad(probability @ f(states), logits)[0]


def deviation(estimates, truth):
    """By how many standard errors the mean of the estimates misses the truth, at worst."""
    error = estimates.std(0) / math.sqrt(len(estimates))
    return ((estimates.mean(0) - truth).abs() / error).max()


@pytest.mark.parametrize("name", UNBIASED)
def test_unbiased_estimators_have_the_exact_gradient_as_their_mean(name):
    for seed in range(3):
        f, logits = problem(seed)
        estimates = ALL[name](f, logits, uniform(200_000, N, seed=seed + 10))
        assert estimates.shape == (200_000, N)
        assert deviation(estimates, exact(f, logits)) < 4


@pytest.mark.parametrize("name", BIASED)
def test_biased_estimators_have_not(name):
    for seed in range(3):
        f, logits = problem(seed)
        estimates = ALL[name](f, logits, uniform(50_000, N, seed=seed + 10))
        assert deviation(estimates, exact(f, logits)) > 10


def test_straight_through_has_where_f_is_linear():
    _, logits = problem(0)
    weights = torch.arange(1.0, 7.0, dtype=torch.float64)
    estimates = gates.straight_through(lambda b: b @ weights, logits, uniform(5, N))
    p = torch.sigmoid(logits)
    torch.testing.assert_close(estimates, (weights * p * (1 - p)).expand(5, N))


def test_straight_through_takes_the_slope_of_f_at_the_gates_of_0_and_1():
    _, logits = problem(0)
    u = uniform(5, N)
    estimates = gates.straight_through(lambda b: b.square().sum(-1), logits, u)
    p, (drawn, _) = torch.sigmoid(logits), gates.draw(logits, u)
    torch.testing.assert_close(estimates, 2 * drawn * p * (1 - p))


def test_hard_concrete_has_the_exact_gradient_of_its_own_gates():
    """d/dγ of E[F] over u, by quadrature, for one gate and F(s) = s²."""
    gamma = torch.tensor([0.3], dtype=torch.float64)
    u = (torch.arange(100_000, dtype=torch.float64)[:, None] + 0.5) / 100_000

    def expected(gamma):
        s = torch.special.expit(1.5 * (u.log() - (1 - u).log() + gamma))
        return (-0.1 + s * (1.1 + 0.1)).clamp(0, 1).square().mean()

    slope = (expected(gamma + 1e-4) - expected(gamma - 1e-4)) / 2e-4
    estimate = gates.hard_concrete(lambda b: b.square().sum(-1), gamma, u).mean()
    torch.testing.assert_close(estimate, slope, rtol=1e-4, atol=0)


def test_disarm_never_varies_more_than_arm():
    for seed in range(10):
        f, logits = problem(seed)
        u = uniform(50_000, N, seed=seed)
        assert (gates.disarm(f, logits, u).var(0) <= gates.arm(f, logits, u).var(0)).all()


def test_disarm_is_arm_averaged_over_the_noise_that_f_does_not_see():
    f, logits = problem(1)
    u = uniform(100_000, N, seed=1)
    pair = torch.cat(gates.draw(logits, u), dim=1)
    states, which = pair.unique(dim=0, return_inverse=True)
    arm, disarm = gates.arm(f, logits, u), gates.disarm(f, logits, u)
    common = which.bincount(minlength=len(states)).argsort(descending=True)[:5]
    for state in common:
        same = which == state
        assert disarm[same].std(0).max() < 1e-12
        wobbles = arm[same].std(0) / math.sqrt(int(same.sum()))
        assert ((arm[same].mean(0) - disarm[same][0]).abs() <= 4 * wobbles).all()


# std of one gate's estimate where F is the number of closed gates: n, p, and UNBIASED's order
TABLE = [
    (1, 0.5, (0.144, 0.0, 0.323, 0.250, 0.250)),
    (10, 0.5, (0.880, 0.750, 3.02, 2.61, 0.791)),
    (10, 0.9, (0.428, 0.325, 0.873, 0.600, 0.330)),
    (10, 0.99, (0.141, 0.075, 0.210, 0.113, 0.076)),
    (30, 0.99, (0.231, 0.088, 0.374, 0.137, 0.088)),
]


@pytest.mark.parametrize(("n", "p", "expected"), TABLE)
def test_spreads_are_what_they_are_known_to_be(n, p, expected):
    logits = torch.full((n,), math.log(p / (1 - p)))
    u = torch.rand(400_000, n, generator=generator())
    for (name, estimate), std in zip(UNBIASED.items(), expected, strict=True):
        measured = estimate(lambda b: (1 - b).sum(-1), logits, u)[:, 0].std().item()
        assert measured == pytest.approx(std, rel=0.03, abs=1e-3), name


def test_the_spread_of_one_gate_by_hand():
    """One gate at p = ½, where F jumps by Δ: ARM's variance is Δ²/48."""
    u = uniform(100_000, 1)
    estimates = gates.arm(lambda b: 7 * b[:, 0], torch.zeros(1).double(), u)
    assert estimates.var().item() == pytest.approx(49 / 48, rel=0.02)


def test_a_pair_of_gates_by_hand():
    """p = 0.52: the first is open below it, the second above 1 - p = 0.48."""
    logits = torch.tensor([math.log(0.52 / 0.48)])
    drawn, antithetic = gates.draw(logits, torch.tensor([[0.34], [0.50], [0.67]]))
    assert drawn.tolist() == [[1], [1], [0]]
    assert antithetic.tolist() == [[0], [1], [1]]
    estimates = gates.arm(lambda b: 3 * b[:, 0], logits, torch.tensor([[0.34], [0.50], [0.67]]))
    torch.testing.assert_close(estimates, torch.tensor([[-3 * -0.16], [0.0], [3 * 0.17]]))


def test_a_constant_leaves_arm_and_disarm_alone():
    f, logits = problem(0)
    u = uniform(10_000, N)
    for name, estimate in UNBIASED.items():
        before, after = estimate(f, logits, u), estimate(lambda b: f(b) + 1e4, logits, u)
        if name in ("ar", "reinforce"):
            assert after.std() > 100 * before.std(), name
        else:
            torch.testing.assert_close(after, before, msg=name)


def test_f_averaged_over_the_batch_gives_a_gradient_b_times_too_small():
    f, logits = problem(0)
    size, u = 8, uniform(400_000, N, seed=4)

    def averaged(b):
        return f(b).view(-1, size).mean(1, keepdim=True).expand(-1, size).flatten()

    truth = exact(f, logits)
    for estimate in (gates.arm, gates.disarm):
        estimates = estimate(averaged, logits, u)
        assert deviation(estimates, truth / size) < 4
        assert deviation(estimates, truth) > 50
        assert deviation(estimate(f, logits, u), truth) < 4


@pytest.mark.parametrize("name", ALL)
def test_each_sample_has_an_estimate_of_its_own(name):
    f, logits = problem(0)
    u, scale = uniform(6, N), torch.arange(1.0, 7.0, dtype=torch.float64)
    before = ALL[name](lambda b: scale * f(b), logits, u)
    scale = scale.clone()
    scale[2] *= 10
    after = ALL[name](lambda b: scale * f(b), logits, u)
    torch.testing.assert_close(after, before * torch.tensor([[1], [1], [10], [1], [1], [1]]))
    assert (before[2] != 0).any()


@pytest.mark.parametrize("name", ["arm", "disarm", "ar", "reinforce"])
def test_noise_can_be_shared_by_the_batch(name):
    f, logits = problem(0)
    u, scale = uniform(1, N), torch.arange(1.0, 7.0, dtype=torch.float64)
    shared = ALL[name](lambda b: scale * f(b), logits, u)
    torch.testing.assert_close(shared, ALL[name](lambda b: scale * f(b), logits, u.expand(6, N)))
    assert shared.shape == (6, N)


@pytest.mark.parametrize("name", ALL)
def test_estimators_refuse_what_is_not_one_value_a_sample(name):
    f, logits = problem(0)
    u = uniform(8, N)
    for wrong in (lambda b: f(b).mean(), lambda b: f(b)[:, None], lambda b: f(b)[:5]):
        with pytest.raises(ValueError, match="one value a sample"):
            ALL[name](wrong, logits, u)
    for wrong in (u[:, :3], u[0]):
        with pytest.raises(ValueError, match="a column for each logit"):
            ALL[name](f, logits, wrong)


@pytest.mark.parametrize("name", BIASED)
def test_a_path_needs_noise_for_each_sample(name):
    f, logits = problem(0)
    with pytest.raises(ValueError, match=r"u.expand\(B, -1\)"):
        BIASED[name](lambda b: f(b) * torch.ones(5), logits, uniform(1, N))


@pytest.mark.parametrize("weight", ["arm", "disarm"])
def test_the_gradient_of_the_surrogate_is_the_estimate(weight):
    f, logits = problem(0)
    module = Gates(N, weight=getattr(gates, f"{weight}_weight")).double()
    module.phi.data = logits / module.speed
    u = uniform(16, N)
    drawn, antithetic = module.draw(u)
    surrogate = module.surrogate(f(drawn), f(antithetic), u)
    assert surrogate == 0
    surrogate.backward()
    expected = ALL[weight](f, logits, u).mean(0)
    torch.testing.assert_close(module.phi.grad / module.speed, expected)


def test_the_surrogate_sends_nothing_into_what_f_was_made_of():
    module, u = Gates(N), torch.rand(16, N, generator=generator())
    weights = torch.ones(N, requires_grad=True)
    drawn, antithetic = module.draw(u)
    module.surrogate(drawn @ weights, antithetic @ weights, u).backward()
    assert weights.grad is None
    assert module.phi.grad is not None
    with pytest.raises(ValueError, match="one value a sample"):
        module.surrogate((drawn @ weights).mean(), (antithetic @ weights).mean(), u)


def test_gates_start_open_and_say_which_are():
    module = Gates(3)
    assert module.open.tolist() == [True] * 3
    torch.testing.assert_close(module.probabilities, torch.full((3,), 1 / (1 + math.exp(-6))))
    module.phi.data = torch.tensor([-2.0, 0.1, 2.0]) / module.speed
    assert module.open.tolist() == [False, True, True]
    u = module.noise(1000, generator())
    assert u.shape == (1000, 3)
    assert torch.equal(u, module.noise(1000, generator()))
    drawn, antithetic = module.draw(u)
    for each in (drawn, antithetic):
        torch.testing.assert_close(each.mean(0), module.probabilities.detach(), rtol=0, atol=0.06)


def test_logits_beyond_a_bound_are_brought_back_in_training_alone():
    module = Gates(2, bounds=(-3.0, 5.0), speed=10.0)
    assert module.logits.tolist() == [5.0, 5.0]
    module.phi.data = torch.tensor([-5.0, 0.55])
    u = torch.full((1, 2), 0.5)
    module.eval().draw(u)
    assert module.phi.tolist() == pytest.approx([-5.0, 0.55])
    module.train().draw(u)
    assert module.phi.tolist() == pytest.approx([-0.3, 0.5])
    assert module.phi.requires_grad


def test_a_logit_beyond_a_bound_is_brought_back_before_the_draw():
    """So that even a gate which a step took far out is drawn the other way as often as promised."""
    module = Gates(2, bounds=(-2.0, 3.0))
    bounded = torch.tensor([-2.0, 3.0])
    module.phi.data = torch.tensor([-100.0, 100.0])
    u = torch.linspace(0.001, 0.999, 500)[:, None].expand(500, 2)
    for found, expected in zip(module.draw(u), gates.draw(bounded, u), strict=True):
        assert torch.equal(found, expected)
        torch.testing.assert_close(found.mean(0), bounded.sigmoid(), rtol=0, atol=0.005)


def train(module, optimizer, cost, steps, seed):
    """Each open gate costs 1, each closed one what the data lose without it."""
    g = generator(seed)
    for _ in range(steps):
        u = module.noise(64, g)
        drawn, antithetic = module.draw(u)
        f = [(1 - b) @ cost for b in (drawn, antithetic)]
        loss = module.surrogate(*f, u) + module.probabilities.sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@pytest.mark.parametrize(("lowest", "comes_back"), [(-4.0, True), (-100.0, False)])
def test_a_closed_gate_reopens_soon_when_the_data_need_it_if_it_is_bounded(lowest, comes_back):
    module = Gates(3, bounds=(lowest, 4.0))
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-3)
    train(module, optimizer, torch.tensor([5.0, 0.0, 0.0]), 1500, seed=1)
    assert module.open.tolist() == [True, False, False]
    train(module, optimizer, torch.tensor([0.0, 5.0, 0.0]), 150, seed=2)
    assert module.open[1] == comes_back


def test_many_gates_train_at_once_as_each_would_alone():
    """What `fit_seeds` does: stacked state, one vmapped step, the bound kept in place."""
    modules = [Gates(4).double() for _ in range(3)]
    for i, module in enumerate(modules):
        module.phi.data = (torch.randn(4, generator=generator(i)) * 5 / module.speed).double()
    f, u = (lambda b: b.sum(-1).square()), uniform(3, 16, 4)
    parameters, buffers = stack_module_state(modules)

    class Loss(torch.nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

        def forward(self, u):
            drawn, antithetic = self.module.draw(u)
            return (
                self.module.surrogate(f(drawn), f(antithetic), u) + self.module.probabilities.sum()
            )

    stacked = {f"module.{name}": value for name, value in parameters.items()}
    loss = vmap(functools.partial(functional_call, Loss(Gates(4))))((stacked, buffers), (u,))
    loss.backward(torch.ones(3).double())
    assert parameters["phi"].abs().max().item() == pytest.approx(6 / 20)
    for i, module in enumerate(modules):
        Loss(module)(u[i]).backward()
        torch.testing.assert_close(parameters["phi"][i], module.phi)
        torch.testing.assert_close(parameters["phi"].grad[i], module.phi.grad)


def test_nothing_in_a_step_waits_for_the_device():
    """A tensor on the meta device has no values: to read one, or to branch on it, raises."""
    module, u = Gates(3).to("meta"), torch.rand(5, 3, device="meta")
    drawn, antithetic = module.draw(u)
    assert module.surrogate(drawn.sum(-1), antithetic.sum(-1), u).is_meta


@pytest.mark.parametrize("bounds", [(-4.0, 0.0), (1.0, 4.0), (4.0, -4.0), (math.nan, 1.0)])
def test_gates_refuse_bounds_between_which_no_gate_opens(bounds):
    with pytest.raises(ValueError, match="but 0 must lie between them"):
        Gates(3, bounds=bounds)


@pytest.mark.parametrize("wrong", [{"n": 0}, {"n": 3, "speed": -1.0}])
def test_gates_refuse_numbers_that_are_not_positive(wrong):
    with pytest.raises(ValueError, match=f"{list(wrong)[-1]} must be positive, got"):
        Gates(**wrong)
