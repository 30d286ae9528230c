"""The service's client against a server that keeps what it is sent."""

import json
import math
import threading
from collections.abc import Iterator
from email import message_from_bytes
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from manet.client import Client, ServiceError


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


def test_one_name_is_a_name_and_a_filter_of_nothing_is_no_filter_left_out(client: Client, tmp_path: Path) -> None:
    """A text is not its letters; and where no id is allowed, not all are."""
    (tmp_path / "one.jpg").write_bytes(b"one")
    client.search_batch(str(tmp_path / "one.jpg"), image_ids="p1", categories="lip gloss", ids="p2")
    assert _Keeps.form == [("k", "7"), ("picture", "one"), ("id", "p1"), ("category", "lip gloss"), ("ids", "p2")]
    client.search_batch([b"one", tmp_path / "one.jpg"])
    assert _Keeps.form == [("k", "7"), ("picture", "one"), ("picture", "one")]
    _Keeps.form = []
    closed: tuple[dict[str, Any], ...] = ({"ids": []}, {"categories": ()}, {"ids": iter(())})
    for filters in closed:
        with pytest.raises(ServiceError, match=r"nothing_passes: (ids|categories) holds nothing"):
            client.search(image_id="p1", **filters)
    assert _Keeps.form == []  # nothing was sent


def test_what_cannot_be_sent_is_a_service_error(client: Client) -> None:
    for call in (client.item, client.image, lambda name: client.search(image_id=name)):
        with pytest.raises(ServiceError, match=r"text: '\\udcff' is no text"):
            call("\udcff")
    given: tuple[dict[str, Any], ...] = (
        {"tries": 0},
        {"seconds": 0},
        {"seconds": -1.0},
        {"seconds": math.nan},
        {"seconds": 1e300},
    )
    for wrong in given:
        (name,) = wrong
        with pytest.raises(ServiceError, match=f"{name}: {name}="):
            Client("http://127.0.0.1", **wrong)


def test_a_busy_service_is_not_asked_earlier_than_it_says(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr("manet.client.time.sleep", waits.append)
    for _ in range(5):
        _Keeps.busy = 4
        client.search(image_id="a")
    assert len(waits) == 20 and min(waits) >= 2 and max(waits) <= 2.6


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    client = Client("http://127.0.0.1:1", tries=1)
    for ask in (lambda: client.search(tmp_path / "none.jpg"), lambda: client.search_batch([str(tmp_path)])):
        with pytest.raises(ServiceError, match=f"file: {tmp_path}") as caught:
            ask()
        assert (caught.value.status, caught.value.code) == (0, "file")


class _NoService(BaseHTTPRequestHandler):
    """What stands at an address where no service is, or no longer."""

    def do_GET(self) -> None:
        moved = self.path.startswith("/moved/")
        self.send_response(302 if moved else 200)
        if moved:
            self.send_header("Location", "https://elsewhere.example/login")
        self.end_headers()
        self.wfile.write(b"<html>not the service</html>")

    def log_message(self, format: str, *args: object) -> None:
        return


def test_what_is_no_answer_does_not_pass_for_one() -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), _NoService) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        moved = Client(f"{address}/moved", tries=1)
        for ask in (moved.index, lambda: moved.image("x")):
            with pytest.raises(ServiceError, match=r"redirect: .* 302, see https://elsewhere.example/login") as caught:
                ask()
            assert caught.value.status == 302
        with pytest.raises(ServiceError, match="no_json"):
            Client(address, tries=1).index()
        server.shutdown()
