"""How good a model and its latent space are.

Every function takes data as the model does, measures in eval mode, and looks at a few million
numbers at a time, so that large data need no more memory than their codes.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Normal

from vaelib.divergences import gaussian_kl
from vaelib.door import as_tensor, slices, whole
from vaelib.objective import Objective
from vaelib.vae import VAE, Posterior

# scikit-learn is imported where it is used: it would double the time of `import vaelib`.


@contextlib.contextmanager
def _evaluating(model: VAE) -> Iterator[None]:
    """Eval mode without gradients, then back to the mode before."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


def _encoded(model: VAE, x: Tensor) -> Posterior:
    """q(z|x) of all rows, encoded in batches."""
    parts = [model.encode(x[part]) for part in slices(x)]
    mu, logvar = (torch.cat([getattr(q, name) for q in parts]) for name in ("mu", "logvar"))
    return Posterior(mu, logvar)


def active_units(model: VAE, x: Any, threshold: float = 0.01) -> Tensor:
    """Which latents carry information: Var_x(E[z_j|x]) > threshold (Burda et al. 2016, sec. 5.2).

    Args:
        model: a VAE with d latents.
        x: data, (N, …).
        threshold: in squared units of z, whose prior has variance 1.

    Returns:
        bool (d,); its sum is the number of active units.
    """
    with _evaluating(model):
        mu = _encoded(model, model.admit(x)).mu
        if len(mu) < 2 or not mu.isfinite().all():
            raise ValueError(
                f"the codes of {len(mu)} rows have no variance"
                if len(mu) < 2
                else "the model's codes are not finite: it diverged in training; lower lr"
            )
        return mu.var(0) > threshold


def iwae_bound(
    model: VAE,
    x: Any,
    n_samples: int = 64,
    eps: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """A lower bound on log p(x) that tightens with K = n_samples (Burda et al. 2016, eq. 8).

    log 1/K Σ_k p(x|z_k)·p(z_k)/q(z_k|x), z_k ~ q(z|x). For K = 1 it is the ELBO, in expectation.

    Args:
        model: a VAE with d latents.
        x: data, (N, …).
        n_samples: K.
        eps: standard normal noise (K, N, d); drawn where not given.
        generator: to draw it with.

    Returns:
        (N,), nats per sample.

    Raises:
        ValueError: n_samples is below 1, or eps has another shape.
    """
    n_samples, x = whole("n_samples", n_samples), model.admit(x)
    if eps is not None and eps.shape != (n_samples, len(x), model.n_latents):
        raise ValueError(
            f"eps has shape {tuple(eps.shape)}, "
            f"needed is (n_samples, N, d) = {(n_samples, len(x), model.n_latents)}"
        )
    prior = Normal(0.0, 1.0, validate_args=False)
    with _evaluating(model):
        q = _encoded(model, x)
        log_weights = []
        for k in range(n_samples):  # one at a time: K·N samples at once may not fit
            z = model.reparameterize(q, model.noise(len(x), generator) if eps is None else eps[k])
            log_prob = torch.cat([model.decode(z[p]).log_prob(x[p]) for p in slices(x)])
            log_weights.append(log_prob + (prior.log_prob(z) - q.log_prob(z)).sum(-1))
        return torch.stack(log_weights).logsumexp(0) - math.log(n_samples)


def beta_eff(model: VAE, objective: Objective, x: Any) -> float:
    """The decoder variance an objective assumes: β_eff of ½·SSE + β_eff·KL, read from gradients.

    The loss's gradient at the decoder's output, held against that of ½·SSE, tells the weight of
    the one; the gradient at the posterior's log-variance, against that of the KL, the other's.
    Both are least-squares fits over the batch, so where the reconstruction is no squared error
    the answer is that of the squared error nearest to it, at this model's residuals.

    Args:
        model: a VAE, with d latents. It and the objective are left as they were.
        objective: any of `vaelib.objectives`.
        x: data (N, …).

    Returns:
        In squared units of x. 0 where the objective has no KL.
    """
    if not isinstance(objective, Objective):
        raise TypeError(f"the objective is {objective!r}; pass an instance, such as ELBO()")
    x = model.admit(x)
    parts = [_fits(model, objective, x[part]) for part in slices(x)]
    (reconstruction, of_sse), (regulariser, of_kl) = torch.stack(parts).sum(0).tolist()
    return (regulariser / of_kl) / (reconstruction / of_sse)


@torch.enable_grad()
def _fits(model: VAE, objective: Objective, x: Tensor) -> Tensor:
    """Products of gradients over a batch, (2, 2): the loss's with a term's, and that with itself.

    First for ½·SSE at the decoder's output, then for the KL at the posterior's log-variance.
    """
    decoded: list[Tensor] = []
    log_variances: list[Tensor] = []

    def leaf(tensor: Tensor, seen: list[Tensor]) -> Tensor:
        seen.append(tensor.detach().requires_grad_())
        return seen[-1]

    def cut_encoder(_: object, __: object, output: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return output[0], leaf(output[1], log_variances)

    hooks = [
        model.decoder.register_forward_hook(lambda _, __, output: leaf(output, decoded)),
        model.encoder.register_forward_hook(cut_encoder),
    ]
    modes = model.training, objective.training
    try:
        model.eval()
        objective.eval()
        # Without eps the log-variance is felt by the KL alone, and not by way of z.
        eps, *others = objective.noise(model, len(x))
        loss = objective(model, x, torch.zeros_like(eps), *others)["loss"]
    finally:
        for hook in hooks:
            hook.remove()
        model.train(modes[0])
        objective.train(modes[1])
    mean = model.likelihood(decoded[0]).mean
    half_sse = 0.5 * (x - mean).square().flatten(1).sum(1).mean()
    logvar = log_variances[0] * model.open  # a closed latent's KL is 0, whatever the encoder says
    kl = gaussian_kl(torch.zeros_like(logvar), logvar).sum(1).mean()
    products = []
    for term, at in ((half_sse, decoded[0]), (kl, log_variances[0])):
        of_term = torch.autograd.grad(term, at)[0]
        of_loss = torch.autograd.grad(loss, at, retain_graph=True, materialize_grads=True)[0]
        products.append(torch.stack([(of_loss * of_term).sum(), of_term.square().sum()]))
    # Each is a mean over the batch, so their products are len(x)² times too small.
    return torch.stack(products).double() * len(x) ** 2


def _table(values: Any, name: str) -> np.ndarray:
    """(N, D) in numpy, for scikit-learn, which computes on the CPU."""
    tensor = as_tensor(values, name=name).detach().flatten(1)
    if not tensor.isfinite().all():
        row, column = (~tensor.isfinite()).nonzero()[0].tolist()
        raise ValueError(
            f"{name}[{row}, {column}] is {tensor[row, column].item()}; "
            "drop or impute such values first"
        )
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32)).cpu().numpy()


def _neighbours(z: np.ndarray, k: int, most: int) -> np.ndarray:
    """The k nearest of each row, without itself: (N, k)."""
    from sklearn.neighbors import NearestNeighbors

    if not 1 <= k <= most:
        raise ValueError(f"k is {k}; with {len(z)} rows it must lie between 1 and {most}")
    return NearestNeighbors(n_neighbors=k).fit(z).kneighbors(return_distance=False)


def knn_accuracy(z: Any, y: Any, k: int = 5) -> float:
    """Share of samples whose class the majority of their k nearest neighbours tells right.

    Leave-one-out: a sample is not its own neighbour. Ties go to the lowest class.

    Args:
        z: (N, d), an embedding, or any table.
        y: (N,), the classes: numbers or names.
        k: number of neighbours, at most N - 1.

    Raises:
        TypeError, ValueError: z is no table of finite numbers, y has another length, or k does
            not fit.
    """
    z = _table(z, "z")
    classes = y.cpu().numpy() if isinstance(y, Tensor) else np.asarray(y)
    if classes.shape != z.shape[:1]:
        raise ValueError(f"y has shape {classes.shape}; pass a class for each of {len(z)} rows")
    names, labels = np.unique(classes, return_inverse=True)
    neighbours = _neighbours(z, whole("k", k), len(z) - 1)
    votes = np.apply_along_axis(np.bincount, 1, labels[neighbours], minlength=len(names))
    return float((votes.argmax(1) == labels).mean())


def trustworthiness(x: Any, z: Any, k: int = 5) -> float:
    """How far neighbours in the embedding are neighbours in the data (Venna & Kaski 2001).

    As scikit-learn's, but without a matrix of all pairs, which for 10,000 rows takes gigabytes.

    Args:
        x: data (N, …).
        z: its embedding (N, d).
        k: size of the neighbourhoods, below N / 2.

    Returns:
        1 where every k nearest neighbours in z are among the k nearest in x, less otherwise.

    Raises:
        TypeError, ValueError: x or z are no tables of finite numbers, differ in length, or k does
            not fit.
    """
    from sklearn.metrics import pairwise_distances_chunked

    x, z = _table(x, "x"), _table(z, "z")
    n, k = len(x), whole("k", k)
    if len(z) != n:
        raise ValueError(f"x has {n} rows, z {len(z)}; pass a code for each sample")
    neighbours = _neighbours(z, k, (n - 1) // 2)

    def intruders(distances: np.ndarray, start: int) -> np.ndarray:
        """By how much the ranks in x of each row's neighbours in z exceed k, in sum."""
        rows = np.arange(len(distances))[:, None]
        distances[rows, start + rows] = np.inf
        ranks = np.empty(distances.shape, int)
        ranks[rows, distances.argsort(1)] = np.arange(1, n + 1)
        return (ranks[rows, neighbours[start : start + len(rows)]] - k).clip(min=0).sum(1)

    parts = pairwise_distances_chunked(x, reduce_func=intruders, working_memory=64)
    return float(1 - np.concatenate([*parts]).sum() * 2 / (n * k * (2 * n - 3 * k - 1)))
