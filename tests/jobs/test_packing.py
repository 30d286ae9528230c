"""`jobs.packing` and tables that hold their pictures: the same pictures, by ranges, from stores of both kinds."""

import io
import tarfile
from pathlib import Path

import pyarrow as pa
import pytest

from cluster.artifact import ArtifactWriter
from cluster.errors import BadInputError
from cluster.storage import Store, open_store
from jobs.inputs import open_table
from jobs.packing import GROUP_ROWS, check_ids, pack_rows, pack_tar, tar_shards
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
    counts = [pack_rows(writer.store, "00000", table.slice(0, cut)), pack_rows(writer.store, "00001", table.slice(cut))]
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
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"image_id": ["a"], "uri": ["a.jpg"]}), tmp_path / "c.parquet")
    table = open_table(str(tmp_path / "c.parquet"), "catalog", "--catalog")
    assert not table.packed
    assert table.sources(0, 1) == [("a", str(tmp_path / "a.jpg"), None)]


def _tar(path: Path, members: dict[str, bytes]) -> None:
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
    _tar(tmp_path / "shards" / "000.tar", members)
    shards = tar_shards(str(tmp_path / "shards"))
    assert shards == tar_shards(str(tmp_path / "shards" / "000.tar"))
    writer = ArtifactWriter.open(str(tmp_path / "out"), "catalog", config={}, claimed=(), inputs={})
    assert pack_tar(writer.store, "00000", shards[0])["rows"] == 2
    writer.commit(["00000"], {}, {})
    table = open_table(str(tmp_path / "out"), "catalog", "--catalog")
    assert [row[::2] for row in table.sources(0, 2)] == [("a", JPEG), ("x/b", PNG)]
    assert table.read(columns=["description"])["description"].to_pylist() == ["Lip Gloss", "Razor"]


def test_what_is_wrong_with_shards(tmp_path: Path) -> None:
    (tmp_path / "no.tar").write_text("this is no tar")
    with pytest.raises(BadInputError, match=r"no\.tar: not a whole tar file"):
        pack_tar(open_store(tmp_path / "out"), "00000", str(tmp_path / "no.tar"))
    with pytest.raises(BadInputError, match="'a' stands in two shards"):
        check_ids(["a", "b", "a"], "--source x")
    assert tar_shards(str(tmp_path / "none")) == []
