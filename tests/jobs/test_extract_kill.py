"""An extraction on a cluster of two nodes whose processes are killed at random: 30 times, and nobody can tell."""

import os
import random
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from cluster.local_s3 import free_ports
from tests.conftest import ROOT, Run
from tests.jobs.helpers import checksums, summary_of

RAY = str(Path(sys.executable).with_name("ray"))
SEED = 30
KILLS = {"decoder": 10, "actor": 10, "node": 4, "driver": 6}
PART_ROWS = 12
IN_FLIGHT = 3  # parts that an actor holds: the default of --parts-in-flight
LOST = {
    "decoder": 0,
    "actor": IN_FLIGHT,
    "node": IN_FLIGHT,
    "driver": 2 * IN_FLIGHT,
}  # parts in flight, at most, of a kill
NEXT_S = 120.0  # bound on the wait for the next victim


class Nodes:
    """A real cluster: a head of one CPU, and one more node, which is killed and replaced. Nothing of it is mocked."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        (port,) = free_ports(1)
        self.address = f"127.0.0.1:{port}"
        self.environ = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        self._head = self._start("--head", "--include-dashboard=false", f"--port={port}", f"--temp-dir={folder}")
        self._wait_for_head()
        self._other = self._start_other()

    def _start_other(self) -> subprocess.Popen[bytes]:
        return self._start(f"--address={self.address}", "--node-ip-address=127.0.0.2")

    def _start(self, *flags: str) -> subprocess.Popen[bytes]:
        agent, metrics = free_ports(2)
        command = [RAY, "start", "--block", "--num-cpus=1", "--object-store-memory=200000000", "--disable-usage-stats"]
        command += [f"--dashboard-agent-listen-port={agent}", f"--metrics-export-port={metrics}", *flags]
        with Path(self._folder, "nodes.log").open("ab") as log:
            return subprocess.Popen(command, env=self.environ, stdout=log, stderr=log, start_new_session=True)

    def _wait_for_head(self) -> None:
        deadline = time.monotonic() + 90
        asked = [RAY, "status", "--address", self.address]
        while subprocess.run(asked, env=self.environ, capture_output=True, timeout=60, check=False).returncode:
            assert self._head.poll() is None, self.said()
            assert time.monotonic() < deadline, self.said()
            time.sleep(1)

    def said(self) -> str:
        """The end of what the nodes said."""
        return Path(self._folder, "nodes.log").read_text()[-2000:]

    def processes(self, *words: str) -> list[psutil.Process]:
        """Processes of both nodes, those whose command has one of some words."""
        found = []
        for node in (self._head, self._other):
            for process in _below(node.pid):
                with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                    if any(word in " ".join(process.cmdline()) for word in words or ("",)):
                        found.append(process)
        return found

    def kill_other(self) -> None:
        """The second node dies with all that runs on it; another one joins."""
        _kill([psutil.Process(self._other.pid), *_below(self._other.pid)])
        self._other.wait(60)
        self._other = self._start_other()

    def close(self) -> None:
        """End both nodes and all that runs on them."""
        _kill([psutil.Process(node.pid) for node in (self._other, self._head)] + self.processes())
        for node in (self._other, self._head):
            node.wait(60)


def _below(pid: int) -> list[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).children(recursive=True)
    return []


def _kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=60)


class Watch(threading.Thread):
    """Notes each writing of each part: a part that is put again is a new file under the same name."""

    def __init__(self, folder: Path) -> None:
        super().__init__(daemon=True)
        self._folder = folder
        self.stop = threading.Event()
        self.written: dict[str, list[int]] = {}

    def run(self) -> None:
        while not self.stop.wait(0.01):
            self.look()

    def look(self) -> None:
        """Note what stands in the folder now."""
        for path in self._folder.glob("part-*.parquet"):
            found = self.written.setdefault(path.name, [])
            with suppress(FileNotFoundError):
                at = path.stat().st_mtime_ns
                if at not in found:
                    found.append(at)

    def parts(self) -> int:
        """Parts that have been written, once or more."""
        return len(self.written)

    def redone(self) -> int:
        """Writings of parts that had been written before."""
        return sum(len(each) - 1 for each in list(self.written.values()))


class Driver:
    """The command, in a process group of its own; started again, it is the same command."""

    def __init__(self, command: tuple[object, ...], nodes: Nodes, log: Path) -> None:
        self._command, self._nodes, self._log = [sys.executable, "-m", "jobs", *map(str, command)], nodes, log
        self._environ = {**nodes.environ, "RAY_ADDRESS": nodes.address}
        self.start()

    def start(self) -> None:
        """Run it."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, cwd=ROOT, env=self._environ, stdout=log, stderr=log, start_new_session=True
            )

    def kill(self) -> None:
        """It dies, and whatever is of its process group."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(60)

    def runs(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def end(self) -> int:
        """Its exit code, once it has come to its end."""
        return self._process.wait(400)


def kill_one(kind: str, nodes: Nodes, driver: Driver, rng: random.Random) -> bool:
    """Kill a process of a kind; False when there is none just now."""
    if kind == "driver":
        driver.kill()
        driver.start()
    elif kind == "node":
        nodes.kill_other()
    else:
        found = nodes.processes({"decoder": "jobs.decoder", "actor": "ray::MapWorker"}[kind])
        if not found:
            return False
        rng.choice(found).kill()
    return True


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_nobody_can_tell(manet: Run, model: Path, tmp_path: Path) -> None:
    summary_of(
        manet("render", "--products", 1200, "--queries", 0, "--size", 96, "--out", tmp_path / "shop", timeout=600)
    )
    command = (
        "extract",
        "--catalog",
        tmp_path / "shop" / "catalog",
        "--model",
        model,
        "--part-rows",
        PART_ROWS,
        "--out",
    )
    calm = summary_of(manet(*command, tmp_path / "calm", timeout=600))
    wild, log, rng = tmp_path / "wild", tmp_path / "log", random.Random(SEED)
    victims = [kind for kind, count in KILLS.items() for _ in range(count)]
    rng.shuffle(victims)
    scratch = tempfile.mkdtemp(prefix="ray-")  # short: Ray's sockets lie below it
    watch, kills, nodes = Watch(wild), Counter[str](), Nodes(scratch)
    watch.start()
    driver = Driver((*command, wild), nodes, log)
    try:
        for kind in victims:
            wanted, deadline = watch.parts() + rng.randint(1, 4), time.monotonic() + NEXT_S
            while watch.parts() < wanted or not kill_one(kind, nodes, driver, rng):
                assert driver.runs(), log.read_text()[-2000:]
                assert time.monotonic() < deadline, f"no {kind} to kill; {log.read_text()[-2000:]} {nodes.said()}"
                time.sleep(0.01)
            kills[kind] += 1
            assert not (wild / "manifest.json").exists()  # each kill hit a run at work
        assert driver.end() == 0, log.read_text()[-2000:]
    finally:
        watch.stop.set()
        watch.join(60)
        driver.kill()
        nodes.close()
        shutil.rmtree(scratch, ignore_errors=True)
    watch.look()
    assert kills == KILLS
    assert sum(kills.values()) == 30
    assert log.read_text().count("resuming:") == KILLS["driver"]
    assert checksums(wild) == checksums(tmp_path / "calm")
    assert summary_of(manet(*command, wild))["rows"] == calm["rows"]
    lost = sum(LOST[kind] * count for kind, count in kills.items())
    assert watch.redone() <= lost, f"{watch.redone()} parts were written again; {lost} were in flight at most"
    sys.stderr.write(
        f"{sum(kills.values())} kills, {watch.parts()} parts, {watch.redone()} redone, {lost} in flight at most\n"
    )
