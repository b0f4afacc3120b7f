"""Every objective with every likelihood that it takes, on tables and on images.

Without pytest, since `tools/gpu.py` runs them on a card too.
"""

import torch

from vaelib import VAE, fit
from vaelib.gates import Gates
from vaelib.likelihoods import Bernoulli, Categorical, Gaussian, LogCosh, Mixed, StudentT
from vaelib.networks import conv, mlp
from vaelib.objectives import (
    ELBO,
    ComputedGamma,
    InfoVAE,
    LearnedGamma,
    Narrowing,
    OptimalSigma,
    Robust,
)
from vaelib.schedules import Warmup

D = 64  # an image of 8 x 8, or a row of as many columns
# Bits suit every likelihood; the last four columns are the one-hot code of four classes.
X = (torch.rand(60, D, generator=torch.Generator().manual_seed(0)) < 0.4).float()
X[:, -4:] = torch.eye(4)[torch.arange(60) % 4]

ANY = {
    "ELBO": lambda: ELBO(0.5, Warmup(steps=5)),
    "InfoVAE": lambda: InfoVAE(alpha=0.5, lam=5.0),
    "Robust": lambda: Robust(0.02),
}
SETS_SIGMA = {
    "LearnedGamma": LearnedGamma,
    "ComputedGamma": lambda: ComputedGamma(0.9),
    "OptimalSigma": OptimalSigma,
    "Narrowing": lambda: Narrowing(8.0, highest=5, gates=Gates(3, bounds=(-1, 1), speed=50)),
}
LIKELIHOODS = {
    "Gaussian": Gaussian,
    "learned sigma": lambda: Gaussian(torch.full((D,), 0.5), learn=True),
    "Bernoulli": Bernoulli,
    "LogCosh": lambda: LogCosh(4.0),
    "StudentT": lambda: StudentT(0.5, learn=True),
    "Mixed": lambda: Mixed((Gaussian(), 50), (Bernoulli(), 10), (Categorical(), 4)),
}
NETWORKS = {
    "mlp": lambda: mlp(D, (8,), 3, batch_norm=False),
    "conv": lambda: conv(8, n_latents=3),
}
CASES = {
    f"{objective} {likelihood} {network}": (makes[objective], LIKELIHOODS[likelihood], network)
    for makes, likelihoods in ((ANY, LIKELIHOODS), (SETS_SIGMA, ["Gaussian"]))
    for objective in makes
    for likelihood in likelihoods
    for network in NETWORKS
    # A sigma or a kind for each column is for tables.
    if network == "mlp" or likelihood not in ("learned sigma", "Mixed")
}
RUN = {"steps": 12, "batch_size": 16, "lr": 3e-3, "report_every": 3, "progress": False}


class Case:
    def __init__(self, name, device="cpu"):
        self.objective, self.likelihood, self.network = CASES[name]
        self.device = device
        self.x = X.reshape(-1, 1, 8, 8) if self.network == "conv" else X

    def model(self):
        return VAE(*NETWORKS[self.network](), self.likelihood()).to(self.device)

    def double(self):
        """In double precision, where Adam does not turn rounding into steps."""
        return self.model().double()

    def fit(self, x=None, seed=0, make=None, **changes):
        torch.manual_seed(seed)
        model, objective = (make or self.model)(), self.objective()
        x = self.x if x is None else x
        history = fit(model, objective, x, seed=seed, **{**RUN, **changes})
        return model, objective, history
