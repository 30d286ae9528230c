"""A real Ray cluster on this machine: a head that `ray start` started, more raylets, and a token that all want."""

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from cluster.local_s3 import free_ports

RAY = str(Path(sys.executable).with_name("ray"))
STARTS_S = 90


class RealCluster:
    """Head and raylets as processes, in groups of their own so that one can be killed with all that runs in it.

    Args:
        head_cpus: CPUs of the head.
        autoscaler: path of a cluster file for the head's autoscaler, or empty.
        environ: more variables of all nodes.
    """

    def __init__(self, *, head_cpus: int = 0, autoscaler: str = "", environ: Mapping[str, str] | None = None) -> None:
        self.scratch = Path(tempfile.mkdtemp(prefix="ray-"))  # short: Ray's sockets lie below it
        self.gcs_port, self.dashboard, self._client, self._agent, self._metrics = free_ports(5)
        self.token = secrets.token_hex(32)
        self.environ = {**os.environ, **(environ or {}), "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token}
        self.environ.pop(
            "LD_LIBRARY_PATH", None
        )  # cv2 sets it in a process that imports it, and MKL fails in its children
        self.address, self.gcs = f"http://127.0.0.1:{self.dashboard}", f"127.0.0.1:{self.gcs_port}"
        self._head_cpus, self._autoscaler = head_cpus, autoscaler
        self.head: subprocess.Popen[bytes] | None = None
        self.raylets: list[subprocess.Popen[bytes]] = []
        self.log = self.scratch / "nodes.log"

    def __enter__(self) -> "RealCluster":
        try:
            self.start_head()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start_head(self) -> None:
        """Start the head and wait until its job server answers."""
        more = [f"--autoscaling-config={self._autoscaler}"] if self._autoscaler else []
        self.head = self._start(
            "--head", f"--port={self.gcs_port}", f"--temp-dir={self.scratch / 'head'}", f"--num-cpus={self._head_cpus}",
            "--dashboard-host=127.0.0.1", f"--dashboard-port={self.dashboard}",
            f"--ray-client-server-port={self._client}", f"--dashboard-agent-listen-port={self._agent}",
            f"--metrics-export-port={self._metrics}", *more,
        )  # fmt: skip
        deadline = time.monotonic() + STARTS_S
        ready = [RAY, "job", "list", "--address", self.address]
        while subprocess.run(ready, capture_output=True, env=self.environ, timeout=60, check=False).returncode:
            assert self.head.poll() is None, self.log.read_text()[-2000:]
            assert time.monotonic() < deadline, self.log.read_text()[-2000:]
            time.sleep(1)

    def add_raylet(self, cpus: int, *more: str) -> "subprocess.Popen[bytes]":
        """Start a node beside the head; it joins in some seconds (`wait_for_nodes`).

        It has a folder of its own, as another machine would: nodes that share one delete each other's working directories.
        But its logs lie among the head's: where nodes share a machine, every agent looks for its jobs' logs there.
        """
        agent, metrics = free_ports(2)
        folder, session = self.scratch / f"n{metrics}", (self.scratch / "head" / "session_latest").resolve()
        (folder / session.name).mkdir(parents=True)
        (folder / session.name / "logs").symlink_to(session / "logs")
        ports = (f"--temp-dir={folder}", f"--dashboard-agent-listen-port={agent}", f"--metrics-export-port={metrics}")
        self.raylets.append(self._start(f"--address={self.gcs}", f"--num-cpus={cpus}", *ports, *more))
        return self.raylets[-1]

    def _start(self, *flags: str) -> "subprocess.Popen[bytes]":
        command = [RAY, "start", "--block", "--node-ip-address=127.0.0.1", "--object-store-memory=300000000",
                   "--disable-usage-stats", *flags]  # fmt: skip
        with self.log.open("ab") as file:
            return subprocess.Popen(command, env=self.environ, stdout=file, stderr=file, start_new_session=True)

    def nodes(self) -> list[dict[str, float]]:
        """Resources of the nodes that are alive."""
        return list(self.nodes_by_id().values())

    def nodes_by_id(self) -> dict[str, dict[str, float]]:
        """Resources of the nodes that are alive, as the dashboard's state service has them."""
        found = self.told("v0/nodes?detail=1&timeout=20")["data"]["result"]["result"]
        return {node["node_id"]: node["resources_total"] for node in found if node["state"] == "ALIVE"}

    def told(self, path: str) -> dict[str, Any]:
        """What the dashboard answers at a path of its API."""
        ask = urllib.request.Request(  # noqa: S310 - an address of this class
            f"{self.address}/api/{path}", headers={"Authorization": f"Bearer {self.token}"}
        )
        with urllib.request.urlopen(ask, timeout=60) as reply:  # noqa: S310
            found: dict[str, Any] = json.load(reply)
        return found

    def wait_for_nodes(self, count: int) -> None:
        """Until so many nodes are alive."""
        deadline = time.monotonic() + STARTS_S
        while len(self.nodes()) < count:
            assert time.monotonic() < deadline, self.log.read_text()[-2000:]
            time.sleep(1)

    @staticmethod
    def kill(process: "subprocess.Popen[bytes]") -> None:
        """End a node at once, as a lost machine: `ray start`, its raylet, its workers and all that they started."""
        family = [psutil.Process(process.pid)] if psutil.pid_exists(process.pid) else []
        family += [child for parent in family for child in parent.children(recursive=True)]
        for each in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        process.wait(60)

    def stop(self) -> None:
        """End all, the head last, with what an autoscaler started, and remove what they wrote."""
        family = (
            psutil.Process(self.head.pid).children(recursive=True) if self.head and self.head.poll() is None else []
        )
        for process in [*reversed(self.raylets), *([self.head] if self.head else [])]:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in [*self.raylets, *([self.head] if self.head else [])]:
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                self.kill(process)
        for each in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        shutil.rmtree(self.scratch, ignore_errors=True)
