"""`jobs.packing` and tables that hold their pictures: the same pictures, by ranges, from stores of both kinds."""

import contextlib
import errno
import gzip
import io
import os
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.artifact import ArtifactWriter, Blob, Units
from cluster.errors import BadInputError, StoreError
from cluster.storage import Store, open_store
from jobs import pictures
from jobs.inputs import open_table
from jobs.packing import GROUP_ROWS, check_ids, pack_rows, pack_tar, tar_shards
from jobs.parquet import parquet_bytes
from jobs.pictures import fetch_picture
from manet.errors import InputError, PictureError, Reason
from manet.tables import CATALOG
from tests.manet.test_images import JPEG, PNG

ROWS = GROUP_ROWS + 6


def _packed(store: Store, tmp_path: Path) -> tuple[str, list[str]]:
    """A packed catalog of two parts; the second picture is not there."""
    rows = []
    for number in range(ROWS):
        path = tmp_path / f"{number}.jpg"
        if number != 1:
            path.write_bytes(JPEG if number % 2 else PNG)
        rows.append({"image_id": f"i{number}", "uri": str(path), "description": f"title {number}"})
    table = pa.Table.from_pylist(rows, schema=CATALOG)
    writer = ArtifactWriter.open(store.uri(""), "catalog", config={}, claimed=(), inputs={})
    cut = GROUP_ROWS + 3
    counts = [pack_rows(writer.units, "00000", table.slice(0, cut)), pack_rows(writer.units, "00001", table.slice(cut))]
    writer.commit(["00000", "00001"], {}, {})
    assert [each["rows"] for each in counts] == [cut, ROWS - cut]
    assert [each["unread"] for each in counts] == [1, 0]
    return store.uri(""), [row["uri"] for row in rows]


def test_a_packed_table_gives_the_bytes_of_any_range(store: Store, tmp_path: Path) -> None:
    uri, uris = _packed(store, tmp_path)
    table = open_table(uri, "catalog", "--catalog")
    assert table.packed
    assert table.rows == ROWS
    for start, stop in ((0, 3), (GROUP_ROWS - 1, GROUP_ROWS + 5), (ROWS - 1, ROWS), (0, ROWS)):
        wanted = [
            (f"i{number}", uris[number], None if number == 1 else (JPEG if number % 2 else PNG))
            for number in range(start, stop)
        ]
        assert table.sources(start, stop) == wanted


def test_the_same_rows_give_the_same_part(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    stores = [open_store(tmp_path / name) for name in ("a", "b")]
    for store in stores:
        _packed(store, tmp_path / "in")
    for name in ("catalog-00000.parquet", "catalog-00001.parquet"):
        assert stores[0].read(name) == stores[1].read(name)


def test_a_committed_catalog_is_opened_by_its_first_file(tmp_path: Path) -> None:
    """So that a gallery of any size is opened in the same time: the others are read when their rows are."""
    uri, _ = _packed(open_store(tmp_path / "out"), tmp_path)
    (tmp_path / "out" / "catalog-00001.parquet").write_bytes(b"not read")
    table = open_table(uri, "catalog", "--catalog")
    assert table.rows == ROWS
    assert table.sources(0, 1)[0][0] == "i0"
    with pytest.raises(pa.ArrowInvalid):
        table.sources(0, ROWS)


def test_a_plain_table_has_no_bytes(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image_id": ["a"], "uri": ["a.jpg"]}), tmp_path / "c.parquet")
    table = open_table(str(tmp_path / "c.parquet"), "catalog", "--catalog")
    assert not table.packed
    assert table.sources(0, 1) == [("a", str(tmp_path / "a.jpg"), None)]


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def test_a_tar_shard_is_a_part(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    members = {
        "a.jpg": JPEG,
        "a.txt": b" Lip Gloss ",
        "x/b.png": PNG,
        "x/b.json": b'{"caption": "Razor"}',
        "c.cls": b"1",
    }
    write_tar(tmp_path / "shards" / "000.tar", members)
    shards = tar_shards(str(tmp_path / "shards"))
    assert shards == tar_shards(str(tmp_path / "shards" / "000.tar"))
    ((uri, version),) = shards.items()
    writer = ArtifactWriter.open(str(tmp_path / "out"), "catalog", config={}, claimed=(), inputs={})
    assert pack_tar(writer.units, "00000", uri) == {"rows": 2, "unread": 0, "passed_over": 1}
    writer.commit(["00000"], {}, {})
    table = open_table(str(tmp_path / "out"), "catalog", "--catalog")
    assert [row[::2] for row in table.sources(0, 2)] == [("a", JPEG), ("x/b", PNG)]
    assert table.read(columns=["description"])["description"].to_pylist() == ["Lip Gloss", "Razor"]
    write_tar(tmp_path / "shards" / "000.tar", members | {"a.txt": b"Lip Balm"})  # as long, and another file
    later = time.time() + 60
    os.utime(tmp_path / "shards" / "000.tar", (later, later))
    assert version.split()[0] == tar_shards(uri)[uri].split()[0]
    assert version != tar_shards(uri)[uri]


def test_what_is_wrong_with_shards(tmp_path: Path) -> None:
    (tmp_path / "no.tar").write_text("this is no tar")
    with pytest.raises(BadInputError, match=r"no\.tar: not a whole tar file"):
        pack_tar(Units(open_store(tmp_path / "out")), "00000", str(tmp_path / "no.tar"))
    write_tar(tmp_path / "lines.tar", {"a.jpg": JPEG, "b\nc.jpg": JPEG})
    with pytest.raises(BadInputError, match=r"lines\.tar: the id 'b\\nc' holds a line break"):
        pack_tar(Units(open_store(tmp_path / "out")), "00000", str(tmp_path / "lines.tar"))
    with pytest.raises(BadInputError, match="'a' stands in two shards"):
        check_ids(["a", "b", "a"], "--source x")
    assert tar_shards(str(tmp_path / "none")) == {}


def _five(tmp_path: Path) -> bytes:
    write_tar(tmp_path / "whole.tar", {f"{number}.jpg": JPEG for number in range(5)})
    return (tmp_path / "whole.tar").read_bytes()


MEMBER = 512 + -(-len(JPEG) // 512) * 512  # bytes of a picture in a shard, its header included


@pytest.mark.parametrize(
    ("cut", "words"),
    [
        (lambda data: data[: 3 * MEMBER] + b"x" * 512 + data[3 * MEMBER + 512 :], f"byte {3 * MEMBER} is no header"),
        (lambda data: data[: 3 * MEMBER + 100], f"byte {3 * MEMBER} is no header"),
        (lambda data: data[: 3 * MEMBER], "its end is missing"),
        (lambda data: data[: 3 * MEMBER] + bytes(512) + data[3 * MEMBER :], f"byte {3 * MEMBER} is no header"),
        (lambda data: data[: 3 * MEMBER - 600], "unexpected end of data"),
        (lambda data: gzip.compress(data)[:-900], "not a whole tar file"),
    ],
)
def test_a_damaged_shard_loses_no_picture_silently(tmp_path: Path, cut: Callable[[bytes], bytes], words: str) -> None:
    whole = _five(tmp_path)
    assert pack_tar(Units(open_store(tmp_path / "out")), "00000", str(tmp_path / "whole.tar"))["rows"] == 5
    (tmp_path / "cut.tar").write_bytes(cut(whole))
    with pytest.raises(BadInputError, match=r"cut\.tar: ") as caught:
        pack_tar(Units(open_store(tmp_path / "out")), "00001", str(tmp_path / "cut.tar"))
    assert words in str(caught.value)
    assert not (tmp_path / "out" / "receipts" / "00001.json").exists()


def test_links_and_compressed_shards_give_their_pictures(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        info = tarfile.TarInfo("a.jpg")
        info.size = len(JPEG)
        tar.addfile(info, io.BytesIO(JPEG))
        for name, kind in (("b.jpg", tarfile.LNKTYPE), ("c.jpg", tarfile.SYMTYPE), ("d", tarfile.DIRTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "a.jpg"
            tar.addfile(info)
    (tmp_path / "b.tar").write_bytes(gzip.compress((tmp_path / "a.tar").read_bytes()))
    store = open_store(tmp_path / "out")
    for name in ("a", "b"):
        assert pack_tar(Units(store), name, str(tmp_path / f"{name}.tar")) == {"rows": 2, "unread": 0, "passed_over": 1}
        rows = pq.read_table(tmp_path / "out" / f"catalog-{name}.parquet")
        assert rows.select(["image_id", "bytes"]).to_pylist() == [{"image_id": key, "bytes": JPEG} for key in "ab"]


def test_a_description_that_is_no_json_is_named(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {"a.jpg": JPEG, "a.json": b"{'caption': 1}"})
    with pytest.raises(BadInputError, match=r"a\.tar: member a\.json is no JSON"):
        pack_tar(Units(open_store(tmp_path / "out")), "00000", str(tmp_path / "a.tar"))


def test_wrong_types_are_refused_or_cast_at_once(tmp_path: Path) -> None:
    """Whole numbers are ids as text, in every way that a table is read."""
    numbers = pa.table({"query_id": [7], "uri": ["a.jpg"], "relevant": [[1, 2]]})
    pq.write_table(numbers, tmp_path / "q.parquet")
    queries = open_table(str(tmp_path / "q.parquet"), "queries", "--queries")
    assert queries.read().to_pylist() == [{"query_id": "7", "uri": str(tmp_path / "a.jpg"), "relevant": ["1", "2"]}]
    assert queries.pictures(0, 1) == [("7", str(tmp_path / "a.jpg"))]
    pq.write_table(pa.table({"image_id": [[1]], "uri": ["a.jpg"]}), tmp_path / "c.parquet")
    with pytest.raises(InputError, match=r"--catalog .*c\.parquet: column 'image_id' is list"):
        open_table(str(tmp_path / "c.parquet"), "catalog", "--catalog")


def test_files_of_a_table_may_differ_in_their_types(tmp_path: Path) -> None:
    parts = [pa.table({"image_id": ids, "uri": ["a.jpg"]}) for ids in ([1], ["b"], [[1]])]
    writer = ArtifactWriter.open(str(tmp_path / "out"), "catalog", config={}, claimed=(), inputs={})
    for unit, part in enumerate(parts):
        blob = Blob(data=parquet_bytes(part), rows=1)
        writer.units.put(str(unit), {f"catalog-{unit}.parquet": blob})
    writer.commit(["0", "1", "2"], {}, {})
    table = open_table(str(tmp_path / "out"), "catalog", "--catalog")
    assert [row[0] for row in table.sources(0, 2)] == ["1", "b"]
    with pytest.raises(InputError, match=r"catalog-2\.parquet: column 'image_id' is list"):
        table.sources(0, 3)


@pytest.mark.parametrize(
    ("number", "reject"), [(errno.EACCES, True), (errno.ENAMETOOLONG, True), (errno.EIO, False), (errno.EMFILE, False)]
)
def test_a_picture_is_not_blamed_for_its_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, reject: bool
) -> None:
    """A reject stands for good; a job that fails is taken up again."""

    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "open", fail)
    rows = pa.Table.from_pylist([{"image_id": "a", "uri": str(tmp_path / "a.jpg")}], schema=CATALOG)
    with contextlib.nullcontext() if reject else pytest.raises(StoreError, match=os.strerror(number)):
        found = fetch_picture(str(tmp_path / "a.jpg"))
        assert isinstance(found, PictureError)
        assert found.reason is Reason.UNREADABLE
    monkeypatch.undo()
    assert pack_rows(Units(open_store(tmp_path / "out")), "00000", rows)["unread"] == 1


def test_what_is_wrong_with_a_uri_or_a_size_is_the_pictures_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "MAX_BYTES", 10)
    (tmp_path / "a.jpg").write_bytes(b"0123456789")
    (tmp_path / "b.jpg").write_bytes(b"0123456789a")
    (tmp_path / "folder").mkdir()
    assert fetch_picture(str(tmp_path / "a.jpg")) == b"0123456789"
    wanted = {
        str(tmp_path / "b.jpg"): Reason.TOO_LARGE,
        str(tmp_path / "none.jpg"): Reason.MISSING,
        str(tmp_path / "folder"): Reason.UNREADABLE,
        f"{tmp_path}/a\0.jpg": Reason.UNREADABLE,
        "https://shop/a.jpg": Reason.UNREADABLE,
        "s3://my shop/a.jpg": Reason.UNREADABLE,
    }
    for uri, reason in wanted.items():
        found = fetch_picture(uri)
        assert isinstance(found, PictureError)
        assert found.reason is reason, uri
