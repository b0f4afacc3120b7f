"""Likelihoods whose noise is no plain Gaussian's: its size depends on z, or its tails are heavy."""

from __future__ import annotations

import torch
from torch import Tensor, distributions, nn
from torch.distributions.utils import broadcast_all
from torch.nn import functional as F

from vaelib.likelihood import Likelihood, whole_sample


class VaryingSigma(Likelihood):
    """x ~ N(mean, σ²) where the decoder says both: σ differs by feature and with z.

    The decoder needs two outputs a feature, first all means. Replace its last layer:
    `decoder.output = nn.Linear(decoder.output.in_features, 2 * n_features)`.

    Args:
        floor: σ stays above this, in units of x. Without a floor the likelihood has no maximum: a
            σ that goes to 0 around one row makes it infinite (Mattei & Frellsen 2018).

    Raises:
        ValueError: floor is not positive; or, in `forward`, the number of outputs is odd.
    """

    def __init__(self, floor: float = 0.05) -> None:
        super().__init__()
        if not floor > 0:
            raise ValueError(f"floor must be positive, got {floor}; 0.05 suits standardised x")
        self.floor = floor

    def forward(self, decoded: Tensor) -> distributions.Independent:
        """Returns N(mean, σ²) for decoded (B, 2·D): the means, then what σ is made from."""
        if decoded.shape[-1] % 2:
            raise ValueError(
                f"the decoder has {decoded.shape[-1]} outputs, VaryingSigma needs two a feature: "
                "decoder.output = nn.Linear(decoder.output.in_features, 2 * n_features)"
            )
        mean, raw = decoded.chunk(2, -1)
        sigma = self.floor + F.softplus(raw)
        return whole_sample(distributions.Normal(mean, sigma, validate_args=False))


class StudentT(Likelihood):
    """x ~ decoded + σ·t, with t from Student's distribution: like a Gaussian, but for heavy tails.

    A residual far beyond σ costs about (df + 1) times the logarithm of its size, where a Gaussian
    charges half its square. So a few outliers hardly move σ. The variance is σ²·df / (df - 2).

    Args:
        sigma: scale, in units of x: a number for all features, or a tensor (D,), one for each.
        learn: train σ (through its logarithm) with the rest of the model.
        df: degrees of freedom; the fewer, the heavier the tails.

    Raises:
        ValueError: sigma is not positive, or df is not above 2, where there is no variance.
    """

    log_sigma: Tensor

    def __init__(self, sigma: float | Tensor = 1.0, learn: bool = False, df: float = 4.0) -> None:
        super().__init__()
        sigma = torch.as_tensor(sigma, dtype=torch.get_default_dtype()).clone()
        if not (sigma > 0).all():
            raise ValueError(f"sigma must be positive, got {sigma.tolist()}")
        if not df > 2:
            raise ValueError(f"df is {df}, but there is a variance only above 2; 4 is customary")
        self.df = df
        if learn:
            self.log_sigma = nn.Parameter(sigma.log())
        else:
            self.register_buffer("log_sigma", sigma.log())

    @property
    def sigma(self) -> Tensor:
        """The scale: a scalar, or (D,)."""
        return self.log_sigma.exp()

    def forward(self, decoded: Tensor) -> distributions.Independent:
        """Returns Student's t of scale σ around decoded (B, …)."""
        return whole_sample(_Unchecked(self.df, decoded, self.sigma))


class _Unchecked(distributions.StudentT):
    """torch's own, without the check of df within, which would wait for the device."""

    def __init__(self, df: float, loc: Tensor, scale: Tensor) -> None:
        self.df, self.loc, self.scale = broadcast_all(df, loc, scale)
        self._chi2 = distributions.Chi2(self.df, validate_args=False)
        distributions.Distribution.__init__(self, self.df.shape, validate_args=False)
