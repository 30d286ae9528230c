"""How a gateway hands pictures to the embedders: alone while these keep up; what came while all were busy goes together.

A message costs the same however many pictures it carries (some ten milliseconds of a core, in all processes that it passes).
"""

import asyncio
from contextvars import Context
from typing import Any

from jobs.serving.embedder import Asked, Seen

MESSAGES = 2  # to each embedder at a time, of all gateways: one that it works on, one that waits, so that it never does
_TOGETHER = 4  # pictures of a message, at most, or those of one pass
_Pair = tuple[Asked, "asyncio.Future[Seen | None]"]


class LostError(Exception):
    """A message was given up on its way; its pictures may be sent again."""


class Dispatch:
    """Pictures -> what the embedders saw.

    Args:
        embedder: handle of the embedders: a list of `Asked` -> for each what was seen, None, or what its pass raised.
        messages: on their way at a time.
        batch: pictures of an embedder's pass.
    """

    def __init__(self, embedder: Any, messages: int, batch: int) -> None:  # noqa: ANN401 - a handle of Ray Serve
        self._embedder, self._most = embedder, max(_TOGETHER, batch)
        self._messages = self._free = messages
        self._waiting: list[_Pair] = []
        self._sent: set[asyncio.Task[None]] = set()

    async def __call__(self, asked: Asked) -> Seen | None:
        """What was seen of a picture; None: its feature map is dead.

        Raises:
            RayActorError: the embedder that was at it is lost.
            DeploymentUnavailableError: there is none.
            LostError: nothing came back.
        """
        future: asyncio.Future[Seen | None] = asyncio.get_running_loop().create_future()
        self._waiting.append((asked, future))
        self._send()
        return await future

    def _send(self) -> None:
        self._waiting = [pair for pair in self._waiting if not pair[1].done()]  # whoever gave up is not sent
        while self._waiting and self._free:
            count = min(self._most, -(-len(self._waiting) // self._messages))  # some for those that come back next
            taken, self._waiting = self._waiting[:count], self._waiting[count:]
            self._free -= 1
            # In nobody's context: Ray Serve ends what a caller began when that caller leaves.
            task = asyncio.get_running_loop().create_task(self._carry(taken), context=Context())
            self._sent.add(task)
            task.add_done_callback(self._sent.discard)

    async def _carry(self, pairs: list[_Pair]) -> None:
        seen: list[Seen | Exception | None]
        try:
            seen = await self._embedder.remote([asked for asked, _ in pairs])
        except asyncio.CancelledError:
            seen = [LostError("the message was cancelled") for _ in pairs]
        except Exception as error:
            seen = [error] * len(pairs)
        self._free += 1
        for (_, future), one in zip(pairs, seen, strict=True):
            if future.done():
                continue
            if isinstance(one, Exception):
                future.set_exception(one)
            else:
                future.set_result(one)
        self._send()
