"""Work measured in a process of its own: its seconds, its peak memory, what an opened index keeps resident.

As a program (`python -m jobs.bench.probing INDEX QUERIES.npy NPROBE REFINE THREADS`) it opens an index of this project in a fresh
process, as `by_hand.py open` does a stock one.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cluster.errors import JobFailedError
from jobs.bench.by_hand import K, used

_EVERY = 0.2  # seconds between two looks at the memory
_MIB = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Of a finished process and all below it: wall seconds, its last line as JSON, and peak MiB (proportional set size).

    `peak_own_mib` leaves out pages of files, which can be dropped at any time; `largest_mib` is that of one process.
    """

    seconds: float
    peak_mib: float
    peak_own_mib: float
    largest_mib: float
    result: dict[str, Any]


def measured(command: Sequence[str], label: str, **environ: str) -> Measured:
    """Run a command that prints one JSON object as its last line, and watch the memory of all its processes.

    Pages that several processes share are counted once, divided among them.

    Raises:
        JobFailedError: it failed; its last line on stderr is named.
    """
    started, peak, own, largest = time.monotonic(), 0, 0, 0
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(list(command), stdout=out, stderr=errors, env={**os.environ, **environ})
        while True:
            sizes = tree_bytes(process.pid)
            peak, largest = max(peak, sum(size for size, _ in sizes)), max(largest, *(size for size, _ in sizes), 0)
            own = max(own, sum(size - mapped for size, mapped in sizes))
            try:
                process.wait(_EVERY)
                break
            except subprocess.TimeoutExpired:
                continue
            except BaseException:
                process.kill()
                raise
        seconds = time.monotonic() - started
        out.seek(0)
        errors.seek(0)
        lines, said = out.read().splitlines(), errors.read().strip().splitlines()
    if process.returncode or not lines:
        raise JobFailedError(f"{label} failed: {said[-1] if said else f'exit code {process.returncode}'}")
    return Measured(
        seconds=round(seconds, 2),
        peak_mib=round(peak / _MIB, 1),
        peak_own_mib=round(own / _MIB, 1),
        largest_mib=round(largest / _MIB, 1),
        result=json.loads(lines[-1]),
    )


def measured_job(job: str, flags: Mapping[str, object]) -> Measured:
    """Run a job of this project, on a Ray of its own, as `measured`."""
    words = [str(word) for pair in flags.items() for word in pair]
    return measured([sys.executable, "-m", "jobs", job, *words], f"manet {job}", RAY_ADDRESS="")


def tree_bytes(root: int) -> list[tuple[int, int]]:
    """Proportional set size of a process and of each below it, and how much of it files back, bytes.

    Those that end meanwhile are left out.
    """
    sizes = []
    for pid in _tree(root):
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        fields = {words[0]: int(words[1]) << 10 for words in map(str.split, lines[1:])}
        sizes.append((fields.get("Pss:", 0), fields.get("Pss_File:", 0)))
    return sizes


def tree_cpu_seconds(root: int) -> float:
    """CPU-seconds of a process, of each below it, and of those that have ended and were waited for."""
    ticks = 0
    for pid in _tree(root):
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        ticks += sum(map(int, fields[11:15]))  # user, system, and both of children that have ended
    return ticks / os.sysconf("SC_CLK_TCK")


def _tree(root: int) -> list[int]:
    """A process and all below it."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rpartition(")")[2].split()[1])
        except (OSError, IndexError):
            continue
        children.setdefault(parent, []).append(int(path.parent.name))
    found, waiting = [], [root]
    while waiting:
        found.append(waiting.pop())
        waiting += children.get(found[-1], [])
    return found


def opened(uri: str, queries: str, nprobe: str, refine: str, threads: str) -> dict[str, Any]:
    """Open an index of this project: seconds to the first answer, what stays resident, queries a second."""
    from jobs.querying import open_index, open_searcher
    from manet.search import Searcher

    def opening() -> Searcher:
        return open_searcher(open_index(uri), nprobe=int(nprobe), refine=int(refine), threads=int(threads))

    queries_QD = np.load(queries).astype(np.float32)
    return used(opening, lambda searcher, batch, _: searcher.search(batch, K), len, queries_QD, int(threads))[1]


if __name__ == "__main__":
    sys.stdout.write(json.dumps(opened(*sys.argv[1:])) + "\n")
