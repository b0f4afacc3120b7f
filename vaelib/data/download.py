"""The original archive of dSprites, downloaded once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from vaelib.data.dataset import Dataset
from vaelib.data.images import from_images, subset

DSPRITES_URL = (
    "https://github.com/google-deepmind/dsprites-dataset/raw/master/"
    "dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz"
)
DSPRITES_SHA256 = "857dc001287e8efa226e0025fac6b29e5745c621b380b0d3363e4e33f4e28fa2"


def dsprites(n: int = 10_000, seed: int = 0, folder: str | Path | None = None) -> Dataset:
    """The same random subset as `sprites` chooses, from the original archive (Matthey et al. 2017).

    The first call downloads it, 26 MB; an interrupted download goes on where it stopped. Its
    SHA-256 is checked each time. Unpacked it takes 3 GB of memory until the subset is chosen.

    Args:
        n: number of images, 737,280 at most.
        seed: of the choice.
        folder: where the archive is kept; the user's cache folder unless given.

    Raises:
        ValueError: more images than there are, or an archive with another SHA-256.
        requests.RequestException: the download failed; call again to go on with it.
    """
    import pooch

    path = pooch.retrieve(
        DSPRITES_URL,
        known_hash=f"sha256:{DSPRITES_SHA256}",
        fname="dsprites.npz",
        path=folder or pooch.os_cache("vaelib"),
        downloader=_resume,
    )
    with np.load(path) as archive:  # its metadata is a pickle, which stays closed
        factors = torch.as_tensor(archive["latents_values"][:, 1:])  # all of one colour
        index = subset(n, len(factors), seed)
        shapes = torch.as_tensor(archive["latents_classes"][index, 1])
        images = torch.as_tensor(archive["imgs"][index])
    return from_images(images, shapes, factors[index])


def _resume(url: str, output_file: str, _: Any) -> None:
    """Downloads for pooch, which starts from scratch: goes on with what the last call left."""
    import requests
    from tqdm import tqdm

    part = Path(output_file).with_name("dsprites.npz.part")
    with part.open("ab") as file:
        # Only a file that comes as it is can be gone on with, so no compression on the way.
        headers = {"Range": f"bytes={file.tell()}-", "Accept-Encoding": "identity"}
        with requests.get(url, headers=headers, stream=True, timeout=30) as response:
            if response.status_code == requests.codes.ok:
                file.truncate(0)  # this server sends the whole, whatever was asked for
            # Where the part is whole already, the range asked for does not exist.
            if response.status_code != requests.codes.requested_range_not_satisfiable:
                response.raise_for_status()
                length = int(response.headers.get("Content-Length", 0)) or None
                with tqdm(total=length, unit="B", unit_scale=True, desc="dSprites") as bar:
                    for block in response.iter_content(2**16):
                        bar.update(file.write(block))
    part.replace(output_file)
