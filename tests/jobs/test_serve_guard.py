"""The guard, the batching and the fetching of the service, each alone."""

import asyncio
import hashlib
import json
import ssl
import threading
import time
from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar
from urllib.parse import unquote

import numpy as np
import pytest
import trustme

from cluster.errors import BadInputError
from jobs.pictures import Picture
from jobs.serve import Config, _drain, _token_hashes
from jobs.serving.answers import Item
from jobs.serving.embedder import Asked, Seen, Together
from jobs.serving.fetching import Fetcher, is_public
from jobs.serving.guard import App, Guard, Message, Receive, Scope, Send
from jobs.serving.metrics import ServingMetrics
from jobs.serving.pictures import Images
from jobs.serving.refusals import Refusal
from jobs.serving.settings import ServingConfig

FORM = {"content-type": "multipart/form-data; boundary=x", "content-length": "10"}
Answer = tuple[int, dict[str, str], dict[str, Any]]


class _Slow:
    """An app that reads its request and answers 200 after a while."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive()).get("more_body"):
            pass
        await asyncio.sleep(self.seconds)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b'{"ok": {}}'})


def _guard(app: App, *, pending: int = 8, tokens: tuple[str, ...] = (), **config: object) -> Guard:
    hashes = frozenset(hashlib.sha256(token.encode()).hexdigest() for token in tokens)
    settings = ServingConfig.model_validate({"index": "none", **config})
    return Guard(app, settings, pending=pending, tokens=hashes, metrics=ServingMetrics("test"))


async def _at_once() -> Message:
    return {"type": "http.request", "body": b"x\r\n--x--\r\n", "more_body": False}


class _Upload:
    """A body whose last byte comes when it is let; `begun` once its first is read."""

    def __init__(self) -> None:
        self.begun, self.end = asyncio.Event(), asyncio.Event()

    async def __call__(self) -> Message:
        if not self.begun.is_set():
            self.begun.set()
            return {"type": "http.request", "body": b"x", "more_body": True}
        await self.end.wait()
        return await _at_once()


async def _ask(
    guard: Guard,
    path: str = "/v1/search",
    method: str = "POST",
    client: str = "a",
    receive: Receive = _at_once,
    **headers: str,
) -> Answer:
    given = {**(FORM if method == "POST" else {}), **headers}
    scope = {
        "type": "http", "path": unquote(path), "raw_path": path.encode(), "query_string": b"", "method": method,
        "client": (client, 1),
        "headers": [(name.encode(), value.encode()) for name, value in given.items()],
    }  # fmt: skip
    sent: list[Any] = []

    async def send(message: Message) -> None:
        sent.append(message)

    await guard(scope, receive, send)
    found = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], found, json.loads(sent[1]["body"])


def test_what_no_search_can_be_is_left_to_the_routes() -> None:
    """A method that a route has not is the API's 405, not a complaint of the body; HEAD is what GET is."""
    methods: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        methods.append(scope["method"])
        await send({"type": "http.response.start", "status": 405, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    async def ask() -> None:
        for method in ("DELETE", "TRACE", "PUT", "HEAD"):
            assert (await _ask(_guard(app), method=method))[0] == 405
        assert (await _ask(_guard(app), "/v1/index"))[0] == 405
        other = {"content-type": "application/json"}
        status, _, body = await _ask(_guard(app), receive=_at_once, **other)
        assert (status, body["error"]["code"]) == (415, "unsupported_body")

    asyncio.run(ask())
    assert methods == ["DELETE", "TRACE", "PUT", "GET", "POST"]


def test_head_is_counted_with_its_route() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scope["route"] = SimpleNamespace(path="/v1/index")
        await _Slow()(scope, receive, send)

    metrics = ServingMetrics("test")
    guard = Guard(app, ServingConfig(index="none"), pending=8, tokens=frozenset(), metrics=metrics)
    assert asyncio.run(_ask(guard, "/v1/index", "HEAD"))[0] == 200
    assert 'route="/v1/index",status="200"} 1.0' in metrics.text().decode()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Ray Serve's own models
def test_what_is_refused_before_its_route_is_counted_with_it() -> None:
    """Else a route's share of errors would leave out what is turned away."""
    from jobs.serving.api import build_api

    metrics = ServingMetrics("test")
    config = ServingConfig(index="none", max_body_mib=1)
    service: Any = SimpleNamespace(config=config, lifespan=None)
    guard = Guard(build_api(service), config, pending=8, tokens=frozenset(), metrics=metrics)
    guard.stopping = True

    async def ask() -> None:
        assert (await _ask(guard, "/v1/search:batch"))[0] == 503
        large: dict[str, Any] = {"content-length": str(8 << 20)}
        assert (await _ask(guard, "/v1/search", **large))[0] == 413
        assert (await _ask(guard, "/v1/items/a%2Fb/image", "GET"))[0] == 503
        assert (await _ask(guard, "/v1/items/a", "HEAD", long="x" * 40_000))[0] == 431
        for path in ("/nowhere", "/page/healthz"):
            assert (await _ask(guard, path, "GET"))[0] == 404

    asyncio.run(ask())
    counted = {line.rpartition(" ")[0] for line in metrics.text().decode().splitlines() if "requests_total{" in line}
    routes = {
        '/v1/search:batch",status="503',
        '/v1/search",status="413',
        '/v1/items/{image_id:path}/image",status="503',
    }
    routes |= {'/v1/items/{image_id:path}",status="431', 'other",status="404', '/page",status="404'}
    assert counted == {f'manet_serve_requests_total{{gateway="test",route="{each}"}}' for each in routes}


def test_a_form_that_is_cut_off_is_no_form() -> None:
    async def ask(body: bytes, **headers: str) -> Answer:
        pieces = [body[place : place + 3] for place in range(0, len(body), 3)]

        async def receive() -> Message:
            piece = pieces.pop(0)
            return {"type": "http.request", "body": piece, "more_body": bool(pieces)}

        return await _ask(_guard(_Slow()), receive=receive, **headers)

    whole = b'--x\r\nContent-Disposition: form-data; name="k"\r\n\r\n7\r\n--x--\r\n'
    assert asyncio.run(ask(whole))[0] == asyncio.run(ask(whole + b"an epilogue"))[0] == 200
    assert asyncio.run(ask(whole, **{"content-type": 'multipart/form-data; boundary="x"'}))[0] == 200
    for cut in (whole[:-4], whole[:20]):
        status, _, body = asyncio.run(ask(cut))
        assert (status, body["error"]["code"]) == (400, "cut_off")
    assert asyncio.run(ask(b"k=7", **{"content-type": "application/x-www-form-urlencoded"}))[0] == 200


def _token_file(tmp_path: Path, text: str) -> Config:
    (tmp_path / "tokens.txt").write_text(text)
    return Config(index="none", tokens=str(tmp_path / "tokens.txt"))


def test_the_file_of_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hashes(*tokens: str) -> frozenset[str]:
        return frozenset(hashlib.sha256(token.encode()).hexdigest() for token in tokens)

    given = "# the shop's\n  secret \n\n#another\nother#1\n"
    assert _token_hashes(_token_file(tmp_path, given)) == hashes("secret", "other#1")
    for text, line in (("# a\nsecret word\n", 2), ("one\ntwo\tthree", 2), ("\ufeffsecret", 1), ("s\u00e9cret", 1)):
        with pytest.raises(BadInputError, match=f"tokens.txt: line {line} is no token") as caught:
            _token_hashes(_token_file(tmp_path, text))
        assert not any(word in str(caught.value) for word in ("secret", "word", "two", "three", "cret"))
    with pytest.raises(BadInputError, match="it holds no token"):
        _token_hashes(_token_file(tmp_path, "# none\n\n"))
    monkeypatch.setenv("MANET_TOKENS", "secret, other,")
    assert _token_hashes(Config(index="none")) == hashes("secret", "other")
    monkeypatch.setenv("MANET_TOKENS", "secret,an other")
    with pytest.raises(BadInputError, match=r"\$MANET_TOKENS: entry 2"):
        _token_hashes(Config(index="none"))
    for nothing in (" , ", "\n"):  # a template that was not filled in must not open the service
        monkeypatch.setenv("MANET_TOKENS", nothing)
        with pytest.raises(BadInputError, match=r"\$MANET_TOKENS: it holds no token"):
            _token_hashes(Config(index="none"))
    monkeypatch.setenv("MANET_TOKENS", "")
    assert _token_hashes(Config(index="none")) == frozenset()


def test_tokens() -> None:
    guard = _guard(_Slow(), tokens=("secret", "other"))

    async def ask() -> None:
        status, headers, body = await _ask(guard)
        assert (status, headers["www-authenticate"], body["error"]["code"]) == (401, "Bearer", "unauthorized")
        for given in ("Bearer wrong", "Basic secret", "secret", "Bearer ", "Bearer s\u00e9cret"):
            assert (await _ask(guard, authorization=given))[0] == 401
        for given in ("Bearer secret", "bearer other"):
            assert (await _ask(guard, authorization=given))[0] == 200
        assert (await _ask(guard, "/v1/items/x", "GET"))[0] == (await _ask(guard, "/metrics", "GET"))[0] == 401
        for path in ("/", "/page/app.js", "/healthz", "/readyz"):
            assert (await _ask(guard, path, "GET"))[0] == 200

    asyncio.run(ask())


def test_each_client_has_a_rate_of_its_own() -> None:
    guard = _guard(_Slow(), rate=0.2)  # bursts of two

    async def ask() -> None:
        assert [(await _ask(guard))[0] for _ in range(2)] == [200, 200]
        status, headers, _ = await _ask(guard)
        assert (status, headers["retry-after"]) == (429, "5")
        assert (await _ask(guard, client="b"))[0] == 200
        assert (await _ask(guard, "/v1/index", "GET"))[0] == 200

    asyncio.run(ask())


def test_what_a_request_takes_more_than_one_search_is_owed() -> None:
    more = [31, 0]  # a batch of 32 pictures, a search

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        guard.charge(more.pop(0))
        await _Slow()(scope, receive, send)

    guard = _guard(app, rate=1)  # bursts of ten

    async def ask() -> None:
        assert (await _ask(guard, "/v1/search:batch"))[0] == 200
        status, headers, _ = await _ask(guard)
        assert (status, headers["retry-after"]) == (429, "23")
        assert (await _ask(guard, client="b"))[0] == 200

    asyncio.run(ask())


def test_a_guard_that_stops_takes_no_request_and_tells_what_is_in_hand() -> None:
    guard = _guard(_Slow(0.2))

    async def ask() -> None:
        image = asyncio.create_task(_ask(guard, "/v1/items/x/image", "GET"))
        await asyncio.sleep(0.05)
        guard.stopping = True
        assert (guard.pending, guard.others) == (0, 1)
        for path in ("/v1/search", "/v1/items/x/image", "/v1/index"):
            status, headers, body = await _ask(guard, path, "POST" if path == "/v1/search" else "GET")
            assert (status, headers["retry-after"], body["error"]["code"]) == (503, "5", "stopping")
        assert (await _ask(guard, "/healthz", "GET"))[0] == (await image)[0] == 200
        assert guard.others == 0

    asyncio.run(ask())


class _Gateways:
    """The handle of two gateways, of which the busy one is lost; Ray Serve has another one up a moment later."""

    def __init__(self) -> None:
        self.drain = self
        self._answers = [("lost", 1, 0), ("other", 1, 0), ("other", 0, 0), ("next", 0, 0)]

    def remote(self) -> "_Gateways":
        return self

    def result(self, timeout_s: float) -> tuple[str, int, int]:
        return self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]

    def named(self, *, all_namespaces: bool) -> list[dict[str, str]]:
        """As `ray.util.list_named_actors`."""
        return [{"name": name, "namespace": "serve"} for name in ("other", "next", *["lost"][: len(self._answers) - 2])]


def test_a_gateway_that_is_lost_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    gateways = _Gateways()
    monkeypatch.setattr("ray.util.list_named_actors", gateways.named)  # imports Ray, which takes its time
    began = time.monotonic()
    _drain(Config(index="none", gateways=2, request_seconds=4), gateways)
    assert time.monotonic() - began < 4 and len(gateways._answers) == 1


def test_more_than_is_pending_is_turned_away_at_once() -> None:
    guard = _guard(_Slow(0.3), pending=3)

    async def ask() -> None:
        answers = await asyncio.gather(*(_ask(guard) for _ in range(8)))
        assert sorted(status for status, _, _ in answers) == [200] * 3 + [503] * 5
        assert all(int(headers["retry-after"]) >= 1 for status, headers, _ in answers if status == 503)
        assert (await _ask(guard))[0] == 200

    asyncio.run(ask())


def test_a_slow_upload_holds_up_no_search() -> None:
    guard = _guard(_Slow(), pending=1)

    async def ask() -> None:
        slow = [_Upload() for _ in range(4)]
        asked = [asyncio.create_task(_ask(guard, receive=upload)) for upload in slow]
        await asyncio.gather(*(upload.begun.wait() for upload in slow))
        assert (guard.pending, guard.uploads) == (0, 4)
        assert (await _ask(guard, "/v1/items/x/image", "GET"))[0] == 200
        status, headers, body = await _ask(guard)  # uploads have a limit of their own
        assert (status, headers["retry-after"], body["error"]["code"]) == (503, "1", "overloaded")
        slow[0].end.set()
        assert (await asked[0])[0] == (await _ask(guard))[0] == 200
        for upload in slow:
            upload.end.set()
        statuses = [status for status, _, _ in await asyncio.gather(*asked[1:])]
        assert 200 in statuses and set(statuses) <= {200, 503}  # there is room for one at a time
        assert guard.pending == guard.uploads == 0

    asyncio.run(ask())


def test_room_is_looked_for_again_when_an_upload_ends() -> None:
    guard = _guard(_Slow(), pending=1)

    async def ask() -> None:
        upload = _Upload()
        late = asyncio.create_task(_ask(guard, receive=upload))
        await upload.begun.wait()
        with guard.holding(1):
            upload.end.set()
            status, headers, _ = await late
        assert (status, headers["retry-after"]) == (503, "1")
        assert (await _ask(guard))[0] == 200

    asyncio.run(ask())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Ray Serve's own models
def test_fastapi_passes_on_what_the_guard_says_at_a_bodys_end() -> None:
    from jobs.serving.api import build_api

    service: Any = SimpleNamespace(lifespan=None, config=ServingConfig(index="none"))
    guard = _guard(build_api(service), pending=1)

    async def ask() -> None:
        upload, form = _Upload(), {"content-type": "application/x-www-form-urlencoded"}
        late = asyncio.create_task(_ask(guard, receive=upload, **form))
        await upload.begun.wait()
        with guard.holding(1):
            upload.end.set()
            status, headers, body = await late
        assert (status, headers["retry-after"], body["error"]["code"]) == (503, "1", "overloaded")

    asyncio.run(ask())


def test_an_upload_has_its_own_time() -> None:
    guard = _guard(_Slow(0.3), upload_seconds=0.2, request_seconds=1)

    async def ask() -> None:
        status, headers, body = await _ask(guard, receive=_Upload())  # its end never comes
        assert (status, headers["connection"], body["error"]["code"]) == (408, "close", "upload_timed_out")
        assert guard.pending == guard.uploads == 0
        assert (await _ask(guard))[0] == 200  # the search itself may take longer than the upload

    asyncio.run(ask())


def test_a_batch_and_what_is_explained_weigh_more_than_a_search() -> None:
    guard = _guard(_Slow(0.3), pending=10)

    async def ask() -> None:
        batch = asyncio.create_task(_ask(guard, "/v1/search:batch"))
        await asyncio.sleep(0.05)
        assert guard.pending == 8
        assert (await _ask(guard, "/v1/search:batch"))[0] == 503
        with guard.holding(1):
            with guard.explaining(1):
                assert (guard.pending, (await _ask(guard))[0]) == (10, 503)
            with pytest.raises(Refusal), guard.explaining(2):
                pass
            assert guard.pending == 9
        assert (await _ask(guard))[0] == (await batch)[0] == 200
        small = _guard(_Slow(0.1), pending=2)  # a batch outweighs all its room, and gets it where it is free
        answers = await asyncio.gather(*(_ask(small, "/v1/search:batch") for _ in range(3)))
        assert sorted(status for status, _, _ in answers) == [200, 503, 503]
        with small.holding(1), small.explaining(7):
            assert small.pending == 2

    asyncio.run(ask())


def test_gallery_pictures_are_made_a_few_at_a_time() -> None:
    images = Images(most=1, seconds=0.1)
    square = np.zeros((512, 512, 3), np.uint8)
    loads: list[str] = []

    async def ask() -> None:
        go = asyncio.Event()

        async def load(name: str) -> Picture:
            loads.append(name)
            await go.wait()
            return square

        def image(name: str, edition: str = "one") -> Coroutine[Any, Any, bytes]:
            return images.get((edition, name, 128), lambda: load(name))

        first = asyncio.create_task(image("a"))
        await asyncio.sleep(0)
        with pytest.raises(Refusal) as caught:
            await image("b")
        assert (caught.value.status, caught.value.retry_after, loads) == (503, 1, ["a"])
        again = asyncio.create_task(image("a"))
        await asyncio.sleep(0)
        go.set()
        assert (await first) == (await again) == (await image("a")) and loads == ["a"]
        await image("a", "two")  # another version of the index may have another picture of this id
        assert loads == ["a", "a"]

    asyncio.run(ask())


def test_a_request_has_its_time_and_no_more() -> None:
    guard = _guard(_Slow(5), request_seconds=0.1)
    status, headers, body = asyncio.run(_ask(guard))
    assert (status, headers["retry-after"], body["error"]["code"]) == (503, "1", "timed_out")
    assert guard.pending == 0


def test_a_fault_shows_nothing_of_itself() -> None:
    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        raise KeyError("/secret/path")

    status, _, body = asyncio.run(_ask(_guard(broken)))
    assert status == 500 and "secret" not in json.dumps(body)


def test_a_pass_takes_all_that_waits_and_loses_nobody() -> None:
    sizes: list[int] = []
    going = threading.Event()

    def work(asked: list[Asked]) -> list[Seen | None]:
        going.wait(10)
        sizes.append(len(asked))
        return [Seen(vector=each.pixels) for each in asked]

    async def ask() -> None:
        with ThreadPoolExecutor(1) as thread:
            together = Together(thread, work, 4)
            tasks = [asyncio.create_task(together(Asked(pixels=np.array([n])))) for n in range(11)]
            await asyncio.sleep(0.1)
            assert together.busy_s > 0.05
            tasks[7].cancel()  # whoever gave up is not described
            going.set()
            found = await asyncio.gather(*tasks, return_exceptions=True)
            assert together.busy_s == 0
            values = [int(each.vector[0]) for each in found if isinstance(each, Seen)]
            assert values == [n for n in range(11) if n != 7]
            again = await together(Asked(pixels=np.array([42])))
            assert again is not None and again.vector[0] == 42

    asyncio.run(ask())
    assert sizes == [4, 4, 2, 1]


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True), ("2606:4700::1", True), ("127.0.0.1", False), ("10.0.0.1", False), ("169.254.169.254", False),
        ("100.64.0.1", False), ("224.0.0.1", False), ("0.0.0.0", False), ("::1", False), ("fe80::1", False),  # noqa: S104
        ("fd00::1", False), ("::ffff:127.0.0.1", False), ("64:ff9b::7f00:1", False), ("2002:7f00:1::", False),
        ("64:ff9b:1::7f00:1", False), ("::10.0.0.1", False), ("::8.8.8.8", False), ("fec0::1", False), ("2000::1", True),
    ],
)  # fmt: skip
def test_public_addresses(address: str, public: bool) -> None:
    assert is_public(ip_address(address)) is public


class _Site(BaseHTTPRequestHandler):
    """Pictures, redirects, floods."""

    inside: ClassVar[str] = ""

    def do_GET(self) -> None:
        if self.path == "/inside":
            self.send_response(302)
            self.send_header("Location", "https://169.254.169.254/latest/")
        elif self.path.startswith("/round"):
            self.send_response(302)
            self.send_header("Location", "/round-again")
        elif self.path == "/once":
            self.send_response(302)
            self.send_header("Location", "/picture")
        else:
            self.send_response(200 if self.path in {"/picture", "/flood"} else 404)
        self.end_headers()
        if self.path == "/picture":
            self.wfile.write(b"bytes of a picture")
        elif self.path == "/flood":
            try:
                for _ in range(1000):
                    self.wfile.write(b"x" * 10_000)
            except OSError:
                return

    def log_message(self, format: str, *args: object) -> None:
        return


@pytest.fixture
def site(tmp_path: Path) -> Iterator[tuple[int, ssl.SSLContext]]:
    """An https server on this machine, and what trusts it."""
    authority = trustme.CA()
    server_side, client_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("localhost").configure_cert(server_side)
    authority.configure_trust(client_side)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Site)
    server.socket = server_side.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port, client_side
    server.shutdown()
    server.server_close()


def test_fetching(site: tuple[int, ssl.SSLContext]) -> None:
    port, tls = site
    base = f"https://localhost:{port}"

    def fetch(path: str, *, here: bool = True) -> bytes:
        loopback = ip_address("127.0.0.1")
        fetcher = Fetcher(
            max_bytes=100_000,
            seconds=5,
            allowed=lambda address: address == loopback or address == ip_address("::1") if here else is_public(address),
            ports=frozenset({port, 443}),
            tls=tls,
        )
        return asyncio.run(fetcher.fetch(path))

    assert fetch(f"{base}/picture") == fetch(f"{base}/once") == b"bytes of a picture"
    for path, code in (
        ("/inside", "url_not_allowed"),
        ("/round", "url_redirects"),
        ("/flood", "too_large"),
        ("/no", "url_failed"),
    ):
        with pytest.raises(Refusal) as caught:
            fetch(base + path)
        assert caught.value.code == code
    with pytest.raises(Refusal) as caught:
        fetch(f"{base}/picture", here=False)
    assert caught.value.code == "url_not_allowed"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Ray Serve's own models
def test_openapi_says_where_a_token_is_needed() -> None:
    from jobs.serving.api import build_api

    service: Any = SimpleNamespace(lifespan=None, config=ServingConfig(index="none"))
    plain, secured = build_api(service).openapi(), build_api(service, tokens=True).openapi()
    assert "securitySchemes" not in plain["components"]
    assert secured["components"]["securitySchemes"]["HTTPBearer"] == {"type": "http", "scheme": "bearer"}
    wanted = {path: "security" in way for path, ways in secured["paths"].items() for way in ways.values()}
    assert wanted == {path: path.startswith("/v1/") for path in wanted} and len(wanted) == 9


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Ray Serve's own models
def test_openapi_says_what_is_answered() -> None:
    from jobs.serving.api import build_api

    service: Any = SimpleNamespace(lifespan=None, config=ServingConfig(index="none"))
    ways = [way for ways in build_api(service).openapi()["paths"].items() for way in ways[1].items()]
    answers = {way["operationId"]: set(way["responses"]) for _, way in ways}
    assert answers["health"] == answers["ready"] == {"200", "431", "500", "503"}
    assert all({"401", "431", "500", "503"} <= answers[name] for name in set(answers) - {"health", "ready"})
    assert "502" in answers["index"] & answers["recallPlot"] and {"304", "429"} <= answers["itemImage"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Ray Serve's own models
def test_an_id_may_end_in_image_and_a_shop_may_show_its_picture() -> None:
    from jobs.serving.api import build_api

    async def item(image_id: str) -> Item:
        return Item(image_id=image_id, uri=None, description=None, category=None, image="", version=1)

    async def image(image_id: str, side: int) -> bytes:
        return json.dumps({"picture of": image_id}).encode()

    edition = SimpleNamespace(index=SimpleNamespace(sha256="0" * 64))
    service: Any = SimpleNamespace(lifespan=None, item=item, image=image, gallery=SimpleNamespace(current=edition))

    async def ask(path: str, *origins: str) -> Answer:
        service.config = ServingConfig(index="none", cors_origin=origins)
        return await _ask(_guard(build_api(service)), path, "GET")

    for image_id, sent in (
        ("prod1", "prod1"),
        ("prod1/image", "prod1%2Fimage"),
        ("a/image/image", "a%2fimage%2fimage"),
    ):
        assert asyncio.run(ask(f"/v1/items/{sent}"))[2]["image_id"] == image_id
        _, headers, body = asyncio.run(ask(f"/v1/items/{sent}/image"))
        assert (body, headers["cross-origin-resource-policy"]) == ({"picture of": image_id}, "same-origin")
    _, headers, _ = asyncio.run(ask("/v1/items/prod1/image", "https://shop.example"))
    assert headers["cross-origin-resource-policy"] == "cross-origin"
