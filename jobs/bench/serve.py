"""The service under load, against its own model: latency at each offered rate, what it sustains, what overload does to it.

  manet bench serve --index run/index --queries shop/queries --embedders 2 --out bench/serve

Starts `manet serve` on a free port of this machine. The bare model's rate is that of as many processes as there are embedders,
which do nothing but describe prepared pictures in full batches, one thread each: measured before and after every level, so that
a machine whose speed changes is seen to change, and all levels are gone through several times. A level's share of the bare
model is the mean over those rounds, with its 95% interval. The peak is the best of the levels, and so a little flattered where
several are alike.
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field
from scipy import stats

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
Shares = np.ndarray[Any, np.dtype[Any]]


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
    """Offered rates, as shares of the bare model's; the last one is the overload."""
    rounds: int = Field(default=3, ge=1)
    """Times that all levels are gone through."""
    seconds: float = Field(default=10.0, gt=0)
    """Seconds of each level in each round, and of each measurement of the bare model."""
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
    bare, rounds = [], []
    with (
        serving(config.index, "--embedders", str(config.embedders)) as address,
        _bare_model(str(local_copy(model)), spec, pixels, config.embedders) as rate_of_bare,
    ):
        bare.append(rate_of_bare(config.seconds))
        asyncio.run(offer(address, files, bare[0] / 2, 3.0, seed=1))  # what is only slow at first
        for number in range(config.rounds):
            rows = []
            for level in config.levels:
                outcome = asyncio.run(offer(address, files, level * bare[-1], config.seconds, seed=len(bare)))
                bare.append(rate_of_bare(config.seconds))
                row = outcome.row()
                rows.append({"level": level, **row, "of_bare": round(row["served"] / (sum(bare[-2:]) / 2), 3)})
                say(f"bench serve: round {number + 1} of {config.rounds}: {rows[-1]}")
            rounds.append(rows)
    levels = [_level(rows) for rows in zip(*rounds, strict=True)]
    peak = int(np.argmax([row["of_bare"] for row in levels]))
    peaks, overloads = (np.array([rows[place]["of_bare"] for rows in rounds]) for place in (peak, -1))
    summary = {
        "kind": "bench",
        "rows": index.manifest.summary["rows"],
        "size": pictures.size,
        "batch": spec.batch_size or auto_batch(pictures.size),
        "embedders": config.embedders,
        "bare_model": [round(each, 2) for each in bare],
        **_with_interval("peak_of_bare", peaks),
        **_with_interval("overload_of_peak", overloads / np.where(peaks > 0, peaks, np.nan)),
        "levels": levels,
        "rounds": rounds,
    }
    say_table(levels)
    if config.out:
        open_store(config.out).write("serve.json", json.dumps(summary, indent=1).encode())
    return summary


def _level(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One level over all rounds: mean rates, all that were turned away, the worst percentiles."""
    found: dict[str, Any] = {"level": rows[0]["level"]}
    found |= {name: round(float(np.mean([row[name] for row in rows])), 2) for name in ("offered", "served")}
    found |= {name: sum(row[name] for row in rows) for name in ("refused", "failed")}
    for name in (name for name in rows[0] if name.endswith("_ms")):
        found[name] = max((row[name] for row in rows if row[name] is not None), default=None)
    return found | _with_interval("of_bare", np.array([row["of_bare"] for row in rows]))


def _with_interval(name: str, shares: Shares) -> dict[str, float | None]:
    """Mean over the rounds, and the ends of its 95% interval by Student's t: wide for a few rounds, None for one."""
    mean, low, high = float(shares.mean()), np.nan, np.nan
    if len(shares) > 1:
        half = float(stats.t.ppf(0.975, len(shares) - 1)) * float(shares.std(ddof=1)) / len(shares) ** 0.5
        low, high = mean - half, mean + half
    values = {name: mean, f"{name}_low": low, f"{name}_high": high}
    return {key: round(value, 3) if np.isfinite(value) else None for key, value in values.items()}


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


@contextmanager
def _bare_model(folder: str, spec: QuerySpec, pixels: Picture, count: int) -> Iterator[Callable[[float], float]]:
    """The model alone in as many processes as there are embedders: seconds -> pictures a second, all beginning together."""
    context = get_context("spawn")
    arguments = (context.Barrier(count), folder, spec, pixels)
    with (
        inherited(FOR_PASSES),
        ProcessPoolExecutor(count, mp_context=context, initializer=_load, initargs=arguments) as pool,
    ):

        def rate_in(seconds: float) -> float:
            rate = sum(each.result() for each in [pool.submit(_describe_for, seconds) for _ in range(count)])
            say(f"bench serve: the bare model describes {rate:.2f} pictures a second")
            return rate

        yield rate_in


_LOADED: list[Any] = []  # of a bare process: the barrier, the describer, the pictures


def _load(together: Any, folder: str, spec: QuerySpec, pixels: Picture) -> None:  # noqa: ANN401 - a barrier of multiprocessing
    import torch

    torch.set_num_threads(1)
    describer = spec.describer(Path(folder))
    describer.describe(pixels[:1])
    _LOADED.extend((together, describer, pixels))


def _describe_for(seconds: float) -> float:
    """Pictures a second of this process."""
    together, describer, pixels = _LOADED
    together.wait()
    batch, done, began = describer.batch_size, 0, time.monotonic()
    while time.monotonic() - began < seconds:
        at = done % max(1, len(pixels) - batch + 1)
        describer.describe(pixels[at : at + batch])
        done += min(batch, len(pixels))
    return float(done / (time.monotonic() - began))
