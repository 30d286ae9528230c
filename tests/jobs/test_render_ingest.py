"""`manet render` and `manet ingest`: catalogues and queries."""

import csv
import os
from pathlib import Path

import cv2
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.artifact import open_artifact
from tests.conftest import ROOT, Run
from tests.jobs.helpers import assert_refused, checksums, summary_of


def _table(folder: Path) -> pa.Table:
    return pa.concat_tables([pq.read_table(path) for path in sorted(folder.glob("c*-*.parquet"))])


def test_every_rendered_row_has_its_picture(shop: Path) -> None:
    catalog, queries = _table(shop / "catalog"), pq.read_table(next((shop / "queries").glob("queries-*.parquet")))
    assert len(set(catalog["product_id"].to_pylist())) == 48
    assert len(set(catalog["category"].to_pylist())) >= 44
    for folder, table in ((shop / "catalog", catalog), (shop / "queries", queries)):
        for uri in table["uri"].to_pylist():
            picture = cv2.imread(str(folder / uri))
            assert picture is not None
            assert max(picture.shape) == 96
    ids = set(catalog["image_id"].to_pylist())
    assert queries.num_rows == 12
    assert all(set(relevant) <= ids and relevant for relevant in queries["relevant"].to_pylist())


def test_the_same_seed_gives_the_same_shop(shop: Path, manet: Run, s3_root: str) -> None:
    """On another store, with another number of workers."""
    command = ("render", "--products", 48, "--queries", 12, "--size", 96)
    summary_of(manet(*command, "--out", s3_root, "--ray-cpus", 1))
    for kind in ("catalog", "queries"):
        assert checksums(f"{s3_root}/{kind}", kind) == checksums(shop / kind, kind)
    again = manet(*command, "--out", s3_root)
    assert again.stderr.count("nothing to do") == 2
    assert_refused(manet("render", "--products", 49, "--out", s3_root), 2, "--products was 48, now 49")


@pytest.fixture
def pictures(shop: Path) -> list[Path]:
    """Some JPEGs."""
    return sorted((shop / "catalog" / "images").rglob("*.jpg"))[:5]


def test_a_folder(manet: Run, shop: Path, tmp_path: Path) -> None:
    done = manet("ingest", "--source", shop / "catalog" / "images", "--out", tmp_path / "out")
    pictures = sorted((shop / "catalog" / "images").rglob("*.jpg"))
    assert summary_of(done)["rows"] == len(pictures)
    table = _table(tmp_path / "out")
    assert sorted(table["uri"].to_pylist()) == [str(path) for path in pictures]
    assert "00000/p000000-0" in table["image_id"].to_pylist()


def test_tables_and_lists(manet: Run, pictures: list[Path], tmp_path: Path) -> None:
    with (tmp_path / "table.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["image_id", "uri", "description"], *[[p.stem, p, "a, b"] for p in pictures]])
    beside = [os.path.relpath(path, tmp_path) for path in pictures]  # relative to the list, wherever the command runs
    (tmp_path / "list.txt").write_text("\n".join([str(pictures[0]), *beside[1:]]) + "\n\n")
    for name in ("table.csv", "list.txt"):
        done = manet("ingest", "--source", tmp_path / name, "--out", tmp_path / f"out-{name}")
        assert summary_of(done)["rows"] == 5
        table = _table(tmp_path / f"out-{name}")
        assert table["image_id"].to_pylist() == [path.stem for path in pictures]
        assert all(Path(uri).is_absolute() and Path(uri).is_file() for uri in table["uri"].to_pylist())


def test_the_challenges_files(manet: Run, pictures: list[Path], tmp_path: Path) -> None:
    names = [path.stem for path in pictures]
    rows = "".join(f'{name},"Lip, Gloss {name}"\n' for name in names)
    (tmp_path / "training_public.csv").write_text(f"\nimage_id,title\n{rows}")  # an empty line is none
    head = "Validation Image ID,Training Image ID\n"
    (tmp_path / "validation.csv").write_text(
        f"\ufeff\n{head}{names[0]},{names[1]},{names[2]},,\n{names[3]},{names[4]}\n", encoding="utf-8"
    )
    images = pictures[0].parent
    done = manet("ingest", "--source", tmp_path / "training_public.csv", "--images", images, "--out", tmp_path / "c")
    assert summary_of(done)["rows"] == 5
    catalog = _table(tmp_path / "c")
    assert catalog["description"][0].as_py() == f"Lip, Gloss {names[0]}"
    assert Path(catalog["uri"][0].as_py()).is_file()
    source = ("--source", tmp_path / "validation.csv", "--kind", "queries")
    assert_refused(manet("ingest", *source, "--out", tmp_path / "q"), 2, "--images is required")
    summary_of(manet("ingest", *source, "--images", os.path.relpath(images, ROOT), "--out", tmp_path / "q"))
    queries = pq.read_table(next((tmp_path / "q").glob("queries-*.parquet")))
    assert all(Path(uri).is_absolute() and Path(uri).is_file() for uri in queries["uri"].to_pylist())
    assert queries["relevant"].to_pylist() == [[names[1], names[2]], [names[4]]]
    assert open_artifact(str(tmp_path / "q"), "queries").manifest.summary["rows"] == 2


def test_what_is_wrong_is_said_with_its_line(manet: Run, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "out")
    (tmp_path / "a.txt").write_text("x/1.jpg\ny/1.jpg\n")
    assert_refused(manet("ingest", "--source", tmp_path / "a.txt", *out), 2, "a.txt", "image_id '1' stands in 2 rows")
    (tmp_path / "v.csv").write_text("Validation Image ID,Training Image ID\n1,2\n3,\n")
    done = manet("ingest", "--source", tmp_path / "v.csv", "--kind", "queries", "--images", "i", *out)
    assert_refused(done, 2, "v.csv: line 3 has no query or no answer")
    assert_refused(manet("ingest", "--source", tmp_path / "none", *out), 2, "none", "no such folder")
    for text, words in (("", "the file is empty"), ("image_id,url\n1,x.jpg\n", "no column 'uri'"),
                        ("image_id;uri\n1;x.jpg\n", "it has image_id;uri"), ("image_id,uri\n", "no pictures found")):  # fmt: skip
        (tmp_path / "t.csv").write_text(text)
        assert_refused(manet("ingest", "--source", tmp_path / "t.csv", *out), 2, "t.csv", words)
    pq.write_table(pa.table({"image_id": ["1\n2"], "uri": ["x.jpg"]}), tmp_path / "t.parquet")
    assert_refused(manet("ingest", "--source", tmp_path / "t.parquet", *out), 2, "t.parquet", "holds a line break")
    (tmp_path / "t.csv").write_text("image_id,uri\n..,x.jpg\n")
    assert_refused(manet("ingest", "--source", tmp_path / "t.csv", *out), 2, "t.csv: the id '..' means a folder")
    (tmp_path / "t.csv").write_text("image_id,title\n1,a lipstick\n")
    assert_refused(manet("ingest", "--source", tmp_path / "t.csv", *out), 2, "--images is required")
    (tmp_path / "t.tsv").write_text("image_id\turi\n1\tx.jpg\n")
    assert_refused(manet("ingest", "--source", tmp_path / "t.tsv", *out), 2, "t.tsv: a file, and no folder")
    assert_refused(
        manet("ingest", "--source", tmp_path, "--format", "urls", *out), 2, "--source", "a folder, and a file"
    )
    assert_refused(
        manet("ingest", "--source", tmp_path / "a.txt" / "b.csv", *out), 2, "--source", "a file and no folder"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ((b"a.jpg", b"a.png"), "a.jpg and a.png would both have the id 'a'"),
        ((b"a.jpg", b"b\xff.jpg"), r"the file name 'b\udcff.jpg' is not UTF-8; rename it"),
        ((b"a.jpg", b"b\nc.jpg"), r"the id 'b\nc' holds a line break"),
    ],
)
def test_a_file_name_that_no_id_can_be_made_of(
    manet: Run, pictures: list[Path], tmp_path: Path, names: tuple[bytes, bytes], words: str
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in names:
        (folder / os.fsdecode(name)).write_bytes(pictures[0].read_bytes())
    assert_refused(manet("ingest", "--source", folder, "--out", tmp_path / "out"), 2, "--source", words)
    assert not (tmp_path / "out").exists()
