"""What lies between HTTP and the model: the socket that gateways share, the messages that carry pictures."""

import asyncio
import socket
from contextvars import ContextVar
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from cluster.errors import BadInputError
from cluster.local_s3 import free_ports
from jobs.serving.dispatch import Dispatch, LostError
from jobs.serving.embedder import Asked, Seen
from jobs.serving.listening import Door, listening_of


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


def test_a_folder_too_deep_for_a_unix_socket_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = tmp_path / ("d" * 120)
    deep.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(deep))
    with pytest.raises(BadInputError, match="set TMPDIR to a short path"):
        Door("127.0.0.1", free_ports(1)[0])
    assert not list(deep.iterdir())
