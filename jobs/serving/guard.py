"""What stands before the API: who may ask, how much and how often; headers; one form for every error.

All of it is decided from a request's head, before a byte of its body is read; whether there is room for a search once more
when its body is there: an upload, however slow, is not in hand.
"""

import asyncio
import hashlib
import json
import logging
import math
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any
from urllib.parse import parse_qs

from python_multipart.multipart import parse_options_header

from jobs.serving.metrics import ServingMetrics, route_of
from jobs.serving.refusals import Refusal, head_too_large, length_required
from jobs.serving.settings import AT_ONCE, UPLOADS, ServingConfig

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

SEARCHES = {"/v1/search": 1, "/v1/search:batch": 4}  # path -> how many times the body of one picture, and its time
_WEIGHTS = {"/v1/search:batch": AT_ONCE}  # path -> searches in hand that one counts as, where it is not one
_FORMS = ("multipart/form-data", "application/x-www-form-urlencoded")
_HEAD = 32 << 10  # bytes of a request's address and headers
_TAIL = 1 << 10  # bytes at the end of a form, among which its last boundary is
_CLIENTS = 10_000  # whose rate is remembered
_BURST_S = 10
SECURITY = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
        "manifest-src 'self'; form-action 'none'; frame-ancestors 'none'; base-uri 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(self), geolocation=(), microphone=()",
}
_LOG = logging.getLogger("ray.serve")
_ASKING: ContextVar[str] = ContextVar("asking", default="")  # the client whose request this is


class Guard:
    """An ASGI app around another.

    Args:
        app: the API.
        config: the limits.
        pending: searches in hand, at most; uploads on their way, `UPLOADS` times as many.
        tokens: sha256 of each bearer token; none: nobody needs one.
        metrics: where requests are counted.
    """

    def __init__(
        self, app: App, config: ServingConfig, *, pending: int, tokens: frozenset[str], metrics: ServingMetrics
    ) -> None:
        self._app, self._config, self._tokens, self._metrics = app, config, tokens, metrics
        self._most, self._pending, self._uploads = pending, 0, 0
        self._rates: OrderedDict[str, tuple[float, float]] = OrderedDict()  # client -> searches left, and when
        self._usual_s = 1.0  # of one search, lately
        self.others = 0  # requests of the API in hand that are no searches
        self.stopping = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.monotonic(), 0
        asked = dict(scope)  # what answers may change it
        if scope["method"] == "HEAD":  # what GET says; the server, which keeps its own scope, leaves the body out
            scope = {**scope, "method": "GET"}

        async def dressed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                present = {name for name, _ in message.get("headers", [])}
                extra = [(key.encode(), text.encode()) for key, text in SECURITY.items() if key.encode() not in present]
                if scope["path"].startswith("/v1/") and b"cache-control" not in present:
                    extra.append((b"cache-control", b"no-store"))
                message["headers"] = [*message.get("headers", []), *extra]
            await send(message)

        try:
            await self._admit(scope, receive, dressed)
        except Refusal as refusal:
            if not status:
                await refuse(refusal, dressed)
        except TimeoutError:
            if not status:
                seconds = f"{self._config.request_seconds:g} s"
                await refuse(Refusal(503, "timed_out", f"No answer within {seconds}.", retry_after=1), dressed)
        except Exception:
            _LOG.exception("a request failed")
            if not status:
                await refuse(Refusal(500, "internal", "The service failed; its log says why."), dressed)
        finally:
            asked["route"] = scope.get("route")
            route = route_of(asked, getattr(self._app, "routes", ()))
            self._metrics.request(route, status, time.monotonic() - began)

    async def _admit(self, scope: Scope, receive: Receive, send: Send) -> None:
        address = len(scope.get("raw_path") or b"") + len(scope.get("query_string", b""))
        if address + sum(len(name) + len(value) for name, value in scope["headers"]) > _HEAD:
            raise head_too_large()
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        path = scope["path"]
        client = self._client(scope, headers)
        if scope["method"] == "POST" and path in SEARCHES:  # no other route reads a body
            self._check_body(headers, self._config.max_body * SEARCHES[path])
        of_api = path.startswith("/v1/")
        if self.stopping and of_api:
            raise Refusal(503, "stopping", "The service is stopping.", retry_after=5)
        if _searches(scope):
            _ASKING.set(client)
            self._check_rate(client)
            await self._search(scope, receive, send)
            return
        self.others += of_api
        try:
            async with asyncio.timeout(self._config.request_seconds):
                await self._app(scope, receive, send)
        finally:
            self.others -= of_api

    async def _search(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a search: an upload until the last byte of its body, in hand and with the time of a request from then on."""
        bodies = SEARCHES.get(scope["path"], 1)
        weight = min(self._most, _WEIGHTS.get(scope["path"], 1))  # what outweighs all room has it alone
        self._check_room(weight)
        began = 0.0

        def begin() -> None:
            nonlocal began
            stage.close()
            stage.enter_context(self.holding(weight))
            limit.reschedule(asyncio.get_running_loop().time() + self._config.request_seconds)
            began = time.monotonic()

        end, tail = _end_of_form(scope), b""

        async def receiving() -> Message:
            nonlocal tail
            message = await receive()
            if message["type"] == "http.request":
                tail = (tail + message.get("body", b"")[-_TAIL:])[-_TAIL:]
            if not began and message["type"] == "http.request" and not message.get("more_body", False):
                if end not in tail:
                    raise Refusal(400, "cut_off", "The form is cut off: its last boundary is missing.")
                begin()
            return message

        try:
            async with asyncio.timeout(self._config.upload_seconds * bodies) as limit:
                with ExitStack() as stage:
                    if scope["method"] == "POST":
                        stage.enter_context(self._uploading(bodies))
                    else:
                        begin()
                    await self._app(scope, receiving, send)
        except TimeoutError:
            if began:
                raise
            self._metrics.refused.labels("upload").inc()
            raise Refusal(408, "upload_timed_out", "The upload takes too long.") from None
        if began:
            self._usual_s += 0.1 * (time.monotonic() - began - self._usual_s)

    @property
    def pending(self) -> int:
        """Searches in hand."""
        return self._pending

    @property
    def uploads(self) -> int:
        """Searches whose bodies are on their way; a batch counts as four."""
        return self._uploads

    @contextmanager
    def explaining(self, answers: int) -> Iterator[None]:
        """Count what a search that is in hand describes beside its query.

        Raises:
            Refusal: there is no room for it.
        """
        with self.holding(min(self._most - 1, answers)):
            self.charge(answers)
            yield

    @contextmanager
    def holding(self, weight: int) -> Iterator[None]:
        """Count a search, or so many, as in hand.

        Raises:
            Refusal: there is no room for it.
        """
        self._check_room(weight)
        self._pending += weight
        self._metrics.pending.set(self._pending)
        try:
            yield
        finally:
            self._pending -= weight
            self._metrics.pending.set(self._pending)

    @contextmanager
    def _uploading(self, bodies: int) -> Iterator[None]:
        if self._uploads + bodies > UPLOADS * self._most:
            raise self._overloaded()
        self._uploads += bodies
        try:
            yield
        finally:
            self._uploads -= bodies

    def _check_room(self, weight: int) -> None:
        if self._pending + weight > self._most:
            raise self._overloaded()

    def _overloaded(self) -> Refusal:
        self._metrics.refused.labels("overload").inc()
        wait = math.ceil(self._usual_s)
        return Refusal(503, "overloaded", "The service is busy; try again in a moment.", retry_after=max(1, wait))

    def _client(self, scope: Scope, headers: dict[str, str]) -> str:
        """Who asks: the hash of the token, else the address.

        Raises:
            Refusal: a token is needed, and this is none.
        """
        address = str((scope.get("client") or ("unknown",))[0])
        guarded = scope["path"].startswith("/v1/") or scope["path"] == "/metrics"
        if not self._tokens or not guarded or scope["method"] == "OPTIONS":
            return address
        scheme, _, token = headers.get("authorization", "").partition(" ")
        digest = hashlib.sha256(token.strip().encode("latin-1")).hexdigest()
        if scheme.lower() != "bearer" or digest not in self._tokens:
            self._metrics.refused.labels("token").inc()
            raise Refusal(401, "unauthorized", "This service wants an access token.")
        return digest

    def _check_body(self, headers: dict[str, str], limit: int) -> None:
        if headers.get("content-type", "").partition(";")[0].strip().lower() not in _FORMS:
            raise Refusal(415, "unsupported_body", f"Send a form: {' or '.join(_FORMS)}.")
        length = headers.get("content-length", "")
        if not length.isdecimal():
            raise length_required()
        if int(length) > limit:
            self._metrics.refused.labels("body").inc()
            raise Refusal(413, "too_large", f"The upload is larger than {limit >> 20} MiB.")

    def charge(self, searches: int) -> None:
        """Count so many more searches of whoever asks now, known from the body: what the client has not left, it owes."""
        self._draw(_ASKING.get(), searches)

    def _check_rate(self, client: str) -> None:
        """Count a search of a client; it must have one left.

        Raises:
            Refusal: it has none.
        """
        if (left := self._draw(client, 0)) < 1:
            self._metrics.refused.labels("rate").inc()
            wait = math.ceil((1 - left) / self._config.rate)
            raise Refusal(429, "too_many_requests", "Too many searches; wait a moment.", retry_after=wait)
        self._draw(client, 1)

    def _draw(self, client: str, searches: int) -> float:
        """Take searches from a client's bucket, which holds those of ten seconds; what is left, below 0 what it owes."""
        if not self._config.rate:
            return 1.0
        now, full = time.monotonic(), max(1.0, self._config.rate * _BURST_S)
        left, seen = self._rates.pop(client, (full, now))
        left = min(full, left + (now - seen) * self._config.rate) - searches
        self._rates[client] = (left, now)
        while len(self._rates) > _CLIENTS:
            self._rates.popitem(last=False)
        return left


def _searches(scope: Scope) -> bool:
    """Whether a request makes the model work: a search, or a map over a gallery picture."""
    if scope["method"] == "POST":
        return scope["path"] in SEARCHES
    wanted = parse_qs(scope.get("query_string", b"").decode("latin-1")).get("map", ["none"])
    return bool(scope["path"].endswith("/image") and wanted[-1] != "none")


def _end_of_form(scope: Scope) -> bytes:
    """The last boundary of a multipart form; b"" where the request has none."""
    said = b"; ".join(value for name, value in scope["headers"] if name.lower() == b"content-type")
    kind, options = parse_options_header(said)
    boundary = options.get(b"boundary", b"") if kind == b"multipart/form-data" else b""
    return b"--" + boundary + b"--" if boundary else b""


async def refuse(refusal: Refusal, send: Send) -> None:
    """Send an error."""
    pairs, body = sent_as(refusal)
    await send({"type": "http.response.start", "status": refusal.status, "headers": pairs})
    await send({"type": "http.response.body", "body": body})


def sent_as(refusal: Refusal, **more: str) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """Headers and body of an error."""
    body = json.dumps(refusal.body()).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body)), **refusal.headers, **more}
    return [(name.lower().encode(), value.encode()) for name, value in headers.items()], body
