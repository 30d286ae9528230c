"""Decode processes and their owner: a picture that crashes or hangs its decoder costs that process, not the job.

A `Decoder` owns one process of `jobs.decoder` and gives it small batches. When the process dies, the picture that it was at is
tried again alone, in a new process; when that ends the same way, the picture is the culprit and becomes a reject.
"""

import contextlib
import json
import mmap
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import IO, Any, cast

import numpy as np

from cluster.errors import JobFailedError
from jobs.decoder import COUNT, LENGTH, READY
from manet.errors import PictureError, Reason
from manet.images import PictureConfig

SLOTS = 16  # pictures of one batch
START_S = 120.0  # bound on the start of a process
STARTS = 3  # of a process, before the job fails
BACKSTOP_S = 15.0  # beyond a picture's time limit, for a process that even its alarm does not end
KILLED_TRIES = 5  # of a picture whose process was killed from outside: hardly the picture's fault
Frames = np.ndarray[Any, np.dtype[np.uint8]]


class _DiedError(Exception):
    """The process is gone."""


class Decoder:
    """One decode process; used by one thread at a time.

    Args:
        config: how pictures are prepared.
        seconds: time limit of one picture.
        module: what the process runs.
    """

    def __init__(self, config: PictureConfig, seconds: float, module: str = "jobs.decoder") -> None:
        self._config, self._seconds, self._module = config, seconds, module
        shape = (SLOTS, config.size, config.size, 3)
        self._memory = os.memfd_create("manet-frames")
        os.ftruncate(self._memory, int(np.prod(shape)))
        self._frames: Frames = np.ndarray(shape, np.uint8, mmap.mmap(self._memory, int(np.prod(shape))))
        self._process: subprocess.Popen[bytes] | None = None
        self.restarts = 0

    def decode(self, pictures: Sequence[bytes], out: Frames) -> list[PictureError | None]:
        """Decode pictures into `out`, uint8 [n, size, size, 3]; for each None, or why it cannot be used.

        Raises:
            JobFailedError: the process does not start.
        """
        results: list[PictureError | None] = []
        tries = 0  # of the picture that is next, each the end of a process
        while (at := len(results)) < len(pictures):
            batch = pictures[at : at + (1 if tries else SLOTS)]
            replies, died = self._ask(batch, out[at:])
            results += replies
            tries = 0 if replies else tries
            if died is not None:
                tries += 1
                if tries >= (KILLED_TRIES if died.detail.endswith("SIGKILL") else 2):
                    results.append(died)
                    tries = 0
        return results

    def close(self) -> None:
        """End the process and let go of its pipes."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in _pipes(process):
                with contextlib.suppress(BrokenPipeError):  # what was not sent yet has nobody to go to
                    pipe.close()

    def _ask(self, batch: Sequence[bytes], out: Frames) -> tuple[list[PictureError | None], PictureError | None]:
        """Replies for the pictures of a batch in order; and the end of the process, if it ended at the next one."""
        replies: list[PictureError | None] = []
        process = self._process or self._start()
        self._process = process
        try:
            requests, answers = _pipes(process)
            head = [COUNT.pack(len(batch)), *(LENGTH.pack(len(data)) for data in batch)]
            try:
                requests.write(b"".join([*head, *batch]))
                requests.flush()
            except BrokenPipeError:
                raise _DiedError from None
            for slot in range(len(batch)):
                (length,) = COUNT.unpack(_read(answers, COUNT.size, self._seconds + BACKSTOP_S))
                if length:
                    reason, _, detail = _read(answers, length, BACKSTOP_S).decode().partition("\n")
                    replies.append(PictureError(Reason(reason), detail))
                else:
                    out[slot] = self._frames[slot]
                    replies.append(None)
        except _DiedError:
            return replies, self._bury(process)
        return replies, None

    def _bury(self, process: subprocess.Popen[bytes]) -> PictureError:
        """How a process ended, as what it says of its picture."""
        try:
            code = process.wait(1)
        except subprocess.TimeoutExpired:
            code = -signal.SIGALRM  # it did not answer, and is not gone: `close` kills it
        self.close()
        self.restarts += 1
        if code == -signal.SIGALRM:
            return PictureError(Reason.TIMED_OUT, f"not decoded in {self._seconds:g} s")
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return PictureError(Reason.CRASHED_DECODER, f"the decode process ended by {how}")

    def _start(self) -> subprocess.Popen[bytes]:
        said = ""
        for _ in range(STARTS):
            with tempfile.TemporaryFile() as errors:
                process = self._spawn(errors)
                try:
                    if _read(_pipes(process)[1], len(READY), START_S) == READY:
                        return process
                except _DiedError:
                    self._process = process
                    self.close()
                errors.seek(0)
                said = " ".join(errors.read().decode(errors="replace").split())[-200:]
        raise JobFailedError(f"the decode process does not start: {said or 'it says nothing'}")

    def _spawn(self, errors: IO[bytes]) -> subprocess.Popen[bytes]:
        settings = {
            "pictures": self._config.model_dump(),
            "slots": SLOTS,
            "memory": self._memory,
            "seconds": self._seconds,
        }
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        path = os.pathsep.join(entry or "." for entry in sys.path)
        return subprocess.Popen(
            [sys.executable, "-m", self._module, json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            pass_fds=[self._memory],
            env={**os.environ, **threads, "PYTHONPATH": path},
        )

    def __del__(self) -> None:
        self.close()
        os.close(self._memory)


def _pipes(process: subprocess.Popen[bytes]) -> tuple[IO[bytes], IO[bytes]]:
    """Where requests go, and where replies come from."""
    return cast(IO[bytes], process.stdin), cast(IO[bytes], process.stdout)


def _read(pipe: IO[bytes], count: int, seconds: float) -> bytes:
    """Exactly `count` bytes; the process is dead when they do not come in time."""
    data = b""
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    while len(data) < count:
        if not poll.poll(seconds * 1000):
            raise _DiedError
        piece = os.read(pipe.fileno(), count - len(data))
        if not piece:
            raise _DiedError
        data += piece
    return data
