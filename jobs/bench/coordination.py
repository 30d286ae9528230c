"""`bench coordination`: what the stream itself costs, with model actors that sleep as long as a GPU would compute.

  manet bench coordination --actors 64 --rate 100 --rate 500 --rate 1000
  manet bench coordination --actors 64 --rate 1000 --rates rates.json

Real: Ray and Ray Data, the units and their way to the actors, one process an actor with its threads and turns, the parts and
receipts that they write (to a folder of this machine), the counts that the driver adds up. Simulated: the GPU (a sleep
of n / rate seconds for n pictures) and the pictures (one pixel each, there at once; descriptors of 8 dimensions), so that bytes
cost next to nothing. All actors share this machine's cores, which on a cluster each node has for itself: what is kept here is a
lower bound.

The rates are measured one after the other on the same actors. The share kept is the rate between the first and the last quarter
of the parts at one rate, while all actors work, over actors x rate. With --rates the highest rate of parts is written down for
`manet plan`, if at some rate less than 0.9 was kept: else the actors were the limit.
"""

import os
import tempfile
import time
from bisect import bisect_right
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from cluster.artifact import ArtifactWriter, Units
from cluster.errors import JobFailedError
from cluster.session import ray_session
from cluster.streams import watched
from cluster.telemetry import Meter, say
from jobs.bench.probing import tree_cpu_seconds
from jobs.bench.truth import say_table
from jobs.loading import Loaded
from jobs.planning import Plan, cut
from jobs.rates import CoordinationRate, Rates, add_rates, origin
from jobs.streaming import DescribeConfig, flow
from jobs.workers import ModelActor
from manet.names import DescriptorName

DIM = 8
_START_S = 300.0  # bound on the start of all actors
_KEPT = 0.9  # of the actors' rate: where more is kept, they are the limit
_LEAST = 8  # parts of an actor at one rate
_LOOK_S = 0.1  # between two looks at how many have started


class Config(DescribeConfig):
    """Flags of `manet bench coordination`."""

    actors: int = Field(default=64, ge=1)
    """Model actors that sleep."""
    rate: tuple[Annotated[float, Field(gt=0)], ...] = (100.0,)
    """Pictures a second of one actor."""
    seconds: float = Field(default=20.0, gt=0)
    """How long the actors would need for the pictures of one rate, s."""
    rates: str = ""
    """File to write the highest rate of parts into, for `manet plan`, where the stream and not the actors was the limit."""


def run(config: Config) -> dict[str, Any]:
    """Measure each rate in turn; returns the table."""
    session = config.model_copy(update={"ray_cpus": config.ray_cpus or config.actors, "model_cpus": 1.0})
    phases = [Phase(rate=rate, parts=_parts(config, rate)) for rate in config.rate]
    with ray_session(session), tempfile.TemporaryDirectory(prefix="manet-coordination-") as scratch:
        first_s = _run(session, phases, Path(scratch))
    table = [phase.row(config) for phase in phases]
    best = max(row["parts_per_s"] for row in table)
    if config.rates and all(row["kept"] >= _KEPT for row in table):
        say("bench coordination: the actors were the limit, not the stream: --rates gets nothing; raise --rate")
    elif config.rates:
        found = CoordinationRate(origin=origin(), actors=config.actors, parts_per_s=best)
        add_rates(config.rates, Rates(coordination=found))
    return {
        "kind": "bench",
        "actors": config.actors,
        "part_rows": config.part_rows,
        "parts_in_flight": config.parts_in_flight,
        "first_part_s": round(first_s, 1),
        "parts_per_s": best,
        "table": table,
    }


def _parts(config: Config, rate: float) -> int:
    """Parts of a phase: as many as fill its time, and at least as many for each actor as leave a middle to measure in."""
    return config.actors * max(_LEAST, round(config.seconds * rate / config.part_rows))


@dataclass(kw_only=True)
class Phase:
    """The parts at one rate: when each was done, and the CPU-seconds used at the two ends of the middle."""

    rate: float
    parts: int
    marks: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def mark(self) -> None:
        """One more part is done."""
        self.marks.append(time.monotonic())
        if len(self.marks) in self._middle():
            self.cpu.append(tree_cpu_seconds(os.getpid()))  # of the driver, and of all that Ray started for it

    def _middle(self) -> tuple[int, int]:
        return self.parts // 4, 3 * self.parts // 4

    def row(self, config: Config) -> dict[str, Any]:
        """Its line of the table."""
        low, high = self._middle()
        seconds, ideal = self.marks[high - 1] - self.marks[low - 1], config.actors * self.rate
        pictures_per_s, cpu_s = (high - low) * config.part_rows / seconds, self.cpu[1] - self.cpu[0]
        return {
            "rate": self.rate,
            "part_rows": config.part_rows,
            "parts": self.parts,
            "ideal_pictures_per_s": ideal,
            "pictures_per_s": round(pictures_per_s, 1),
            "kept": round(pictures_per_s / ideal, 4),
            "parts_per_s": round((high - low) / seconds, 2),
            "cpu_ms_a_part": round(1000 * cpu_s / (high - low), 2),
            "cores_busy": round(cpu_s / seconds, 2),
        }


def _run(config: Config, phases: list[Phase], folder: Path) -> float:
    """All phases in one stream; fills in their marks. Returns the seconds to the first part."""
    writer = ArtifactWriter.open(str(folder / "out"), "descriptors", config={}, claimed=(), inputs={})
    units = cut(sum(phase.parts for phase in phases) * config.part_rows, config.part_rows)
    ends = list(accumulate(phase.parts for phase in phases))
    (folder / "started").mkdir()
    plan = Plan(models=config.actors, models_max=config.actors, decoders=0)
    rates = [(end * config.part_rows, phase.rate) for end, phase in zip(ends, phases, strict=True)]
    arguments = (writer.units, rates, str(folder / "started"), config.actors)
    began = time.monotonic()
    results = flow(units, plan, config, fetch=None, describe=(sleeping_actor(), arguments))
    with Meter("coordination", len(units), "parts") as meter:
        for counts in watched(results, config.stall_timeout, lambda: "the actors", "--stall-timeout"):
            if counts is None:
                continue
            if counts["failure"]:
                raise JobFailedError(counts["failure"])
            phase = phases[bisect_right(ends, int(counts["unit"]))]
            phase.mark()
            if len(phase.marks) == phase.parts:
                say_table([phase.row(config)])
            meter.advance(1)
    return phases[0].marks[0] - began


def sleeping_actor() -> type[ModelActor]:
    """The class of the actors; made here, so that it travels by value and they need not import the benchmarks."""
    dim, wait, look = DIM, _START_S, _LOOK_S

    class Slept:
        """Descriptors that nobody computed: each the same."""

        def __init__(self, count: int) -> None:
            self.vectors: dict[DescriptorName, Any] = {"sr-mac": np.full((count, dim), dim**-0.5, np.float16)}
            self.dead = np.zeros(count, bool)

    class Pixels:
        """Pictures that are there at once; each says which phase it is of."""

        restarts = 0

        def __init__(self, rates: list[tuple[int, float]]) -> None:
            self._ends = [end for end, _ in rates]

        def load(self, start: int, stop: int) -> Loaded:
            names = [(f"i{row}", "") for row in range(start, stop)]
            pixels = np.full((stop - start, 1, 1, 3), bisect_right(self._ends, start), np.uint8)
            return Loaded(pictures=names, pixels=pixels, rejects=[], spent={})

        def waits_for(self) -> str:
            return "nothing"

    class Sleeper:
        """A model that sleeps, once all actors have started."""

        halvings = 0

        def __init__(self, rates: list[tuple[int, float]], started: str, actors: int) -> None:
            self._rates, self._started, self._actors, self._open = rates, Path(started), actors, False
            (self._started / str(os.getpid())).touch()

        def describe(self, pixels_NSS3: Any, /) -> Slept:  # noqa: ANN401
            until = time.monotonic() + wait
            while not self._open:
                self._open = sum(1 for _ in self._started.iterdir()) >= self._actors
                if time.monotonic() > until:
                    raise JobFailedError(f"not all of {self._actors} actors started in {wait:g} s")
                time.sleep(0 if self._open else look)
            time.sleep(len(pixels_NSS3) / self._rates[int(pixels_NSS3[0, 0, 0, 0])][1])
            return Slept(len(pixels_NSS3))

    class Sleeping(ModelActor):
        """A model actor around them."""

        def __init__(self, units: Units, rates: list[tuple[int, float]], started: str, actors: int) -> None:
            super().__init__(units, None, model=lambda: Sleeper(rates, started, actors), loader=lambda: Pixels(rates))

    return Sleeping
