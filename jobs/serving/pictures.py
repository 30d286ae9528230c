"""Decoding for a service: a few decode processes, each used by one request at a time; items' images, resized and kept."""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from queue import SimpleQueue

import cv2
import numpy as np

from jobs.decoding import Decoder
from jobs.drawing import jpeg
from jobs.pictures import Picture
from jobs.serving.refusals import Refusal
from jobs.serving.settings import SIDES
from manet.errors import PictureError
from manet.images import PictureConfig

_KEPT = 4096  # images of items, some 10 to 30 KB each
ImageKey = tuple[str, str, int]  # sha256 of the index's manifest, image id, side in px


class Decoders:
    """Decode processes of one picture preparation; `decode` may be called from several threads.

    Args:
        config: how pictures are prepared.
        count: processes.
        seconds: time limit of one picture.
    """

    def __init__(self, config: PictureConfig, count: int, seconds: float) -> None:
        self._config = config
        self._all = [Decoder(config, seconds) for _ in range(count)]
        self._idle: SimpleQueue[Decoder] = SimpleQueue()
        for decoder in self._all:
            self._idle.put(decoder)
        self.threads = ThreadPoolExecutor(count, thread_name_prefix="decode")

    def start(self) -> None:
        """Bring every process up, so that no request waits for it."""
        for decoder in [self._decode_one(b"")[0] for _ in self._all]:
            self._idle.put(decoder)

    def decode(self, data: bytes) -> Picture:
        """One picture, uint8 [size, size, 3].

        Raises:
            PictureError: it cannot be used.
        """
        decoder, picture, error = self._decode_one(data)
        self._idle.put(decoder)
        if error is not None:
            raise error
        return picture

    @property
    def max_pixels(self) -> int:
        """Largest width x height that is decoded."""
        return self._config.max_pixels

    @property
    def restarts(self) -> int:
        """Processes that a picture ended."""
        return sum(decoder.restarts for decoder in self._all)

    def _decode_one(self, data: bytes) -> tuple[Decoder, Picture, PictureError | None]:
        decoder = self._idle.get()
        frames = np.empty((1, self._config.size, self._config.size, 3), np.uint8)
        try:
            (error,) = decoder.decode([data], frames)
        except BaseException:
            self._idle.put(decoder)
            raise
        return decoder, frames[0], error


class Images:
    """The gallery's pictures as JPEG squares of a few sizes, those asked for last kept.

    Args:
        most: made at a time, each from a whole original in memory.
        seconds: that a request waits for its turn, at most.
    """

    def __init__(self, most: int, seconds: float) -> None:
        self._turns, self._seconds = asyncio.Semaphore(most), seconds
        self._kept: OrderedDict[ImageKey, bytes] = OrderedDict()

    async def get(self, key: ImageKey, load: Callable[[], Awaitable[Picture]]) -> bytes:
        """A picture, JPEG: kept, or made of the square that `load` gives.

        Raises:
            Refusal: too many are being made; or what `load` raises.
        """
        if key not in self._kept:
            async with self._turn():
                if key not in self._kept:  # others may have waited for the same one
                    self._keep(key, await load())
        self._kept.move_to_end(key)
        return self._kept[key]

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self._seconds):
                await self._turns.acquire()
        except TimeoutError:
            raise Refusal(503, "overloaded", "Too many pictures are asked for; try again.", retry_after=1) from None
        try:
            yield
        finally:
            self._turns.release()

    def _keep(self, key: ImageKey, square: Picture) -> None:
        side = key[-1]
        self._kept[key] = jpeg(
            square if side == SIDES[-1] else cv2.resize(square, (side, side), interpolation=cv2.INTER_AREA)
        )
        while len(self._kept) > _KEPT:
            self._kept.popitem(last=False)
