"""How a gateway hands pictures to the embedders: alone while these keep up; what came while all were busy goes together.

A message costs the same however many pictures it carries (some ten milliseconds of a core, in all processes that it passes).
"""

import asyncio
from typing import Any

from jobs.serving.embedder import Asked, Seen

MESSAGES = 2  # to each embedder at a time: one that it works on, one that waits, so that it never does
_TOGETHER = 4  # pictures of a message, at most, or those of one pass


class Dispatch:
    """Pictures -> what the embedders saw.

    Args:
        embedder: handle of the embedders, which takes a list of `Asked` and gives a list of `Seen | None`.
        messages: on their way at a time.
        batch: pictures of an embedder's pass.
    """

    def __init__(self, embedder: Any, messages: int, batch: int) -> None:  # noqa: ANN401 - a handle of Ray Serve
        self._embedder, self._free, self._most = embedder, messages, max(_TOGETHER, batch)
        self._waiting: list[tuple[Asked, asyncio.Future[Seen | None]]] = []
        self._sent: set[asyncio.Task[None]] = set()

    async def __call__(self, asked: Asked) -> Seen | None:
        """What was seen of a picture; None: its feature map is dead.

        Raises:
            RayActorError: the embedder that was at it is lost.
            DeploymentUnavailableError: there is none.
        """
        future: asyncio.Future[Seen | None] = asyncio.get_running_loop().create_future()
        self._waiting.append((asked, future))
        self._send()
        return await future

    def _send(self) -> None:
        self._waiting = [pair for pair in self._waiting if not pair[1].done()]  # whoever gave up is not sent
        while self._waiting and self._free:
            count = min(self._most, -(-len(self._waiting) // self._free))
            taken, self._waiting = self._waiting[:count], self._waiting[count:]
            self._free -= 1
            task = asyncio.create_task(self._carry(taken))
            self._sent.add(task)
            task.add_done_callback(self._sent.discard)

    async def _carry(self, pairs: list[tuple[Asked, "asyncio.Future[Seen | None]"]]) -> None:
        try:
            seen: list[Seen | None] = await self._embedder.remote([asked for asked, _ in pairs])
        except Exception as error:
            for _, future in pairs:
                if not future.done():
                    future.set_exception(error)
        else:
            for (_, future), one in zip(pairs, seen, strict=True):
                if not future.done():
                    future.set_result(one)
        finally:
            self._free += 1
            self._send()
