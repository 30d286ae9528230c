"""The decode process: `python -m jobs.decoder SETTINGS`. It imports no torch, no Ray and no store, and opens no file.

Requests come on its standard input, a batch of pictures' bytes each; the pixels go into memory that it shares with its
owner, one slot a picture, and a reply for each picture goes to its standard output: empty, or why it cannot be used. It ends
with its owner, whose end closes its input. A picture that takes too long ends it by SIGALRM; one that wants too much memory
is refused. Whatever else a decoder's bug may do, it does it here and not to the job.
"""

import json
import mmap
import os
import resource
import signal
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from manet.errors import PictureError
from manet.images import PictureConfig, Pixels, decode

COUNT, LENGTH = struct.Struct("<I"), struct.Struct("<Q")
READY = b"ready"
MEMORY = 3 << 30  # bytes that decoding one picture may take


def main() -> None:
    """Serve until the owner is gone."""
    serve(decode)


def serve(decoder: Callable[[bytes, PictureConfig], Pixels]) -> None:
    """Decode what comes on standard input by `decoder`, which raises PictureError for bytes that it cannot use."""
    import cv2

    cv2.setNumThreads(1)
    settings = json.loads(sys.argv[1])
    config = PictureConfig.model_validate(settings["pictures"])
    shape = (settings["slots"], config.size, config.size, 3)
    frames = np.ndarray(shape, np.uint8, mmap.mmap(settings["memory"], int(np.prod(shape))))
    _bound_memory()
    replies = _private_stdout()
    replies.write(READY)
    while batch := _read_batch(sys.stdin.buffer):
        for slot, data in enumerate(batch):
            signal.setitimer(signal.ITIMER_REAL, settings["seconds"])
            reply = b""
            try:
                frames[slot] = decoder(data, config)
            except PictureError as error:
                reply = f"{error.reason}\n{error.detail}".encode()
            signal.setitimer(signal.ITIMER_REAL, 0)
            replies.write(COUNT.pack(len(reply)) + reply)


def _private_stdout() -> BinaryIO:
    """The pipe to the owner; what a library prints goes nowhere from now on."""
    replies = os.fdopen(os.dup(1), "wb", buffering=0)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    return replies


def _bound_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    bound = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (bound, bound))


def _read_batch(requests: BinaryIO) -> list[bytes]:
    """The next batch; empty when the owner is gone."""
    return list(_pieces(requests))


def _pieces(requests: BinaryIO) -> Iterator[bytes]:
    head = requests.read(COUNT.size)
    if len(head) < COUNT.size:
        return
    (count,) = COUNT.unpack(head)
    lengths = [LENGTH.unpack(requests.read(LENGTH.size))[0] for _ in range(count)]
    for length in lengths:
        yield requests.read(length)


if __name__ == "__main__":
    main()
