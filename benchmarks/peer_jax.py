"""The plain VAE of the benchmarks in JAX: a whole run compiled, as its users would write it.

Same networks, Adam, likelihood and batch size; a new random batch and new noise in each step.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
import jax.numpy as jnp
import numpy as np

RATE, B1, B2, EPS = 1e-3, 0.9, 0.999, 1e-8


def layers(key: Any, widths: tuple[int, ...]) -> list[tuple[Any, Any]]:
    """Weights and biases from (in, out) of each layer, initialised as torch's are."""
    made = []
    for n_in, n_out in pairwise(widths):
        key, one, two = jax.random.split(key, 3)
        bound = n_in**-0.5
        weight = jax.random.uniform(one, (n_in, n_out), minval=-bound, maxval=bound)
        made.append((weight, jax.random.uniform(two, (n_out,), minval=-bound, maxval=bound)))
    return made


def through(network: list[tuple[Any, Any]], x: Any) -> Any:
    for weight, bias in network[:-1]:
        x = jax.nn.relu(x @ weight + bias)
    weight, bias = network[-1]
    return x @ weight + bias


def loss(networks: Any, x: Any, eps: Any) -> Any:
    """-ELBO with a Gaussian of σ = 1, its constant included."""
    encoder, decoder = networks
    mu, logvar = jnp.split(through(encoder, x), 2, axis=-1)
    z = mu + jnp.exp(0.5 * logvar) * eps
    x_hat = through(decoder, z)
    nll = 0.5 * ((x - x_hat) ** 2 + jnp.log(2 * jnp.pi)).sum(-1)
    kl = 0.5 * (jnp.exp(logvar) + mu**2 - 1 - logvar).sum(-1)
    return (nll + kl).mean()


def trainer(
    x: np.ndarray, widths: tuple[int, ...], batch_size: int, n: int
) -> Callable[[int], float]:
    """Trains n networks, (n_features, hidden…, n_latents) and back, for so many steps.

    Returns a function of the steps that gives the seconds of a run, its compilation included
    where that length is new.
    """
    rows = jnp.asarray(x, jnp.float32)
    down = (*widths[:-1], 2 * widths[-1])
    up = widths[::-1]

    def initial(key: Any) -> Any:
        one, two = jax.random.split(key)
        return layers(one, down), layers(two, up)

    def step(carry: Any, key: Any) -> Any:
        networks, first, second, t = carry
        one, two = jax.random.split(key)
        batch = rows[jax.random.randint(one, (batch_size,), 0, len(rows))]
        eps = jax.random.normal(two, (batch_size, widths[-1]))
        value, slope = jax.value_and_grad(loss)(networks, batch, eps)
        t = t + 1
        tree = jax.tree_util.tree_map
        first = tree(lambda m, g: B1 * m + (1 - B1) * g, first, slope)
        second = tree(lambda v, g: B2 * v + (1 - B2) * g * g, second, slope)
        networks = tree(
            lambda p, m, v: p - RATE * m / (1 - B1**t) / (jnp.sqrt(v / (1 - B2**t)) + EPS),
            networks,
            first,
            second,
        )
        return (networks, first, second, t), value

    def lone(key: Any, steps: int) -> Any:
        key, start = jax.random.split(key)
        networks = initial(start)
        zeros = jax.tree_util.tree_map(jnp.zeros_like, networks)
        carry = (networks, zeros, zeros, jnp.zeros(()))
        return jax.lax.scan(step, carry, jax.random.split(key, steps))[1]

    @partial(jax.jit, static_argnums=1)
    def all_of_them(keys: Any, steps: int) -> Any:
        return jax.vmap(lambda key: lone(key, steps))(keys)

    def run(steps: int) -> float:
        start = time.perf_counter()
        losses = all_of_them(jax.random.split(jax.random.PRNGKey(0), n), steps)
        losses.block_until_ready()
        if not bool(jnp.isfinite(losses[:, -1]).all()):
            raise FloatingPointError("a loss left the numbers")
        return time.perf_counter() - start

    return run
