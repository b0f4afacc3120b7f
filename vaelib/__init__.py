"""vaelib: variational autoencoders, small and tested, for the book Practical VAEs.

`vaelib.plots` and `vaelib.widgets` are imported by name, since they bring matplotlib with them.
"""

from vaelib import data, divergences, gates, likelihoods, metrics, networks, objectives, schedules
from vaelib.diagnosis import diagnose
from vaelib.files import load, save
from vaelib.geco import Geco
from vaelib.history import History
from vaelib.training import Runs, fit, fit_seeds
from vaelib.vae import VAE

__all__ = [
    "VAE",
    "Geco",
    "History",
    "Runs",
    "data",
    "diagnose",
    "divergences",
    "fit",
    "fit_seeds",
    "gates",
    "likelihoods",
    "load",
    "metrics",
    "networks",
    "objectives",
    "save",
    "schedules",
]
