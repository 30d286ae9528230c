"""`bench coordination`: what the stream itself costs, with model actors that sleep as long as a GPU would compute.

  manet bench coordination --actors 64 --rate 100 --rate 500 --rate 1000
  manet bench coordination --actors 64 --rate 1000 --part-rows 4096 --rates rates.json

Real: Ray and Ray Data, the units and their way to the actors, one process an actor with its threads and turns, the parts and
receipts that they write (to a folder of this machine), the counts that the driver adds up. Simulated: the GPU (a sleep
of n / rate seconds for n pictures) and the pictures (one pixel each, there at once; descriptors of 8 dimensions), so that bytes
cost next to nothing. All actors share this machine's cores, which on a cluster each node has for itself: what is kept here is a
lower bound.

The share kept is the rate between the first and the last quarter of the parts, while all actors work, over actors x rate. With
--rates the highest rate of parts is written down for `manet plan`.
"""

import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from cluster.artifact import ArtifactWriter
from cluster.errors import JobFailedError
from cluster.session import ray_session
from cluster.storage import Store
from cluster.streams import watched
from cluster.telemetry import Meter, say
from jobs.bench.probing import tree_cpu_seconds
from jobs.bench.truth import say_table
from jobs.loading import Loaded
from jobs.planning import Plan, cut
from jobs.rates import CoordinationRate, Rates, add_rates, origin
from jobs.streaming import DescribeConfig, flow
from jobs.workers import ModelActor

DIM = 8
_START_S = 300.0  # bound on the start of all actors
_LOOK_S = 0.1  # between two looks at how many have started


class Config(DescribeConfig):
    """Flags of `manet bench coordination`."""

    actors: int = Field(default=64, ge=1)
    """Model actors that sleep."""
    rate: tuple[float, ...] = (100.0,)
    """Pictures a second of one actor."""
    seconds: float = Field(default=20.0, gt=0)
    """How long the actors would need for all pictures at their ideal rate, s."""
    rates: str = ""
    """File to write the highest rate of parts into, for `manet plan`; default: it is printed only."""


@dataclass(frozen=True, kw_only=True)
class Slept:
    """Descriptors that nobody computed."""

    vectors: dict[Any, Any]
    dead: Any


def run(config: Config) -> dict[str, Any]:
    """Measure each rate in turn; returns the table."""
    session = config.model_copy(update={"ray_cpus": config.ray_cpus or config.actors, "model_cpus": 1.0})
    table = []
    for rate in config.rate:
        with ray_session(session), tempfile.TemporaryDirectory(prefix="manet-coordination-") as scratch:
            table.append(_measure(session, rate, Path(scratch)))
        say(f"bench: {rate:g} pictures/s an actor: {table[-1]['kept']} of the ideal rate is kept")
    say_table(table)
    best = max(row["parts_per_s"] for row in table)
    if config.rates:
        found = CoordinationRate(origin=origin(), actors=config.actors, parts_per_s=best)
        add_rates(config.rates, Rates(coordination=found))
    return {
        "kind": "bench",
        "actors": config.actors,
        "part_rows": config.part_rows,
        "parts_in_flight": config.parts_in_flight,
        "parts_per_s": best,
        "table": table,
    }


def _measure(config: Config, rate: float, folder: Path) -> dict[str, Any]:
    """One rate: pictures and parts a second in the middle of the run, and CPU-seconds a part."""
    writer = ArtifactWriter.open(str(folder / "out"), "descriptors", config={}, claimed=(), inputs={})
    each = max(8, round(config.seconds * rate / config.part_rows))  # parts of one actor
    units = cut(each * config.actors * config.part_rows, config.part_rows)
    (folder / "started").mkdir()
    plan = Plan(models=config.actors, models_max=config.actors, decoders=0)
    arguments = ((writer.store, writer.claim_sha256), rate, str(folder / "started"), config.actors)
    began = time.monotonic()
    results = flow(units, plan, config, fetch=None, describe=(sleeping_actor(), arguments))
    marks, cpu = list[float](), list[float]()
    low, high = len(units) // 4, 3 * len(units) // 4
    with Meter(f"{rate:g}/s x {config.actors}", len(units), "parts") as meter:
        for counts in watched(results, config.stall_timeout, lambda: "the actors", "--stall-timeout"):
            if counts is None:
                continue
            if counts["failure"]:
                raise JobFailedError(counts["failure"])
            marks.append(time.monotonic())
            if len(marks) in {low, high}:
                cpu.append(_cpu_seconds())
            meter.advance(1)
    parts_per_s = (high - low) / (marks[high - 1] - marks[low - 1])
    ideal = config.actors * rate
    return {
        "rate": rate,
        "part_rows": config.part_rows,
        "ideal_pictures_per_s": ideal,
        "pictures_per_s": round(parts_per_s * config.part_rows, 1),
        "kept": round(parts_per_s * config.part_rows / ideal, 4),
        "parts_per_s": round(parts_per_s, 2),
        "cpu_ms_a_part": round(1000 * (cpu[1] - cpu[0]) / (high - low), 2),
        "cores_busy": round((cpu[1] - cpu[0]) / (marks[high - 1] - marks[low - 1]), 2),
        "parts": len(units),
        "first_part_s": round(marks[0] - began, 1),
    }


def _cpu_seconds() -> float:
    """Of the driver, and of all that Ray started for it."""
    return tree_cpu_seconds(os.getpid())


def sleeping_actor() -> type[ModelActor]:
    """The class of the actors; made here, so that it travels by value and they need not import the benchmarks."""
    dim, wait, look = DIM, _START_S, _LOOK_S

    class Pixels:
        """Pictures that are there at once."""

        restarts = 0

        def load(self, start: int, stop: int) -> Loaded:
            names = [(f"i{row}", "") for row in range(start, stop)]
            return Loaded(pictures=names, pixels=np.zeros((stop - start, 1, 1, 3), np.uint8), rejects=[], spent={})

        def waits_for(self) -> str:
            return "nothing"

    class Sleeper:
        """A model that sleeps, once all actors have started."""

        halvings = 0

        def __init__(self, rate: float, started: str, actors: int) -> None:
            self._rate, self._started, self._actors, self._open = rate, Path(started), actors, False
            (self._started / str(os.getpid())).touch()

        def describe(self, pixels_NSS3: Any, /) -> Slept:  # noqa: ANN401
            until = time.monotonic() + wait
            while not self._open:
                self._open = sum(1 for _ in self._started.iterdir()) >= self._actors
                if time.monotonic() > until:
                    raise JobFailedError(f"not all of {self._actors} actors started in {wait:g} s")
                time.sleep(0 if self._open else look)
            time.sleep(len(pixels_NSS3) / self._rate)
            unit = np.full((len(pixels_NSS3), dim), dim**-0.5, np.float16)
            return Slept(vectors={"sr-mac": unit}, dead=np.zeros(len(unit), bool))

    class Sleeping(ModelActor):
        """A model actor around them."""

        def __init__(self, writer: tuple[Store, str], rate: float, started: str, actors: int) -> None:
            super().__init__(writer, None, model=lambda: Sleeper(rate, started, actors), loader=Pixels)

    return Sleeping
