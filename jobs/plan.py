"""What a run costs, before it is started: measured rates + a price table -> hours, cost, storage, the bottleneck.

  manet bench decode --catalog shop/catalog --rates rates.json
  manet bench extract --model run/model --catalog shop/catalog --rates rates.json
  manet bench index --descriptors bench/vectors --rates rates.json
  manet plan --pictures 500000 --nodes decode=4 --rates rates.json
  manet plan --pictures 500000 --nodes decode=16 --nodes gpu=8 --rates rates.json --model-rate 400 --actor-start 30 --simulate 20

Measure with all cores of a machine at work (as the benchmarks do by themselves): a worker alone is faster than one of several.

Reads the rates that benchmarks measured and a price table, cluster/prices.yaml unless another is given; needs no cluster. A rate
that nobody measured is given by a flag and printed as an assumption, or the plan is refused: none is made up. Says for each
group what it could carry, what it costs, how many of its nodes would be enough for the others, and what doubling it buys.

Nodes with GPUs run the model; nodes without decode for them, or do both where there are no GPUs; GPU nodes decode for themselves
where no other group is given. With --simulate the stream is also played event by event (node starts, losses, slow nodes).
The formulas: jobs/estimating.py, jobs/costing.py.
"""

from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from cluster.errors import BadInputError
from cluster.telemetry import say
from jobs.costing import Inputs, Prices, Work, costs, read_prices, stream_of
from jobs.estimating import Stream, enough_nodes, estimate
from jobs.rates import Rates, read_rates
from jobs.simulating import Chance, play
from jobs.streaming import DescribeConfig

GIB = 1 << 30
DRIVER_ROWS = 10_000_000  # a catalogue of more rows has not been tried: its ids are checked in the driver's memory


def _of_extract(flag: str) -> Any:  # noqa: ANN401 - of any type
    """The default of a flag of `manet extract`."""
    return DescribeConfig.model_fields[flag].default


class Config(BaseModel):
    """Flags of `manet plan`."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    pictures: int = Field(ge=1)
    """Pictures of the gallery."""
    nodes: tuple[str, ...]
    """Nodes of a group of the price table: GROUP=COUNT."""
    rates: str = ""
    """File of measured rates, which the benchmarks write with their own --rates; default: nothing was measured."""
    prices: str = ""
    """Price table, YAML; default: the example in cluster/prices.yaml."""
    model_rate: float = Field(default=0.0, ge=0)
    """Pictures a second that one GPU (or one CPU, where there are none) describes: an ASSUMPTION; 0: as measured."""
    decode_rate: float = Field(default=0.0, ge=0)
    """Pictures a second that one CPU fetches and decodes: an ASSUMPTION; 0: as measured."""
    picture_bytes: float = Field(default=0.0, ge=0)
    """Mean bytes of a picture's file: an ASSUMPTION; 0: as measured."""
    size: int = Field(default=480, ge=1)
    """Longer side of a prepared picture, px: what decode actors send to model actors."""
    dim: int = Field(default=1280, ge=1)
    """Dimensions of a descriptor."""
    part_rows: int = Field(default=_of_extract("part_rows"), ge=1, le=4096)
    """Rows of one part, as `manet extract --part-rows`."""
    parts_in_flight: int = Field(default=_of_extract("parts_in_flight"), ge=1, le=16)
    """Parts that one model actor holds, as `manet extract --parts-in-flight`."""
    model_cpus: float = Field(default=_of_extract("model_cpus"), gt=0)
    """CPUs of one model actor on nodes without GPUs, as `manet extract --model-cpus`."""
    actor_start: float = Field(default=-1.0, ge=-1)
    """Seconds until a model actor on a node that is up works: an ASSUMPTION; -1: as measured."""
    slow_share: float = Field(default=0.0, ge=0, le=1)
    """Share of the nodes that are slow (stragglers)."""
    slow_factor: float = Field(default=2.0, ge=1)
    """How many times as long a slow node takes."""
    simulate: int = Field(default=0, ge=0, le=10_000)
    """Runs of the stream that are simulated; 0: the closed form alone."""
    noise: float = Field(default=0.1, ge=0)
    """Simulation: coefficient of variation of each step's seconds, and of node starts."""
    seed: int = Field(default=0, ge=0)
    """Seed of the first simulated run; the next run has the next seed."""


def run(config: Config) -> dict[str, Any]:
    """Reckon; returns the plan."""
    prices = read_prices(config.prices)
    rates = read_rates(config.rates, "--rates") if config.rates else Rates()
    inputs = _inputs(config, prices, rates)
    stream = stream_of(inputs)
    plan = _plan(inputs, stream)
    if config.simulate:
        plan["simulated"] = _simulated(config, stream)
    _say(plan)
    return plan


def _inputs(config: Config, prices: Prices, rates: Rates) -> Inputs:
    """Nodes and work, checked; what is assumed is noted.

    Raises:
        BadInputError: a group is unknown, or a rate is neither measured nor given.
    """
    nodes = _nodes(config, prices)
    work = Work(
        pictures=config.pictures, part_rows=config.part_rows, in_flight=config.parts_in_flight, size=config.size,
        dim=config.dim, model_cpus=config.model_cpus, slow_share=config.slow_share, slow_factor=config.slow_factor,
    )  # fmt: skip
    return Inputs.of(
        nodes,
        work,
        prices,
        rates,
        given={
            "model_rate": config.model_rate or None,
            "decode_rate": config.decode_rate or None,
            "picture_bytes": config.picture_bytes or None,
            "actor_start": config.actor_start if config.actor_start >= 0 else None,
        },
    )


def _nodes(config: Config, prices: Prices) -> dict[str, int]:
    found: dict[str, int] = {}
    for item in config.nodes:
        name, _, count = item.partition("=")
        if name not in prices.groups:
            raise BadInputError(f"--nodes {item}: the price table has the groups {', '.join(prices.groups)}")
        if not count.isdecimal():
            raise BadInputError(f"--nodes {item}: give GROUP=COUNT")
        if name in found:
            raise BadInputError(f"--nodes {item}: the group {name} is given twice")
        found[name] = int(count)
    if not any(found.values()):
        raise BadInputError(f"--nodes is required: GROUP=COUNT of {', '.join(prices.groups)}")
    return {name: count for name, count in found.items() if count}


def _plan(inputs: Inputs, stream: Stream) -> dict[str, Any]:
    """The closed form, the costs, and what doubling each group buys."""
    work = inputs.work
    try:
        base = estimate(stream)
    except ValueError as error:
        raise BadInputError(
            f"--prices: {error}: its nodes are lost faster than they work; see losses_per_hour"
        ) from None
    cost = costs(inputs, base.seconds)
    groups = []
    for pool in stream.pools:
        twice = inputs.with_nodes(pool.name, 2 * pool.nodes)
        then = estimate(stream_of(twice))
        after = costs(twice, then.seconds)
        groups.append(
            {
                "group": pool.name,
                "instance": inputs.prices.groups[pool.name].instance,
                "nodes": pool.nodes,
                "actors": pool.nodes * pool.actors,
                "pictures_per_s": round(base.pool_rates[pool.name] * work.part_rows, 1),
                "busy": round(base.rate / base.pool_rates[pool.name], 3),
                "enough": enough_nodes(stream, pool.name),
                "cost": round(cost.nodes[pool.name], 2),
                "doubled_hours": round(after.hours["total"], 3),
                "doubled_cost": round(after.total, 2),
            }
        )
    return {
        "kind": "plan",
        "pictures": work.pictures,
        "parts": stream.parts,
        "bottleneck": base.limit,
        "pictures_per_s": round(base.rate * work.part_rows, 1),
        "first_part_s": round(base.start_s + stream.dispatch_s + sum(pool.part_s for pool in stream.pools), 2),
        "extract_s": round(base.seconds, 2),
        "groups": groups,
        "hours": {name: round(hours, 3) for name, hours in cost.hours.items()},
        "cost": {
            "currency": inputs.prices.currency,
            "nodes": round(sum(cost.nodes.values()), 2),
            "head": round(cost.head, 2),
            "requests": round(cost.requests, 2),
            "total": round(cost.total, 2),
            "storage_per_month": round(cost.storage_month, 2),
        },
        "storage_gib": {name: round(size / GIB, 2) for name, size in cost.stored.items()},
        "moved_gib": {name: round(size / GIB, 2) for name, size in cost.moved.items()},
        "index_memory_gib": None if cost.resident is None else round(cost.resident / GIB, 2),
        "left_out": _left_out(inputs),
        "assumptions": inputs.notes,
    }


def _left_out(inputs: Inputs) -> list[str]:
    """What the figures do not hold."""
    found = ["training", "evaluation", "serving", "egress and traffic between zones"]
    if inputs.rates.index is None:
        found.append(
            "the index (no measured rate; `manet bench index --descriptors DESCRIPTORS --rates FILE` measures it)"
        )
    if inputs.rates.coordination is None:
        found.append("the driver's own limit (`manet bench coordination --rate 1000 --rates FILE` measures it)")
    if inputs.work.pictures > DRIVER_ROWS:
        found.append(
            f"the driver's memory: it reads the catalogue's ids whole, which was not tried beyond {DRIVER_ROWS} rows"
        )
    return found


def _simulated(config: Config, stream: Stream) -> dict[str, Any]:
    """Percentiles of the stream's hours over several runs, beside the closed form."""
    runs = []
    for number in range(config.simulate):
        chance = Chance(seed=config.seed + number, step_cv=config.noise, start_cv=config.noise)
        try:
            runs.append(play(stream, chance))
        except ValueError as error:
            raise BadInputError(f"--simulate: {error}; see losses_per_hour and start_s of the price table") from None
    found, hours = np.array([each.seconds for each in runs]) / 3600, estimate(stream).seconds / 3600
    percentiles = {f"p{percent}": round(float(np.percentile(found, percent)), 5) for percent in (5, 50, 95)}
    return {
        "runs": len(runs),
        "closed_form_hours": round(hours, 5),
        "mean_hours": round(float(found.mean()), 5),
        **{f"{name}_hours": value for name, value in percentiles.items()},
        "closed_form_error": round(hours / float(found.mean()) - 1, 4),
        "losses_mean": round(float(np.mean([each.losses for each in runs])), 2),
        "parts_redone_mean": round(float(np.mean([each.redone for each in runs])), 2),
    }


def _say(plan: dict[str, Any]) -> None:
    """The plan for a person."""
    cost, hours = plan["cost"], plan["hours"]
    rows = [{key: "-" if value is None else str(value) for key, value in row.items()} for row in plan["groups"]]
    cells = [list(rows[0]), *[list(row.values()) for row in rows]]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        say("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))
    say(f"{plan['pictures']} pictures at {plan['pictures_per_s']}/s; the bottleneck: {plan['bottleneck']}")
    say("hours: " + ", ".join(f"{name} {value}" for name, value in hours.items()))
    money = cost["currency"]
    say(f"cost: {cost['total']} {money} (nodes {cost['nodes']}, head {cost['head']}, requests {cost['requests']})")
    sizes = ", ".join(f"{name} {value} GiB" for name, value in plan["storage_gib"].items())
    say(f"stored: {sizes}; {cost['storage_per_month']} {money} a month")
    say("moved: " + ", ".join(f"{name} {value} GiB" for name, value in plan["moved_gib"].items()))
    if plan["index_memory_gib"] is not None:
        say(f"a searcher of the whole index needs {plan['index_memory_gib']} GiB of memory")
    if "simulated" in plan:
        say("simulated: " + ", ".join(f"{name} {value}" for name, value in plan["simulated"].items()))
    say("left out: " + "; ".join(plan["left_out"]))
    for note in plan["assumptions"]:
        say(f"reckoned with: {note}")
