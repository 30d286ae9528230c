"""A stream of parts over groups of nodes, in closed form: how fast, what limits it, how long.

A pool is a group of like nodes; each node carries like actors; an actor is a line of steps that holds a few parts at once, one
part in each step. The simulation (`jobs.simulating`) plays the same `Stream`.

With s_i the seconds of step i of one part, K the parts that an actor holds, c = max(max s_i, sum s_i / K), for one pool:

    an actor's rate        1 / c
    a node's rate          min(actors / c, cores / sum of s_i on a core)             (the second where actors share cores)
    slow nodes             * (1 - share + share / factor)
    losses, L a second     * (1 - L w) / (1 + L d)
        d  seconds without the node: its start and its actors' start
        w  seconds of work that are lost with it: half of what an actor does for one part, and the steps after the longest

    the stream's rate      R = min(pools' rates, the driver's parts a second)
    its seconds            start + one part through the driver and all steps
                           + max(over pools (ceil(parts / actors) - 1) actors / rate, (parts - 1) / the driver's parts a second)
        start              the slowest pool's nodes and actors
        with slow nodes    + K (factor - 1) actors / rate of the model pool: the last parts may be theirs

Without losses, slow nodes and shared cores this is exact for one pool, and off by less than what the actors of the other
pool do for one part each where there are two.
"""

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Step:
    """What an actor does with a part, seconds; on a core that the actors of its node share, or on something of its own."""

    name: str
    seconds: float
    shared: bool = False


@dataclass(frozen=True, kw_only=True)
class Pool:
    """A group of like nodes and what they do with each part."""

    name: str
    nodes: int
    actors: int
    """Of one node."""
    steps: tuple[Step, ...]
    cores: int = 0
    """CPUs of a node for the steps that share them."""
    start_s: float = 0.0
    """Until a node that was asked for is there."""
    actor_start_s: float = 0.0
    """Until an actor on it works; CPU-seconds of a shared core where there are such."""
    losses_per_s: float = 0.0
    """Of one node."""

    @property
    def part_s(self) -> float:
        """One part through all steps, nothing in the way."""
        return sum(step.seconds for step in self.steps)

    @property
    def ready_s(self) -> float:
        """Until all its actors work."""
        waves = math.ceil(self.actors / self.cores) if self.cores else 1
        return self.start_s + waves * self.actor_start_s

    def cycle_s(self, in_flight: int) -> float:
        """Seconds between two parts of one actor, as its node's cores allow, without losses and slow nodes."""
        alone = max(*(step.seconds for step in self.steps), self.part_s / in_flight)
        on_cores = sum(step.seconds for step in self.steps if step.shared)
        return max(alone, self.actors * on_cores / self.cores) if self.cores else alone

    def kept(self, in_flight: int) -> float:
        """Share of its rate that is left by losses of nodes."""
        longest = max(range(len(self.steps)), key=lambda at: self.steps[at].seconds)
        lost_s = self.cycle_s(in_flight) / 2 + sum(step.seconds for step in self.steps[longest + 1 :])
        return max(0.0, 1 - self.losses_per_s * lost_s) / (1 + self.losses_per_s * self.ready_s)

    def bottleneck(self, in_flight: int) -> str:
        """The step that sets its rate."""
        cycle = self.cycle_s(in_flight)
        longest = max(self.steps, key=lambda step: step.seconds)
        if longest.seconds >= cycle:
            return longest.name
        return " + ".join(step.name for step in self.steps if step.shared or not self.cores)


@dataclass(frozen=True, kw_only=True)
class Stream:
    """All that the closed form and the simulation know of a run."""

    parts: int
    pools: tuple[Pool, ...]
    """One that does everything, or decoding and then the model."""
    in_flight: int = 3
    """Parts that an actor of the last pool holds at once."""
    buffer: int = 0
    """Decoded parts that may wait between two pools."""
    dispatch_s: float = 0.0
    """The driver's seconds for one part."""
    slow_share: float = 0.0
    """Of the nodes."""
    slow_factor: float = 1.0
    """How many times as long a slow node takes."""

    def held(self, pool: Pool) -> int:
        """Parts that an actor of a pool holds at once; an actor before the last pool: one in hand, one on its way."""
        return self.in_flight if pool is self.pools[-1] else 2


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What the closed form says. Rates in parts a second."""

    seconds: float
    start_s: float
    rate: float
    pool_rates: dict[str, float]
    limit: str


def pool_rate(stream: Stream, pool: Pool) -> float:
    """Parts a second of a pool by itself."""
    slow = 1 - stream.slow_share + stream.slow_share / stream.slow_factor
    held = stream.held(pool)
    return pool.nodes * pool.actors / pool.cycle_s(held) * slow * pool.kept(held)


def estimate(stream: Stream) -> Estimate:
    """The closed form.

    Raises:
        ValueError: a pool has no actors.
    """
    rates = {pool.name: pool_rate(stream, pool) for pool in stream.pools}
    if min(rates.values()) <= 0:
        raise ValueError(f"{min(rates, key=lambda name: rates[name])} does nothing")
    slowest = min(stream.pools, key=lambda pool: rates[pool.name])
    limit = f"{slowest.bottleneck(stream.held(slowest))} ({slowest.name})"
    rate = rates[slowest.name]
    if stream.dispatch_s and 1 / stream.dispatch_s < rate:
        rate, limit = 1 / stream.dispatch_s, "coordination (driver)"
    start_s = max(pool.ready_s for pool in stream.pools)
    seconds = start_s + stream.dispatch_s + sum(pool.part_s for pool in stream.pools) + _body(stream, rates)
    if stream.slow_share:
        last = stream.pools[-1]
        seconds += stream.in_flight * (stream.slow_factor - 1) * last.nodes * last.actors / rates[last.name]
    return Estimate(seconds=seconds, start_s=start_s, rate=rate, pool_rates=rates, limit=limit)


def _body(stream: Stream, rates: dict[str, float]) -> float:
    """Seconds between the first part and the last."""
    found = [max(0, stream.parts - 1) * stream.dispatch_s]
    for pool in stream.pools:
        actors = pool.nodes * pool.actors
        found.append((math.ceil(stream.parts / actors) - 1) * actors / rates[pool.name])
    return max(found)


def enough_nodes(stream: Stream, name: str) -> int:
    """Fewest nodes of a pool that are no slower than the slowest of the other pools; its own where there is no other."""
    (pool,) = (pool for pool in stream.pools if pool.name == name)
    others = [pool_rate(stream, other) for other in stream.pools if other is not pool]
    each = pool_rate(stream, pool) / pool.nodes
    return math.ceil(min(others) / each - 1e-9) if others else pool.nodes
