"""A stream of parts over groups of nodes, played event by event: the same `Stream` as the closed form, with chance in it.

Nodes start, are slow, are lost and replaced; actors pull parts as they have room, round by round; each step of an actor takes one
part at a time, and a core of its node where steps share cores; a decoded part waits in a bounded buffer for the next pool. What
a node holds when it is lost is done again: in the first pool from the start, a part that had been decoded from there (its
pixels are kept until it is done), decoded parts that wait on a lost node from the start.
"""

import heapq
import math
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from jobs.estimating import Stream, estimate


@dataclass(frozen=True, kw_only=True)
class Chance:
    """What varies from run to run."""

    seed: int = 0
    step_cv: float = 0.0
    """Coefficient of variation of a step's seconds (log-normal)."""
    start_cv: float = 0.0
    """The same of a node's start."""


@dataclass(frozen=True, kw_only=True)
class Played:
    """One run: seconds, node losses, parts that were begun again."""

    seconds: float
    losses: int
    redone: int


class _Node:
    """One node: its free cores, who waits for one, and its actors."""

    def __init__(self, pool: int, factor: float, cores: int) -> None:
        self.pool, self.factor, self.alive = pool, factor, True
        self.free = cores
        self.waiting: deque[Callable[[], None]] = deque()
        self.actors: list[_Actor] = []


class _Actor:
    """A line of steps. A part is known by its home, the node that holds its pixels; None: it has not been decoded."""

    def __init__(self, node: _Node, steps: int) -> None:
        self.node, self.held = node, 0
        self.queues: list[deque[_Node | None]] = [deque() for _ in range(steps)]
        self.busy = [False] * steps
        self.parts: list[_Node | None] = []  # all `held` ones, wherever they are in the line


class Simulation:
    """One run of a stream."""

    def __init__(self, stream: Stream, chance: Chance) -> None:
        self._stream, self._chance = stream, chance
        self._rng = random.Random(chance.seed)
        self._now, self._sequence = 0.0, 0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._todo, self._done, self._losses, self._redone = stream.parts, 0, 0, 0
        self._loading = 0  # parts in hand of the first of two pools
        self._ready: deque[_Node] = deque()  # decoded parts, by the node that holds them
        self._hungry: list[deque[_Actor]] = [deque() for _ in stream.pools]
        self._driver = 0.0
        self._last = len(stream.pools) - 1
        loaders = stream.pools[0]
        self._room = loaders.nodes * loaders.actors * 2 + stream.buffer

    def run(self) -> Played:
        """Play it to its end.

        Raises:
            ValueError: there is no end to it: nodes are lost before they have done anything.
        """
        longest_s = 100 * estimate(self._stream).seconds
        for index, pool in enumerate(self._stream.pools):
            for _ in range(pool.nodes):
                self._order(index)
        while self._done < self._stream.parts:
            self._now, _, event = heapq.heappop(self._events)
            event()
            if self._now > longest_s:
                raise ValueError(f"no end after {longest_s / 3600:.0f} hours: nodes are lost faster than they work")
        return Played(seconds=self._now, losses=self._losses, redone=self._redone)

    def _after(self, seconds: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self._now + seconds, self._sequence, event))
        self._sequence += 1

    def _varied(self, seconds: float, cv: float) -> float:
        """A log-normal of that mean."""
        if not cv or not seconds:
            return seconds
        sigma2 = math.log1p(cv * cv)
        return seconds * self._rng.lognormvariate(-sigma2 / 2, sigma2**0.5)

    # Nodes

    def _order(self, index: int) -> None:
        pool = self._stream.pools[index]
        self._after(self._varied(pool.start_s, self._chance.start_cv), lambda: self._up(index))

    def _up(self, index: int) -> None:
        pool = self._stream.pools[index]
        slow = self._stream.slow_share > 0 and self._rng.random() < self._stream.slow_share
        node = _Node(index, self._stream.slow_factor if slow else 1.0, pool.cores)
        if pool.losses_per_s:
            self._after(self._rng.expovariate(pool.losses_per_s), lambda: self._lose(node))
        for _ in range(pool.actors):
            actor = _Actor(node, len(pool.steps))
            node.actors.append(actor)
            self._work(node, pool.actor_start_s, pool.cores > 0, partial(self._begin, actor))

    def _begin(self, actor: _Actor) -> None:
        self._hungry[actor.node.pool].append(actor)
        self._feed()

    def _lose(self, node: _Node) -> None:
        node.alive = False
        self._losses += 1
        for actor in node.actors:
            self._redone += actor.held
            for home in actor.parts:
                if home is None:
                    self._todo += 1
                    self._loading -= node.pool != self._last
                elif home.alive:
                    self._ready.appendleft(home)
                else:
                    self._todo += 1
        if node.pool != self._last:
            kept = deque(home for home in self._ready if home is not node)
            self._todo += len(self._ready) - len(kept)
            self._redone += len(self._ready) - len(kept)
            self._ready = kept
        self._order(node.pool)
        self._feed()

    # Parts

    def _feed(self) -> None:
        """Give parts to actors that have room, each one in turn."""
        for index, hungry in enumerate(self._hungry):
            while hungry and self._available(index):
                actor = hungry.popleft()
                if not actor.node.alive:
                    continue
                home = self._take(index)
                actor.held += 1
                actor.parts.append(home)
                if actor.held < self._stream.held(self._stream.pools[index]):
                    hungry.append(actor)
                self._dispatched(actor, home)

    def _available(self, index: int) -> bool:
        if index == 0:
            bounded = self._last > 0 and self._loading + len(self._ready) >= self._room
            return self._todo > 0 and not bounded
        return bool(self._ready)

    def _take(self, index: int) -> _Node | None:
        if index == 0:
            self._todo -= 1
            self._loading += self._last > 0
            return None
        return self._ready.popleft()

    def _dispatched(self, actor: _Actor, home: _Node | None) -> None:
        """The driver hands parts to the last pool's actors one by one."""
        if not self._stream.dispatch_s or actor.node.pool != self._last:
            self._arrive(actor, 0, home)
            return
        self._driver = max(self._driver, self._now) + self._stream.dispatch_s
        self._after(self._driver - self._now, lambda: self._arrive(actor, 0, home))

    def _arrive(self, actor: _Actor, at: int, home: _Node | None) -> None:
        if actor.node.alive:
            actor.queues[at].append(home)
            self._step(actor, at)

    def _step(self, actor: _Actor, at: int) -> None:
        """Begin step `at` of an actor with its next part, if it is free."""
        if actor.busy[at] or not actor.queues[at] or not actor.node.alive:
            return
        actor.busy[at] = True
        home = actor.queues[at].popleft()
        step = self._stream.pools[actor.node.pool].steps[at]
        self._work(actor.node, step.seconds, step.shared, lambda: self._stepped(actor, at, home))

    def _work(self, node: _Node, seconds: float, shared: bool, then: Callable[[], None]) -> None:
        """Work of a node, on one of its cores where they are shared: in the order in which it was asked for."""

        def begin() -> None:
            self._after(self._varied(seconds * node.factor, self._chance.step_cv), end)

        def end() -> None:
            if not node.alive:
                return
            if shared and node.waiting:
                node.waiting.popleft()()
            elif shared:
                node.free += 1
            then()

        if not shared:
            begin()
        elif node.free:
            node.free -= 1
            begin()
        else:
            node.waiting.append(begin)

    def _stepped(self, actor: _Actor, at: int, home: _Node | None) -> None:
        actor.busy[at] = False
        self._step(actor, at)
        if at + 1 < len(actor.queues):
            self._arrive(actor, at + 1, home)
            return
        actor.parts.remove(home)
        if actor.held == self._stream.held(self._stream.pools[actor.node.pool]):
            self._hungry[actor.node.pool].append(actor)
        actor.held -= 1
        if actor.node.pool == self._last:
            self._done += 1
        else:
            self._loading -= 1
            self._ready.append(actor.node)
        self._feed()


def play(stream: Stream, chance: Chance) -> Played:
    """One run of a stream."""
    return Simulation(stream, chance).run()
