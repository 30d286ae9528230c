"""`manet serve`: its answers are the `search` job's, its refusals are right, it stays up."""

import concurrent.futures
import contextlib
import errno
import http.client
import io
import json
import re
import socket
import struct
import time
import zlib
from pathlib import Path
from unittest.mock import Mock
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

from cluster.artifact import Artifact, Input
from cluster.errors import RetryableStoreError
from jobs.querying import QuerySpec, query_spec
from jobs.serving.gallery import Gallery
from manet.client import Client, ServiceError
from tests.conftest import Run
from tests.jobs.conftest import MAX_BODY, MAX_PIXELS, Service
from tests.jobs.helpers import assert_refused, summary_of

_STATUS = {"bad_request": 400, "length_required": 411, "headers_too_large": 431}


def _refused(
    service: Service, status: int, code: str, picture: bytes | None = None, words: str = "", **fields: str
) -> None:
    with pytest.raises(ServiceError) as caught:
        Client(service.address, tries=1)._post("/v1/search", _form(picture, fields))
    assert (caught.value.status, caught.value.code) == (status, code)
    assert words in str(caught.value)
    assert not re.search(r"Traceback|File \"|/tmp|\.py", str(caught.value))


def _form(picture: bytes | None, fields: dict[str, str]) -> list[tuple[str, str | bytes]]:
    return [*fields.items(), *([("picture", picture)] if picture is not None else [])]


def _raw(
    service: Service, method: str, path: str, body: bytes = b"", **headers: str
) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection(urlsplit(service.address).netloc, timeout=30)
    try:
        connection.putrequest(method, path, skip_accept_encoding=True)
        for name, value in headers.items():
            connection.putheader(name.replace("_", "-"), value)
        connection.endheaders()
        if body:
            connection.send(body)
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def _jpeg(width: int, height: int) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)).save(sink, "JPEG")
    return sink.getvalue()


def _png_bomb(side: int) -> bytes:
    """A PNG that says that it has side x side pixels and is a few KB long."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    rows = zlib.compress(b"\0" * min((side + 1) * side, 20_000_000), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_answers_are_those_of_the_search_job(manet: Run, service: Service) -> None:
    paths = service.queries()
    done = manet("search", "--index", service.index, *[flag for path in paths for flag in ("--picture", path)])
    summary_of(done)
    wanted = [json.loads(line)["results"] for line in done.stdout.splitlines()[: len(paths)]]
    client, keys = service.client, ("image_id", "score", "description")
    with concurrent.futures.ThreadPoolExecutor(6) as pool:  # so that they share passes
        found = [each["results"] for each in pool.map(client.search, paths)]
    batch = [each["answer"]["results"] for each in client.search_batch(paths)]
    for one, many, other in zip(found, batch, wanted, strict=True):
        assert [[hit[key] for key in keys] for hit in one] == [[hit[key] for key in keys] for hit in other]
        assert one == many
        assert all(hit["uri"] is None for hit in one)  # a file of the server: nobody's business


def test_a_gallery_item_finds_others(service: Service) -> None:
    client, path = service.client, service.gallery()[0]
    found = client.search(image_id=path.stem, k=5)
    assert len(found["results"]) == 5
    assert path.stem not in {hit["image_id"] for hit in found["results"]}
    uploaded = client.search(path, k=6)["results"]
    assert uploaded[0]["image_id"] == path.stem
    assert [hit["image_id"] for hit in uploaded[1:]] == [hit["image_id"] for hit in found["results"]]
    item = client.item(path.stem)
    assert item["description"] and item["image"].endswith("/image")
    for side in (64, 128, 512):
        shown = Image.open(io.BytesIO(client.image(path.stem, side=side)))
        assert shown.format == "JPEG" and min(shown.size) >= side
    assert client.image(path.stem, kind="saliency") != client.image(path.stem)


def test_a_gallery_picture_is_under_no_uploads_limits(service: Service) -> None:
    other, path = service.gallery()[4:6]
    before = path.read_bytes()
    with Image.open(path) as picture:
        large = picture.convert("RGB").resize((2600, 2000))
    assert large.width * large.height > MAX_PIXELS
    large.save(path, quality=80)
    try:
        assert service.client.image(path.stem, kind="saliency")
        assert service.client.search(image_id=path.stem, maps=True)["maps"]
        (hit,) = service.client.search(image_id=other.stem, ids=[path.stem], explain=1)["results"]
        assert hit["why"]
    finally:
        path.write_bytes(before)


def test_filters_and_ranking(service: Service) -> None:
    client, query = service.client, service.queries()[0]
    names = client.index()["categories"]
    first = names[0]["name"]
    found = client.search(query, categories=[first], k=100)["results"]
    assert {hit["category"] for hit in found} == {first}
    assert len(found) == names[0]["pictures"]
    ids = [path.stem for path in service.gallery()[:3]]
    assert {hit["image_id"] for hit in client.search(query, ids=ids)["results"]} == set(ids)
    exact, quantized = client.search(query), client.search(query, rerank=False)
    assert [hit["score"] for hit in exact["results"]] != [hit["score"] for hit in quantized["results"]]
    _refused(service, 422, "unknown_category", query.read_bytes(), category="no such kind")
    _refused(service, 422, "nothing_passes", query.read_bytes(), ids="no-such-id")
    for name in ("category", "ids", "k", "rerank"):  # what holds nothing does not pass for what was left out
        _refused(service, 422, "empty_field", query.read_bytes(), words=f"empty_field: {name} is empty", **{name: ""})
    with pytest.raises(ServiceError, match="unknown_category") as caught:  # of the request, not of each picture
        client.search_batch([query, query], categories="no such kind")
    assert caught.value.status == 422
    both = client.search_batch([query], image_ids=ids[0], ids=ids, k=2)
    assert [len(each["answer"]["results"]) for each in both] == [2, 2]


def test_why_this_answer(service: Service) -> None:
    found = service.client.search(service.queries()[0], k=3, explain=2, maps=True)
    assert [hit["why"] is None for hit in found["results"]] == [False, False, True]
    for hit in found["results"][:2]:
        parts = [pair["part"] for pair in hit["why"]]
        assert parts == sorted(parts, reverse=True) and 0 < sum(parts) <= hit["score"]
        for pair in hit["why"]:
            for left, top, width, height in (pair["query"], pair["answer"]):
                assert left >= 0 and top >= 0 and width > 0 and height > 0
                assert left + width <= 1.001 and top + height <= 1.001
    assert found["maps"]["saliency"].startswith("data:image/jpeg;base64,") and found["maps"]["text"] is None


def test_what_cannot_be_used_is_named(service: Service) -> None:
    whole = service.queries()[0].read_bytes()
    _refused(service, 415, "not_a_picture", b"hello")
    _refused(service, 422, "empty", b"")
    _refused(service, 422, "truncated", whole[: len(whole) // 2])
    _refused(service, 415, "unsupported", b"%PDF-1.7 " + b"x" * 100)
    _refused(service, 413, "too_large", _png_bomb(50_000), words=f"at most {MAX_PIXELS:,}")
    _refused(service, 413, "too_large", _jpeg(2100, MAX_PIXELS // 2100 + 1)[: MAX_BODY - 2048])
    _refused(service, 404, "unknown_item", id="no-such-id")
    _refused(service, 422, "one_query")
    _refused(service, 422, "one_query", whole, id="x")
    _refused(service, 422, "invalid", whole, words="k: give 1 or more", k="0")
    _refused(service, 422, "invalid", whole, words="k: give 100 or less", k="1000000")
    _refused(service, 422, "invalid", whole, words="explain: give a whole number", explain="x")
    _refused(service, 422, "invalid", whole, words="maps: give true or false", maps="perhaps")
    with pytest.raises(ServiceError, match="k: give a whole number, not a file"):
        Client(service.address, tries=1)._post("/v1/search", [("picture", whole), ("k", b"7")])
    _refused(service, 422, "invalid", words="id: give at most 1024 characters", id="x" * 1025)
    for given, words in (
        ({"image_ids": "x" * 1025}, "1024 characters"),
        ({"image_ids": "x", "ids": ["y"] * 901}, "900"),
    ):
        with pytest.raises(ServiceError, match=rf"^invalid: ids?(\.0)?: give at most {words}"):
            service.client.search_batch(**given)
    with pytest.raises(ServiceError, match=r"invalid: picture: send a file, as curl -F picture=@photo.jpg does"):
        Client(service.address, tries=1)._post("/v1/search", [("picture", "photo.jpg")])
    _refused(service, 422, "unknown_field", whole, categories="lipstick")
    repeated: list[tuple[list[tuple[str, str | bytes]], str]] = [
        ([("picture", whole), ("picture", whole)], "picture is given 2 times.*search:batch takes several"),
        ([("picture", whole), ("k", "3"), ("k", "4")], "k is given 2 times; give it once.$"),
    ]
    for fields, words in repeated:
        with pytest.raises(ServiceError, match=f"repeated_field: {words}") as caught:
            Client(service.address, tries=1)._post("/v1/search", fields)
        assert caught.value.status == 422
    for path in ("/v1/index?k=3", "/v1/items?count=2&sede=1", f"/v1/items/{service.gallery()[0].stem}/image?size=128"):
        status, _, body = _raw(service, "GET", path)
        assert (status, json.loads(body)["error"]["code"]) == (422, "unknown_field")
    status, _, body = _raw(service, "GET", f"/v1/items/{service.gallery()[0].stem}/image?side=64&map=none&side=128")
    assert (status, json.loads(body)["error"]["code"]) == (422, "repeated_field")
    assert "side is given 2 times" in json.loads(body)["error"]["message"]
    form = "application/x-www-form-urlencoded"
    status, _, body = _raw(service, "POST", "/v1/search?k=3", content_type=form, content_length="0")
    assert status == 422 and "'k' (in the address)" in json.loads(body)["error"]["message"]
    status, _, body = _raw(service, "GET", "/v2/search")
    assert status == 404 and "/v1/openapi.json" in json.loads(body)["error"]["message"]
    status, headers, body = _raw(service, "DELETE", "/v1/index")
    assert (status, headers["allow"], json.loads(body)["error"]["code"]) == (405, "GET, HEAD", "method_not_allowed")


def test_bodies_are_bounded_before_they_are_read(service: Service) -> None:
    form = "multipart/form-data; boundary=x"
    status, _, body = _raw(service, "POST", "/v1/search", content_type=form, content_length=str(1 << 40))
    assert status == 413 and json.loads(body)["error"]["code"] == "too_large"
    status, _, _ = _raw(service, "POST", "/v1/search", content_type=form, transfer_encoding="chunked")
    assert status == 411
    status, _, _ = _raw(service, "POST", "/v1/search", b"{}", content_type="application/json", content_length="2")
    assert status == 415
    status, _, _ = _raw(service, "POST", "/v1/search", b"nonsense", content_type=form, content_length="8")
    assert status in {400, 422}
    assert _raw(service, "GET", "/v1/index", x_long="x" * 40_000)[0] == 431
    for more in (70_000, 2_000_000):
        with contextlib.suppress(ConnectionError):  # the end of what is longer still is not waited for
            assert _raw(service, "GET", "/v1/index", x_long="x" * more)[0] == 431
        with contextlib.suppress(ConnectionError):
            assert _raw(service, "GET", "/v1/index?" + "x" * more)[0] == 431
    assert _raw(service, "GET", "/v1/index?" + "x" * 40_000)[0] == 431
    status, _, body = _raw(service, "GET", "/v1/index?" + "x" * 20_000)
    assert status == 422 and len(body) < 300


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (b"POST /v1/search HTTP/1.1\r\nHost: x\r\nContent-Length: ten\r\n\r\n", "bad_request"),
        (b"POST /v1/search HTTP/1.1\r\nHost: x\r\nContent-Length: ten\r\n\r\n" + b"x" * 60_000, "bad_request"),
        (b"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\n\r\n", "bad_request"),
        (b"no http at all\r\n\r\n", "bad_request"),
        (b"GET /v1/index HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 50_000 + b"\r\n\r\n", "headers_too_large"),
        (b"POST /v1/search HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=x\r\n"
         b"Transfer-Encoding: chunked\r\n\r\n", "length_required"),
    ],
)  # fmt: skip
def test_what_is_no_request_is_answered_like_any_other(service: Service, sent: bytes, code: str) -> None:
    """Also what the parser of HTTP itself refuses: JSON, with the headers that every answer has."""
    place = urlsplit(service.address)
    with socket.create_connection((place.hostname, place.port), timeout=30) as connection:
        connection.sendall(sent)
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        body = json.loads(answer.read())
    assert (answer.status, body["error"]["code"]) == (_STATUS[code], code)
    assert answer.getheader("content-type") == "application/json" and answer.getheader("x-frame-options") == "DENY"


def test_an_upgrade_is_answered_as_if_none_were_asked_for(service: Service) -> None:
    status, _, body = _raw(
        service, "GET", "/healthz", Connection="Upgrade", Upgrade="websocket", Sec_WebSocket_Key="eA=="
    )
    assert (status, json.loads(body)) == (200, {"status": "ok"})


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com/a.jpg", "https://127.0.0.1/a.jpg", "https://localhost/a.jpg", "https://0x7f.1/",
        "https://[::1]/", "https://[::ffff:10.0.0.1]/", "https://169.254.169.254/latest/meta-data/",
        "https://10.1.2.3/", "https://user:pass@1.1.1.1/", "https://1.1.1.1:8000/", "file:///etc/passwd", "ftp://a/b",
        "https://[64:ff9b::a00:1]/", "https://2130706433/", "https://0/", "https://[fe80::1%25eth0]/", "https://", "x",
    ],
)  # fmt: skip
def test_no_url_leads_inside(service: Service, url: str) -> None:
    with pytest.raises(ServiceError) as caught:
        Client(service.address, tries=1)._post("/v1/search", [("url", url)])
    assert (caught.value.status, caught.value.code) in {(422, "url_not_allowed"), (422, "url_failed")}


@pytest.mark.parametrize(
    "path",
    [
        "/v1/items/..%2f..%2f..%2fetc%2fpasswd", "/v1/items/../../etc/passwd/image", "/v1/items/%2fetc%2fpasswd/image",
        "/page/../api.py", "/page/%2e%2e/api.py", "/page/..%2fapi.py", "/page//etc/passwd", "/docs", "/nothing",
        "/v1/index/", "/v1/search/", "/page",
    ],
)  # fmt: skip
def test_paths_lead_nowhere(service: Service, path: str) -> None:
    status, headers, body = _raw(service, "GET", path)
    assert status == 404, body
    assert headers["x-content-type-options"] == "nosniff"


def test_every_answer_has_security_headers(service: Service) -> None:
    for path in ("/", "/page/app.js", "/v1/index", "/v1/nothing", "/healthz"):
        _, headers, _ = _raw(service, "GET", path)
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["referrer-policy"] == "no-referrer" and "access-control-allow-origin" not in headers
    item = f"/v1/items/{service.gallery()[0].stem}/image"
    for path in ("/", "/page/app.js", "/healthz", "/readyz", "/metrics", "/v1/index", item):
        status, headers, body = _raw(service, "HEAD", path)
        assert (status, body) == (200, b"") and int(headers["content-length"]) > 0, path
    for method, path in (
        ("HEAD", "/v1/search"),
        ("DELETE", "/v1/search"),
        ("TRACE", "/v1/search"),
        ("POST", "/v1/index"),
    ):
        status, headers, _ = _raw(service, method, path)
        assert (status, headers["allow"]) == (405, "GET, HEAD" if path == "/v1/index" else "POST")
    page = _raw(service, "GET", "/")[2].decode()
    assert not re.search(r"https?://|<style|style=|onclick", page)


def test_a_new_version_is_taken_up_without_a_dropped_request(manet: Run, service: Service, tmp_path: Path) -> None:
    client, query = Client(service.address, tries=1), service.queries()[1]
    before = client.index()
    gone = client.search(query)["results"][0]["image_id"]
    (tmp_path / "gone.txt").write_text(gone)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        change = pool.submit(manet, "index", "delete", "--index", service.index, "--ids", tmp_path / "gone.txt")
        until = time.monotonic() + 60
        while (found := client.search(query))["version"] == before["version"]:  # none of these may fail
            assert time.monotonic() < until
        summary_of(change.result())
    assert gone not in {hit["image_id"] for hit in found["results"]}
    assert client.index()["rows"] == before["rows"] - 1
    with pytest.raises(ServiceError, match="unknown_item"):
        client.item(gone)


def test_an_index_made_anew_in_its_place_is_taken_up(
    manet: Run, served_index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = (
        "--descriptors",
        served_index.parent / "descriptors",
        "--out",
        tmp_path / "index",
        "--factory",
        "IVF4,PQ16x4fs",
    )
    made = ("index", *flags, "--recall-target", 0.3, "--tuning-queries", 20, "--shard-rows")
    summary_of(manet(*made, 64))
    gallery = Gallery(str(tmp_path / "index"))
    first = gallery.current
    assert not gallery.refresh()
    summary_of(manet(*made, 48, "--overwrite"))
    model = [
        Input(uri="s3://elsewhere/model", sha256="0" * 64),
        first.spec.model.model_copy(update={"uri": "s3://moved"}),
    ]

    def described(index: Artifact) -> QuerySpec:
        return query_spec(index).model_copy(update={"model": model[0]})

    with monkeypatch.context() as patched:
        full = OSError(errno.ENOSPC, "No space left on device")
        patched.setattr("manet.shards.swig.OnDiskInvertedLists", Mock(side_effect=full))
        assert not gallery.refresh() and not gallery._failed  # a full disk, which another time is not
    with monkeypatch.context() as patched:
        patched.setattr("jobs.serving.gallery.query_spec", described)
        assert not gallery.refresh()  # another model
        model.pop(0)
        gallery._failed = ""
        assert gallery.refresh() and not gallery.refresh()  # the same, at another place
    second = gallery.current
    assert first.number == second.number == 1 and first.index.sha256 != second.index.sha256

    def busy(uri: str, kind: str) -> None:
        raise RetryableStoreError("the store is busy")

    with monkeypatch.context() as patched:
        patched.setattr("jobs.serving.gallery.open_artifact", busy)
        assert second.about["rejects"] is None
    assert second.about["rejects"] == {"count": 0, "reasons": {}, "first": []}  # asked again once the store answers


def test_the_index_tells_of_itself(service: Service) -> None:
    index = service.client.index()
    assert index["report"]["tuning"]["seen"] and index["recall_plot"]
    assert index["rejects"] == {"count": 0, "reasons": {}, "first": []}
    assert _raw(service, "GET", "/v1/index/recall.png")[2].startswith(b"\x89PNG")
    text = _raw(service, "GET", "/metrics")[2].decode()
    assert re.search(r'manet_serve_requests_total\{gateway="\w+",route="/v1/search",status="200"\} [1-9]', text)
    assert re.search(r"manet_serve_batch_pictures_count\{[^}]+\} [1-9]", text)


def test_bad_usage_is_one_line(manet: Run, service: Service, tmp_path: Path) -> None:
    assert_refused(manet("serve", "--index", tmp_path / "none"), 2, str(tmp_path / "none"))
    port = str(urlsplit(service.address).port)
    assert_refused(manet("serve", "--index", service.index, "--port", port), 2, f"--port {port}", "choose another")
    (tmp_path / "README.md").write_text("not an index")
    assert_refused(manet("serve", "--index", tmp_path / "README.md"), 2, "--index", "is a file, not an index")
    (tmp_path / "tokens.txt").write_text("# the shop's\nsecret word\n")
    done = manet("serve", "--index", service.index, "--tokens", tmp_path / "tokens.txt")
    assert_refused(done, 2, "--tokens", "line 2 is no token")
    assert "secret" not in done.stderr
    for flag, given, words in (
        ("--tokens", tmp_path / "none.txt", "cannot be read"),
        ("--tokens", tmp_path, "cannot be read"),
        ("--cors-origin", "shop.example/x", "'shop.example/x' is no origin"),
    ):
        assert_refused(manet("serve", "--index", service.index, flag, given), 2, flag, words)
    assert_refused(manet("serve", "--index", service.index, "--k", "3"), 2, "No such option")
