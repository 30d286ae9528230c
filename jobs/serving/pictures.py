"""Decoding for a service: a few decode processes, each used by one request at a time; items' images, resized and kept."""

from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue

import cv2
import numpy as np

from jobs.decoding import Decoder
from jobs.drawing import jpeg
from jobs.pictures import Picture
from jobs.serving.settings import SIDES
from manet.errors import PictureError
from manet.images import PictureConfig

_KEPT = 4096  # images of items, some 10 to 30 KB each


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
    """The gallery's pictures as JPEG squares of a few sizes, those asked for last kept."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[str, int], bytes] = OrderedDict()

    def kept(self, uri: str, side: int) -> bytes | None:
        """The picture at a URI, JPEG, if it is at hand."""
        found = self._kept.get((uri, side))
        if found is not None:
            self._kept.move_to_end((uri, side))
        return found

    def keep(self, uri: str, side: int, square: Picture) -> bytes:
        """The decoded picture in this size, JPEG, kept from now on."""
        data = jpeg(square if side == SIDES[-1] else cv2.resize(square, (side, side), interpolation=cv2.INTER_AREA))
        self._kept[uri, side] = data
        while len(self._kept) > _KEPT:
            self._kept.popitem(last=False)
        return data
