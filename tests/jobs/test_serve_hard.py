"""The service under what nobody means well: every input that OpenAPI allows, hostile uploads, lost replicas."""

import concurrent.futures
import io
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image

from cluster.local_s3 import free_ports
from manet.client import Client, ServiceError
from tests.clusters import RealCluster
from tests.conftest import Run
from tests.jobs.conftest import MAX_BODY, Service, start_service
from tests.jobs.helpers import assert_refused, summary_of
from tests.jobs.test_serve import _png_bomb

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"


@pytest.mark.parametrize("examples", [5, pytest.param(100, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])])
def test_nothing_that_openapi_allows_breaks_it(service: Service, tmp_path: Path, examples: int) -> None:
    schemathesis = Path(sys.executable).with_name("schemathesis")
    flags = ["--checks", CHECKS, "--max-examples", str(examples), "--seed", "1", "--phases", "coverage,fuzzing"]
    command = [str(schemathesis), "run", f"{service.address}/v1/openapi.json", *flags, "--suppress-health-check", "all"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1700, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stdout[-6000:]


def _hostile(rng: random.Random, whole: bytes) -> bytes:
    """Bytes that mean harm, or are only broken."""
    kinds: list[Callable[[], bytes]] = [
        lambda: _png_bomb(rng.choice([5_000, 30_000, 65_000, 2**31 - 1])),
        lambda: whole[: rng.randrange(len(whole))],
        lambda: _spoilt(rng, whole),
        lambda: (
            rng.choice([b"GIF89a", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"RIFF\xff\xff\xff\xffWEBP"])
            + rng.randbytes(2000)
        ),
        lambda: (
            whole + b"<html><script>alert(1)</script></html>" + whole[:100]
        ),  # a picture that is a page, and a script
        lambda: b"<?xml version='1.0'?><!DOCTYPE a [<!ENTITY b SYSTEM 'file:///etc/passwd'>]><svg>&b;</svg>",
        _animated,
        lambda: _thin(rng.choice(["PNG", "BMP", "TIFF"])),
        lambda: b"PK\x03\x04" + rng.randbytes(5000),
        lambda: rng.randbytes(rng.randrange(1, 100_000)),
    ]
    return rng.choice(kinds)()


def _spoilt(rng: random.Random, whole: bytes) -> bytes:
    spoilt = bytearray(whole)
    for _ in range(rng.randrange(1, 200)):
        spoilt[rng.randrange(len(spoilt))] = rng.randrange(256)
    return bytes(spoilt)


def _animated() -> bytes:
    frames = [Image.new("P", (64, 64), number) for number in range(50)]
    sink = io.BytesIO()
    frames[0].save(sink, "GIF", save_all=True, append_images=frames[1:])
    return sink.getvalue()


def _thin(format_: str) -> bytes:
    sink = io.BytesIO()
    Image.new("L", (1, 60_000)).save(sink, format_)
    return sink.getvalue()


def _memory(service: Service) -> int:
    """Bytes of the service's own processes, shared pages counted once each time."""
    process = psutil.Process(service.process.pid)
    return sum(each.memory_info().rss - each.memory_info().shared for each in process.children(recursive=True))


@pytest.mark.parametrize("count", [40, pytest.param(500, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])])
def test_hostile_uploads(service: Service, count: int) -> None:
    rng, whole = random.Random(11), service.queries()[0].read_bytes()
    client = Client(service.address, tries=1)
    before = _memory(service)
    statuses: list[int] = []
    uploads = [_hostile(rng, whole) for _ in range(count)]
    names = ["../../etc/passwd", "a\r\nX: y", "x" * 5000, "\x00", "con.jpg"]

    def send(place: int) -> int:
        try:
            if place % 7 == 0:  # hostile names of the file and its field
                name = names[place % len(names)]
                head = f'--b\r\nContent-Disposition: form-data; name="picture"; filename="{name}"\r\n\r\n'.encode(
                    "latin-1"
                )
                body = head + uploads[place] + b"\r\n--b--\r\n"
                client._request("POST", "/v1/search", body, {"Content-Type": "multipart/form-data; boundary=b"})
            else:
                client.search(uploads[place])
        except ServiceError as error:
            return error.status
        return 200

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        statuses = list(pool.map(send, range(count)))
    assert set(statuses) <= {200, 400, 413, 415, 422}, sorted(set(statuses))
    assert len(service.client.search(whole)["results"]) == 7
    assert _memory(service) - before < 600 << 20
    assert len(uploads[0]) < MAX_BODY


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_versions_and_lost_replicas_under_load(manet: Run, service: Service, tmp_path: Path) -> None:
    """Ten new versions, five killed embedders, two killed gateways: a client sees answers; it tries again what was lost."""
    flags = ("--embedders", "2", "--gateways", "2", "--refresh-seconds", "0.3", "--ray-cpus", "3")
    process, address = start_service(service.index, *flags)
    queries, stop = service.queries(), threading.Event()
    failures: list[str] = []
    counts = {"answered": 0, "retried": 0}
    versions: set[int] = set()

    def load(number: int) -> None:
        client, place = Client(address, tries=6), number
        while not stop.is_set():
            try:
                versions.add(client.search(queries[place % len(queries)])["version"])
                counts["answered"] += 1
            except ServiceError as error:
                failures.append(str(error))
            place += 1
        counts["retried"] += client.retried

    threads = [threading.Thread(target=load, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    try:
        killed = {"Embedder": 0, "Gateway": 0}
        for number in range(10):
            (tmp_path / "ids.txt").write_text(service.gallery()[20 + number].stem)
            which = ("--index", service.index, "--ids", tmp_path / "ids.txt")
            summary_of(manet("index", "delete", *which))
            victim = "Embedder" if number % 2 else "Gateway" if number % 3 == 0 else ""
            if victim:
                killed[victim] += _kill_replica(process.pid, victim)
                time.sleep(5)
        until = time.monotonic() + 60
        newest = Client(address).index()["version"]
        while newest not in versions and time.monotonic() < until:
            time.sleep(0.2)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert killed == {"Embedder": 5, "Gateway": 2}
    assert not failures, failures[:3]
    assert len(versions) >= 8 and newest in versions
    assert counts["answered"] > 100
    print(counts, sorted(versions))  # noqa: T201 - shown by pytest -s


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_whoever_comes_while_the_only_gateway_is_lost_waits_for_the_next(service: Service) -> None:
    process, address = start_service(service.index)
    try:
        assert _kill_replica(process.pid, "Gateway") == 1
        began = time.monotonic()
        found = Client(address, tries=1, seconds=60).search(service.queries()[0])
        assert len(found["results"]) == 7
        print(f"answered after {time.monotonic() - began:.1f} s")  # noqa: T201 - shown by pytest -s
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert process.returncode == 0


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_on_a_cluster_a_caller_that_leaves_costs_no_other_its_answer(service: Service) -> None:
    """Ray Serve's proxies listen there, and cancel what a caller began when it leaves; messages carry many callers' pictures."""
    query = service.queries()[0].read_bytes()
    with RealCluster(head_cpus=2) as cluster:
        token: dict[str, Any] = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": cluster.token}
        flags = ("--ray-address", cluster.gcs, "--pending", "64")
        process, address = start_service(service.index, *flags, **token)
        try:
            with concurrent.futures.ThreadPoolExecutor(6) as pool:
                others = [pool.submit(Client(address, tries=1, seconds=15).search, query) for _ in range(150)]
                while not all(other.done() for other in others):
                    leaving = _send_batch(address, [query] * 24)
                    time.sleep(random.uniform(0.05, 0.3))
                    leaving.close()
            assert all(len(other.result()["results"]) == 7 for other in others)
        finally:
            process.send_signal(signal.SIGTERM)
            _, said = process.communicate(timeout=60)
        assert process.returncode == 0, said


_OTHER = """
import sys, ray
from ray import serve

@serve.deployment
class Other:
    def __call__(self, request) -> str:
        return "here"

ray.init(address=sys.argv[1], logging_level="ERROR")
serve.run(Other.bind(), name="other", route_prefix="/other")
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_on_a_cluster_it_is_one_application_beside_others(manet: Run, service: Service) -> None:
    with RealCluster(head_cpus=3) as cluster:
        token: dict[str, Any] = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": cluster.token}
        process, address = start_service(service.index, "--ray-address", cluster.gcs, **token)
        port = address.rpartition(":")[2]
        again = ("serve", "--index", service.index, "--ray-address", cluster.gcs, "--port")
        try:
            assert_refused(manet(*again, port, **token), 2, "a service named manet already")
            assert len(Client(address).search(service.queries()[0])["results"]) == 7
            other = [sys.executable, "-c", _OTHER, cluster.gcs]
            subprocess.run(other, check=True, env={**os.environ, **token}, timeout=120, capture_output=True)
        finally:
            process.send_signal(signal.SIGTERM)
            _, said = process.communicate(timeout=90)
        assert process.returncode == 0, said
        with urllib.request.urlopen(f"{address}/other", timeout=30) as reply:  # noqa: S310 - an address of this test
            assert reply.read() == b"here"
        with pytest.raises(ServiceError):
            Client(address, tries=1).index()
        assert_refused(manet(*again, free_ports(1)[0], **token), 2, f"--host 127.0.0.1 --port {port}")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_it_ends_when_ray_does(service: Service) -> None:
    process, _ = start_service(service.index)
    (raylet,) = [each for each in psutil.Process(process.pid).children(recursive=True) if each.name() == "raylet"]
    raylet.kill()
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1 and "Ray's own processes have ended" in said and "Traceback" not in said


def _send_batch(address: str, pictures: list[bytes]) -> socket.socket:
    """Send a batch and wait for nothing; the connection."""
    part = b'--b\r\nContent-Disposition: form-data; name="picture"; filename="q"\r\n\r\n'
    body = b"".join(part + picture + b"\r\n" for picture in pictures) + b"--b--\r\n"
    host, port = address.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), 30)
    head = f"POST /v1/search:batch HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(body)}\r\n"
    connection.sendall(head.encode() + b"Content-Type: multipart/form-data; boundary=b\r\n\r\n" + body)
    return connection


@pytest.mark.slow
def test_a_signal_to_the_whole_group_ends_it_soon(service: Service) -> None:
    """`timeout`, or a service manager: Ray's own processes get the signal too."""
    process, _ = start_service(service.index, group=True)
    os.killpg(process.pid, signal.SIGTERM)
    out, said = process.communicate(timeout=20)
    assert process.returncode == 0, said
    assert json.loads(out.splitlines()[-1])["kind"] == "serve" and "Ray's own processes" in said


def _kill_replica(driver: int, kind: str) -> int:
    """End one replica by SIGKILL."""
    for each in psutil.Process(driver).children(recursive=True):
        line = " ".join(each.cmdline())
        if "ServeReplica" in line and kind in line:
            os.kill(each.pid, signal.SIGKILL)
            return 1
    return 0
