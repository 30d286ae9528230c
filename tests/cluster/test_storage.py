import errno
import os
import pickle
import resource
import socket
import socketserver
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError, CredentialRetrievalError, FlexibleChecksumError, IncompleteReadError

from cluster import s3 as s3_module
from cluster.errors import (
    AlreadyExistsError,
    BadInputError,
    MisplacedError,
    ObjectDeniedError,
    ObjectMissingError,
    PermanentStoreError,
    RetryableStoreError,
    StoreError,
)
from cluster.local_s3 import LocalS3, free_ports
from cluster.s3 import S3Store
from cluster.storage import Store, arrow_filesystem, open_store, read_uri, resolve_uri, split_uri


class TestStore:
    """Every store keeps the same promises."""

    def test_round_trip_and_ranges(self, store: Store) -> None:
        data = os.urandom(300_000)
        store.write("a/b.bin", data)
        assert store.read("a/b.bin") == data
        assert store.read("a/b.bin", start=10, length=5) == data[10:15]
        assert store.read("a/b.bin", start=299_990) == data[-10:]
        assert store.read("a/b.bin", length=0) == b""
        assert store.read("a/b.bin", length=len(data) + 1) == data
        assert store.read("a/b.bin", start=len(data), length=5) == b""
        store.write("empty", b"")
        assert store.read("empty", length=5) == b""
        assert store.size("a/b.bin") == len(data)
        assert read_uri(store.uri("a/b.bin")) == data

    def test_overwrite(self, store: Store) -> None:
        store.write("x", b"one")
        store.write("x", b"")
        assert store.read("x") == b""

    def test_seekable_reader(self, store: Store) -> None:
        data = os.urandom(1_000_000)
        store.write("x", data)
        with store.open("x") as file:
            file.seek(-7, os.SEEK_END)
            assert file.read() == data[-7:]
            file.seek(500_000)
            assert file.read(10) == data[500_000:500_010]
            file.seek(0)
            assert file.read() == data

    def test_missing(self, store: Store) -> None:
        assert store.size("nope") is None
        assert not store.exists("nope")
        for call in (lambda: store.read("nope"), lambda: store.open("nope")):
            with pytest.raises(ObjectMissingError, match="nope"):
                call()
        store.delete("nope")

    def test_list_is_sorted_and_below_the_root(self, store: Store) -> None:
        for name in ("b/2", "a", "b/1", "bc/3"):
            store.write(name, b"12")
        store.child("b").write("deep/4", b"1")
        assert [(e.name, e.size) for e in store.list()] == [
            ("a", 2),
            ("b/1", 2),
            ("b/2", 2),
            ("b/deep/4", 1),
            ("bc/3", 2),
        ]
        assert [e.name for e in store.list("b/")] == ["b/1", "b/2", "b/deep/4"]
        assert [e.name for e in store.child("b").list()] == ["1", "2", "deep/4"]

    def test_files(self, store: Store, tmp_path: Path) -> None:
        source = tmp_path / "big"
        source.write_bytes(os.urandom(12_000_000))  # more than one part of a multipart upload
        store.write_file("big", source)
        store.download("big", tmp_path / "deep" / "copy")
        assert (tmp_path / "deep" / "copy").read_bytes() == source.read_bytes()

    def test_put_if_absent_has_one_winner(self, store: Store) -> None:
        def attempt(writer: int) -> bool:
            try:
                store.write_if_absent("m", f"writer {writer}".encode())
            except AlreadyExistsError:
                return False
            return True

        with ThreadPoolExecutor(8) as pool:
            won = list(pool.map(attempt, range(8)))
        assert won.count(True) == 1
        assert store.read("m") == f"writer {won.index(True)}".encode()

    @pytest.mark.parametrize("name", ["../x", "a/../../x", "a\0"])
    def test_names_stay_inside(self, store: Store, name: str) -> None:
        with pytest.raises(BadInputError, match="inside"):
            store.read(name)

    def test_pickle(self, store: Store) -> None:
        store.write("x", b"1")
        assert pickle.loads(pickle.dumps(store)).read("x") == b"1"  # noqa: S301 - our own bytes


def test_a_name_on_disk_is_relative(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="inside"):
        open_store(tmp_path).read("/etc/passwd")


@pytest.mark.parametrize(
    ("uri", "key"),
    [
        ("s3://b/c.jpg", "c.jpg"),
        ("s3://b/pre/x/c.jpg", "pre/x/c.jpg"),
        ("s3://b/pre/x//c.jpg", "pre/x//c.jpg"),
        ("s3://b//c.jpg", "/c.jpg"),
    ],
)
def test_every_slash_of_a_key_counts(uri: str, key: str) -> None:
    store, name = split_uri(uri)
    assert isinstance(store, S3Store)
    assert (store._key(name), store.uri(name)) == (key, uri)


def test_slashes_at_the_ends_of_a_folder_are_none_of_its_name() -> None:
    """As `$BUCKET/` + `/run/` gives them: all that a job keeps below its folder is at one place."""
    for uri in ("s3://b/run", "s3://b/run/", "s3://b/run//", "s3://b//run"):
        folder = open_store(uri)
        assert folder.uri("x") == folder.child("").uri("x") == open_store(folder.uri()).uri("x") == "s3://b/run/x"
    assert open_store("s3://b/").uri("x") == "s3://b/x"
    with pytest.raises(BadInputError, match="take out the double slash"):
        arrow_filesystem("s3://b/a//run")


def test_a_folder_marker_is_no_object_and_other_keys_are_not_its_own(
    s3_root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reply stands in for one of S3: the local server of the tests keeps none of these keys."""
    store = open_store(s3_root)
    assert isinstance(store, S3Store)
    keys = [store.prefix + name for name in ("", "/a.jpg", "sub/", "sub/b.jpg", "sub//b.jpg")]
    found = [{"Key": key, "Size": 0, "LastModified": datetime.now(UTC)} for key in keys]
    monkeypatch.setattr(S3Store, "_page", lambda *_: {"Contents": found})
    names = [entry.name for entry in store.list()]
    assert names == ["/a.jpg", "sub/b.jpg", "sub//b.jpg"]
    assert [split_uri(store.uri(name))[0].child(name.rpartition("/")[2]).uri() for name in names] == [
        f"s3://{store.bucket}/{key}" for key in keys if not key.endswith("/")
    ]
    assert (store._key("sub/"), store._key("")) == (f"{store.prefix}sub/", store.prefix)
    with pytest.raises(BadInputError, match="names no file"):
        split_uri(store.uri("sub/"))


def test_a_disk_that_cannot_hold_a_file_is_named(s3_root: str, tmp_path: Path) -> None:
    store = open_store(s3_root)
    store.write("x", bytes(100_000))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        with pytest.raises(PermanentStoreError, match=rf"{tmp_path}/cache cannot hold {s3_root}/x: .*MANET_CACHE"):
            store.download("x", tmp_path / "cache" / "x")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list((tmp_path / "cache").iterdir()) == []


def test_uris() -> None:
    assert resolve_uri("s3://b/x.jpg", "/tables/t.parquet") == "s3://b/x.jpg"
    assert resolve_uri("/abs/x.jpg", "/tables/t.parquet") == "/abs/x.jpg"
    assert resolve_uri("i/x.jpg", "s3://b/tables/t.parquet") == "s3://b/tables/i/x.jpg"
    store, name = split_uri("/some/folder/x.jpg")
    assert (store.uri(), name) == ("/some/folder", "x.jpg")
    for uri in ("https://host/x.jpg", "ftp://host/x", "gs://[x/y.jpg"):
        with pytest.raises(BadInputError, match="not supported"):
            open_store(uri)
    with pytest.raises(BadInputError, match="no bucket"):
        open_store("s3://")
    with pytest.raises(BadInputError, match="no bucket can be named 'my shop'"):
        open_store("s3://my shop/x")


def test_uris_of_files_are_unquoted_as_a_whole(tmp_path: Path) -> None:
    (tmp_path / "my shop").mkdir()
    (tmp_path / "my shop" / "50% #1.jpg").write_bytes(b"1")
    uri = (tmp_path / "my shop" / "50% #1.jpg").as_uri()
    assert uri.endswith("/my%20shop/50%25%20%231.jpg")
    assert read_uri(uri) == b"1"
    assert split_uri("file:///x.jpg")[0].uri() == "/"
    assert read_uri(str(tmp_path / "my shop" / "50% #1.jpg")) == b"1"


def test_a_local_folder_is_listed_through_its_links_or_not_at_all(tmp_path: Path) -> None:
    for name in ("shop/a/1", "shop/c", "elsewhere/2"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"12")
    (tmp_path / "shop" / "b").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "shop")
    (tmp_path / "shop" / "gone").symlink_to(tmp_path / "nowhere")
    (tmp_path / "shop" / "itself").symlink_to(tmp_path / "shop" / "itself")
    store = open_store(tmp_path / "shop")
    own = [("c", 2), ("gone", 0), ("itself", 0), ("a/1", 2)]
    assert [(entry.name, entry.size) for entry in store.list()] == [*own, ("b/2", 2)]
    assert [(entry.name, entry.size) for entry in store.list(links=False)] == own
    assert list(open_store(tmp_path / "none").list()) == list(open_store(tmp_path / "shop" / "c").list()) == []
    assert [entry.name for entry in open_store(tmp_path / "shop" / "b").list(links=False)] == [
        "2"
    ]  # named, so followed
    (tmp_path / "shop" / "latest").symlink_to("a")  # listed under its own name
    (tmp_path / "shop" / "lost+found").mkdir()
    (tmp_path / "shop" / "lost+found" / "3").touch()
    assert [(entry.name, entry.size) for entry in store.list(links=False)] == own
    assert not any(entry.name.startswith(("latest", "lost")) for entry in store.list())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read any folder")
def test_a_folder_that_may_not_be_read_is_no_empty_one(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir(mode=0)
    with pytest.raises(ObjectDeniedError, match="/a: permission denied"):
        list(open_store(tmp_path).list())


def test_errors_of_listing_a_folder_are_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "scandir", fail)
    with pytest.raises(RetryableStoreError, match="Input/output error"):
        list(open_store(tmp_path).list())


@pytest.mark.parametrize(
    ("number", "failures", "listed", "kind"),
    [
        (errno.EIO, 2, True, None),
        (errno.EIO, 3, True, ObjectDeniedError),
        (errno.EIO, 3, False, RetryableStoreError),
        (errno.EMFILE, 3, True, RetryableStoreError),
    ],
)
def test_a_file_that_cannot_be_read_is_tried_again_and_is_at_fault_itself_where_its_folder_answers(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    failures: int,
    listed: bool,
    kind: type[StoreError] | None,
) -> None:
    (tmp_path / "a").write_bytes(b"12")
    left, fstat = [failures], os.fstat

    def fail(descriptor: int) -> os.stat_result:
        left[0] -= 1
        if left[0] >= 0:
            raise OSError(number, os.strerror(number))
        return fstat(descriptor)

    monkeypatch.setattr("cluster.storage._AGAIN_S", (0, 0))
    monkeypatch.setattr("cluster.storage._answers", lambda _: listed)
    monkeypatch.setattr(os, "fstat", fail)
    store = open_store(tmp_path)
    if kind is None:
        assert store.read("a", length=1 << 40) == b"12"
    else:
        with pytest.raises(kind, match=os.strerror(number)):
            store.read("a")


@pytest.mark.parametrize(
    ("code", "status", "message", "kind"),
    [
        ("AccessDenied", 403, "Access Denied", ObjectDeniedError),
        ("InvalidObjectState", 403, "archived", ObjectDeniedError),
        ("KMS.DisabledException", 400, "the key is disabled", ObjectDeniedError),
        ("NoSuchKey", 404, "", ObjectMissingError),
        ("ExpiredToken", 400, "", PermanentStoreError),
        ("InvalidAccessKeyId", 403, "", PermanentStoreError),
        ("SignatureDoesNotMatch", 403, "The signature we calculated differs", PermanentStoreError),
        ("NoSuchBucket", 404, "", PermanentStoreError),
        ("AccountProblem", 403, "Generate new keys for this corporate account", PermanentStoreError),
        ("Forbidden", 403, "Please reduce your request rate", RetryableStoreError),
        ("Forbidden", 403, "Rate limit exceeded", RetryableStoreError),
    ],
)
def test_what_is_one_objects_own_and_what_the_stores(
    code: str, status: int, message: str, kind: type[StoreError]
) -> None:
    """Only the former may become a reject of a picture."""
    reply: Any = {"Error": {"Code": code, "Message": message}, "ResponseMetadata": {"HTTPStatusCode": status}}
    assert type(s3_module._translated(ClientError(reply, "GetObject"), "s3://b/x")) is kind


@pytest.mark.parametrize(
    "error",
    [
        FlexibleChecksumError(error_msg="Expected checksum a did not match calculated checksum: b"),
        IncompleteReadError(actual_bytes=1, expected_bytes=2),
        CredentialRetrievalError(provider="iam-role", error_msg="timed out"),
    ],
)
def test_an_answer_that_broke_on_its_way_is_asked_for_again(error: Exception) -> None:
    assert type(s3_module._translated(error, "s3://b/x")) is RetryableStoreError


def test_temporary_keys_do_not_travel(s3: LocalS3, s3_root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is pickled to workers holds keys only where they last; the others' are found on each node."""
    secret = s3.environ["AWS_SECRET_ACCESS_KEY"]
    filesystem, path = arrow_filesystem(s3_root)
    assert secret.encode() in pickle.dumps(filesystem)
    with filesystem.open_output_stream(f"{path}/x") as stream:
        stream.write(b"1")
    assert open_store(s3_root).read("x") == b"1"
    monkeypatch.setenv("AWS_SESSION_TOKEN", "short-lived")
    sent = pickle.dumps(arrow_filesystem(s3_root)[0])
    assert secret.encode() not in sent
    assert b"short-lived" not in sent
    assert s3.environ["AWS_ENDPOINT_URL"].encode() in sent


def test_a_file_in_the_way_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PermanentStoreError, match="is a file and no folder"):
        open_store(tmp_path / "file" / "below").write("x", b"1")
    with pytest.raises(MisplacedError, match="is a file and no folder"):
        open_store(tmp_path / "file").write("x", b"1")
    with pytest.raises(MisplacedError, match="a folder, and a file is wanted"):
        open_store(tmp_path.parent).read(tmp_path.name)


def test_a_folder_that_cannot_be_written() -> None:
    with pytest.raises(PermanentStoreError) as caught:
        open_store("/proc/manet-test").write("x", b"1")
    assert "\n" not in str(caught.value)


def test_a_kill_while_writing_leaves_nothing_visible(tmp_path: Path) -> None:
    code = (
        "import sys; from cluster.storage import open_store\n"
        f"store = open_store({str(tmp_path)!r}); data = b'x' * 400_000_000\n"
        "print('go', flush=True); store.write('big', data)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(0.05)
    process.kill()
    process.wait()
    process.stdout.close()
    store = open_store(tmp_path)
    assert list(store.list()) == [] or store.size("big") == 400_000_000


@pytest.fixture
def fresh_client(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An S3 client made anew from the environment, for this test only."""
    monkeypatch.setattr(s3_module, "_clients", {})
    return monkeypatch


def test_wrong_secret(s3: LocalS3, fresh_client: pytest.MonkeyPatch) -> None:
    fresh_client.setenv("AWS_SECRET_ACCESS_KEY", "not-the-secret")
    with pytest.raises(PermanentStoreError, match="AWS_SECRET_ACCESS_KEY"):
        open_store(f"s3://{s3.bucket}/x").read("y")


def test_unreachable_endpoint(s3: LocalS3, fresh_client: pytest.MonkeyPatch) -> None:
    fresh_client.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_ports(1)[0]}")
    fresh_client.setattr(s3_module, "BACKOFF_S", 0.01)
    with pytest.raises(Exception, match=r"s3://test/x/y.*127\.0\.0\.1"):
        open_store("s3://test/x").read("y")


class _Faulty(socketserver.ThreadingTCPServer):
    """A TCP proxy before the S3 server: of every three connections one is answered 503, one is cut in the body."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, upstream: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream, self.seen, self.lock = upstream, 0, threading.Lock()


class _Handler(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        server = self.server
        assert isinstance(server, _Faulty)
        with server.lock:
            server.seen += 1
            fault = server.seen % 3
        request = self.request.recv(1 << 16)
        if fault == 1:
            self.request.sendall(b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            return
        with socket.create_connection(("127.0.0.1", server.upstream)) as upstream:
            upstream.sendall(request.replace(b"Connection: keep-alive", b"Connection: close"))
            upstream.settimeout(2)
            sent = 0
            try:
                while block := upstream.recv(1 << 14):
                    if fault == 2 and sent + len(block) > 20_000:
                        return  # cut: the body is shorter than its Content-Length
                    self.request.sendall(block)
                    sent += len(block)
            except TimeoutError:
                return


def test_faults_are_retried(s3: LocalS3, s3_root: str, fresh_client: pytest.MonkeyPatch) -> None:
    data = os.urandom(100_000)
    open_store(s3_root).write("x", data)
    fresh_client.setattr(s3_module, "_clients", {})
    fresh_client.setattr(s3_module, "BACKOFF_S", 0.01)
    host = s3.environ["AWS_ENDPOINT_URL"].rpartition(":")[2]
    with _Faulty(int(host)) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        fresh_client.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.server_address[1]}")
        before = s3_module.retries_seen()
        for _ in range(5):
            assert open_store(s3_root).read("x") == data
        assert s3_module.retries_seen() - before >= 5
        proxy.shutdown()
