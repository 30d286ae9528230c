"""A client of `manet serve`, by the standard library alone.

    from manet.client import Client

    client = Client("http://127.0.0.1:8000", token=os.environ.get("MANET_TOKEN"))
    for result in client.search("photo.jpg", k=7)["results"]:
        print(result["score"], result["image_id"], result["description"])

The one file of this package that talks over a network. Searching twice does no harm, so what may pass is tried again: no
connection, a busy service (it says when to come back), a replica that was lost.
"""

import http.client
import json
import random
import time
import uuid
from collections.abc import Iterable, Sequence
from email.message import Message
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, quote, urlencode, urlsplit

from manet.errors import ManetError

Picture = str | Path | bytes
Names = str | Iterable[str]  # one, or several
Json = dict[str, Any]
_AGAIN = {429, 500, 502, 503, 504}
_DAY_S = 86_400.0
_LONGEST_S = 30.0  # between two tries


class ServiceError(ManetError):
    """The service refused a request, or did not answer it.

    Args:
        status: HTTP status; 0: no answer at all.
        code: the service's word for it.
        message: one line.
    """

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.status, self.code = status, code


class Client:
    """Searches by picture.

    Args:
        address: of the service, http:// or https://.
        token: bearer token, where the service wants one.
        tries: of one request.
        seconds: that one step of a try may wait for the network: to connect, to send all, to get the next piece of the answer.

    Raises:
        ServiceError: the address or the token cannot be one, or there is no try or no time.
    """

    def __init__(self, address: str, *, token: str | None = None, tries: int = 5, seconds: float = 60.0) -> None:
        parts = urlsplit(address)
        if parts.scheme not in {"http", "https"} or not parts.hostname or not _has_port(parts):
            raise ServiceError(0, "address", f"{address!r} is no http:// or https:// address")
        if token and not (token.isascii() and token.isprintable() and " " not in token):
            raise ServiceError(0, "token", "the token holds a space, a line's end or a letter that no token has")
        if tries < 1:
            raise ServiceError(0, "tries", f"tries={tries}: give 1 or more")
        if not 0 < seconds <= _DAY_S:
            raise ServiceError(0, "seconds", f"seconds={seconds:g}: give more than 0, and a day at most")
        self._parts, self._tries, self._seconds = parts, tries, seconds
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self.retried = 0

    def search(
        self,
        picture: Picture | None = None,
        *,
        image_id: str | None = None,
        k: int = 7,
        categories: Names | None = None,
        ids: Names | None = None,
        **more: str | int | bool,
    ) -> Json:
        """The answers to one picture (a path or bytes), or to a picture of the gallery.

        Args:
            picture: the query; or `image_id`.
            image_id: of the gallery.
            k: answers.
            categories, ids: only these answer; None: all.
            more: `rerank`, `fold`, `maps`, `explain`, `url` as in /v1/openapi.json.

        Raises:
            ServiceError: refused, or no answer after all tries; or, before any try, the picture's file cannot be read (code
                "file"), a text cannot be sent ("text"), or a filter holds nothing, which no picture passes ("nothing_passes").
        """
        fields: list[tuple[str, str | bytes]] = [("k", str(k))]
        if picture is not None:
            fields.append(("picture", _bytes(picture)))
        if image_id is not None:
            fields.append(("id", image_id))
        return self._post("/v1/search", fields + _filters(categories, ids, more))

    def search_batch(
        self,
        pictures: Picture | Iterable[Picture] = (),
        *,
        image_ids: Names = (),
        k: int = 7,
        categories: Names | None = None,
        ids: Names | None = None,
        **more: str | int | bool,
    ) -> list[Json]:
        """For each picture, then each id: {"answer": ..., "error": ...}, one of them null.

        Raises:
            ServiceError: as `search`, where the request as a whole is concerned; what is wrong with one picture is its own
                error.
        """
        fields: list[tuple[str, str | bytes]] = [("k", str(k))]
        fields += [("picture", _bytes(each)) for each in _several(pictures)]
        fields += [("id", each) for each in _several(image_ids)]
        items: list[Json] = self._post("/v1/search:batch", fields + _filters(categories, ids, more))["items"]
        return items

    def item(self, image_id: str) -> Json:
        """What the catalogue says of a gallery picture."""
        return _json(self._request("GET", f"/v1/items/{_quoted(image_id)}"))

    def image(self, image_id: str, *, side: int = 256, kind: str = "none") -> bytes:
        """A gallery picture as a JPEG square; `kind`: none, or the map over it, saliency or text."""
        query = urlencode({"side": side, "map": kind})
        return self._request("GET", f"/v1/items/{_quoted(image_id)}/image?{query}")

    def index(self) -> Json:
        """The index: size, settings, recall report, categories, rejects."""
        return _json(self._request("GET", "/v1/index"))

    def _post(self, path: str, fields: Sequence[tuple[str, str | bytes]]) -> Json:
        body, kind = encode_form(fields)
        return _json(self._request("POST", path, body, {"Content-Type": kind}))

    def _request(self, method: str, path: str, body: bytes | None = None, headers: Json | None = None) -> bytes:
        problem = ServiceError(0, "unreachable", "no try")
        for attempt in range(1, self._tries + 1):
            try:
                status, answered, data = self._once(method, path, body, {**self._headers, **(headers or {})})
            except (OSError, http.client.HTTPException) as error:
                problem = ServiceError(0, "unreachable", f"{self._parts.netloc}: {error or type(error).__name__}")
                status, retry_after = 503, 0.5 * attempt
            else:
                if status == 200:
                    return data
                problem, retry_after = _problem(status, answered, data), _retry_after(answered)
            if status not in _AGAIN or attempt == self._tries:
                break
            self.retried += 1
            time.sleep(retry_after * random.uniform(1, 1.3))
        raise problem

    def _once(self, method: str, path: str, body: bytes | None, headers: Json) -> tuple[int, Message, bytes]:
        kind = http.client.HTTPSConnection if self._parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(str(self._parts.hostname), self._parts.port, timeout=self._seconds)
        try:
            connection.request(method, self._parts.path.rstrip("/") + path, body, headers)
            response = connection.getresponse()
            return response.status, response.headers, response.read()
        finally:
            connection.close()


def encode_form(fields: Sequence[tuple[str, str | bytes]]) -> tuple[bytes, str]:
    """A form of fields and files (bytes) as a request's body, and its content type.

    Raises:
        ServiceError: a field's text has no UTF-8.
    """
    boundary = uuid.uuid4().hex
    pieces = []
    for name, value in fields:
        file = '; filename="picture"\r\nContent-Type: application/octet-stream' if isinstance(value, bytes) else ""
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'
        pieces += [head.encode(), value if isinstance(value, bytes) else _utf8(value), b"\r\n"]
    return b"".join([*pieces, f"--{boundary}--\r\n".encode()]), f"multipart/form-data; boundary={boundary}"


def _has_port(parts: SplitResult) -> bool:
    """Whether an address's port, if any, is one."""
    try:
        return parts.port != 0
    except ValueError:
        return False


def _bytes(picture: Picture) -> bytes:
    if isinstance(picture, bytes):
        return picture
    try:
        return Path(picture).read_bytes()
    except OSError as error:
        raise ServiceError(0, "file", f"{picture}: {error.strerror or type(error).__name__}") from None


def _several(given: Any) -> list[Any]:  # noqa: ANN401 - of any kind
    """What was given, one by one: a text, a path or bytes is one."""
    return [given] if isinstance(given, str | bytes | Path) else list(given)


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise ServiceError(0, "text", f"{text!r} is no text that UTF-8 has") from None


def _quoted(image_id: str) -> str:
    return quote(_utf8(image_id), safe="")


def _filters(categories: Names | None, ids: Names | None, more: Json) -> list[tuple[str, str | bytes]]:
    found: list[tuple[str, str | bytes]] = []
    for name, flag, given in (("category", "categories", categories), ("ids", "ids", ids)):
        several = [] if given is None else _several(given)
        if given is not None and not several:
            raise ServiceError(0, "nothing_passes", f"{flag} holds nothing, so no picture passes; None lets all pass")
        found += [(name, each) for each in several]
    written = {True: "true", False: "false"}
    return found + [(name, written[value] if isinstance(value, bool) else str(value)) for name, value in more.items()]


def _json(data: bytes) -> Json:
    try:
        found: Json = json.loads(data)
    except ValueError:
        raise ServiceError(200, "no_json", "the answer is no JSON; is there a service at this address?") from None
    return found


def _retry_after(headers: Message) -> float:
    """Seconds until the next try."""
    wait = headers.get("Retry-After", "")
    return min(float(wait), _LONGEST_S) if wait.isdecimal() else 0.5


def _problem(status: int, headers: Message, data: bytes) -> ServiceError:
    if 300 <= status < 400:
        return ServiceError(
            status, "redirect", f"the service answers {status}, see {headers.get('Location', 'nowhere')}"
        )
    try:
        error = json.loads(data)["error"]
        return ServiceError(status, error["code"], error["message"])
    except (ValueError, KeyError, TypeError):
        return ServiceError(status, "failed", f"the service answers {status}")
