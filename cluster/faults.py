"""A proxy before an S3 server that goes wrong on purpose: busy replies, resets, lost replies, stalls, truncated bodies.

For tests and rehearsals: point AWS_ENDPOINT_URL at it. Which request fails is drawn from a seed; what it did is counted.
"""

import random
import socket
import socketserver
import threading
import time
from collections import Counter
from dataclasses import dataclass
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler
from types import TracebackType
from typing import Self
from urllib.parse import urlparse

_HOP = {"connection", "keep-alive", "transfer-encoding"}
BUSY = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
THROTTLED = b"<Error><Code>AccessDenied</Code><Message>Request rate limit exceeded.</Message></Error>"


@dataclass(frozen=True, kw_only=True)
class Faults:
    """Share of requests that go wrong in each way."""

    busy: float = 0.0  # 503 SlowDown
    denied: float = 0.0  # 403 that means throttling
    reset: float = 0.0  # the connection breaks before the server hears of the request
    lost: float = 0.0  # the server does what it is asked, and the connection breaks before it can say so
    stall: float = 0.0  # the answer takes `stall_s`
    truncated: float = 0.0  # the body of a GET ends too early
    stall_s: float = 3.0


class InThread:
    """A server that answers from a thread of its own within a `with` block, and is closed at its end."""

    _server: socketserver.BaseServer

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True, name=type(self).__name__).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()


class FaultyProxy(InThread):
    """Forwards to an S3 server and injects faults; signatures hold, since the Host header is passed on as it came.

    Args:
        endpoint: the real server, http://HOST:PORT.
        faults: what goes wrong, and how often.
        seed: of the draw.
    """

    def __init__(self, endpoint: str, faults: Faults, seed: int = 0) -> None:
        self.counts: Counter[str] = Counter()
        where = urlparse(endpoint)
        self._random, self._lock = random.Random(seed), threading.Lock()
        proxy = self

        class Handler(_Handler):
            host, port = str(where.hostname), int(where.port or 80)

            def draw(self) -> str:
                return proxy._draw(faults)

            stall_s = faults.stall_s

        self._server = _Server(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"

    def _draw(self, faults: Faults) -> str:
        with self._lock:
            at = self._random.random()
            for name in ("busy", "denied", "reset", "lost", "stall", "truncated"):
                at -= getattr(faults, name)
                if at < 0:
                    self.counts[name] += 1
                    return name
            self.counts["whole"] += 1
            return ""


class _Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    daemon_threads, allow_reuse_address, request_queue_size = True, True, 256

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that go away are no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    host, port, stall_s = "", 0, 0.0

    def draw(self) -> str:
        """The fault of this request."""
        raise NotImplementedError

    def _serve(self) -> None:
        body = self._body()
        fault = self.draw()
        if fault == "stall":
            time.sleep(self.stall_s)
        if fault == "reset":
            self._break()
            return
        if fault in {"busy", "denied"}:
            self._reply(503 if fault == "busy" else 403, {}, BUSY if fault == "busy" else THROTTLED, None)
            return
        upstream = HTTPConnection(self.host, self.port, timeout=60)
        try:
            headers = {key: value for key, value in self.headers.items() if key.lower() not in _HOP | {"expect"}}
            upstream.request(self.command, self.path, body=body or None, headers=headers)
            answer = upstream.getresponse()
            data = answer.read()
            if fault == "lost":
                self._break()
                return
            kept = {key: value for key, value in answer.getheaders() if key.lower() not in _HOP}
            cut = len(data) // 2 if fault == "truncated" and self.command == "GET" and len(data) > 1 else None
            self._reply(answer.status, kept, data, cut)
        finally:
            upstream.close()

    def _break(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # close sends RST
        self.close_connection = True
        self.connection.close()

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _serve

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            data = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return data
        if self.headers.get("Expect", "").lower() == "100-continue":
            self.send_response_only(100)
            self.end_headers()
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _reply(self, status: int, headers: dict[str, str], data: bytes, cut: int | None) -> None:
        self.send_response_only(status)
        for key, value in headers.items():
            if key.lower() != "content-length":
                self.send_header(key, value)
        length = headers.get("Content-Length", str(len(data))) if self.command == "HEAD" else str(len(data))
        self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data if cut is None else data[:cut])
        if cut is not None:
            self.close_connection = True

    def handle_expect_100(self) -> bool:
        """Answered in `_body`."""
        return True

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""
