import os
import signal
import subprocess
import sys
import threading
import time
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

import vaelib
from vaelib import VAE, checkpoints, data, fit, fit_seeds
from vaelib.likelihoods import Bernoulli, Gaussian
from vaelib.networks import Decoder, Encoder, conv, mlp
from vaelib.objectives import ELBO, ComputedGamma, InfoVAE, Narrowing, OptimalSigma
from vaelib.schedules import Capacity, Warmup

X = data.wine().x
RUN = {"steps": 40, "batch_size": 32, "progress": False}


def make_model():
    return VAE(*mlp(13), Gaussian(torch.ones(13), learn=True))


def lone(seed=0, x=X, make=make_model, **kwargs):
    torch.manual_seed(seed)
    model = make()
    return model, fit(model, ELBO(), x, seed=seed, **{**RUN, **kwargs})


def assert_same_weights(a, b):
    for (name, value), other in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
        assert torch.equal(value, other), name


def test_fit_learns_and_reports():
    model, history = lone(steps=1000, lr=1e-2)
    assert not model.training
    assert model.validate_args
    assert history.steps.tolist() == list(range(10, 1001, 10))
    assert history["loss"].shape == (100,)
    assert history["kl"].shape == (100, 2)
    assert not history.interrupted
    assert history["loss"][-10:].mean() < history["loss"][0] - 2
    np.testing.assert_allclose(
        history["loss"], history["reconstruction"] + history["kl"].sum(-1), rtol=1e-5
    )
    with pytest.raises(KeyError, match="no term 'mse' was reported"):
        history["mse"]


def test_fit_is_the_plain_loop_it_says_it_is():
    """Adam on batches of a shuffled epoch, the average of each term at each report."""
    model, history = lone(steps=10, report_every=5)
    torch.manual_seed(0)
    by_hand, losses = make_model(), []
    adam = torch.optim.Adam(by_hand.parameters(), lr=1e-3)
    seen = []
    generator = torch.Generator().manual_seed(0)
    orders = [torch.randperm(len(X), generator=generator)[:160] for _ in range(13)]
    eps = torch.randn(13 * 160, 2, generator=generator)
    for step in range(10):
        rows = torch.cat(orders)[32 * step : 32 * step + 32]
        seen.append(rows)
        loss = ELBO()(by_hand, X[rows], eps[32 * step : 32 * step + 32])["loss"]
        adam.zero_grad()
        loss.backward()
        adam.step()
        losses.append(loss.item())
    assert len(set(torch.cat(seen[:5]).tolist())) == 160  # an epoch sees no sample twice
    np.testing.assert_allclose(
        history["loss"], [np.mean(losses[:5]), np.mean(losses[5:])], rtol=1e-5
    )
    for value, other in zip(model.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(value, other, rtol=0, atol=1e-5)


def test_the_same_seed_gives_the_same_run_and_each_option_another():
    model, history = lone()
    again, _ = lone()
    assert_same_weights(model, again)
    torch.manual_seed(0)
    other_order = make_model()
    fit(other_order, ELBO(), X, seed=1, **RUN)
    changed = [other_order] + [lone(**option)[0] for option in ({"lr": 1e-2}, {"batch_size": 16})]
    for other in changed:
        assert not torch.equal(model.encoder.mu_logvar.weight, other.encoder.mu_logvar.weight)
    assert len(lone(report_every=20)[1].steps) == 2
    assert len(history.steps) == 40


def test_on_report_sees_the_model_in_eval_mode_and_training_goes_on():
    states = []
    model, _ = lone()
    torch.manual_seed(0)
    watched = make_model()

    def look(step):
        watched(X)  # would move batch norm's averages, were it in training mode
        states.append((step, watched.training, torch.is_grad_enabled()))

    torch.manual_seed(0)
    fit(watched, ELBO(), X, seed=0, report_every=20, on_report=look, **RUN)
    assert states == [(20, False, False), (40, False, False)]
    assert_same_weights(model, watched)


class Stacked(ELBO):
    """An objective with a parameter and a buffer of its own, as later parts have."""

    def __init__(self):
        super().__init__()
        self.log_gamma = torch.nn.Parameter(torch.zeros(()))
        self.register_buffer("average", torch.zeros(()))

    def forward(self, model, x, eps=None):
        terms = super().forward(model, x, eps)
        self.average.mul_(0.9).add_(0.1 * terms["reconstruction"].detach())
        gamma = self.log_gamma.exp()
        loss = terms["reconstruction"] / gamma + 13 * self.log_gamma + terms["kl"].sum()
        return {**terms, "loss": loss, "gamma": gamma}


@pytest.mark.parametrize("objective", [ELBO, Stacked])
@pytest.mark.parametrize("batch_norm", [True, False])
def test_fit_seeds_equals_the_lone_runs_on_the_same_draws(objective, batch_norm):
    def make():
        return VAE(*mlp(13, batch_norm=batch_norm), Gaussian(torch.ones(13), learn=True))

    seeds = [0, 7, 3]
    run = {"steps": 42, "batch_size": 16, "lr": 3e-3, "report_every": 6, "progress": False}
    runs = fit_seeds(make, objective(), X, seeds=seeds, **run)
    assert runs.history["kl"].shape == (3, 7, 2)
    assert runs.history.steps.tolist() == list(range(6, 43, 6))
    for i, seed in enumerate(seeds):
        torch.manual_seed(seed)
        model, own = make(), objective()
        history = fit(model, own, X, seed=seed, **run)
        for mine, theirs in ((model, runs.models[i]), (own, runs.objectives[i])):
            for name, value in mine.state_dict().items():
                other = theirs.state_dict()[name]
                torch.testing.assert_close(value, other, rtol=0, atol=1e-5, msg=name)
        for name in history.terms:
            np.testing.assert_allclose(history[name], runs.history[name][i], rtol=1e-5, atol=1e-5)
        assert not runs.models[i].training
    assert not np.allclose(runs.history["loss"][0], runs.history["loss"][1])


def test_each_seed_may_have_an_objective_of_its_own():
    """Such as the values of β along a path, from one and the same start."""
    betas = [0.1, 1.0, 4.0]
    runs = fit_seeds(make_model, [ELBO(b) for b in betas], X, seeds=[5, 5, 5], **RUN)
    for beta, model, objective in zip(betas, runs.models, runs.objectives, strict=True):
        assert objective.beta.item() == pytest.approx(beta)
        torch.manual_seed(5)
        alone = make_model()
        fit(alone, ELBO(beta), X, seed=5, **RUN)
        for name, value in alone.state_dict().items():
            torch.testing.assert_close(value, model.state_dict()[name], rtol=0, atol=1e-5, msg=name)
    assert runs.history["loss"][0, -1] < runs.history["loss"][2, -1]


def conv_elbo():
    return VAE(*conv(16, n_latents=3), Bernoulli())


def conv_narrowing():
    return VAE(*conv(16, n_latents=3))


def mlp_narrowing():
    return VAE(*mlp(256, hidden=(16,), n_latents=3, activation="silu", batch_norm=False))


@pytest.mark.parametrize(
    ("make", "objectives"),
    [
        (conv_elbo, [ELBO(), ELBO(0.5), ELBO(4.0)]),
        (conv_narrowing, [Narrowing(20.0), Narrowing(10.0, 2.0, 128 / 10), Narrowing(30.0, 0.5)]),
        (mlp_narrowing, [Narrowing(20.0), Narrowing(10.0, 2.0, 128 / 10), Narrowing(30.0, 0.5)]),
    ],
    ids=["convolutions", "convolutions narrowed", "table narrowed"],
)
def test_convolutions_and_narrowing_over_seeds_tau_and_push_equal_their_lone_runs(make, objectives):
    x = data.sprites(64, size=16).x
    x = x.flatten(1) if make is mlp_narrowing else x
    run = {"steps": 30, "batch_size": 16, "lr": 1e-3, "report_every": 10, "progress": False}
    seeds = [4, 4, 9]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # so short a run meets no τ
        runs = fit_seeds(make, objectives, x, seeds=seeds, **run)
        for i, (seed, objective) in enumerate(zip(seeds, objectives, strict=True)):
            torch.manual_seed(seed)
            model = make()
            history = fit(model, objective, x, seed=seed, **run)
            for mine, theirs in ((model, runs.models[i]), (objective, runs.objectives[i])):
                for name, value in mine.state_dict().items():
                    other = theirs.state_dict()[name]
                    torch.testing.assert_close(value, other, rtol=1e-4, atol=1e-4, msg=name)
            for name in history.terms:
                np.testing.assert_allclose(
                    history[name], runs.history[name][i], rtol=1e-4, atol=1e-4
                )
    assert not np.allclose(runs.history["loss"][0], runs.history["loss"][1])


def test_black_and_white_images_may_stay_bytes():
    """What is resident is a quarter of the floats; what is learned is the same."""
    floats = data.sprites(64, size=16).x
    models = []
    for x in (floats, floats.to(torch.uint8)):
        torch.manual_seed(0)
        models.append(conv_elbo())
        fit(models[-1], ELBO(), x, **RUN)
    assert_same_weights(*models)
    with pytest.raises(ValueError, match=r"x\[0, 0, 0, 0\] is 255"):
        fit(conv_elbo(), ELBO(), torch.full((64, 1, 16, 16), 255, dtype=torch.uint8), **RUN)


@pytest.mark.parametrize(
    ("objectives", "message"),
    [
        ([ELBO(), ELBO()], "2 objectives for 3 seeds"),
        ([ELBO(), ELBO(), ComputedGamma()], "objectives 0 and 2 are of different kinds"),
        ([ComputedGamma(0.9), ComputedGamma(0.5), ComputedGamma(0.9)], "objectives 0 and 1 .*0.5"),
        ([ELBO(1, Warmup(steps=3)), ELBO(1, Capacity(3, steps=3)), ELBO()], "different kinds"),
        ([InfoVAE(0, 1), InfoVAE(0, 2), InfoVAE(0, 1, unbiased=False)], "objectives 0 and 2"),
    ],
)
def test_objectives_that_one_forward_cannot_serve_are_refused(objectives, message):
    with pytest.raises(ValueError, match=message):
        fit_seeds(make_model, objectives, X, seeds=range(3), **RUN)


def test_a_report_does_not_move_an_objective_on():
    """Looking at the loss from on_report leaves moving averages and schedules where they are."""

    def run(look):
        torch.manual_seed(0)
        model, objective = VAE(*mlp(13)), OptimalSigma()
        report = (lambda step: objective(model, X)) if look else None
        with torch.random.fork_rng():
            fit(model, objective, X, on_report=report, report_every=5, **RUN)
        assert not objective.training
        return model

    assert_same_weights(run(look=True), run(look=False))


def test_an_objective_is_told_the_length_of_each_run():
    objective = ELBO(1.0, Warmup(fraction=0.5))
    model = make_model()
    for steps in (40, 6):
        fit(model, objective, X, **{**RUN, "steps": steps})
        assert objective.schedule.length.item() == steps // 2
        assert objective.schedule.step.item() == steps


def test_fit_seeds_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    fit_seeds(make_model, ELBO(), X, seeds=range(2), **RUN)
    assert torch.equal(torch.rand(3), expected)


def test_fit_seeds_resumes_too(tmp_path):
    whole = fit_seeds(make_model, ELBO(), X, seeds=range(3), **RUN)
    for steps in (17, 40):  # a shorter run first, taken up in mid-epoch
        parts = fit_seeds(
            make_model,
            *(ELBO(), X),
            **{**RUN, "steps": steps, "report_every": 1},
            seeds=range(3),
            checkpoint=tmp_path / "seeds.safetensors",
        )
    for a, b in zip(whole.models, parts.models, strict=True):
        assert_same_weights(a, b)
    np.testing.assert_array_equal(whole.history["kl"], parts.history["kl"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"batch_size": 179}, "batch_size is 179.*178 samples"),
        ({"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_bad_arguments_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        lone(**changes)


def test_bad_data_is_refused_at_the_door():
    holes = X.clone()
    holes[3, 4] = torch.nan
    with pytest.raises(ValueError, match=r"x\[3, 4\] is nan"):
        lone(x=holes)
    with pytest.raises(ValueError, match="use Gaussian for real-valued data"):
        fit(VAE(*mlp(13), Bernoulli()), ELBO(), X, **RUN)
    with pytest.raises(ValueError, match=r"12 columns.*n_features=12"):
        lone(x=X[:, :12])
    with pytest.raises(ValueError, match="seeds is empty"):
        fit_seeds(make_model, ELBO(), X, seeds=[], **RUN)


def test_a_loss_that_leaves_the_numbers_is_named():
    with pytest.raises(FloatingPointError, match=r"loss is (inf|nan) at step \d+ for seed.*\[0\]"):
        lone(x=X * 1e25, make=lambda: VAE(*mlp(13, batch_norm=False)))


def test_a_step_reads_nothing_off_the_device():
    """No .item() and no branch on a tensor between two reports, where a GPU would have to wait."""
    reads = []

    class Watch(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            waits = (
                "item",
                "__bool__",
                "__float__",
                "__int__",
                "tolist",
                "cpu",
                "numpy",
                "nonzero",
            )
            if getattr(func, "__name__", "") in waits:
                reads.append(func.__name__)
            return func(*args, **(kwargs or {}))

    def count(steps):
        reads.clear()
        with Watch():
            lone(steps=steps, report_every=200)
        return len(reads)

    once = count(10)
    assert once > 0  # the watch sees the report and the check at the door
    assert count(60) == once


@pytest.fixture
def sigint():
    """Python's own reaction to an interrupt, which a shell takes from jobs in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupt_at(step, **kwargs):
    """Runs to `step`, where an interrupt arrives in the middle of the step."""
    done = []

    def interrupt(*_):
        done.append(1)
        if len(done) == step:
            os.kill(os.getpid(), signal.SIGINT)

    torch.manual_seed(0)
    model = make_model()
    model.register_forward_hook(interrupt)
    return model, fit(model, ELBO(), X, seed=0, **{**RUN, **kwargs})


def test_an_interrupt_keeps_what_was_learned(tmp_path, capsys, sigint):
    before = signal.getsignal(signal.SIGINT)
    model, history = interrupt_at(23, checkpoint=tmp_path / "run.safetensors", report_every=10)
    assert history.interrupted
    assert history.steps.tolist() == [10, 20]
    assert "stopped at step 23 of 40" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGINT) is before
    assert not model.training
    assert_same_weights(model, lone(steps=23)[0])  # no step was left half done
    assert checkpoints.load(tmp_path / "run.safetensors")[1]["step"] == 23

    resumed, whole = lone(checkpoint=tmp_path / "run.safetensors", report_every=10)
    expected, history = lone(report_every=10)
    assert_same_weights(resumed, expected)
    assert whole.steps.tolist() == [10, 20, 30, 40]
    for name in history.terms:
        np.testing.assert_array_equal(whole[name], history[name])


def test_a_second_interrupt_acts_at_once(sigint):
    class Twice(ELBO):
        def forward(self, model, x, eps=None):
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            return super().forward(model, x, eps)

    with pytest.raises(KeyboardInterrupt):
        fit(make_model(), Twice(), X, **RUN)


def test_an_interrupt_that_is_ignored_stays_so(sigint):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    assert not interrupt_at(23)[1].interrupted


def test_fit_runs_outside_the_main_thread():
    results = []
    thread = threading.Thread(target=lambda: results.append(lone()[1].interrupted))
    thread.start()
    thread.join()
    assert results == [False]


def test_a_finished_run_is_not_run_again_and_a_longer_one_goes_on(tmp_path):
    path = tmp_path / "run.safetensors"
    finished, _ = lone(checkpoint=path, report_every=10)
    loaded, history = lone(checkpoint=path, report_every=10)
    assert_same_weights(finished, loaded)
    assert history.steps.tolist() == [10, 20, 30, 40]
    longer, _ = lone(checkpoint=path, report_every=10, steps=80)
    assert_same_weights(longer, lone(steps=80)[0])


def test_a_run_resumes_exactly_where_the_order_is_drawn_anew(tmp_path):
    """13 epochs of 5 batches are drawn at a time: the step after the 65th needs new draws."""
    path = tmp_path / "run.safetensors"
    lone(checkpoint=path, report_every=5, steps=65)
    resumed, _ = lone(checkpoint=path, report_every=5, steps=130)
    assert_same_weights(resumed, lone(steps=130)[0])


def test_another_run_s_checkpoint_is_refused(tmp_path):
    path = tmp_path / "run.safetensors"
    lone(checkpoint=path)
    for change in ({"lr": 1e-2}, {"batch_size": 16}, {"x": X + 1}):
        with pytest.raises(ValueError, match=r"another run.*delete it"):
            lone(checkpoint=path, **change)
    with pytest.raises(ValueError, match=r"model.likelihood.learn: True in the file, False here"):
        lone(checkpoint=path, make=lambda: VAE(*mlp(13)))


KILLED = """
import sys, torch, vaelib
from vaelib.networks import conv, mlp
from vaelib.objectives import ELBO, ComputedGamma, InfoVAE, Narrowing, OptimalSigma
from vaelib.schedules import Capacity, Warmup

torch.set_num_threads(1)
torch.manual_seed(0)
vaelib.loop.SAVED_EVERY = 0.0  # at each report, so that the second kill finds a later one
model = vaelib.VAE(*mlp(13))
vaelib.fit(
    model,
    ELBO(),
    vaelib.data.wine().x,
    steps=2000,
    batch_size=32,
    report_every=20,
    on_report=lambda step: print(step, flush=True),
    checkpoint=sys.argv[1],
)
"""


def test_a_killed_run_resumes_bit_for_bit(tmp_path):
    def start(path):
        return subprocess.Popen(
            [sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE, text=True
        )

    killed = tmp_path / "killed.safetensors"
    for _ in range(2):  # twice, each time a little further on
        process = start(killed)
        first = int(process.stdout.readline())
        while int(process.stdout.readline()) < first + 300:
            pass
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    process = start(killed)
    resumed_at = int(process.stdout.readline())
    assert 600 < resumed_at < 2000
    process.communicate()
    assert process.returncode == 0

    whole = tmp_path / "whole.safetensors"
    start(whole).communicate()
    assert whole.read_bytes() == killed.read_bytes()


def test_a_fast_run_is_not_held_up_by_its_checkpoints(tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(
        checkpoints, "save", lambda path, tree, header: saved.append(header["step"])
    )
    lone(checkpoint=tmp_path / "run.safetensors", report_every=10)
    assert saved == [10, 40]  # the first report, and the end
    saved.clear()
    monkeypatch.setattr(vaelib.loop, "SAVED_EVERY", 0.0)
    lone(checkpoint=tmp_path / "run.safetensors", report_every=10)
    assert saved == [10, 20, 30, 40]


def test_progress_shows_on_a_long_run_only(capsys):
    class Slow(ELBO):
        def forward(self, model, x, eps=None):
            time.sleep(0.03)
            return super().forward(model, x, eps)

    lone(progress=True)
    assert "%|" not in capsys.readouterr().err
    fit(make_model(), Slow(), X, steps=100, batch_size=32)
    assert "loss=" in capsys.readouterr().err
    fit(make_model(), Slow(), X, steps=100, batch_size=32, progress=False)
    assert capsys.readouterr().err == ""


def test_public_names():
    for name in vaelib.__all__:
        assert getattr(vaelib, name) is not None


def test_a_model_that_is_handed_out_twice_is_refused():
    model = make_model()
    with pytest.raises(ValueError, match="gave models 0 and 1 the same weights"):
        fit_seeds(lambda: model, ELBO(), X, seeds=[0, 1], **RUN)
    with pytest.raises(ValueError, match="the same weights"):
        fit_seeds(lambda: VAE(model.encoder, mlp(13)[1]), ELBO(), X, seeds=[0, 1], **RUN)
    with pytest.raises(TypeError, match="make_model is a VAE; pass a function"):
        fit_seeds(model, ELBO(), X, **RUN)
    with pytest.raises(TypeError, match="is the class ELBO"):
        fit_seeds(make_model, ELBO, X, **RUN)


class Lstm(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(13, 4, batch_first=True)

    def forward(self, x):
        return self.lstm(x[:, None])[0][:, 0]


@pytest.mark.parametrize("body", [lambda: nn.Sequential(nn.Linear(13, 4), nn.Dropout(0.2)), Lstm])
def test_networks_that_cannot_be_stacked_are_refused_in_words(body):
    def own():
        return VAE(Encoder(body(), (13,), 4, 2), Decoder(nn.Identity(), 2, nn.Linear(2, 13)))

    with pytest.raises(
        ValueError, match=r"cannot be stacked: dropout .* one after another, by fit"
    ):
        fit_seeds(own, ELBO(), X, seeds=[0, 1], **RUN)
    assert np.isfinite(fit(own(), ELBO(), X, **RUN)["loss"]).all()


def test_an_objective_may_take_other_data_than_its_model():
    """Numbers of rows, say, that it looks up: each seed on rows of its own."""

    class Looks(ELBO):
        def __init__(self, rows):
            super().__init__()
            self.register_buffer("rows", rows)

        def admit(self, model, x, **how):
            return x

        def forward(self, model, x, eps=None):
            return super().forward(model, self.rows[x[:, 0].long()], eps)

    numbers = torch.arange(89.0)[:, None]
    halves = [X[::2], X[1::2]]
    runs = fit_seeds(make_model, [Looks(half) for half in halves], numbers, seeds=[0, 0], **RUN)
    for i, half in enumerate(halves):
        lone_run = lone(x=half)[1]
        np.testing.assert_allclose(runs.history["loss"][i], lone_run["loss"], rtol=1e-4)
