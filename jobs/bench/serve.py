"""The service under load, against its own model: latency at each offered rate, what it sustains, what overload does to it.

  manet bench serve --index run/index --queries shop/queries --embedders 2 --out bench/serve

Starts `manet serve` on a free port of this machine. The bare model's rate is that of as many processes as there are embedders,
which do nothing but describe prepared pictures in full batches, one thread each: measured before and after every level, so that
a machine whose speed changes is seen to change.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from cluster.errors import BadInputError, JobFailedError
from cluster.local_s3 import free_ports
from cluster.session import SessionConfig
from cluster.storage import open_store
from cluster.telemetry import say
from jobs.bench.load import offer
from jobs.bench.truth import say_table
from jobs.inputs import local_copy, open_table
from jobs.memory import FOR_PASSES, inherited
from jobs.pictures import Picture, fetch_picture
from jobs.querying import QuerySpec, open_index, query_spec
from jobs.streaming import picture_config
from manet.errors import PictureError
from manet.images import auto_batch, decode

_START_S = 180.0


class Config(SessionConfig):
    """Flags of `manet bench serve`."""

    index: str
    """Index artifact."""
    queries: str
    """Table of pictures to search with: a queries artifact, or a Parquet file with the columns query_id and uri."""
    embedders: int = Field(default=2, ge=1)
    """As of `manet serve`."""
    pictures: int = Field(default=64, ge=1)
    """Queries that take turns."""
    levels: tuple[float, ...] = (0.25, 0.5, 0.75, 0.9, 1.0, 1.2, 3.0)
    """Offered rates, as shares of the bare model's; one that is given several times counts by its median."""
    seconds: float = Field(default=20.0, gt=0)
    """Seconds of each level, and of each measurement of the bare model."""
    out: str = ""
    """Folder for `serve.json`; default: nothing is written."""


def run(config: Config) -> dict[str, Any]:
    """Measure; returns the figures."""
    index = open_index(config.index)
    spec = query_spec(index)
    model = spec.open_model()
    queries = open_table(config.queries, "queries", "--queries", relevant=False)
    files = [
        data
        for _, uri in queries.pictures(0, min(config.pictures, queries.rows))
        if not isinstance(data := fetch_picture(uri), PictureError)
    ]
    pictures = picture_config(model, spec.size)
    try:
        pixels = np.stack([decode(data, pictures) for data in files])
    except (PictureError, ValueError) as error:
        raise BadInputError(f"--queries {config.queries}: its pictures must be whole: {error}") from None
    folder = str(local_copy(model))
    with serving(config.index, "--embedders", str(config.embedders)) as address:
        bare = [_bare(folder, spec, pixels, config)]
        asyncio.run(offer(address, files, bare[0] / 2, 3.0, seed=1))  # what is only slow at first
        rows = []
        for place, level in enumerate(config.levels):
            outcome = asyncio.run(offer(address, files, level * bare[-1], config.seconds, seed=place))
            bare.append(_bare(folder, spec, pixels, config))
            row = outcome.row()
            rows.append({"level": level, **row, "of_bare": round(row["served"] / (sum(bare[-2:]) / 2), 3)})
            say(f"bench serve: {rows[-1]}")
    shares = {
        level: float(np.median([row["of_bare"] for row in rows if row["level"] == level])) for level in config.levels
    }
    peak = max(shares.values())
    summary = {
        "kind": "bench",
        "rows": index.manifest.summary["rows"],
        "size": pictures.size,
        "batch": spec.batch_size or auto_batch(pictures.size),
        "embedders": config.embedders,
        "bare_model": [round(each, 2) for each in bare],
        "peak_of_bare": round(peak, 3),
        "overload_of_peak": round(shares[config.levels[-1]] / peak, 3),
        "levels": rows,
    }
    say_table(rows)
    if config.out:
        open_store(config.out).write("serve.json", json.dumps(summary, indent=1).encode())
    return summary


@contextmanager
def serving(index: str, *flags: str) -> Iterator[str]:
    """`manet serve` on a free port, ready; its address.

    Raises:
        JobFailedError: it does not come up.
    """
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "jobs", "serve", "--index", index, "--port", str(port), *flags]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
    address, until = f"http://127.0.0.1:{port}", time.monotonic() + _START_S
    try:
        while not _is_ready(address):
            if process.poll() is not None or time.monotonic() > until:
                raise JobFailedError("bench serve: the service does not come up")
            time.sleep(0.3)
        yield address
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def _is_ready(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/readyz", timeout=5) as answer:  # noqa: S310 - our own address
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _bare(folder: str, spec: QuerySpec, pixels: Picture, config: Config) -> float:
    """Pictures a second of the model alone, in as many processes as there are embedders, which begin together."""
    context = get_context("spawn")
    together = context.Barrier(config.embedders)
    pool = ProcessPoolExecutor(config.embedders, mp_context=context, initializer=_ready, initargs=(together,))
    with inherited(FOR_PASSES), pool:
        work = [pool.submit(_describe_for, folder, spec, pixels, config.seconds) for _ in range(config.embedders)]
        rate = sum(each.result() for each in work)
    say(f"bench serve: the bare model describes {rate:.2f} pictures a second")
    return rate


_TOGETHER: list[Any] = []  # a spawned process's barrier: it cannot be handed over with the work


def _ready(together: Any) -> None:  # noqa: ANN401 - a barrier of multiprocessing
    _TOGETHER.append(together)


def _describe_for(folder: str, spec: QuerySpec, pixels: Picture, seconds: float) -> float:
    """Pictures a second of this process."""
    import torch

    torch.set_num_threads(1)
    describer = spec.describer(Path(folder))
    describer.describe(pixels[:1])
    _TOGETHER[0].wait()
    batch, done, began = describer.batch_size, 0, time.monotonic()
    while time.monotonic() - began < seconds:
        at = done % max(1, len(pixels) - batch + 1)
        describer.describe(pixels[at : at + batch])
        done += min(batch, len(pixels))
    return float(done / (time.monotonic() - began))
