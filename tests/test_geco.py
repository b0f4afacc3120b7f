import functools
import math

import pytest
import torch
from torch.func import functional_call, stack_module_state, vmap

from vaelib import VAE, Geco, data, fit_seeds
from vaelib.networks import mlp
from vaelib.objectives import Objective

A = torch.full((8,), 10 / math.sqrt(8))  # of length 10
TAU = 4.0
LAM = (10 / math.sqrt(TAU) - 1) / 2  # = 2, since θ = 2λ/(1 + 2λ)·a and ‖θ - a‖² = τ


def cost(theta):
    """A toy of a VAE's loss: staying at 0 is free, and the error is to reach a."""
    return 0.5 * theta.square().sum(), (theta - A).square().sum()


def solve(geco, steps, lr=0.01, optimizer=torch.optim.SGD, noise=0.0):
    """Minimises ½‖θ‖² where ‖θ - a‖² ≤ τ; returns θ and λ at each step."""
    theta, lams = torch.zeros(8, requires_grad=True), []
    optimizer = optimizer([theta], lr=lr)
    g = torch.Generator().manual_seed(0)
    for _ in range(steps):
        lams.append(geco.lam)
        kl, error = cost(theta)
        loss = kl + geco(error + noise * torch.randn(16, generator=g))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return theta.detach(), torch.stack(lams)


def test_it_finds_the_multiplier_of_a_convex_problem():
    geco = Geco(TAU)
    theta, lams = solve(geco, 1500)
    torch.testing.assert_close(geco.lam, torch.tensor(LAM), rtol=1e-3, atol=0)
    torch.testing.assert_close(theta, 2 * LAM / (1 + 2 * LAM) * A, rtol=1e-3, atol=0)
    torch.testing.assert_close(geco.error, torch.tensor(TAU), rtol=1e-3, atol=0)
    assert (lams[400:] / LAM - 1).abs().max() < 0.05


def test_it_agrees_with_cooper():
    cooper = pytest.importorskip("cooper", reason="cooper-optim is in the extra [bench]")
    theta = torch.zeros(8, requires_grad=True)

    class Problem(cooper.ConstrainedMinimizationProblem):
        def __init__(self):
            super().__init__()
            self.multiplier = cooper.multipliers.DenseMultiplier(num_constraints=1)
            self.constraint = cooper.Constraint(
                constraint_type=cooper.ConstraintType.INEQUALITY, multiplier=self.multiplier
            )

        def compute_cmp_state(self):
            kl, error = cost(theta)
            state = cooper.ConstraintState(violation=(error - TAU).unsqueeze(0))
            return cooper.CMPState(loss=kl, observed_constraints={self.constraint: state})

    problem = Problem()
    optimizer = cooper.optim.SimultaneousOptimizer(
        cmp=problem,
        primal_optimizers=torch.optim.SGD([theta], lr=0.01),
        dual_optimizers=torch.optim.SGD(problem.dual_parameters(), lr=0.01, maximize=True),
    )
    for _ in range(5000):
        optimizer.roll()
    ours, lams = solve(Geco(TAU), 1500)
    torch.testing.assert_close(problem.multiplier()[0].detach(), lams[-1], rtol=1e-3, atol=0)
    torch.testing.assert_close(theta.detach(), ours, rtol=1e-3, atol=0)


class Held(Objective):
    """KL + λ·(SSE - τ), the plainest use there is."""

    def __init__(self, tau):
        super().__init__()
        self.geco = Geco(tau)

    def forward(self, model, x, eps=None):
        terms = model(x, eps)
        return {"loss": terms.kl.sum(-1).mean() + self.geco((x - terms.p.mean).square().sum(-1))}


def test_it_finds_the_multiplier_of_a_linear_vae_for_many_targets_at_once():
    """Probabilistic PCA: at β_eff = 1/2λ the error is what 4 latents lose, and β_eff for each."""
    x = data.wine().x
    eigenvalues = torch.linalg.eigvalsh(x.T @ x / len(x)).flip(0)[:4]
    expected = torch.tensor([1.0, 2.0, 4.0])
    targets = [13 - (eigenvalues - 1 / (2 * lam)).clamp(min=0).sum().item() for lam in expected]
    runs = fit_seeds(
        lambda: VAE(*mlp(13, hidden=(), n_latents=4, batch_norm=False)),
        [Held(tau) for tau in targets],
        x,
        steps=2000,
        batch_size=len(x),
        seeds=[0, 0, 0],
        lr=1e-2,
        progress=False,
    )
    lams = torch.stack([each.geco.lam for each in runs.objectives])
    errors = torch.stack([each.geco.error for each in runs.objectives])
    torch.testing.assert_close(lams, expected, rtol=0.05, atol=0)
    torch.testing.assert_close(errors, torch.tensor(targets), rtol=0.01, atol=0)


NO_LIMIT = {"limit": math.inf, "lowest": 1e-9, "highest": 1e9}


def test_a_run_away_is_prevented_by_clamp_and_limit_and_a_swing_by_damping():
    """Adam takes hundreds of steps to reach a, in which the error stays at many times τ."""
    adam = functools.partial(solve, steps=1500, optimizer=torch.optim.Adam)
    _, naive = adam(Geco(TAU, damping=0, **NO_LIMIT))
    assert naive.max() > 1e8
    assert naive[-1] > 100 * LAM or naive[-1] < LAM / 10
    _, clamped = adam(Geco(TAU, damping=0, limit=math.inf))
    assert clamped.max().item() == pytest.approx(50)
    _, limited = adam(Geco(TAU, damping=0))
    assert 10 * LAM < limited.max() < 30 * LAM
    assert limited.log().diff().abs().max().item() == pytest.approx(0.01, rel=1e-3)
    _, damped = adam(Geco(TAU))
    assert damped.max() < 5 * LAM
    assert (damped[1200:] / LAM - 1).abs().max() < 0.05
    assert (limited[1200:] / LAM - 1).abs().max() > 0.2


def test_a_noisy_error_moves_it_no_further_than_it_should():
    _, lams = solve(Geco(TAU), 1500, noise=4.0)
    assert (lams[500:] / LAM - 1).abs().max() < 0.1


def test_its_steps_by_hand():
    geco = Geco(2.0, alpha=0.75, speed=0.1, damping=0.5, limit=math.inf)
    geco(torch.tensor([5.0, 3.0]))  # average 4, and no change yet: 0.1·(4 - 2)/2
    assert geco.error == 4
    assert geco.log_lam.item() == pytest.approx(0.1)
    geco(torch.tensor([0.5, 0.5]))  # average (0.75·0.25·4 + 0.25·0.5)/(0.75·0.25 + 0.25) = 2
    assert geco.error == 2
    assert geco.log_lam.item() == pytest.approx(0.1 + 0.1 * 0 + 0.5 * (2 - 4) / 2)
    assert geco.best == 2  # of the average, not of the batch

    # Whatever the change, λ does not move by more than the limit, neither up nor down.
    geco = Geco(2.0, alpha=0.0, limit=0.1, start=3.0)
    course = [math.log(3)]
    for error in (100.0, 0.0, 100.0):
        geco(torch.full((4,), error))
        course.append(geco.log_lam.item())
    assert course == pytest.approx([math.log(3) + step for step in (0, 0.1, 0, 0.1)])


@pytest.mark.parametrize("limit", [0.01, math.inf])
@pytest.mark.parametrize(("error", "end"), [(0.0, 0.5), (1e3, 3.0)])
def test_lambda_stays_between_its_bounds_and_leaves_them_as_soon_as_it_should(error, end, limit):
    geco = Geco(2.0, alpha=0.0, damping=0.0, limit=limit, lowest=0.5, highest=3.0)
    for _ in range(300):
        geco(torch.full((4,), error))
        assert 0.5 * (1 - 1e-6) <= geco.lam <= 3 * (1 + 1e-6)
    assert geco.lam.item() == pytest.approx(end)
    geco(torch.full((4,), 2.0 + (2.0 if error < 2 else -2.0)))  # nothing was stored up beyond
    assert geco.lam.log().sub(math.log(end)).abs().item() == pytest.approx(0.01, rel=1e-3)


def test_it_says_whether_the_target_is_met_and_how_near_it_ever_was():
    geco = Geco(2.0, alpha=0.0)
    assert not geco.met
    for error, met, best in [(4.0, False, 4.0), (2.5, False, 2.5), (3.0, False, 2.5)]:
        geco(torch.full((3,), error))
        assert (geco.met.item(), geco.best.item()) == (met, best)
    geco(torch.full((3,), 2.0))
    assert geco.met
    geco(torch.full((3,), 3.0))
    assert not geco.met
    assert geco.best == 2


def test_the_penalty_is_lambda_times_the_violation_and_so_is_its_gradient():
    geco = Geco(2.0)
    geco.log_lam.fill_(math.log(3))
    error = torch.tensor([4.0, 8.0], requires_grad=True)
    penalty = geco(error)
    assert penalty.item() == pytest.approx(3 * (6 - 2))
    penalty.backward()
    torch.testing.assert_close(error.grad, torch.tensor([1.5, 1.5]))


def test_it_learns_in_training_mode_alone():
    geco = Geco(2.0)
    geco(torch.full((3,), 9.0))
    before = {name: value.clone() for name, value in geco.state_dict().items()}
    assert before["log_lam"] > 0
    geco.eval()(torch.full((3,), 1.0))
    for name, value in geco.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_the_unit_of_the_error_is_of_no_concern():
    errors = 20 * torch.rand(50, 8, generator=torch.Generator().manual_seed(0))
    one, other = Geco(3.0), Geco(3000.0)
    for error in errors:
        one(error)
        other(1000 * error)
    torch.testing.assert_close(one.lam, other.lam)
    assert one.lam > 1.1


def test_many_learn_at_once_as_each_would_alone():
    gecos = [Geco(tau) for tau in (1.0, 2.0, 3.0)]
    parameters, buffers = stack_module_state(gecos)
    errors = 4 * torch.rand(20, 3, 8, generator=torch.Generator().manual_seed(0))
    together = vmap(functools.partial(functional_call, Geco(9.0)))
    for error in errors:
        penalties = together((parameters, buffers), (error,))
        alone = torch.stack([geco(each) for geco, each in zip(gecos, error, strict=True)])
        torch.testing.assert_close(penalties, alone)
    for i, geco in enumerate(gecos):
        for name, value in geco.named_buffers():
            torch.testing.assert_close(buffers[name][i], value)


def test_nothing_in_a_step_waits_for_the_device():
    """A tensor on the meta device has no values: to read one, or to branch on it, raises."""
    assert Geco(2.0).to("meta")(torch.ones(3, device="meta")).is_meta


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"tau": 0.0}, "tau must be positive and finite, got 0.0; measure the error"),
        ({"tau": -3.0}, "got -3.0"),
        ({"tau": math.nan}, "got nan"),
        ({"tau": math.inf}, "got inf"),
        ({"alpha": 1.0}, "alpha is 1.0"),
        ({"speed": 0.0}, "speed is 0.0"),
        ({"damping": -1.0}, "damping -1.0"),
        ({"limit": 0.0}, "limit 0.0"),
        ({"lowest": 0.0}, "lowest is 0.0"),
        ({"highest": 0.5}, "highest 0.5"),
        ({"start": 60.0}, "start 60.0"),
    ],
)
def test_it_refuses_numbers_out_of_range(wrong, message):
    with pytest.raises(ValueError, match=message):
        Geco(**{"tau": 1.0, **wrong})
