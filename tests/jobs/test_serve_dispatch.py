"""What lies between HTTP and the model: the socket that gateways share, the messages that carry pictures."""

import asyncio
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.errors import BadInputError
from cluster.local_s3 import free_ports
from jobs.serving.dispatch import Dispatch
from jobs.serving.embedder import Asked, Seen
from jobs.serving.listening import Door, listening_of


class _Handle:
    """Embedders that answer when they are let; a message that holds 13 ends the one that reads it."""

    def __init__(self) -> None:
        self.messages: list[list[int]] = []
        self.go = asyncio.Event()

    async def remote(self, asked: list[Asked]) -> list[Seen | None]:
        numbers = [int(each.pixels[0]) for each in asked]
        self.messages.append(numbers)
        await self.go.wait()
        if 13 in numbers:
            raise ConnectionError("lost")
        return [None if number == 5 else Seen(vector=each.pixels) for number, each in zip(numbers, asked, strict=True)]


def _asked(number: int) -> Asked:
    return Asked(pixels=np.array([number]))


def test_pictures_go_alone_and_together_when_all_embedders_are_busy() -> None:
    async def go() -> None:
        handle = _Handle()
        dispatch = Dispatch(handle, messages=2, batch=1)
        tasks = [asyncio.create_task(dispatch(_asked(number))) for number in range(16)]
        await asyncio.sleep(0.05)
        assert handle.messages == [[0], [1]]
        tasks[6].cancel()  # whoever gave up is not sent
        handle.go.set()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert [message for message in handle.messages if 6 in message] == []
        assert max(map(len, handle.messages)) == 4 and len(handle.messages) < 8
        assert (
            found[5] is None and isinstance(found[6], asyncio.CancelledError) and isinstance(found[13], ConnectionError)
        )
        lost = {number for message in handle.messages if 13 in message for number in message}
        for number in set(range(16)) - {5, 6} - lost:
            seen: Any = found[number]
            assert seen.vector[0] == number
        again = await dispatch(_asked(42))
        assert again is not None and again.vector[0] == 42

    asyncio.run(go())


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
