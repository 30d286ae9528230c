"""`manet submit`'s ways to choose the driver's node, the program's origin, and the connection, on a real cluster."""

import asyncio
import json
import ssl
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import trustme

from cluster.local_s3 import free_ports
from tests.clusters import RealCluster
from tests.conftest import ROOT
from tests.jobs.helpers import Done, assert_refused, summary_of
from tests.jobs.test_submit import command_line, submit

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
JOB = ("render", "--products", 2, "--queries", 1, "--size", 48)


def _name(done: Done) -> str:
    return next(line for line in done.stderr.splitlines() if line.startswith("submitted ")).split()[1]


def test_the_driver_runs_where_it_is_told(tmp_path: Path) -> None:
    """By label, by resource, else on the head; and the program is that of a wheel."""
    wheels = tmp_path / "wheels"
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "-q",
        "-w",
        str(wheels),
        str(ROOT),
    ]
    subprocess.run(build, check=True, timeout=300, capture_output=True)
    (wheel,) = wheels.glob("manet-*.whl")
    with RealCluster() as made:
        made.wait_for_nodes(1)
        (head,) = made.nodes_by_id()
        made.add_raylet(2, "--labels=market=on-demand", '--resources={"driver": 1}')
        made.wait_for_nodes(2)
        other = next(each for each in made.nodes_by_id() if each != head)
        for flags, node in (
            ((), head),
            (("--driver-label", "market=on-demand"), other),
            (("--driver-resource", "driver=1"), other),
            (("--code", wheel.as_uri(), "--driver-label", "market=on-demand"), other),
        ):
            out = tmp_path / f"shop{len(list(tmp_path.iterdir()))}"
            done = submit(made, *flags, *JOB, "--out", out)
            assert summary_of(done)["products"] == 2, done.stderr
            told = made.told(f"jobs/{_name(done)}")
            assert told["driver_node_id"] == node, flags
            assert ("working_dir" in told["runtime_env"]) == ("--code" not in flags)
        manifest = json.loads((out / "catalog" / "manifest.json").read_text())
        assert manifest["code"]["version"] != "unknown"
        nobody = subprocess.run(
            command_line(made, "--no-wait", "--driver-label", "market=none", *JOB, "--out", tmp_path / "x"),
            capture_output=True, text=True, cwd=ROOT, env=made.environ, timeout=120, check=False,
        )  # fmt: skip
        assert summary_of(nobody)["kind"] == "submit"
        assert made.told(f"jobs/{_name(nobody)}")["status"] == "PENDING"


def test_an_https_address_is_checked(tmp_path: Path) -> None:
    """Through a relay that speaks TLS: with its authority's certificate it works, without the server is not believed."""
    authority = trustme.CA()
    (port,) = free_ports(1)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    with RealCluster(head_cpus=2) as made:
        relay = _Relay(port, made.dashboard, authority)
        try:
            address = f"https://localhost:{port}"
            command = command_line(made, "--ca", tmp_path / "ca.pem", *JOB, "--out", tmp_path / "shop", address=address)
            done = subprocess.run(
                command, capture_output=True, text=True, cwd=ROOT, env=made.environ, timeout=300, check=False
            )
            assert summary_of(done)["products"] == 2
            assert "Running entrypoint" in done.stderr  # its log was followed through the relay
            command = command_line(made, "--reconnect-seconds", 3, *JOB, "--out", tmp_path / "x", address=address)
            done = subprocess.run(
                command, capture_output=True, text=True, cwd=ROOT, env=made.environ, timeout=300, check=False
            )
            assert_refused(done, 2, "certificate")
            assert not (tmp_path / "x").exists()
        finally:
            relay.close()


class _Relay:
    """TLS in front of a port of this machine."""

    def __init__(self, port: int, behind: int, authority: trustme.CA) -> None:
        self._behind = behind
        self._loop = asyncio.new_event_loop()
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        authority.issue_cert("localhost").configure_cert(context)
        start = asyncio.start_server(self._serve, "127.0.0.1", port, ssl=context)
        self._server = self._loop.run_until_complete(start)
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back_reader, back_writer = await asyncio.open_connection("127.0.0.1", self._behind)
        await asyncio.gather(self._pump(reader, back_writer), self._pump(back_reader, writer))

    @staticmethod
    async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(65536):
                sink.write(data)
                await sink.drain()
        except (OSError, ssl.SSLError):
            pass
        finally:
            sink.close()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._server.close()
        self._loop.close()
