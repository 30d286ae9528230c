"""`manet gc`: what nothing claims goes, what anything claims stays."""

import os
import time
from pathlib import Path

import boto3
import pyarrow as pa
import pytest

from cluster.artifact import ArtifactWriter, Blob, Units, open_artifact
from cluster.errors import BadInputError
from cluster.storage import LocalStore, Store
from jobs import status
from jobs.gc import Config, run
from jobs.packing import PACKED
from jobs.parquet import parquet_bytes
from tests.conftest import Run
from tests.jobs.helpers import assert_refused, checksums, summary_of

SOON = 1e-7  # hours: everything here is older


def _artifact(uri: str, *, commit: bool) -> ArtifactWriter:
    writer = ArtifactWriter.open(uri, "descriptors", config={"seed": 1}, claimed=["seed"], inputs={})
    for unit in ("00000", "00001"):
        writer.units.put(unit, {f"part-{unit}.parquet": Blob(data=unit.encode())})
    if commit:
        writer.commit(["00000", "00001"], {}, {})
    return writer


def _names(store: Store) -> set[str]:
    return {entry.name for entry in store.list()}


@pytest.mark.parametrize("commit", [True, False])
def test_orphans_are_listed_and_then_removed(store: Store, commit: bool) -> None:
    writer = _artifact(store.uri(""), commit=commit)
    before = _names(store)
    orphans = {"part-00002.parquet", "deep/left.bin"}
    for name in orphans:
        store.write(name, b"12345")
    store.write("checkpoints/a/model.bin", b"1234567")  # needed by nobody once the model is committed
    Units(store, "of another command").put("00003", {"part-00003.parquet": Blob(data=b"1")})
    dead = orphans | {"part-00003.parquet", "receipts/00003.json"} | ({"checkpoints/a/model.bin"} if commit else set())
    time.sleep(1.1)  # a store may tell whole seconds
    found = run(Config(out=store.uri(""), grace_hours=SOON))
    assert (found["orphans"], found["removed"]) == (len(dead), False)
    assert _names(store) >= dead | before
    assert run(Config(out=store.uri(""), grace_hours=SOON, delete=True))["removed"] is True
    assert _names(store) == before | (set() if commit else {"checkpoints/a/model.bin"})
    assert run(Config(out=store.uri(""), grace_hours=SOON))["orphans"] == 0
    assert set(writer.finished()) == {"00000", "00001"}
    if commit:
        assert len(checksums(store.uri(""))) == 2


def test_a_receipt_that_cannot_be_read_claims_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    writer = _artifact(str(tmp_path), commit=False)
    writer.store.write("receipts/00000.json", b"")
    assert run(Config(out=str(tmp_path), grace_hours=SOON))["orphans"] == 2
    assert status.run(status.Config(out=str(tmp_path)))["done"] == 1
    assert "cannot be read, and count as absent: receipts/00000.json" in capsys.readouterr().err


def test_what_a_killed_writer_left_unfinished(store: Store) -> None:
    """Temporary files on disk, unfinished uploads on S3: no listing shows them, gc does."""
    _artifact(store.uri(""), commit=True)
    if isinstance(store, LocalStore):
        (store.root / ".tmp-0123").write_bytes(b"123")
    else:
        bucket, _, prefix = store.uri("").removeprefix("s3://").partition("/")
        boto3.session.Session().client("s3").create_multipart_upload(Bucket=bucket, Key=f"{prefix}/part-00009.parquet")
    assert len(list(store.unfinished())) == 1
    time.sleep(1.1)  # a store may tell whole seconds
    assert run(Config(out=store.uri(""), grace_hours=SOON, delete=True))["orphans"] == 1
    assert list(store.unfinished()) == []
    assert len(checksums(store.uri(""))) == 2


def test_what_lies_behind_a_link_is_not_removed(tmp_path: Path) -> None:
    writer = _artifact(str(tmp_path / "run"), commit=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "kept.bin").write_bytes(b"1")
    (tmp_path / "run" / "link").symlink_to(tmp_path / "elsewhere")
    writer.store.write("orphan.bin", b"1")
    assert run(Config(out=str(tmp_path / "run"), grace_hours=SOON, delete=True))["orphans"] == 1
    assert (tmp_path / "elsewhere" / "kept.bin").exists()


def test_of_a_packed_table_only_its_uris_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uris = ["images/a.jpg", "images/b.jpg"]
    rows = [{"image_id": uri[-5], "uri": uri, "bytes": os.urandom(4_000_000)} for uri in uris]
    writer = ArtifactWriter.open(str(tmp_path), "catalog", config={}, claimed=(), inputs={})
    part = Blob(data=parquet_bytes(pa.Table.from_pylist(rows, PACKED)), rows=2)
    writer.units.put("00000", {"catalog-00000.parquet": part})
    writer.commit(["00000"], {}, {})
    for name in (*uris, "images/c.jpg"):
        writer.store.write(name, b"1")
    sizes: list[int] = []
    read = LocalStore.read

    def counted(store: LocalStore, name: str, *, start: int = 0, length: int | None = None) -> bytes:
        sizes.append(len(data := read(store, name, start=start, length=length)))
        return data

    monkeypatch.setattr(LocalStore, "read", counted)
    assert run(Config(out=str(tmp_path), grace_hours=SOON))["orphans"] == 1
    assert sum(sizes) < 2_000_000


def test_a_folder_where_a_run_may_be_at_work_is_refused(tmp_path: Path) -> None:
    writer = _artifact(str(tmp_path / "run" / "descriptors"), commit=False)
    writer.store.write("part-00002.parquet", b"its receipt comes next")
    for folder in (tmp_path / "run", tmp_path / "run" / "descriptors"):
        with pytest.raises(BadInputError, match="a run may be at work"):
            run(Config(out=str(folder), delete=True))
    assert writer.store.exists("part-00002.parquet")
    then = time.time() - 25 * 3600
    for path in (tmp_path / "run").rglob("*.*"):
        os.utime(path, (then, then))
    assert run(Config(out=str(tmp_path / "run"), delete=True))["orphans"] == 1
    assert not writer.store.exists("part-00002.parquet")
    with pytest.raises(BadInputError, match="no job has claimed"):
        run(Config(out=str(tmp_path / "nowhere")))


def test_pictures_of_a_rendered_shop_and_what_lies_beside_artifacts_stay(
    manet: Run, shop: Path, served_index: Path, tmp_path: Path
) -> None:
    """Tables claim their pictures; the commands' own folders have no orphans."""
    for folder, artifacts in ((shop, 2), (served_index.parent, 2)):
        found = summary_of(manet("gc", folder, "--grace-hours", SOON))
        assert (found["artifacts"], found["orphans"]) == (artifacts, 0)
    stray = shop / "catalog" / "images" / "stray.jpg"
    stray.write_bytes(b"1")
    assert summary_of(manet("gc", shop, "--grace-hours", SOON, "--delete"))["orphans"] == 1
    assert not stray.exists()
    assert open_artifact(str(shop / "catalog"), "catalog").manifest.parts
    assert_refused(manet("gc", tmp_path), 2, "no job has claimed")
