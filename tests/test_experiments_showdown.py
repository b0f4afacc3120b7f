import copy
import json
import math
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import shared
import torch
from torch.distributions import Bernoulli, Categorical, Normal

from vaelib import objectives

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "book" / "experiments" / "showdown.py"
REHEARSAL = ["--tables", "mixed", "--budget", "0.01", "--jobs", "1"]  # 8 steps


@pytest.fixture(scope="module")
def chapter():
    return shared.chapter("balance/showdown")


@pytest.fixture
def part(chapter):
    """Mixed columns: 300 rows to train on, 100 held out."""
    rows = torch.arange(400)
    return chapter["split"](chapter["tables"]["mixed"], rows[:300], rows[300:])


def start(out, *more):
    return subprocess.Popen(
        [sys.executable, SCRIPT, "--out", out, *REHEARSAL, *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # Tests that run in the background ignore interrupts, and so would the script.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def finish(out, *more):
    process = start(out, *more)
    _, stderr = process.communicate(timeout=280)
    assert process.returncode == 0, stderr.decode()
    assert not out.with_suffix(".unfinished").exists()
    return json.loads(out.read_text("utf-8"))["results"]["mixed"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return finish(tmp_path_factory.mktemp("record") / "showdown.json", "--folds", "3")


def without_time(folds):
    return {fold: {k: v for k, v in own.items() if k != "seconds"} for fold, own in folds.items()}


def test_a_rehearsal_holds_every_contestant_with_the_same_budget(chapter, undisturbed):
    table = chapter["tables"]["mixed"]
    balances = [*chapter["with_knob"](table), *chapter["without_knob"](table)]
    assert len(balances) == 8  # two of the ten know of numbers only
    no_vae = ["PCA", "factor analysis", "mixture", "raw columns"]
    (fold,) = undisturbed.values()
    for part, n_seeds in {"inner": 1, "outer": 2}.items():
        assert [*fold[part]] == [*balances, *no_vae]
        for name in balances:
            values = np.array(fold[part][name], float)
            assert values.shape == (6, n_seeds, len(chapter["JUDGES"])), name
            assert np.isfinite(values).all(), name
        assert all(len(fold[part][name]) <= 6 for name in no_vae)
    assert [*fold["seconds"]] == balances
    assert fold["steps"] == 8


def test_a_killed_sweep_goes_on_to_the_same_record_and_keeps_what_it_has(undisturbed, tmp_path):
    out = tmp_path / "showdown.json"
    out.write_text(json.dumps({"results": {"mixed": {"0": {"steps": 8, "left": "as it is"}}}}))
    process = start(out, "--folds", "0", "3")
    networks = out.with_suffix(".unfinished") / "mixed 3" / "8 steps" / "outer"
    while not (networks / "InfoVAE 1.0.safetensors").exists():
        assert process.poll() is None, process.communicate()[1].decode()
        time.sleep(0.005)
    process.kill()
    process.communicate(timeout=60)
    assert "3" not in json.loads(out.read_text("utf-8"))["results"]["mixed"]
    folds = finish(out, "--folds", "0", "3")
    assert folds.pop("0") == {"steps": 8, "left": "as it is"}
    assert without_time(folds) == without_time(undisturbed)


def test_a_record_of_other_runs_is_not_mixed_with(tmp_path):
    out = tmp_path / "showdown.json"
    out.write_text(json.dumps({"results": {"mixed": {"0": {"steps": 600}}}}))
    process = start(out)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 2
    assert b"holds runs of 600 steps, not 8, in fold 0 of mixed; name another --out" in stderr


def test_every_row_is_held_out_once_and_scaled_by_the_others_alone(chapter):
    table = chapter["tables"]["wine"]
    pairs = chapter["folds"](len(table.x))
    assert torch.cat([held_out for _, held_out in pairs]).sort()[0].tolist() == [*range(178)]
    train, held_out = pairs[0]
    assert not set(train.tolist()) & set(held_out.tolist())
    x = table.x.clone()
    x[held_out] *= 100
    changed = chapter["split"](table._replace(x=x), train, held_out)
    own = chapter["split"](table, train, held_out)
    assert torch.equal(changed.x, own.x)
    assert torch.allclose(own.x.std(0, unbiased=False), torch.ones(13), atol=1e-5)


def test_bits_and_kinds_are_not_scaled_and_pixels_by_one_number(chapter, part):
    assert set(part.x[:, 6:].unique().tolist()) == {0.0, 1.0}
    assert torch.equal(part.unit[6:], torch.ones(7))
    _, scale = chapter["scaling"](chapter["tables"]["digits"], torch.arange(100))
    assert len(scale) == 64 and len(scale.unique()) == 1


def test_densities_of_all_folds_have_the_unit_of_the_whole_table(chapter):
    """One density of the wines, known to all folds: each has to find the same value."""
    table = chapter["tables"]["wine"]
    mean, scale = chapter["scaling"](table, slice(None))
    for train, held_out in chapter["folds"](len(table.x))[:3]:
        own_mean, own_scale = chapter["scaling"](table, train)
        part = chapter["split"](table, train, held_out)
        assert not torch.allclose(part.unit, torch.ones(13), atol=1e-3)
        # N(mean, scale²) of the raw columns, in this fold's own units.
        normal = Normal((mean - own_mean) / own_scale, scale / own_scale)
        found = chapter["log_density"](part, normal.log_prob(part.test).sum(1))
        rows = (table.x[held_out] - mean) / scale
        expected = Normal(0, 1).log_prob(rows).sum(1).mean().item()
        assert found == pytest.approx(expected, abs=1e-4)
        error = chapter["squared_error"](part, (mean - own_mean) / own_scale)
        assert error == pytest.approx(rows.square().mean().item(), rel=1e-4)


def trained(chapter, table, x, settings, folder, n_seeds=2):
    return chapter["train"](table, x, settings, n_seeds, folder / "own")


def test_a_stop_is_a_run_of_that_length(chapter, part, tmp_path):
    """Longer runs go on from shorter ones; bit for bit what a run in one piece gives."""
    table = chapter["tables"]["mixed"]._replace(steps=16)
    settings = chapter["without_knob"](table)["learned σ"]
    models = trained(chapter, table, part.x, settings, tmp_path / "stops")
    for i in (0, 3, 5):
        lone = trained(chapter, table, part.x, settings[i : i + 1], tmp_path / str(i))
        for a, b in zip(models[2 * i : 2 * i + 2], lone, strict=True):
            for key, value in a.state_dict().items():
                assert torch.equal(value, b.state_dict()[key]), (i, key)


def test_a_new_encoder_leaves_the_decoder_and_tightens_the_bound(chapter, part, tmp_path):
    table = chapter["tables"]["mixed"]._replace(steps=400)
    setting = chapter["Setting"](0.03, objectives.ELBO(0.03))
    models = trained(chapter, table, part.x, [setting], tmp_path)
    decoders = [copy.deepcopy(model.decoder.state_dict()) for model in models]
    for model in models:
        chapter["calibrate"](table, model, part.x)
    before = [chapter["bound"](model, part, 4)[1] for model in models]
    chapter["refit"](table, models, part.x, tmp_path / "refit.safetensors")
    for model, decoder, old in zip(models, decoders, before, strict=True):
        assert all(torch.equal(decoder[k], v) for k, v in model.decoder.state_dict().items())
        few, many = chapter["bound"](model, part, 4)
        assert few < many
        assert many > old + 0.2


def test_white_codes_have_the_prior_s_moments_and_the_same_reconstructions(chapter, part, tmp_path):
    table = chapter["tables"]["mixed"]._replace(steps=80)
    settings = chapter["without_knob"](table)["autoencoder"][-1:]
    (model,) = trained(chapter, table, part.x, settings, tmp_path, n_seeds=1)
    with torch.no_grad():
        before = model.decoder(model.encode(part.x).mu)
        chapter["whiten"](model, part.x)
        mu = model.encode(part.x).mu
        assert torch.allclose(model.decoder(mu), before, atol=1e-3)
    assert torch.allclose(mu.mean(0), torch.zeros(4), atol=1e-3)
    assert torch.allclose(torch.cov(mu.T), torch.eye(4), atol=1e-2)


def test_a_mixture_of_mixed_columns_is_the_sum_over_its_columns(chapter, part):
    table = chapter["tables"]["mixed"]
    found = chapter["products"](table, part.x, 3, rounds=5)
    x = part.test.double()
    expected = (
        found.weight.log()
        + Normal(found.mean, found.sigma).log_prob(x[:, None, :6]).sum(2)
        + Bernoulli(found.bits).log_prob(x[:, None, 6:9]).sum(2)
        + Categorical(found.kinds).log_prob(x[:, 9:].argmax(1)[:, None])
    )
    assert torch.allclose(chapter["log_joint"](found, x), expected)
    assert found.weight.sum().item() == pytest.approx(1, abs=1e-6)


def test_rounds_of_expectation_maximisation_raise_the_likelihood(chapter, part):
    """Up to the halves that are added to counts."""
    table, x = chapter["tables"]["mixed"], part.x.double()
    found = [chapter["products"](table, part.x, 5, rounds) for rounds in (1, 2, 5, 20)]
    likelihoods = [chapter["log_joint"](it, x).logsumexp(1).mean().item() for it in found]
    assert likelihoods == sorted(likelihoods)
    assert likelihoods[-1] > likelihoods[0] + 0.01


def test_kernels_sum_to_one_over_bits_and_kinds(chapter, part):
    """At a fixed place in the numbers, over all 2³ · 4 rows of the other columns."""
    kernels = chapter["kernels"](chapter["tables"]["mixed"], part.x[:5], 0.5)
    bits = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 3)
    others = [torch.cat([b, k]) for b in bits for k in torch.eye(4)]
    rows = torch.cat([torch.zeros(32, 6), torch.stack(others)], 1).double()
    total = chapter["log_joint"](kernels, rows).logsumexp((0, 1))
    numbers = Normal(kernels.mean, 0.5).log_prob(torch.zeros(6)).sum(1)
    assert total.item() == pytest.approx((numbers.logsumexp(0) - math.log(5)).item())
