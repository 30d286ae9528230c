"""One listening socket for all gateways of a machine, held open by the job itself: while a gateway that was lost comes back,
whoever connects waits in the socket's queue. On a cluster Ray Serve's proxies listen instead, one on every node.

The job hands the socket to each gateway that asks for it, over a Unix socket in a folder of its own (SCM_RIGHTS).
"""

import contextlib
import os
import shutil
import socket
import tempfile
import threading
import time
from asyncio import BaseTransport, TimerHandle
from collections.abc import Iterator
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from cluster.errors import BadInputError
from jobs.serving.guard import SECURITY, sent_as
from jobs.serving.refusals import Refusal, head_too_large, length_required

_WAITING = 2048  # connections that no gateway has accepted yet
_PAUSE_S = 0.2
_HEAD = 64 << 10  # bytes of a request's head; up to here the guard, which allows half of it, answers by itself
_HEAD_S = 30  # of a request's head, and of a new connection until there is one
_KEEP_ALIVE_S = 90  # of an idle connection: longer than a reverse proxy keeps it, which would send on a closed one


class Door:
    """A listening socket, and the Unix socket at `path` that hands it out; close it when the service ends.

    Args:
        host: address to listen at.
        port: of it.

    Raises:
        BadInputError: nothing can listen there.
    """

    def __init__(self, host: str, port: int) -> None:
        self._listening = _listening(host, port)
        self._asked = socket.socket(socket.AF_UNIX)
        self._open, self._folder, self.path = True, "", ""
        try:
            self._folder = tempfile.mkdtemp(prefix="manet-serve-")  # mode 0700
            self.path = f"{self._folder}/door"
            self._asked.bind(self.path)
        except OSError as error:
            self.close()
            where = self.path or "TMPDIR"
            raise BadInputError(f"{where}: no Unix socket can be there ({error}); set TMPDIR to a short path") from None
        self._asked.listen()
        threading.Thread(target=self._hand_out, name="door", daemon=True).start()

    def _hand_out(self) -> None:
        while self._open:
            try:
                asking, _ = self._asked.accept()
            except OSError:  # closed; or no descriptor is free for now
                time.sleep(_PAUSE_S)
                continue
            with asking, contextlib.suppress(OSError):  # whoever asked is gone
                socket.send_fds(asking, [b"1"], [self._listening.fileno()])

    def close(self) -> None:
        """Hand it to nobody any more. Gateways that have the socket may go on with it."""
        self._open = False
        with contextlib.suppress(OSError):
            self._asked.shutdown(socket.SHUT_RDWR)  # ends the thread's wait
        self._asked.close()
        self._listening.close()
        shutil.rmtree(self._folder, ignore_errors=True)


def _listening(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    found = socket.socket(family)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind((host, port))
        found.listen(_WAITING)
    except (OSError, OverflowError) as error:
        found.close()
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise BadInputError(f"--host {host} --port {port}: {reason}; choose another") from None
    return found


def listening_of(path: str) -> socket.socket:
    """The listening socket of the `Door` at a path.

    Raises:
        OSError: there is none any more.
    """
    with socket.socket(socket.AF_UNIX) as asking:
        asking.settimeout(30)
        asking.connect(path)
        _, descriptors, _, _ = socket.recv_fds(asking, 1, 1)
    if not descriptors:
        raise ConnectionError("the service is ending")
    os.set_inheritable(descriptors[0], False)
    return socket.socket(fileno=descriptors[0])


class HttpProtocol(HttpToolsProtocol):
    """HTTP whose heads are bounded in bytes and in time: httptools itself keeps whatever comes before a head's end."""

    _head: int | None = 0  # bytes so far of the head that is awaited; None: a body is
    _in_body = False
    _late: TimerHandle | None = None

    def connection_made(self, transport: BaseTransport) -> None:
        """Expect a head."""
        super().connection_made(transport)  # type: ignore[arg-type]
        self._late = self.loop.call_later(_HEAD_S, self._give_up)

    def connection_lost(self, exc: Exception | None) -> None:
        """Expect nothing any more."""
        self._in_time()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take what came; close a connection whose head is too long, and give one that is not whole its time."""
        if self._head is not None:
            self._head += len(data)
        super().data_received(data)
        if not self._head or self.transport.is_closing():
            return
        if self._head > _HEAD and self._in_body:  # in chunks: the guard answers that, if it has not yet
            answered = self.cycle.response_started
            self.transport.close() if answered else self.refuse(length_required())
        elif self._head > _HEAD:
            self.refuse(head_too_large())
        elif self._late is None:
            self._late = self.loop.call_later(_HEAD_S, self._give_up)

    def send_400_response(self, msg: str) -> None:
        """Uvicorn's answer to what is no HTTP, which it would write as plain text; an address of over 64 KiB is none to it."""
        if len(self.url or b"") >= _HEAD - 1:
            self.refuse(head_too_large())
        else:
            self.refuse(Refusal(400, "bad_request", "This is no HTTP request that can be read."))

    def _unsupported_upgrade_warning(self) -> None:
        """Uvicorn's word to the log of an upgrade, of which there is none here: the request is answered as it is."""

    def refuse(self, refusal: Refusal) -> None:
        """Write an error, as the guard would, and close the connection."""
        if self.transport.is_closing():
            return
        pairs, body = sent_as(refusal, **SECURITY, connection="close")
        lines = [name + b": " + value + b"\r\n" for name, value in pairs]
        self.transport.write(b"".join([STATUS_LINE[refusal.status], *lines, b"\r\n", body]))
        self.transport.close()

    def on_headers_complete(self) -> None:
        """Httptools' word for a head's end. A body without a length, which no route takes, counts with it: its trailers are kept
        like headers.
        """
        super().on_headers_complete()
        self._in_body = True
        if not any(name == b"transfer-encoding" for name, _ in self.headers):
            self._head = None
            self._in_time()

    def on_message_complete(self) -> None:
        """Httptools' word for a body's end: the next head is awaited. What of it came in the same piece is not counted."""
        self._head, self._in_body = 0, False
        self._in_time()
        super().on_message_complete()

    def _in_time(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _give_up(self) -> None:
        if not self.transport.is_closing():
            self.transport.close()


class Server(uvicorn.Server):
    """Uvicorn within a replica of Ray Serve, which has its own answer to signals."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the process's signals alone."""
        yield


def server_of(app: Any) -> Server:  # noqa: ANN401 - an ASGI app
    """What answers HTTP with an app."""
    return Server(
        uvicorn.Config(
            app,
            http=HttpProtocol,
            ws="none",
            backlog=_WAITING,
            timeout_keep_alive=_KEEP_ALIVE_S,
            access_log=False,
            log_config=None,
            proxy_headers=False,
            server_header=False,
            lifespan="on",
        )
    )
