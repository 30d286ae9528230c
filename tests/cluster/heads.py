"""A head that `ray start` started, with a token, as a test's cluster."""

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cluster.local_s3 import free_ports

RAY = str(Path(sys.executable).with_name("ray"))


@dataclass(frozen=True, kw_only=True)
class Head:
    """A running head, its ports on this machine, and the environment that its clients need."""

    gcs: int
    dashboard: int
    agent: int
    metrics: int
    folder: Path
    environ: dict[str, str]

    @property
    def address(self) -> str:
        """Where jobs are submitted."""
        return f"http://127.0.0.1:{self.dashboard}"


def status(url: str, token: str = "") -> int:
    """The status with which a server answers, 0 where nothing listens."""
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"} if token else {})  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


@contextmanager
def started_head(**environ: str) -> Iterator[Head]:
    """A head of 2 CPUs inside the `with`; `environ` is what it has beside this process's environment."""
    gcs, dashboard, client, agent, metrics = free_ports(5)
    folder = Path(tempfile.mkdtemp(prefix="ray-"))  # short: Ray's sockets lie below it
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    head = Head(
        gcs=gcs, dashboard=dashboard, agent=agent, metrics=metrics, folder=folder, environ={**os.environ, **token}
    )
    command = [
        RAY, "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={gcs}", f"--temp-dir={folder}",
        "--num-cpus=2", "--object-store-memory=500000000", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}",
        f"--ray-client-server-port={client}", f"--dashboard-agent-listen-port={agent}",
        f"--metrics-export-port={metrics}", "--disable-usage-stats",
    ]  # fmt: skip
    log = folder / "head.log"
    with log.open("wb") as file:
        process = subprocess.Popen(command, env={**head.environ, **environ}, stdout=file, stderr=file)
    try:
        deadline = time.monotonic() + 180
        health, bearer = f"http://127.0.0.1:{agent}/api/local_raylet_healthz", head.environ["RAY_AUTH_TOKEN"]
        ready = (f"{head.address}/api/jobs/", health, f"http://127.0.0.1:{metrics}/metrics")
        while any(status(url, bearer) != 200 for url in ready):
            assert process.poll() is None, log.read_text()[-2000:]
            assert time.monotonic() < deadline, log.read_text()[-2000:]
            time.sleep(1)
        yield head
    finally:
        process.terminate()  # it ends its own processes first, one after the other
        process.wait(120)
        shutil.rmtree(folder, ignore_errors=True)
