"""Memory that a process which computes on a CPU keeps; variables of its environment, read as it starts.

By itself glibc gives every large tensor back to the kernel and asks for it again at the next layer: page faults took a
quarter of a pass, and nearly half of a training step (BENCHMARKS.md). One arena, because threads with arenas of their own give
memory back whatever these variables say. Decode processes of a model actor inherit them.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

FOR_PASSES = {
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),  # bytes, the most that glibc takes: larger tensors are given back
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
    "MALLOC_ARENA_MAX": "1",
}
"""Of what describes pictures."""
FOR_TRAINING = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 36), "MALLOC_ARENA_MAX": "1"}
"""Of what trains: its tensors are larger."""


@contextmanager
def inherited(environ: Mapping[str, str]) -> Iterator[None]:
    """Variables that processes started meanwhile find in their environment."""
    before = {name: os.environ.get(name) for name in environ}
    os.environ.update(environ)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
