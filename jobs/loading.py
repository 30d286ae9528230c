"""Rows of a table -> prepared pictures: many fetches in flight, decoding in processes of their own.

The same loader works inside a model actor (its next part is loaded while this one is described) and in decode actors of
their own, for GPU nodes with few cores.
"""

import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

import numpy as np

from jobs.decoding import SLOTS, Decoder, Frames
from jobs.inputs import Table
from jobs.pictures import fetch_picture, reject_row
from manet.errors import PictureError
from manet.images import PictureConfig

FETCHES = 16  # requests in flight of one loader


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """Pictures that can be used, uint8 [n, size, size, 3], with (id, uri) of each; rejects; seconds and bytes by stage."""

    pictures: list[tuple[str, str]]
    pixels: Frames
    rejects: list[dict[str, str]]
    spent: dict[str, float]


class Loader:
    """Loads row ranges of a table; `load` may be called from several threads.

    Args:
        table: with URIs, or with the pictures' bytes themselves.
        config: how pictures are prepared.
        decoders: decode processes.
        seconds: time limit of decoding one picture.
        module: what a decode process runs.
    """

    def __init__(
        self, table: Table, config: PictureConfig, *, decoders: int, seconds: float, module: str = "jobs.decoder"
    ) -> None:
        self._table, self._config = table, config
        self._idle: SimpleQueue[Decoder] = SimpleQueue()
        self._all = [Decoder(config, seconds, module) for _ in range(decoders)]
        for decoder in self._all:
            self._idle.put(decoder)
        self._fetching = ThreadPoolExecutor(FETCHES, thread_name_prefix="fetch")
        self._decoding = ThreadPoolExecutor(decoders, thread_name_prefix="decode")

    def load(self, start: int, stop: int) -> Loaded:
        """Rows start..stop, in order.

        Raises:
            StoreError: the store itself does not answer as it should: no picture's fault, so the job must fail.
            JobFailedError: the decode processes do not start.
        """
        began = time.monotonic()
        rows = self._table.sources(start, stop)
        sources = [self._fetching.submit(_source, uri, data) for _, uri, data in rows]
        pixels = np.empty((len(rows), self._config.size, self._config.size, 3), np.uint8)
        chunks = [
            self._decoding.submit(self._decode, sources[at : at + SLOTS], pixels[at : at + SLOTS])
            for at in range(0, len(rows), SLOTS)
        ]
        try:
            done = [chunk.result() for chunk in chunks]
        finally:
            for source in sources:
                source.cancel()
            for chunk in chunks:
                chunk.cancel()
        results = [result for results, _ in done for result in results]
        rejects = [
            reject_row(image_id, uri, "decode", error)
            for (image_id, uri, _), error in zip(rows, results, strict=True)
            if error is not None
        ]
        usable = np.array([error is None for error in results], bool)
        fetched = [source.result() for source in sources]
        return Loaded(
            pictures=[row[:2] for row, ok in zip(rows, usable, strict=True) if ok],
            pixels=pixels if usable.all() else pixels[usable],
            rejects=rejects,
            spent={
                "fetch_s": sum(seconds for _, seconds in fetched),
                "fetch_bytes": float(sum(len(data) for data, _ in fetched if isinstance(data, bytes))),
                "decode_s": sum(seconds for _, seconds in done),
                "load_s": time.monotonic() - began,
            },
        )

    @property
    def restarts(self) -> int:
        """Decode processes that had to be started again."""
        return sum(decoder.restarts for decoder in self._all)

    def waits_for(self) -> str:
        """What a load that is going on waits for: pictures of the store, or their decoding."""
        return "the store" if self._idle.qsize() == len(self._all) else "decoding"

    def close(self) -> None:
        """End all threads and processes."""
        self._fetching.shutdown(cancel_futures=True)
        self._decoding.shutdown(cancel_futures=True)
        for decoder in self._all:
            decoder.close()

    def _decode(
        self, sources: Sequence["Future[tuple[bytes | PictureError, float]]"], out: Frames
    ) -> tuple[list[PictureError | None], float]:
        """Decode one chunk; for each picture None or what is wrong; and the seconds that it took."""
        found = [source.result()[0] for source in sources]
        results: list[PictureError | None] = [None if isinstance(data, bytes) else data for data in found]
        readable = [index for index, data in enumerate(found) if isinstance(data, bytes)]
        batch: list[Any] = [found[index] for index in readable]
        frames = out if len(readable) == len(found) else np.empty((len(batch), *out.shape[1:]), np.uint8)
        began = time.monotonic()
        decoder = self._idle.get()
        try:
            for index, error in zip(readable, decoder.decode(batch, frames), strict=True):
                results[index] = error
        finally:
            self._idle.put(decoder)
        if frames is not out:
            out[readable] = frames
        return results, time.monotonic() - began


def _source(uri: str, data: bytes | None) -> tuple[bytes | PictureError, float]:
    """A picture's bytes, or why there are none; and the seconds that it took to get them."""
    began = time.monotonic()
    found = fetch_picture(uri, data)
    return found, time.monotonic() - began
