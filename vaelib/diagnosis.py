"""What ails a trained model: the numbers to look at after a run, and the chapter for each cause."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vaelib.divergences import gaussian_kl
from vaelib.door import as_tensor
from vaelib.likelihoods import Likelihood, Mixed
from vaelib.metrics import active_units, iwae_bound
from vaelib.vae import VAE
from vaelib.verdicts import Diagnosis, Row, judge

DRAWS = 8  # of z for each row, where an expectation over q(z|x) is needed
NEIGHBOUR = 5  # near a point: as near as codes are to their fifth neighbour…
FAR = 0.95  # …but for the 5 % of them that are furthest from theirs
HERE = "foundations/diagnose"
LIKELIHOODS = "foundations/likelihoods"


def diagnose(
    model: VAE,
    x: Any,
    held_out: Any = None,
    *,
    n_samples: int = 64,
    max_rows: int = 1000,
    batch_size: int = 250,
    seed: int = 0,
) -> Diagnosis:
    """The numbers to look at after each run, what they should be, and what to do where they aren't.

    The chapter *What is wrong with my VAE?* derives each of them and gives the reasons for the
    ranges. The model is judged as the ELBO's: where another balance was chosen on purpose, the row
    on the posteriors' β says what was chosen. Model and random state are left as they were.

    Args:
        model: a trained VAE, on any device.
        x: the rows it was trained on, (N, …), whatever the model takes.
        held_out: rows it has not seen, (M, …), prepared as x was.
        n_samples: K of the importance-weighted bound.
        max_rows: where there are more rows, as many drawn at random stand for them.
        batch_size: rows on the device at once.
        seed: of all draws: the same arguments give the same numbers.

    Raises:
        ValueError: the likelihood cannot score x, all rows of x are equal, or there are fewer
            than 20.
    """
    training = model.training
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(2**32 + seed)  # not the draws that made a reader's data with this seed
        x = model.admit(_subset(x, max_rows))
        if (x == x[0]).all():
            raise ValueError("all rows of x are equal, so there is nothing to be learned from them")
        if held_out is not None:
            held_out = model.admit(_subset(held_out, max_rows))
        model.eval()
        try:
            return Diagnosis(tuple(_rows(model, x, held_out, n_samples, batch_size)))
        finally:
            model.train(training)


def _subset(rows: Any, n: int) -> Tensor:
    rows = as_tensor(rows, bytes_stay=True)
    if len(rows) < 20:
        raise ValueError(f"got {len(rows)} rows; a diagnosis needs at least 20")
    if len(rows) <= n:
        return rows
    return rows[torch.randperm(len(rows))[:n].to(rows.device)]


@dataclass(frozen=True)
class _Pass:
    """What passes over all rows yield, on the CPU and in double precision."""

    mu: Tensor  # (N, d)
    logvar: Tensor  # (N, d)
    z: Tensor  # draws from each posterior, (N, DRAWS, d)
    at_z: Tensor  # -log p(x|z), the mean over draws, (N,)
    at_mu: Tensor  # -log p(x|mu), (N,)
    error_at_mu: Tensor  # squared error of each column, (N, D)
    error: Tensor  # at z, the mean over draws, (N, D)
    assumed: Tensor  # the same for rows drawn from p(x|z) in place of x, (N, D)

    @property
    def kl(self) -> Tensor:
        """Of each row and latent, (N, d)."""
        return gaussian_kl(self.mu, self.logvar)

    @property
    def elbo(self) -> Tensor:
        """Of each row, (N,)."""
        return -self.at_z - self.kl.sum(1)


def _measure(model: VAE, x: Tensor, batch_size: int) -> _Pass:
    def squared(values: Tensor, mean: Tensor) -> Tensor:
        return (values - mean).square().flatten(1)

    batches = []
    for batch in x.split(batch_size):
        q = model.encode(batch)
        at_mu = model.decode(q.mu)
        draws = []
        for _ in range(DRAWS):
            z = model.reparameterize(q)
            p = model.decode(z)
            errors = squared(batch, p.mean), squared(p.sample(), p.mean)
            draws.append((z, -p.log_prob(batch), *errors))
        z, at_z, error, assumed = (torch.stack(each, 1) for each in zip(*draws, strict=True))
        of_mu = -at_mu.log_prob(batch), squared(batch, at_mu.mean)
        of_batch = (q.mu, q.logvar, z, at_z.mean(1), *of_mu, error.mean(1), assumed.mean(1))
        batches.append([each.cpu().double() for each in of_batch])
    return _Pass(*(torch.cat(each) for each in zip(*batches, strict=True)))


def _rows(
    model: VAE, x: Tensor, held_out: Tensor | None, n_samples: int, batch_size: int
) -> Iterator[Row]:
    finite = _finite(model, x, batch_size)
    yield finite
    if finite.cause:
        return  # beside values that are not finite no other number has a meaning
    seen = _measure(model, x, batch_size)
    flat = x.flatten(1).cpu().double()
    yield from _scale(flat[:, _numeric(model.likelihood, flat.shape[1])])
    active = int(active_units(model, x).sum())
    yield from _codes(seen, active)
    yield from _decoder(seen, flat, active)
    yield from _prior(seen.z[:, 0])
    bound = iwae_bound(model, x, n_samples).cpu().double()
    yield judge(
        f"IWAE bound, K = {n_samples}, less ELBO, nats",
        bound.mean() - seen.elbo.mean(),
        high=1,
        too_high=("bound, not model: q(z|x) is far from p(z|x)", "balance/showdown"),
    )
    yield _gap(seen, None if held_out is None else _measure(model, held_out, batch_size))


def _finite(model: VAE, x: Tensor, batch_size: int) -> Row:
    bad = sum(int((~each.isfinite()).sum()) for each in model.state_dict().values())
    for batch in x.split(batch_size):
        z = model.reparameterize(model.encode(batch))
        # Not by `decode`: some distributions refuse parameters that are not finite.
        bad += sum(int((~each.isfinite()).sum()) for each in (z, model.decoder(z * model.open)))
    cause = "NaN or overflow", "foundations/log_variance"
    return judge("values not finite", bad, 0, 0, too_high=cause)


def _numeric(likelihood: Likelihood, n_columns: int) -> Tensor:
    """Which columns are numbers with a unit, not bits, grey values or classes: bool (D,)."""
    if isinstance(likelihood, Mixed):
        parts = zip(likelihood.parts, likelihood.widths, strict=True)
        return torch.cat([_numeric(part, width) for part, width in parts])  # type: ignore[arg-type]
    return torch.full((n_columns,), math.isinf(likelihood.highest))


def _scale(columns: Tensor) -> Iterator[Row]:
    n_columns = columns.shape[1]
    variance = (columns - columns.mean(0)).square().mean(0)
    yield judge(
        "scale: typical standard deviation of a column",
        variance.mean().sqrt(),
        0.1,
        10,
        "" if n_columns else "bits and classes have no unit",
        too_low=("small beside what networks start from: standardise", HERE),
        too_high=("large beside what networks start from: standardise", HERE),
    )
    yield judge(
        "scale: largest column's share of the variance",
        variance.max() / variance.sum() if n_columns > 2 else math.nan,
        high=0.5,
        detail="" if n_columns > 2 else "fewer than three columns have a unit",
        too_high=("one column outweighs all others: standardise", HERE),
    )


def _codes(seen: _Pass, active: int) -> Iterator[Row]:
    per_latent = seen.kl.mean(0)
    kl, n, d = per_latent.sum(), *seen.mu.shape
    largest = ", ".join(f"{each:.2f}" for each in per_latent.sort(descending=True).values[:6])
    collapse = "collapse: the KL outweighs what a latent could explain", LIKELIHOODS
    detail = f"of {d}; KL {largest}" + (", …" if d > 6 else "")
    yield judge("active latents", active, 1, d, detail, too_low=collapse)
    information = _information(seen)
    mismatch = round(float(kl - information), 2) + 0.0  # + 0.0 makes -0.0 a plain zero
    detail = f"of KL {kl:.2f}; {mismatch:.2f} is mismatch of q(z) and p(z)"
    yield judge("information I(x;z), nats", information, 0.1, math.log(n), detail, collapse)
    # At the ELBO's optimum each posterior variance balances what it costs in reconstruction,
    # half of the left side's numerator, against β·½(1 - σ_q²), its slope in the KL.
    shrinkage = (1 - seen.logvar.exp()).mean(0).sum()
    yield judge(
        "β that the posteriors imply",
        2 * (seen.at_z - seen.at_mu).mean() / shrinkage if active else math.nan,
        0.5,
        2,
        "" if active else "no latent is active",
        too_low=("codes sharper than the ELBO's: β < 1, or too short a run", "balance/beta"),
        too_high=("codes blurrier than the ELBO's: β > 1, or a hidden mean", "balance/beta"),
    )


def _information(seen: _Pass) -> Tensor:
    """I_q(x;z) = E log q(z|x)/q(z), where q(z) mixes the posteriors of all rows, in nats."""
    precision = (-seen.logvar).exp()
    constant = (seen.mu.square() * precision + seen.logvar).sum(1)
    log_ratio = []
    for z in seen.z.unbind(1):
        log_own = -0.5 * ((z - seen.mu).square() * precision + seen.logvar).sum(1)
        log_each = z @ (seen.mu * precision).T - 0.5 * (z.square() @ precision.T + constant)
        log_ratio.append(log_own - log_each.logsumexp(1) + math.log(len(z)))
    return torch.stack(log_ratio).mean()


def _decoder(seen: _Pass, flat: Tensor, active: int) -> Iterator[Row]:
    n, n_columns = flat.shape
    centred = flat - flat.mean(0)
    # Of the two products with equal eigenvalues the smaller one.
    product = centred.T @ centred if n_columns < n else centred @ centred.T
    principal = torch.linalg.eigvalsh(product).flip(0)[:active].sum() / n
    total = centred.square().mean(0).sum()
    explained = 1 - seen.error_at_mu.mean(0).sum() / total
    detail = f"{active} principal components: {principal / total:.2f}"
    yield judge(
        "share of the variance explained at μ",
        explained if active else math.nan,
        0.8 * float(principal / total),
        math.inf,
        detail if active else "no latent is active",
        too_low=("blur, PCA shows more: σ too large, or too short a run", "balance/gamma"),
    )
    error, assumed = seen.error.mean(0), seen.assumed.mean(0)
    yield judge(
        "squared error over what the likelihood assumes",
        error.sum() / assumed.sum(),
        2 / 3,
        1.5,
        too_low=("more noise assumed than there is: σ too large, or grey for bits", LIKELIHOODS),
        too_high=("less noise assumed than there is: σ too small", LIKELIHOODS),
    )
    varies = (flat != flat[0]).any(0)
    ratio = (error / assumed)[varies]
    off = (ratio.log().abs() > math.log(3)).sum()
    worst = int(ratio.log().abs().argmax())
    column = int(varies.nonzero()[worst])
    yield judge(
        "columns whose error is off by a factor of 3",
        off,
        0,
        0,
        f"of {int(varies.sum())}; column {column} by {ratio[worst]:.2g}",
        too_high=("one noise does not fit all columns: a σ for each", "foundations/calibration"),
    )


def _prior(z: Tensor) -> Iterator[Row]:
    prior = torch.randn(z.shape, dtype=z.dtype)

    def to_neighbour(points: Tensor, others: Tensor, k: int) -> Tensor:
        return torch.cdist(points, others).topk(k, largest=False).values[:, -1]

    def far(points: Tensor, others: Tensor) -> Tensor:
        """Share of points further from others than 95 % of the others from one another."""
        radius = to_neighbour(others, others, NEIGHBOUR + 1).quantile(FAR)  # first comes itself
        return (to_neighbour(points, others, NEIGHBOUR) > radius).double().mean()

    yield judge(
        "holes: share of prior draws far from all codes",
        far(prior, z),
        high=0.15,
        too_high=("samples from the prior decode from where no code is", "balance/gamma"),
    )
    yield judge(
        "strays: share of codes far from all prior draws",
        far(z, prior),
        high=0.15,
        too_high=("codes lie where the prior seldom is", "balance/info_vae"),
    )


def _gap(seen: _Pass, unseen: _Pass | None) -> Row:
    name = "ELBO of rows seen less of rows held out, nats"
    if unseen is None:
        return judge(name, math.nan, detail="hand in held-out rows")
    errors = [each.elbo.std() / math.sqrt(len(each.elbo)) for each in (seen, unseen)]
    noise = 3 * math.hypot(*errors)
    cause = "overfitting: more rows, a smaller network, or a shorter run", HERE
    return judge(name, seen.elbo.mean() - unseen.elbo.mean(), high=max(1, noise), too_high=cause)
