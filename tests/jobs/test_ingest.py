"""`jobs.ingest` in this process: what its sources may hold, and what it refuses; without a session of Ray."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.artifact import ArtifactWriter, Blob, Receipt, Units
from cluster.errors import BadInputError, IntegrityError, JobFailedError
from jobs import ingest
from jobs.ingest import Config
from jobs.inputs import open_table
from jobs.packing import PACK_ROWS, pack_rows, pack_tar
from manet.errors import InputError
from manet.tables import CATALOG
from tests.jobs.test_packing import write_tar
from tests.manet.test_images import JPEG


def _ingested(tmp_path: Path, source: Path, *, images: str = "", pack: bool = False) -> pa.Table:
    out = tmp_path / f"out-{source.name}"
    ingest.run(Config(source=str(source), out=str(out), images=images, pack=pack))
    return pa.concat_tables([pq.read_table(path) for path in sorted(out.glob("c*-*.parquet"))])


def _writer(out: Path) -> ArtifactWriter:
    return ArtifactWriter.open(str(out), "catalog", config={"seed": 1}, claimed=("seed",), inputs={})


def test_ids_of_a_csv_stay_as_they_are_written(tmp_path: Path) -> None:
    text = "image_id,uri,product_id,price\n007,a.jpg,0042,1.50\n1e3,b.jpg,,2\n"
    (tmp_path / "t.csv").write_text(text)
    table = _ingested(tmp_path, tmp_path / "t.csv")
    assert table["image_id"].to_pylist() == ["007", "1e3"]
    assert table["product_id"].to_pylist() == ["0042", None]


@pytest.mark.parametrize(
    "text",
    ['"","image_id","uri"\n"1","007","a.jpg"\n', "image_id, uri\n007, a.jpg\n", "\ufeffimage_id,uri\n007,a.jpg\n"],
)
def test_a_header_may_be_quoted_or_spaced(tmp_path: Path, text: str) -> None:
    (tmp_path / "t.csv").write_text(text)
    table = _ingested(tmp_path, tmp_path / "t.csv")
    assert table["image_id"].to_pylist() == ["007"]
    assert table["uri"].to_pylist() == [str(tmp_path / "a.jpg")]


def test_a_blank_cell_is_none_behind_a_space_too(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("image_id, uri, description\n1, a.jpg, \n2, b.jpg, Lip\n")
    assert _ingested(tmp_path, tmp_path / "t.csv")["description"].to_pylist() == [None, "Lip"]


def test_the_challenges_files_may_be_quoted(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text('"image_id","title"\n"007","Lip, red"\n')
    table = _ingested(tmp_path, tmp_path / "t.csv", images=str(tmp_path))
    assert table.select(["image_id", "description"]).to_pylist() == [{"image_id": "007", "description": "Lip, red"}]
    (tmp_path / "v.csv").write_text('"validation image id", "answer"\n"q","a"\n')
    data = (tmp_path / "v.csv").read_bytes()
    config = Config(source=str(tmp_path / "v.csv"), kind="queries", out="x", images=str(tmp_path))
    assert ingest._guess(config) == "validation-csv"
    assert ingest._validation_csv(config, data)["relevant"].to_pylist() == [["a"]]


@pytest.mark.parametrize(("uri", "found"), [([b"a.jpg"], "a.jpg"), ([7], "7"), ([b"\xff"], ""), ([["a.jpg"]], "")])
def test_a_uri_of_another_type_is_cast_or_named(tmp_path: Path, uri: list[object], found: str) -> None:
    pq.write_table(pa.table({"image_id": ["a"], "uri": uri}), tmp_path / "t.parquet")
    if found:
        assert _ingested(tmp_path, tmp_path / "t.parquet")["uri"].to_pylist() == [str(tmp_path / found)]
    else:
        with pytest.raises(InputError, match=r"t.parquet: column 'uri' is .*, and must be string"):
            _ingested(tmp_path, tmp_path / "t.parquet")


def test_damaged_pages_are_named_with_their_file(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"image_id": [f"i{n}" for n in range(999)], "uri": ["a.jpg"] * 999}), path)
    data = path.read_bytes()
    path.write_bytes(data[:4] + b"\xff" * 200 + data[204:])
    with pytest.raises(BadInputError, match=r"--source .*t.parquet: not a Parquet file, or a damaged one"):
        _ingested(tmp_path, path)
    with pytest.raises(BadInputError, match=r"--catalog .*t.parquet: not a Parquet file, or a damaged one"):
        open_table(str(path), "catalog", "--catalog")


@pytest.mark.parametrize("end", ["\r\n", "\n", "\r"])
def test_only_line_feed_and_carriage_return_end_a_line(tmp_path: Path, end: str) -> None:
    (tmp_path / "t.csv").write_bytes(f"1,Lip\u2028 Gloss\x0b{end}2,Razor\x85{end}".encode())
    table = _ingested(tmp_path, tmp_path / "t.csv", images=str(tmp_path))
    assert table["image_id"].to_pylist() == ["1", "2"]
    assert table["description"].to_pylist()[0] == "Lip\u2028 Gloss"


@pytest.mark.parametrize("uri", ["https://shop/b.jpg", "gs://shop/b.jpg", "s3://my shop/b.jpg", "s3:///b.jpg"])
def test_a_uri_of_no_store_is_named_with_its_row(tmp_path: Path, uri: str) -> None:
    (tmp_path / "l.txt").write_text(f"a.jpg\n{uri}\n")
    with pytest.raises(BadInputError, match="row 1 ") as caught:
        _ingested(tmp_path, tmp_path / "l.txt")
    assert uri in str(caught.value)
    assert not (tmp_path / "out-l.txt").exists()


def test_linked_folders_and_links_that_lead_nowhere_are_rows(tmp_path: Path) -> None:
    for folder in ("shop", "elsewhere"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"{folder}.jpg").write_bytes(JPEG)
    (tmp_path / "shop" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "shop" / "linked" / "round").symlink_to(tmp_path / "shop")
    (tmp_path / "shop" / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    assert _ingested(tmp_path, tmp_path / "shop")["image_id"].to_pylist() == ["gone", "shop", "linked/elsewhere"]


def test_a_packed_catalog_is_no_source(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {"a.jpg": JPEG})
    writer = _writer(tmp_path / "packed")
    pack_tar(writer.units, "00000", str(tmp_path / "a.tar"))
    writer.commit(["00000"], {}, {})
    for source in (tmp_path / "packed", tmp_path / "packed" / "catalog-00000.parquet"):
        for pack in (False, True):
            with pytest.raises(BadInputError, match="holds its pictures' bytes already"):
                _ingested(tmp_path, source, pack=pack)


def test_a_column_that_is_only_called_bytes_is_none_of_ours(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image_id": ["a"], "uri": ["a.jpg"], "bytes": [12345]}), tmp_path / "t.parquet")
    assert _ingested(tmp_path, tmp_path / "t.parquet")["image_id"].to_pylist() == ["a"]


def test_a_pack_without_any_picture_is_not_committed(tmp_path: Path) -> None:
    rows = pa.Table.from_pylist([{"image_id": "a", "uri": str(tmp_path / "none.jpg")}], schema=CATALOG)
    config, writer = Config(source="s", out=str(tmp_path / "out")), _writer(tmp_path / "out")
    assert pack_rows(writer.units, "00000", rows)["unread"] == 1
    with pytest.raises(JobFailedError, match=r"none of its 1 pictures can be read.*--overwrite"):
        ingest._pack(config, rows, writer)


def test_a_part_of_other_rows_is_not_committed(tmp_path: Path) -> None:
    rows = pa.Table.from_pylist([{"image_id": f"i{n}", "uri": "x"} for n in range(PACK_ROWS + 3)], schema=CATALOG)
    config, writer = Config(source="s", out=str(tmp_path / "out")), _writer(tmp_path / "out")
    for unit in ("00000", "00001"):
        writer.units.put(unit, {f"catalog-{unit}.parquet": Blob(data=b"1")}, {"rows": PACK_ROWS, "unread": 0})
    with pytest.raises(IntegrityError, match=f"part 00001 holds {PACK_ROWS} rows for 3 pictures"):
        ingest._pack(config, rows, writer)


def test_receipts_carry_the_claim(tmp_path: Path) -> None:
    """So that another run in the same folder does not take what a run that it overwrote writes late."""
    (tmp_path / "l.txt").write_text("a.jpg\n")
    _ingested(tmp_path, tmp_path / "l.txt")
    (receipt,) = (tmp_path / "out-l.txt" / "receipts").iterdir()
    assert Receipt.model_validate_json(receipt.read_bytes()).claim
    rows = pa.Table.from_pylist([{"image_id": "a", "uri": str(tmp_path / "a.jpg")}], schema=CATALOG)
    write_tar(tmp_path / "a.tar", {"a.jpg": JPEG})
    writer = _writer(tmp_path / "out")
    other = Units(writer.store, "of another run")
    for units, finished in ((other, []), (writer.units, ["00000", "00001"])):
        pack_rows(units, "00000", rows)
        pack_tar(units, "00001", str(tmp_path / "a.tar"))
        assert sorted(writer.finished()) == finished
