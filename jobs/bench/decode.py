"""`bench decode`: fetch + decode + resize, pictures a CPU-second, beside `ray.data.read_images` + torchvision's resize.

  manet render --products 250 --size 1600 --out shop
  manet bench decode --catalog shop/catalog --model run/model

CPU-seconds are those of the process and all below it, so that threads and helper processes count, waiting does not. Both ways are
warm: the loader's processes stand before its time is taken, Ray's workers since its first round. With
--model the descriptors of the pictures as they are decoded (JPEGs at reduced scale where that is enough) are held against
those of pictures decoded in full: mean and worst cosine.
"""

import io
import os
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from PIL import Image
from pydantic import Field

from cluster.errors import BadInputError
from cluster.session import SessionConfig, ray_session
from cluster.streams import configure_data
from cluster.telemetry import say
from jobs.bench.by_torchvision import prepared
from jobs.bench.probing import tree_cpu_seconds
from jobs.decoding import SLOTS
from jobs.inputs import local_copy, open_model, open_table
from jobs.loading import Loader
from jobs.pictures import fetch_picture
from jobs.rates import DecodeRate, Rates, add_rates, origin
from manet.errors import PictureError
from manet.images import PictureConfig, decode

Pixels = np.ndarray[Any, np.dtype[Any]]
_PART = 64  # pictures loaded at once
DECODERS = 2  # decode processes


class Config(SessionConfig):
    """Flags of `manet bench decode`."""

    catalog: str
    """Catalog artifact, or a Parquet file; the pictures must be files of this machine."""
    pictures: int = Field(default=500, ge=2)
    """Pictures, at most."""
    size: int = Field(default=480, ge=1)
    """Longer side that they are prepared at, px."""
    rounds: int = Field(default=2, ge=2)
    """Rounds, the two ways in turn; the best of each counts."""
    model: str = ""
    """Model artifact to compare descriptors with; default: they are not compared."""
    rates: str = ""
    """File to write the rate into, for `manet plan`; default: it is printed only."""


def run(config: Config) -> dict[str, Any]:
    """Measure; returns both rates, their ratio, and the cosines."""
    table = open_table(config.catalog, "catalog", "--catalog")
    rows = min(config.pictures, table.rows)
    pictures = PictureConfig(size=config.size)
    uris = [uri for _, uri in table.pictures(0, rows)]
    if gone := [uri for uri in uris if not os.path.isfile(uri.removeprefix("file://"))]:  # noqa: PTH113
        raise BadInputError(
            f"--catalog {config.catalog}: {gone[0]} is no file of this machine; stock Ray must read it too"
        )
    own, stock = [], []
    loader = Loader(table, pictures, decoders=DECODERS, seconds=30)
    try:
        loader.load(0, min(DECODERS * SLOTS, rows))  # its processes have started
        with ray_session(config):
            configure_data()
            for _ in range(config.rounds):
                own.append(_rate(rows, lambda: _own(loader, rows)))
                stock.append(_rate(rows, lambda: _stock(uris, config.size)))
    finally:
        loader.close()
    found = {
        "kind": "bench",
        "pictures": rows,
        "size": config.size,
        "pictures_per_cpu_s": round(max(own), 2),
        "read_images_per_cpu_s": round(max(stock), 2),
        "ratio": round(max(own) / max(stock), 3),
    }
    if config.rates:
        size = float(np.mean([os.path.getsize(uri.removeprefix("file://")) for uri in uris]))  # noqa: PTH202
        rate = DecodeRate(origin=origin(), size=config.size, pictures_per_cpu_s=max(own), picture_bytes=size)
        add_rates(config.rates, Rates(decode=rate))
    say(f"{found['pictures_per_cpu_s']} pictures a CPU-second, read_images {found['read_images_per_cpu_s']}")
    return {**found, **(_cosines(config, uris, pictures) if config.model else {})}


def _rate(rows: int, work: Callable[[], int]) -> float:
    """Pictures a CPU-second of this process and all below it.

    Raises:
        BadInputError: some picture cannot be used, so that the two ways would do different work.
    """
    before = tree_cpu_seconds(os.getpid())
    done = work()
    spent = tree_cpu_seconds(os.getpid()) - before
    if done != rows:
        raise BadInputError(f"--catalog: {rows - done} of {rows} pictures cannot be used; measure with sound ones")
    return rows / spent


def _own(loader: Loader, rows: int) -> int:
    """The loader of `extract`."""
    return sum(len(loader.load(at, min(at + _PART, rows)).pixels) for at in range(0, rows, _PART))


def _stock(uris: list[str], size: int) -> int:
    """What the documentation of Ray Data shows, with torchvision's resize to the same longer side."""
    import ray

    def resized(row: dict[str, Any]) -> dict[str, Any]:
        import torch

        torch.set_num_threads(1)
        picture_CHW = torch.from_numpy(np.array(row["image"])).permute(2, 0, 1)
        return {"image": prepared(picture_CHW, size).numpy()}

    images: Any = ray.data.read_images(uris, mode="RGB")
    return sum(len(batch["image"]) for batch in images.map(resized).iter_batches(batch_size=_PART))


def _cosines(config: Config, uris: list[str], pictures: PictureConfig) -> dict[str, float]:
    """Descriptors of pictures as they are decoded, against those of pictures decoded in full."""
    from manet.checkpoint import load_model
    from manet.describe import Describer

    describer = Describer(load_model(local_copy(open_model(config.model))))
    cosines = []
    for uri in uris:
        data = fetch_picture(uri)
        if isinstance(data, PictureError):
            continue
        both = np.stack([decode(data, pictures), _in_full(data, pictures)])
        one, other = describer.describe(both).vectors["sr-mac"].astype(np.float64)
        cosines.append(float(one @ other / (np.linalg.norm(one) * np.linalg.norm(other))))
    return {"cosine_mean": round(float(np.mean(cosines)), 6), "cosine_worst": round(min(cosines), 6)}


def _in_full(data: bytes, pictures: PictureConfig) -> Pixels:
    """Prepared from every pixel: a size that no reduced scale reaches, then down to the wanted one."""
    with Image.open(io.BytesIO(data)) as header:
        longer = max(header.size)
    whole = decode(data, pictures.model_copy(update={"size": longer}))
    small: Pixels = cv2.resize(whole, (pictures.size, pictures.size), interpolation=cv2.INTER_AREA)
    return small
