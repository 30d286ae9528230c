"""`ray job submit` to a real cluster of one node with a token."""

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cluster.local_s3 import free_ports
from tests.conftest import ROOT
from tests.jobs.helpers import checksums

RAY = str(Path(sys.executable).with_name("ray"))
Submit = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def submit() -> Iterator[Submit]:
    """Submits a command to a head that `ray start` started."""
    gcs, dashboard, client, agent, metrics = free_ports(5)
    scratch = tempfile.mkdtemp(prefix="ray-")  # short: Ray's sockets lie below it
    environ = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    command = [
        RAY, "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={gcs}", f"--temp-dir={scratch}",
        "--num-cpus=2", "--object-store-memory=1000000000", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}",
        f"--ray-client-server-port={client}", f"--dashboard-agent-listen-port={agent}",
        f"--metrics-export-port={metrics}", "--disable-usage-stats",
    ]  # fmt: skip
    log = Path(scratch, "head.log")
    with log.open("wb") as file:
        head = subprocess.Popen(command, env=environ, stdout=file, stderr=file)
    address = f"http://127.0.0.1:{dashboard}"

    def run(*arguments: object, token: str = "", timeout: float = 250) -> subprocess.CompletedProcess[str]:
        command = [RAY, "job", "submit", "--address", address, "--working-dir", str(ROOT), "--"]
        command += [sys.executable, "-m", "jobs", *map(str, arguments)]
        given = {**environ, "RAY_AUTH_TOKEN": token} if token else environ
        given = {**given, "RAY_RUNTIME_ENV_IGNORE_GITIGNORE": "0"}
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=given, check=False)

    try:
        _wait_for(address, environ, head, log)
        yield run
    finally:
        head.terminate()  # it ends its own processes first, one after the other
        head.wait(120)
        shutil.rmtree(scratch, ignore_errors=True)


def _wait_for(address: str, environ: dict[str, str], head: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 90
    ready = [RAY, "job", "list", "--address", address]
    while subprocess.run(ready, capture_output=True, env=environ, timeout=60, check=False).returncode:
        assert head.poll() is None, log.read_text()[-2000:]
        assert time.monotonic() < deadline, log.read_text()[-2000:]
        time.sleep(1)


def test_a_job_runs_on_the_cluster(submit: Submit, shop: Path, model: Path, tmp_path: Path) -> None:
    """The parts are those of a run on this machine alone."""
    out = tmp_path / "descriptors"
    flags = ("--catalog", shop / "catalog", "--model", model, "--out", out, "--part-rows", 32)
    done = submit("extract", *flags)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(checksums(out)) >= 3
    assert '"rejects": 0' in done.stdout


def test_a_failing_job_fails_the_submission(submit: Submit, tmp_path: Path) -> None:
    done = submit("extract", "--catalog", "/nowhere.parquet", "--model", "/nowhere", "--out", tmp_path / "x")
    assert done.returncode == 1
    assert "manet: --catalog /nowhere.parquet: no such file" in done.stdout + done.stderr


def test_without_the_token_nothing_runs(submit: Submit, tmp_path: Path) -> None:
    done = submit("render", "--products", 1, "--out", tmp_path / "x", token="0" * 64)
    assert done.returncode != 0
    assert not (tmp_path / "x").exists()
