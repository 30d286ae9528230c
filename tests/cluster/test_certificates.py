"""The authority and the nodes' certificates; slow: a cluster of two nodes under TLS."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cluster.certificates import own_addresses
from cluster.local_s3 import free_ports
from tests.cluster.heads import RAY, started_head
from tests.conftest import ROOT


def _make(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cluster.certificates", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT, check=False)


def _openssl(*arguments: object) -> str:
    return subprocess.run(["openssl", *map(str, arguments)], capture_output=True, text=True, check=True).stdout


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """Folders of an authority and of a node's certificate."""
    authority, node = tmp_path / "authority", tmp_path / "tls"
    assert _make("authority", "--folder", authority).returncode == 0
    assert _make("node", "--authority", authority, "--folder", node).returncode == 0
    return authority, node


def test_a_nodes_certificate_names_its_addresses_and_is_the_authoritys(files: tuple[Path, Path]) -> None:
    authority, node = files
    assert _openssl("verify", "-CAfile", authority / "authority.crt", node / "node.crt").strip().endswith("OK")
    names = _openssl("x509", "-in", node / "node.crt", "-noout", "-ext", "subjectAltName")
    assert len(own_addresses()) == 2
    assert all(f"IP Address:{address}" in names for address in own_addresses())
    assert {path.stat().st_mode & 0o777 for path in (authority / "authority.key", node / "node.key")} == {0o600}
    assert (authority.stat().st_mode | node.stat().st_mode) & 0o077 == 0


def test_an_authority_is_not_replaced_and_must_be_there(files: tuple[Path, Path], tmp_path: Path) -> None:
    again = _make("authority", "--folder", files[0])
    assert again.returncode == 2
    assert "is there already" in again.stderr
    none = _make("node", "--authority", tmp_path / "none", "--folder", tmp_path / "x")
    assert none.returncode == 2
    assert none.stderr.startswith(f"Error: no {tmp_path}/none/authority.key")


def test_openssl_that_fails_leaves_nothing(tmp_path: Path) -> None:
    """A stand-in for openssl that writes the key and then fails, as on a full disk; then the real one."""
    (tmp_path / "bin").mkdir()
    fake = tmp_path / "bin" / "openssl"
    fake.write_text('#!/bin/sh\nwhile [ "$1" != -keyout ]; do shift; done\necho x > "$2"\necho no room >&2\nexit 1\n')
    fake.chmod(0o700)
    command = [sys.executable, "-m", "cluster.certificates", "authority", "--folder", str(tmp_path / "made")]
    environ = {**os.environ, "PATH": f"{fake.parent}:{os.environ['PATH']}"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environ, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stderr.strip().endswith("openssl failed: no room")
    assert list((tmp_path / "made").iterdir()) == []
    assert _make("authority", "--folder", tmp_path / "made").returncode == 0


_TASK = """
import ray, sys, time
ray.init(address=sys.argv[1], log_to_driver=False)
until = time.monotonic() + 60
while len(ray.nodes()) < 2 and time.monotonic() < until:
    time.sleep(0.5)
where = ray.remote(num_cpus=1, resources={"second": 1})(lambda: sum(range(10)))
print("answer", ray.get(where.remote(), timeout=60))
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_cluster_under_tls(files: tuple[Path, Path]) -> None:
    """Two nodes, a task on the second; a client without the authority's certificate is not answered."""
    authority, node = files
    tls = {
        "RAY_USE_TLS": "1",
        "RAY_TLS_CA_CERT": str(authority / "authority.crt"),
        "RAY_TLS_SERVER_CERT": str(node / "node.crt"),
        "RAY_TLS_SERVER_KEY": str(node / "node.key"),
    }
    agent, metrics = free_ports(2)
    with started_head(**tls) as head:
        command = [
            RAY, "start", "--block", f"--address=127.0.0.1:{head.gcs}", "--node-ip-address=127.0.0.1", "--num-cpus=1",
            "--object-store-memory=200000000", '--resources={"second": 1}', f"--dashboard-agent-listen-port={agent}",
            f"--metrics-export-port={metrics}", "--disable-usage-stats",
        ]  # fmt: skip
        with (head.folder / "second.log").open("wb") as log:
            second = subprocess.Popen(command, env={**head.environ, **tls}, stdout=log, stderr=log)
        try:
            task = [sys.executable, "-c", _TASK, f"127.0.0.1:{head.gcs}"]
            inside = subprocess.run(
                task, env={**head.environ, **tls}, capture_output=True, text=True, timeout=180, check=False
            )
            assert "answer 45" in inside.stdout, inside.stderr
            plain = subprocess.Popen(
                task, env=head.environ, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
            time.sleep(30)  # inside it took a few; Ray itself goes on trying for minutes
            plain.kill()
            assert "answer" not in plain.communicate()[0]
            shaken = ["openssl", "s_client", "-connect", f"127.0.0.1:{head.gcs}", "-verify_return_error", "-brief"]
            shaken += ["-CAfile", str(authority / "authority.crt"), "-alpn", "h2"]
            shown = subprocess.run(shaken, input="", capture_output=True, text=True, timeout=60, check=False)
            assert "Verification: OK" in shown.stdout + shown.stderr, shown.stderr
        finally:
            second.terminate()
            second.wait(60)
