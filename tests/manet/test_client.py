"""The service's client against a server that keeps what it is sent."""

import json
import threading
from collections.abc import Iterator
from email import message_from_bytes
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest

from manet.client import Client


class _Keeps(BaseHTTPRequestHandler):
    """Says that it is busy as often as it is told, then answers; keeps the last form."""

    form: ClassVar[list[tuple[str, str]]] = []
    busy: ClassVar[int] = 0

    def do_POST(self) -> None:
        head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
        parts = message_from_bytes(head + self.rfile.read(int(self.headers["Content-Length"]))).walk()
        _Keeps.form = [
            (str(part.get_param("name", header="content-disposition")), str(part.get_payload()))
            for part in parts
            if not part.is_multipart()
        ]
        _Keeps.busy -= 1
        self.send_response(200 if _Keeps.busy < 0 else 503)
        self.send_header("Retry-After", "2")
        self.end_headers()
        self.wfile.write(json.dumps({"items": []}).encode())

    def log_message(self, format: str, *args: object) -> None:
        return


@pytest.fixture
def client() -> Iterator[Client]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Keeps) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield Client(f"http://127.0.0.1:{server.server_port}")
        server.shutdown()


def test_fields_arrive_as_they_were_given(client: Client) -> None:
    client.search(url="https://shop.example/A.JPG", category="Lipstick", rerank=False, explain=2)
    more = [("url", "https://shop.example/A.JPG"), ("category", "Lipstick"), ("rerank", "false"), ("explain", "2")]
    assert _Keeps.form == [("k", "7"), *more]
    assert client.search_batch(image_ids=["A"], categories=["Lipstick"], ids=["B", "c"], fold=True) == []
    assert _Keeps.form == [
        ("k", "7"),
        ("id", "A"),
        ("category", "Lipstick"),
        ("ids", "B"),
        ("ids", "c"),
        ("fold", "true"),
    ]


def test_a_busy_service_is_not_asked_earlier_than_it_says(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr("manet.client.time.sleep", waits.append)
    for _ in range(5):
        _Keeps.busy = 4
        client.search(image_id="a")
    assert len(waits) == 20 and min(waits) >= 2 and max(waits) <= 2.6
