"""Fixtures of the service: a small index, and `manet serve` over it as a user starts it."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from cluster.local_s3 import free_ports
from manet.client import Client, ServiceError
from tests.conftest import ROOT, Run
from tests.jobs.helpers import summary_of

MAX_BODY = 2 << 20
MAX_PIXELS = 4_000_000
FLAGS = ("--allow-url", "--max-body-mib", "2", "--max-pixels", str(MAX_PIXELS), "--picture-seconds", "2",
         "--refresh-seconds", "0.3", "--embedders", "1")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Service:
    """A running service."""

    address: str
    index: Path
    shop: Path
    process: "subprocess.Popen[str]"

    @property
    def client(self) -> Client:
        return Client(self.address)

    def queries(self) -> list[Path]:
        return sorted((self.shop / "queries" / "images").rglob("*.jpg"))

    def gallery(self) -> list[Path]:
        return sorted((self.shop / "catalog" / "images").rglob("*.jpg"))


@pytest.fixture(scope="session")
def served_index(manet: Run, shop: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A quantized index of the shop."""
    folder = tmp_path_factory.mktemp("served")
    summary_of(manet("extract", "--catalog", shop / "catalog", "--model", model, "--out", folder / "descriptors"))
    flags = ("--factory", "IVF4,PQ16x4", "--recall-target", 0.3, "--shard-rows", 64, "--tuning-queries", 20)
    summary_of(manet("index", "--descriptors", folder / "descriptors", *flags, "--out", folder / "index"))
    return folder / "index"


@pytest.fixture(scope="session")
def service(served_index: Path, shop: Path) -> Iterator[Service]:
    """`manet serve`; stopped by SIGTERM at the end, which it must obey with exit code 0 and a summary."""
    process, address = start_service(served_index, *FLAGS)
    yield Service(address=address, index=served_index, shop=shop, process=process)
    process.send_signal(signal.SIGTERM)
    out, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert json.loads(out.splitlines()[-1])["kind"] == "serve"
    assert "Traceback" not in said


def start_service(index: Path, *flags: str, group: bool = False, **environ: str) -> tuple["subprocess.Popen[str]", str]:
    """`manet serve` on a free port, which has said that it is up; as the leader of a process group of its own, if so asked."""
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "jobs", "serve", "--index", str(index), "--port", str(port), *flags]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, **environ},
        start_new_session=group,
    )
    assert process.stderr is not None
    said, late = "", threading.Timer(120, process.kill)
    late.start()
    while "Ctrl-C stops it" not in said:
        line = process.stderr.readline()
        assert line, said
        said += line
    late.cancel()
    address, until = f"http://127.0.0.1:{port}", time.monotonic() + 120
    while time.monotonic() < until:
        if process.poll() is not None:
            raise AssertionError(process.communicate()[1])
        try:
            Client(address, tries=1, seconds=5)._request("GET", "/readyz")
        except ServiceError:
            time.sleep(0.3)
        else:
            return process, address
    process.kill()
    raise AssertionError(f"not ready: {process.communicate()[1]}")
