"""Open-loop load on a service: requests leave when they are due, whether or not those before them were answered.

So a slow service is not spared: its latency counts from the moment at which a request was due.
"""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import numpy as np

from manet.client import encode_form

_LONGEST_S = 60.0
_SETTLES = 0.2  # of a level's time, until which its answers do not count for its rate: queues fill


@dataclass(kw_only=True)
class Outcome:
    """What became of the requests of one level."""

    offered: float
    seconds: float
    latencies: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    served: int = 0
    """Answered 200 within the level's time, its beginning left out."""

    def row(self) -> dict[str, Any]:
        """Rates a second, and milliseconds of the accepted requests (None where there were none)."""
        count = sum(self.statuses.values())
        refused = self.statuses[429] + self.statuses[503]
        found: dict[str, Any] = {
            "offered": round(count / self.seconds, 2),
            "served": round(self.served / (self.seconds * (1 - _SETTLES)), 2),
            "refused": refused,
            "failed": count - refused - self.statuses[200],
        }
        for percent in (50, 95, 99):
            value = float(np.percentile(self.latencies, percent)) * 1e3 if self.latencies else None
            found[f"p{percent}_ms"] = None if value is None else round(value, 1)
        return found


async def offer(address: str, pictures: Sequence[bytes], rate: float, seconds: float, seed: int = 0) -> Outcome:
    """Offer `rate` searches a second, at random moments, for some seconds; waits for the last answer.

    Args:
        address: of the service.
        pictures: the queries' files, in turn.
        rate: requests a second.
        seconds: how long they leave.
        seed: of the moments.
    """
    rng = random.Random(seed)
    outcome = Outcome(offered=rate, seconds=seconds)
    forms = [encode_form([("picture", picture)]) for picture in pictures]
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=_LONGEST_S)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        tasks: list[asyncio.Task[None]] = []
        began, due = time.monotonic(), 0.0
        while (due := due + rng.expovariate(rate)) < seconds:
            await asyncio.sleep(max(0.0, began + due - time.monotonic()))
            form = forms[len(tasks) % len(forms)]
            tasks.append(asyncio.create_task(_search(session, address, form, (began, began + due), outcome)))
        await asyncio.gather(*tasks)
    return outcome


async def _search(
    session: aiohttp.ClientSession, address: str, form: tuple[bytes, str], times: tuple[float, float], outcome: Outcome
) -> None:
    began, due = times
    body, kind = form
    status = 0
    try:
        async with session.post(f"{address}/v1/search", data=body, headers={"Content-Type": kind}) as response:
            await response.read()
            status = response.status
    except (aiohttp.ClientError, TimeoutError):
        status = 0
    now = time.monotonic()
    outcome.statuses[status] += 1
    if status == 200:
        outcome.latencies.append(now - due)
        outcome.served += _SETTLES * outcome.seconds < now - began <= outcome.seconds
