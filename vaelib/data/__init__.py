"""Data sets as tensors, with the way back to their own units; only `dsprites` downloads one."""

from vaelib.data.dataset import Dataset
from vaelib.data.download import DSPRITES_SHA256, DSPRITES_URL, dsprites
from vaelib.data.generated import manifold, mixed
from vaelib.data.images import patches, sprites
from vaelib.data.tables import breast_cancer, digits, wine

__all__ = [
    "DSPRITES_SHA256",
    "DSPRITES_URL",
    "Dataset",
    "breast_cancer",
    "digits",
    "dsprites",
    "manifold",
    "mixed",
    "patches",
    "sprites",
    "wine",
]
