"""How good a model and its latent space are. Every function measures in eval mode."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Normal

from vaelib.divergences import gaussian_kl
from vaelib.objective import Objective
from vaelib.vae import VAE

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


def active_units(model: VAE, x: Tensor, threshold: float = 0.01) -> Tensor:
    """Which latents carry information: Var_x(E[z_j|x]) > threshold (Burda et al. 2016, sec. 5.2).

    Args:
        model: a VAE with d latents.
        x: data, (N, …).
        threshold: in squared units of z, whose prior has variance 1.

    Returns:
        bool (d,); its sum is the number of active units.
    """
    with _evaluating(model):
        return model.encode(x).mu.var(0) > threshold


def iwae_bound(
    model: VAE,
    x: Tensor,
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
    if n_samples < 1:
        raise ValueError(f"n_samples must be at least 1, got {n_samples}")
    if eps is not None and eps.shape != (n_samples, len(x), model.n_latents):
        raise ValueError(
            f"eps has shape {tuple(eps.shape)}, "
            f"needed is (n_samples, N, d) = {(n_samples, len(x), model.n_latents)}"
        )
    with _evaluating(model):
        model.likelihood.check(x)
        q = model.encode(x)
        log_weights = []
        for k in range(n_samples):  # one at a time: K·N samples at once may not fit
            noise = model.noise(len(x), generator) if eps is None else eps[k]
            z = model.reparameterize(q, noise)
            log_prior = Normal(0.0, 1.0, validate_args=False).log_prob(z).sum(-1)
            log_posterior = q.log_prob(z).sum(-1)
            log_weights.append(model.decode(z).log_prob(x) + log_prior - log_posterior)
        return torch.stack(log_weights).logsumexp(0) - math.log(n_samples)


def beta_eff(model: VAE, objective: Objective, x: Tensor) -> float:
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
    kl = gaussian_kl(torch.zeros_like(log_variances[0]), log_variances[0]).sum(1).mean()
    weights = []
    for term, at in ((half_sse, decoded[0]), (kl, log_variances[0])):
        of_term = torch.autograd.grad(term, at)[0]
        of_loss = torch.autograd.grad(loss, at, retain_graph=True)[0]
        weights.append((of_loss * of_term).sum() / of_term.square().sum())
    return (weights[1] / weights[0]).item()


def _to_numpy(values: Tensor) -> np.ndarray:
    """From any device; scikit-learn computes on the CPU."""
    return torch.as_tensor(values).detach().cpu().numpy()


def knn_accuracy(z: Tensor, y: Tensor, k: int = 5) -> float:
    """Share of samples whose class the majority of their k nearest neighbours tells right.

    Leave-one-out: a sample is not its own neighbour. Ties go to the lowest class.

    Args:
        z: (N, d), an embedding, or any table.
        y: (N,), classes 0, 1, ….
        k: number of neighbours, at most N - 1.
    """
    from sklearn.neighbors import NearestNeighbors

    labels = _to_numpy(y)
    neighbours = NearestNeighbors(n_neighbors=k).fit(_to_numpy(z)).kneighbors()[1]
    votes = np.apply_along_axis(np.bincount, 1, labels[neighbours], minlength=labels.max() + 1)
    return float((votes.argmax(1) == labels).mean())


def trustworthiness(x: Tensor, z: Tensor, k: int = 5) -> float:
    """How far neighbours in the embedding are neighbours in the data (Venna & Kaski 2001).

    Args:
        x: data (N, D).
        z: its embedding (N, d).
        k: size of the neighbourhoods, below N / 2.

    Returns:
        1 where every k nearest neighbours in z are among the k nearest in x, less otherwise.
    """
    from sklearn import manifold

    return float(manifold.trustworthiness(_to_numpy(x), _to_numpy(z), n_neighbors=k))
