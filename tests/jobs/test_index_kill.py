"""An index that is built and changed by drivers that are killed at random moments, with a reader that never notices."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from cluster.errors import ArtifactMissingError
from jobs.querying import open_index, open_newest_searcher, open_searcher
from manet.exact import exact_search
from tests.conftest import ROOT
from tests.jobs.helpers import checksums
from tests.jobs.test_living import FACTORY, Matrix, describe, vectors_of

KILLS = 10
SEED = 20
ALWAYS = [f"a{row:04d}" for row in range(100, 140)]  # never deleted: a reader must see them in every version


class Life:
    """The same four commands over the same inputs, into a folder of its own."""

    def __init__(self, folder: Path, inputs: Path) -> None:
        self.uri = str(folder / "index")
        change = ("--index", self.uri, "--ray-cpus", "2", "--object-store-mib", "128")
        build = ("--descriptors", str(inputs / "a"), "--out", self.uri, "--factory", FACTORY, *change[2:])
        self.commands: tuple[tuple[str, ...], ...] = (
            ("index", *build, "--shard-rows", "100", "--no-details"),
            ("index", "add", *change, "--descriptors", str(inputs / "b"), "--shard-rows", "50"),
            ("index", "delete", *change, "--ids", str(inputs / "gone.txt")),
            ("index", "compact", *change, "--shard-rows", "200", "--max-drift", "1.01"),
        )


def start(command: tuple[str, ...], log: Path) -> subprocess.Popen[bytes]:
    """A driver in a process group of its own."""
    with log.open("ab") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "jobs", *command], cwd=ROOT, stdout=file, stderr=file, start_new_session=True
        )


def run_to_its_end(command: tuple[str, ...], log: Path) -> float:
    """Seconds that an undisturbed run took."""
    began = time.monotonic()
    assert start(command, log).wait(600) == 0, log.read_text()
    return time.monotonic() - began


def killed_at(command: tuple[str, ...], log: Path, after: float) -> bool:
    """Run a driver and kill its process group after some seconds; whether it was running still."""
    process = start(command, log)
    try:
        assert process.wait(after) == 0, log.read_text()
        return False
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(60)
        return True


class Reader(threading.Thread):
    """Opens the newest version again and again, and looks for the ids that every version has."""

    def __init__(self, uri: str, queries: Matrix) -> None:
        super().__init__(daemon=True)
        self.uri, self.queries = uri, queries
        self.stop, self.faults, self.seen = threading.Event(), list[str](), list[int]()

    def run(self) -> None:
        while not self.stop.is_set():
            try:
                artifact, searcher = open_newest_searcher(self.uri, nprobe=8, refine=1000)
                found = [hits[0].image_id for hits in searcher.search(self.queries, 1)]
                assert found == ALWAYS, "an id is missing"
                assert len(searcher) == artifact.manifest.summary["rows"], "a torn index"
                self.seen.append(artifact.manifest.number)
            except ArtifactMissingError as error:  # before the first commit there is none
                if self.seen:
                    self.faults.append(repr(error))
            except Exception as error:
                self.faults.append(repr(error))
            self.stop.wait(0.2)


def state(uri: str) -> tuple[int, dict[str, object], list[str]]:
    """Version, rows, and each live id with the bytes of its vector."""
    index = open_index(uri)
    index.verify()
    summary = {name: index.manifest.summary[name] for name in ("rows", "shards", "deleted")}
    return index.manifest.number, summary, sorted(set(checksums(uri, "index").values()))


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_a_life_of_kills(tmp_path: Path) -> None:
    inputs = tmp_path / "inputs"
    inputs.mkdir()
    gallery, new = vectors_of(300, 0), vectors_of(200, 5, spread=1)
    describe(inputs / "a", [f"a{row:04d}" for row in range(300)], gallery)
    describe(inputs / "b", [f"b{row:04d}" for row in range(200)], new)
    gone = [f"a{row:04d}" for row in range(0, 90, 2)] + ["b0003"]
    (inputs / "gone.txt").write_text("\n".join(gone))
    calm, wild, log = Life(tmp_path / "calm", inputs), Life(tmp_path / "wild", inputs), tmp_path / "log"
    lasted = [run_to_its_end(command, log) for command in calm.commands]
    rng = random.Random(SEED)
    queries = np.asarray(gallery[100:140], np.float32)
    reader = Reader(wild.uri, queries)
    reader.start()
    kills = 0
    try:
        for place, command in enumerate(wild.commands):
            wanted = KILLS * (place + 1) // len(wild.commands)
            while kills < wanted:
                if not killed_at(command, log, rng.uniform(0.2, 0.6) * lasted[place]):
                    break  # it ended before its kill: the next command takes that on
                kills += 1
            run_to_its_end(command, log)
    finally:
        reader.stop.set()
        reader.join(120)
    assert reader.faults == []
    assert reader.seen == sorted(reader.seen)
    assert kills == KILLS  # each hit a driver at work
    assert state(wild.uri) == state(calm.uri)
    held = dict(zip([f"a{row:04d}" for row in range(300)], gallery, strict=True))
    held |= dict(zip([f"b{row:04d}" for row in range(200)], new, strict=True))
    names = sorted(set(held) - set(gone))
    vectors = np.array([held[name] for name in names])
    searcher = open_searcher(open_index(wild.uri), nprobe=8, refine=10_000)
    found = [[hit.image_id for hit in hits] for hits in searcher.search(vectors[::7].astype(np.float32), 7)]
    assert found == [
        [names[row] for row in rows] for rows in exact_search(vectors, vectors[::7].astype(np.float32), 7)[1]
    ]
