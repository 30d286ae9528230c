"""What lies between HTTP and the model: the socket that gateways share, the messages that carry pictures."""

import asyncio
import socket
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from contextvars import ContextVar
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.errors import BadInputError
from cluster.local_s3 import free_ports
from jobs.querying import open_index, query_spec
from jobs.serving import embedder as embedding
from jobs.serving import listening as listens
from jobs.serving.dispatch import Dispatch, LostError
from jobs.serving.embedder import Asked, Embedder, EmbedderSettings, Seen
from jobs.serving.guard import Guard, Receive, Scope, Send
from jobs.serving.listening import Door, Server, listening_of, server_of
from jobs.serving.metrics import ServingMetrics
from jobs.serving.settings import ServingConfig
from jobs.streaming import picture_config
from manet.describe import Described
from manet.index import build_shard, train
from manet.search import Searcher
from manet.shards import ShardFiles


class _Handle:
    """Embedders that answer when they are let; 13 ends the one that reads it, 12's message is given up, 11's pass fails."""

    def __init__(self) -> None:
        self.messages: list[list[int]] = []
        self.go = asyncio.Event()

    async def remote(self, asked: list[Asked]) -> list[Seen | Exception | None]:
        numbers = [int(each.pixels[0]) for each in asked]
        self.messages.append(numbers)
        await self.go.wait()
        if 13 in numbers:
            raise ConnectionError("lost")
        if 12 in numbers:
            raise asyncio.CancelledError
        seen: list[Seen | Exception | None] = [Seen(vector=each.pixels) for each in asked]
        odd = {5: None, 11: ValueError("a pass failed")}
        return [odd.get(number, each) for number, each in zip(numbers, seen, strict=True)]


def _asked(number: int) -> Asked:
    return Asked(pixels=np.array([number]))


def test_pictures_go_alone_and_together_when_all_embedders_are_busy() -> None:
    async def go() -> None:
        handle = _Handle()
        dispatch = Dispatch(handle, messages=2, batch=1)
        tasks = [asyncio.create_task(dispatch(_asked(number))) for number in range(19)]
        await asyncio.sleep(0.05)
        assert handle.messages == [[0], [1]]
        tasks[6].cancel()  # whoever gave up is not sent
        handle.go.set()
        found: list[Any] = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 5)
        assert [message for message in handle.messages if 6 in message] == []
        assert max(map(len, handle.messages)) == 4 and len(handle.messages) < 9
        lost = {number for message in handle.messages if {12, 13} & {*message} for number in message}
        assert isinstance(found[6], asyncio.CancelledError) and isinstance(found[13], ConnectionError)
        assert found[5] is None and isinstance(found[11] if 11 not in lost else ValueError(), ValueError)
        for number in set(range(19)) - {5, 6, 11} - lost:
            assert found[number].vector[0] == number
        with pytest.raises(LostError):
            await asyncio.wait_for(dispatch(_asked(12)), 5)
        with pytest.raises(ValueError, match="a pass failed"):
            await asyncio.wait_for(dispatch(_asked(11)), 5)
        again = await dispatch(_asked(42))
        assert again is not None and again.vector[0] == 42

    asyncio.run(go())


def test_a_message_is_in_nobodys_context() -> None:
    """Ray Serve ends what a caller began when that caller leaves, and finds it by its context."""
    caller: ContextVar[str] = ContextVar("caller", default="")

    class Handle:
        seen: ClassVar[list[str]] = []

        async def remote(self, asked: list[Asked]) -> list[Seen | None]:
            self.seen.append(caller.get())
            return [None for _ in asked]

    async def go() -> None:
        dispatch = Dispatch(Handle(), messages=1, batch=1)
        caller.set("somebody")
        await asyncio.gather(*(dispatch(_asked(number)) for number in range(3)))

    asyncio.run(go())
    assert Handle.seen == ["", ""]


def test_a_message_carries_at_least_a_pass() -> None:
    async def go() -> list[int]:
        handle = _Handle()
        dispatch = Dispatch(handle, messages=1, batch=16)
        handle.go.set()
        await asyncio.gather(*(dispatch(_asked(100 + number)) for number in range(21)))
        return list(map(len, handle.messages))

    assert asyncio.run(go()) == [1, 16, 4]


def test_gateways_share_one_socket_and_callers_wait_for_the_next_of_them() -> None:
    (port,) = free_ports(1)
    door = Door("127.0.0.1", port)
    try:
        with socket.create_connection(("127.0.0.1", port), 5) as caller:  # nobody accepts yet
            caller.sendall(b"first")
            lost = listening_of(door.path)
            lost.close()  # a gateway that came and went
            with listening_of(door.path) as listening:
                accepted, _ = listening.accept()
                with accepted:
                    assert accepted.recv(5) == b"first"
        with pytest.raises(BadInputError, match=f"--port {port}: .*in use; choose another"):
            Door("127.0.0.1", port)
    finally:
        door.close()
    with pytest.raises(OSError):
        listening_of(door.path)
    Door("127.0.0.1", port).close()


async def _hello(scope: Scope, receive: Receive, send: Send) -> None:
    """An app that answers with how much it was sent."""
    size, more = 0, scope["type"] == "http"
    while more:
        message = await receive()
        size, more = size + len(message["body"]), message["more_body"]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"%d bytes" % size})


@asynccontextmanager
async def _listening() -> AsyncIterator[int]:
    """The service's HTTP around an app on this machine; its port."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        server: Server = server_of(_hello)
        server.config.lifespan = "off"
        serving = asyncio.create_task(server.serve(sockets=[found]))
        try:
            yield found.getsockname()[1]
        finally:
            server.should_exit = True
            await serving


async def _drip(port: int, *pieces: bytes, pause: float = 0.0) -> bytes:
    """All that comes back for some pieces."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(pause)
        return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()


GET = b"GET / HTTP/1.1\r\nHost: a\r\n"


def test_a_head_without_an_end_is_closed_at_once() -> None:
    async def go() -> None:
        async with _listening() as port, asyncio.timeout(60):
            endless = [GET + b"X: ", *[b"a" * 4096] * 64]
            assert b" 200 " not in await _drip(port, *endless, pause=0.001)
            after = await _drip(port, GET + b"\r\n", *endless, pause=0.001)
            assert after.count(b" 200 ") <= 1  # the reset may take the first one's answer with it
            many = await _drip(port, GET, *[b"X-%d: a\r\n" % number for number in range(8000)])
            assert b" 200 " not in many
            chunked = GET + b"Transfer-Encoding: chunked\r\n\r\n0\r\n"
            await _drip(port, chunked + b"X: ", *[b"a" * 4096] * 64, pause=0.001)  # trailers are kept like headers
            body = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 500000\r\n"
            last = GET + b"Connection: close\r\n\r\n"
            found = await _drip(port, body, b"\r\n" + b"x" * 300_000, b"x" * 200_000 + last[:20], last[20:], pause=0.05)
            assert found.count(b" 200 ") == 2 and b"500000 bytes" in found  # what is long is no head

    asyncio.run(go())


def test_a_head_has_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listens, "_HEAD_S", 0.3)

    async def go() -> None:
        async with _listening() as port, asyncio.timeout(5):
            assert await _drip(port) == await _drip(port, GET) == b""
            found = await _drip(port, GET + b"\r\n", GET, pause=0.1)  # an answer, and a second head without an end
            assert found.count(b" 200 ") == 1
            body = b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 5\r\n\r\n"
            assert b"5 bytes" in await _drip(
                port, body, *[b"x"] * 5, pause=0.1
            )  # a body has the guard's time, not this

    asyncio.run(go())


def test_a_folder_too_deep_for_a_unix_socket_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = tmp_path / ("d" * 120)
    deep.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(deep))
    with pytest.raises(BadInputError, match="set TMPDIR to a short path"):
        Door("127.0.0.1", free_ports(1)[0])
    assert not list(deep.iterdir())


def _near_duplicates(folder: Path) -> Searcher:
    """Five pictures in the order of their likeness to the first, of which the second is a near-duplicate."""
    angles = np.linspace(0, 1, 5)
    vectors = np.stack([np.cos(angles), np.sin(angles), *np.zeros((6, 5))], 1).astype(np.float16)
    files = ShardFiles(index=folder / "0.faiss", ids=folder / "0.parquet", refine=folder / "0.npy")
    faiss.write_index(build_shard(train(vectors.astype(np.float32), "Flat"), [vectors]), str(files.index))
    groups = pa.array(["same", "same", None, None, None], pa.string())
    pq.write_table(pa.table({"image_id": list("abcde"), "group": groups}), files.ids)
    np.save(files.refine, vectors)
    return Searcher([files])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Ray Serve's own models
def test_a_gallery_picture_leaves_its_place_to_its_near_duplicate(tmp_path: Path) -> None:
    from jobs.serving.gateway import Gateway, Query, Wish

    gateway: Any = Gateway.__new__(Gateway)  # without its replicas: a gallery picture's descriptor is in the index
    gateway.metrics = ServingMetrics("test")
    gateway.gallery = SimpleNamespace(current=SimpleNamespace(searcher=_near_duplicates(tmp_path), number=1))
    gateway._guard = Guard(
        _hello, ServingConfig(index="none", rate=1), pending=8, tokens=frozenset(), metrics=gateway.metrics
    )

    async def go() -> None:
        found = await gateway.search(Query(image_id="a"), Wish(k=3))
        assert [hit.image_id for hit in found.results] == ["b", "c", "d"]
        items = await gateway.batch([Query(image_id=name) for name in "abcd"], Wish(k=1))
        assert all(item.answer for item in items)
        assert 7 <= gateway._guard._draw("", 0) < 7.5  # of ten: three pictures more than one

    with ThreadPoolExecutor(2) as gateway._threads:
        asyncio.run(go())


def test_an_embedder_whose_pass_does_not_end_says_so(served_index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that no longer answers holds the model's thread; the replica itself still hears Ray Serve's question."""
    spec = query_spec(open_index(str(served_index)))
    model = spec.open_model()
    pictures = picture_config(model, spec.size)
    embedder = Embedder(EmbedderSettings(model=model, spec=spec, pictures=pictures, gpu=False))
    square = np.full((pictures.size, pictures.size, 3), 200, np.uint8)
    go, describe = threading.Event(), embedder._describer.describe

    def hangs(pixels: np.ndarray[Any, Any]) -> Described:
        go.wait(20)
        return describe(pixels)

    async def ask() -> None:
        monkeypatch.setattr(embedder._describer, "describe", hangs)
        asking = asyncio.create_task(embedder([Asked(pixels=square)]))
        await asyncio.sleep(0.2)
        embedder.check_health()  # a pass may take a while
        monkeypatch.setattr(embedding, "_HUNG_S", 0.1)
        embedder._usual_s = 100.0
        embedder.check_health()  # where passes are slow, longer
        embedder._usual_s = 0.001
        with pytest.raises(RuntimeError, match=r"has not ended within 0\.1 s"):
            embedder.check_health()
        go.set()
        (seen,) = await asking
        assert isinstance(seen, Seen)
        embedder.check_health()

    asyncio.run(ask())


def test_an_embedder_whose_passes_all_fail_says_so(served_index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU that was lost: every pass raises at once, and the replica would take more than its share."""
    spec = query_spec(open_index(str(served_index)))
    model = spec.open_model()
    pictures = picture_config(model, spec.size)
    embedder = Embedder(EmbedderSettings(model=model, spec=spec, pictures=pictures, gpu=False))
    asked = [Asked(pixels=np.full((pictures.size, pictures.size, 3), 200, np.uint8))]
    describe = embedder._describer.describe

    def fails(pixels: np.ndarray[Any, Any]) -> Described:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    async def ask() -> None:
        for broken, usable in ((2, True), (3, False)):
            monkeypatch.setattr(embedder._describer, "describe", fails)
            for _ in range(broken):
                (seen,) = await embedder(asked)
                assert isinstance(seen, RuntimeError)
            if usable:
                embedder.check_health()
                monkeypatch.setattr(embedder._describer, "describe", describe)
                assert isinstance((await embedder(asked))[0], Seen)
        with pytest.raises(RuntimeError, match="the last 3 passes have failed"):
            embedder.check_health()

    asyncio.run(ask())
