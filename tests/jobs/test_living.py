"""An index that changes: `manet index add`, `delete`, `compact`, `prune`, against exact search of what should be in it."""

import json
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.artifact import Artifact, ArtifactWriter, Blob, Input, Part
from cluster.errors import BadInputError, ClusterError
from cluster.session import SessionConfig, ray_session
from cluster.versions import Change, commit_version
from jobs import dedup, index, living, status
from jobs.inputs import open_table
from jobs.parquet import parquet_bytes
from jobs.querying import open_index, open_newest_searcher, open_searcher
from manet.exact import exact_search
from manet.tables import descriptor_column
from tests.jobs.helpers import checksums

Matrix = np.ndarray[Any, np.dtype[Any]]
DIM = 16
FACTORY = "IVF8,PQ8x4fs"
FLIPS = 200


@pytest.fixture(scope="module", autouse=True)
def session() -> Iterator[None]:
    with ray_session(SessionConfig(ray_cpus=2, object_store_mib=128)):
        yield


def vectors_of(rows: int, seed: int, spread: float = 0.3) -> Matrix:
    """Unit vectors around 20 centres, float16."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).standard_normal((20, DIM))
    found = centres[rng.integers(0, 20, rows)] * (spread < 1) + spread * rng.standard_normal((rows, DIM))
    return np.asarray(found / np.linalg.norm(found, axis=1, keepdims=True), np.float16)


def describe(
    folder: Path,
    ids: list[str],
    vectors: Matrix,
    part_rows: int = 50,
    inputs: Mapping[str, Input] | None = None,
    **config: object,
) -> str:
    """A descriptors artifact, as `extract` writes it, of vectors that no model made."""
    config |= {"name": folder.name, "part_rows": part_rows}
    writer = ArtifactWriter.open(str(folder), "descriptors", config=config, claimed=("name",), inputs=inputs or {})
    units = []
    for number, start in enumerate(range(0, len(ids), part_rows)):
        table = pa.table({"image_id": ids[start : start + part_rows]})
        table = table.append_column("descriptor", descriptor_column(vectors[start : start + part_rows]))
        units.append(f"{number:05d}")
        blob = Blob(data=parquet_bytes(table), rows=len(table))
        writer.units.put(units[-1], {f"part-{number:05d}.parquet": blob})
    writer.commit(units, {"rows": len(ids)}, {})
    return str(folder)


class Gallery:
    """An index on disk, and beside it what it should hold."""

    def __init__(self, folder: Path, rows: int = 300, factory: str = FACTORY) -> None:
        self.folder, self.uri = folder, str(folder / "index")
        self.held = dict(zip([f"a{row:04d}" for row in range(rows)], vectors_of(rows, 0), strict=True))
        descriptors = describe(folder / "a", list(self.held), np.array(list(self.held.values())))
        index.run(index.Config(descriptors=descriptors, out=self.uri, factory=factory, shard_rows=100))

    def add(self, name: str, rows: int, seed: int, spread: float = 0.3, *, replace: bool = False) -> dict[str, Any]:
        new = dict(zip([f"{name}{row:04d}" for row in range(rows)], vectors_of(rows, seed, spread), strict=True))
        descriptors = describe(self.folder / f"{name}-{seed}", list(new), np.array(list(new.values())))
        done = living.add(living.AddConfig(index=self.uri, descriptors=descriptors, replace=replace))
        self.held |= new
        return done

    def delete(self, ids: list[str], *, missing_ok: bool = False) -> dict[str, Any]:
        path = self.folder / "ids.txt"
        path.write_text("\n".join(ids))
        done = living.delete(living.DeleteConfig(index=self.uri, ids=str(path), missing_ok=missing_ok))
        self.held = {name: vector for name, vector in self.held.items() if name not in ids}
        return done

    def tuning(self) -> dict[str, Any]:
        """What the newest version's report says of how well it finds."""
        artifact = open_index(self.uri)
        told: dict[str, Any] = json.loads(artifact.read(artifact.parts("report", ".json")[0]))["tuning"]
        return told

    def check(self, version: int = 0) -> None:
        """Its answers are those of exact search over what it should hold."""
        artifact = open_index(self.uri, version)
        names = sorted(self.held)
        vectors = np.array([self.held[name] for name in names])
        searcher = open_searcher(artifact, nprobe=8, refine=10_000)
        assert len(searcher) == artifact.manifest.summary["rows"] == len(names)
        (report,) = artifact.parts("report")
        told = json.loads(artifact.read(report))
        assert (told["rows"], told["deleted"]) == (len(names), artifact.manifest.summary["deleted"])
        queries = vectors[::17].astype(np.float32)
        found = [[hit.image_id for hit in hits] for hits in searcher.search(queries, 7)]
        assert found == [[names[row] for row in rows] for rows in exact_search(vectors, queries, 7)[1]]


def test_a_life(tmp_path: Path) -> None:
    gallery = Gallery(tmp_path)
    gallery.check()
    assert gallery.add("b", 120, 1)["version"] == 2
    gallery.check()
    assert gallery.delete([f"a{row:04d}" for row in range(0, 90, 2)] + ["b0003"])["version"] == 3
    gallery.check()
    assert gallery.tuning()["of_version"] == 1  # measured then, and said so
    assert len(open_index(gallery.uri).parts("recall")) == 1
    before = dict(gallery.held)
    assert gallery.add("a", 10, 2, replace=True)["rows"] == 300 + 120 - 46 + 5  # five of the ten were deleted
    gallery.check()
    done = living.compact(living.CompactConfig(index=gallery.uri, shard_rows=100, max_drift=100, max_deleted=0))
    assert (done["version"], done["deleted"]) == (5, 0)
    gallery.check()
    assert "of_version" not in gallery.tuning()
    again = living.compact(living.CompactConfig(index=gallery.uri, shard_rows=100, max_drift=100))
    assert again["version"] in {5, 6}  # what was merged may be small still
    gallery.check()
    gallery.held = before
    gallery.check(version=3)
    listed = living.versions(living.IndexConfig(index=gallery.uri))["versions"]
    assert [row["version"] for row in listed][:5] == [1, 2, 3, 4, 5]
    files = {path.name for path in Path(gallery.uri).iterdir()}
    done = living.prune(living.PruneConfig(index=gallery.uri, keep=1))
    assert done["files_removed"] > 3
    left = {path.name for path in Path(gallery.uri).iterdir()}
    named = {part.name for part in open_index(gallery.uri).manifest.parts}
    assert named <= left < files
    open_index(gallery.uri).verify()
    with pytest.raises(BadInputError, match="no version 3"):
        open_index(gallery.uri, 3)


def test_what_is_refused_and_what_is_done_already(tmp_path: Path) -> None:
    gallery = Gallery(tmp_path)
    gallery.add("b", 20, 1)
    again = living.add(living.AddConfig(index=gallery.uri, descriptors=str(tmp_path / "b-1")))
    assert again["version"] == 2
    flat = describe(tmp_path / "flat", ["q"], np.ones((1, 4), np.float16))
    with pytest.raises(BadInputError, match="4 dimensions, the index has 16"):
        living.add(living.AddConfig(index=gallery.uri, descriptors=flat))
    with pytest.raises(BadInputError, match=r"20 ids are in the index already, e\.g\. 'b0000'"):
        gallery.add("b", 20, 3)
    gallery.delete(["b0001"])
    assert gallery.delete(["b0001"])["version"] == 3
    with pytest.raises(BadInputError, match="has no 'zzz'"):
        gallery.delete(["zzz", "b0002"])
    assert gallery.delete(["zzz", "b0002"], missing_ok=True)["version"] == 4
    gallery.check()


def test_deleted_pictures_can_come_back(tmp_path: Path) -> None:
    gallery = Gallery(tmp_path)
    held = dict(gallery.held)
    gallery.delete(["a0001", "a0002"])
    again = living.AddConfig(index=gallery.uri, descriptors=str(tmp_path / "a"))
    with pytest.raises(BadInputError, match="2 of their 300 rows deleted since; --replace adds all of them anew"):
        living.add(again)
    again = again.model_copy(update={"replace": True})
    assert living.add(again)["rows"] == 300
    gallery.held = dict(held)
    gallery.check()
    assert living.add(again)["version"] == 3  # all of them are live: nothing to do
    assert gallery.add("a", 300, seed=7, replace=True)["version"] == 4
    gallery.check()
    assert living.add(again)["version"] == 5  # these ids are live, but by the other's rows
    gallery.held = held
    gallery.check()
    assert living.add(again)["version"] == 5
    other = living.AddConfig(index=gallery.uri, descriptors=str(tmp_path / "a-7"))
    assert living.add(other.model_copy(update={"replace": True}))["version"] == 6
    with pytest.raises(BadInputError, match="added before, and some replaced since; --replace adds all of them anew"):
        living.add(again.model_copy(update={"replace": False}))
    assert living.add(again)["version"] == 7
    gallery.add("q", 20, 3)
    assert living.add(again.model_copy(update={"replace": False}))["version"] == 8  # its rows of before are no matter


def test_an_index_of_nothing_is_still_one(tmp_path: Path) -> None:
    gallery = Gallery(tmp_path)
    gallery.delete(list(gallery.held))
    before = living.compact(living.CompactConfig(index=gallery.uri))
    assert (before["version"], before["rows"]) == (2, 0)  # and not an index without shards, which nothing opens
    assert open_searcher(open_index(gallery.uri)).search(np.eye(1, 16, dtype=np.float32), 7) == [[]]
    gallery.add("b", 20, 2)
    gallery.check()
    assert living.compact(living.CompactConfig(index=gallery.uri))["version"] == 4
    gallery.check()


def test_small_shards_that_do_not_fit_together_are_left_alone(tmp_path: Path) -> None:
    gallery = Gallery(tmp_path)  # 300 rows
    gallery.add("b", 300, 2, spread=1)
    config = living.CompactConfig(index=gallery.uri, shard_rows=400, small_shard=0.8, max_drift=100)
    first = living.compact(config)["version"]
    assert living.compact(config)["version"] == first


def test_status_tells_of_the_newest_version(tmp_path: Path) -> None:
    gallery = Gallery(tmp_path)

    def look() -> tuple[str, int, int, int]:
        found = status.run(status.Config(out=gallery.uri))
        return found["state"], found["version"], found["rows"], found["damaged"]

    assert look() == ("committed", 1, 300, 0)
    gallery.add("z", 200, 5, spread=1)
    assert look() == ("committed", 2, 500, 0)
    gallery.delete(["a0001", "z0001"])
    assert look() == ("committed", 3, 498, 0)
    living.compact(living.CompactConfig(index=gallery.uri, shard_rows=200, max_drift=1.01))
    assert look() == ("committed", 4, 498, 0)
    living.prune(living.PruneConfig(index=gallery.uri, keep=1))
    assert look() == ("committed", 4, 498, 0)
    gallery.check()
    next(Path(gallery.uri).glob("shard-*.refine.npy")).unlink()
    assert look() == ("damaged", 4, 498, 1)


def test_other_vectors_make_it_train_again(tmp_path: Path) -> None:
    gallery = Gallery(tmp_path)
    gallery.add("z", 300, 5, spread=1)
    before = [part.sha256 for part in open_index(gallery.uri).parts("trained", ".faiss")]
    done = living.compact(living.CompactConfig(index=gallery.uri, shard_rows=200, max_drift=1.05))
    assert "retrained" in done["action"]
    after = [part.sha256 for part in open_index(gallery.uri).parts("trained", ".faiss")]
    assert len(after) == 1
    assert after != before
    gallery.check()


def test_the_loser_of_a_race_starts_again_from_the_winner(tmp_path: Path) -> None:
    gallery = Gallery(tmp_path)
    calls: list[int] = []

    def change(base: Artifact) -> Change:
        calls.append(base.manifest.number)
        if len(calls) == 1:
            gallery.delete(["a0000"])  # somebody else, between our reading and our commit
        parts = list(base.manifest.parts)
        return living._change(base, parts, living.IndexConfig(index=gallery.uri), {"action": "none"})

    assert living._apply(living.IndexConfig(index=gallery.uri), change)["version"] == 3
    assert calls == [1, 2]
    gallery.check()


def test_tombstones_are_named_by_the_version_that_they_are_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else two equal commands, one of which lost a race, would write different tombstones under one name."""
    gallery = Gallery(tmp_path)
    put, written = living._put_stones, list[Part]()

    def put_stones(base: Artifact, table: pa.Table, prefix: str) -> list[Part]:
        written.extend(parts := put(base, table, prefix))
        return parts

    def lose_once(base: Artifact, change: Change) -> Artifact:
        monkeypatch.setattr(living, "commit_version", commit_version)
        gallery.delete(["a0099"])
        return commit_version(base, change)

    monkeypatch.setattr(living, "_put_stones", put_stones)
    monkeypatch.setattr(living, "commit_version", lose_once)
    assert gallery.add("a", 10, 2, replace=True)["version"] == 3
    assert len({part.name for part in written}) == 3  # of the add that lost, of the delete, of the add that won
    gallery.check()
    open_index(gallery.uri).verify()


def test_a_number_that_was_pruned_meanwhile_is_not_taken(tmp_path: Path) -> None:
    gallery = Gallery(tmp_path)
    calls: list[int] = []

    def change(base: Artifact) -> Change:
        calls.append(base.manifest.number)
        if len(calls) == 1:
            gallery.delete(["a0000"])
            gallery.delete(["a0001"])
            living.prune(living.PruneConfig(index=gallery.uri, keep=1))
        return living._change(
            base, list(base.manifest.parts), living.IndexConfig(index=gallery.uri), {"action": "mine"}
        )

    assert living._apply(living.IndexConfig(index=gallery.uri), change)["version"] == 4
    assert calls == [1, 3]
    assert open_index(gallery.uri).manifest.summary["action"] == "mine"
    gallery.check()


@pytest.mark.parametrize(
    ("field", "other", "said"),
    [
        ("size", 320, "with size 320, the gallery with 480"),
        ("scales", [1.0, 0.7], r"with scales \(1.0, 0.7\), the gallery with \(1.0,\)"),
        ("descriptor", "gem", "with descriptor gem, the gallery with sr-mac"),
        ("precision", "float16", "with precision float16"),
        ("model", "b" * 64, "with model bbbbbbbbbbbb, the gallery with aaaaaaaaaaaa"),
        ("model", "", "vectors of no model"),
    ],
)
def test_rows_that_were_described_otherwise_are_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, field: str, other: object, said: str
) -> None:
    made: dict[str, Any] = {
        "descriptor": "sr-mac",
        "size": 480,
        "batch_size": 8,
        "precision": "float32",
        "scales": [1.0],
    }

    def described(name: str, **changed: object) -> str:
        sha = str(changed.pop("model", "a" * 64))
        inputs = {"model": Input(uri="/model", sha256=sha)} if sha else {}
        return describe(
            tmp_path / name, [f"{name}{row}" for row in range(20)], vectors_of(20, 0), inputs=inputs, **made | changed
        )

    uri = str(tmp_path / "index")
    index.run(index.Config(descriptors=described("a"), out=uri))
    assert living.add(living.AddConfig(index=uri, descriptors=described("b")))["recall@7"] == 1  # flat as before
    monkeypatch.setattr(living, "ray_session", None)  # nothing is started for it
    with pytest.raises(BadInputError, match=said):
        living.add(living.AddConfig(index=uri, descriptors=described("c", **{field: other})))


class KilledError(Exception):
    """Instead of a kill."""


def killed(monkeypatch: pytest.MonkeyPatch, command: Callable[[], Any]) -> None:
    """Run a change until it would commit."""

    def commit(base: Artifact, change: Change) -> Artifact:
        raise KilledError

    with monkeypatch.context() as patched, pytest.raises(KilledError):
        patched.setattr(living, "commit_version", commit)
        command()


@pytest.mark.parametrize("other", [{"seed": 5}, {"train_cpus": 2.0}])
def test_a_killed_compaction_lends_nothing_to_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: dict[str, Any]
) -> None:
    gallery = Gallery(tmp_path)
    gallery.add("z", 300, 5, spread=1)
    shutil.copytree(gallery.uri, tmp_path / "calm")
    flags: dict[str, Any] = {"shard_rows": 200, "max_drift": 1.01}
    killed(monkeypatch, lambda: living.compact(living.CompactConfig(index=gallery.uri, **flags)))
    before = set(Path(gallery.uri).glob("trained-*.faiss"))
    for uri in (gallery.uri, str(tmp_path / "calm")):
        living.compact(living.CompactConfig(index=uri, **flags, **other))
    one, two = (checksums(uri, "index") for uri in (gallery.uri, tmp_path / "calm"))
    assert one == two
    assert set(Path(gallery.uri).glob("trained-*.faiss")) > before  # trained anew


def test_a_killed_add_without_details_lends_nothing_to_one_with_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gallery = Gallery(tmp_path)
    ids = [f"b{row:04d}" for row in range(60)]
    pq.write_table(pa.table({"image_id": ids, "uri": [f"{name}.jpg" for name in ids]}), tmp_path / "catalog.parquet")
    source = open_table(str(tmp_path / "catalog.parquet"), "catalog", "--catalog").source
    new = describe(tmp_path / "b", ids, vectors_of(60, 1), inputs={"catalog": source})
    killed(monkeypatch, lambda: living.add(living.AddConfig(index=gallery.uri, descriptors=new, details=False)))
    living.add(living.AddConfig(index=gallery.uri, descriptors=new))
    found = open_searcher(open_index(gallery.uri)).item("b0001")
    assert found is not None and found[0].uri == str(tmp_path / "b0001.jpg")


def test_a_late_fill_of_an_overwritten_run_is_not_the_new_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gallery, late = Gallery(tmp_path), tmp_path / "late"
    shutil.copytree(gallery.uri, late)
    ids = list(gallery.held)
    other = describe(tmp_path / "other", ids, vectors_of(300, 9))
    flags: dict[str, Any] = {"out": gallery.uri, "factory": FACTORY, "shard_rows": 100, "descriptors": other}

    def build(*_: object, **__: object) -> None:
        raise KilledError

    with monkeypatch.context() as patched, pytest.raises(KilledError):
        patched.setattr(index, "build_shards", build)
        index.run(index.Config(**flags, overwrite=True))
    for path in [*late.glob("shard-*"), *(late / "receipts").glob("shard-*")]:
        shutil.copy(path, Path(gallery.uri) / path.relative_to(late))
    index.run(index.Config(**flags))
    gallery.held = dict(zip(ids, vectors_of(300, 9), strict=True))
    gallery.check()
    now = checksums(gallery.uri, "index")
    with monkeypatch.context() as patched:  # of the same claim what is finished is kept
        patched.setattr("jobs.sharding._fill", build)
        Path(gallery.uri, "manifest.json").unlink()
        index.run(index.Config(**flags))
    assert checksums(gallery.uri, "index") == now


def test_an_index_outgrows_flat_and_becomes_it_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("manet.index.FLAT_ROWS", 400)
    gallery = Gallery(tmp_path, factory="auto")
    assert gallery.add("b", 320, 1)["factory"] == "Flat"
    gallery.check()
    done = living.compact(living.CompactConfig(index=gallery.uri))
    assert (done["factory"], done["action"]) == ("Dealt16,IVF8,PQ8x4fs", "compact 4 shards into Dealt16,IVF8,PQ8x4fs")
    assert done["recall@7"] >= done["recall_target"] == 0.95
    assert living.compact(living.CompactConfig(index=gallery.uri))["version"] == done["version"]
    gallery.check()
    gallery.delete([f"b{row:04d}" for row in range(290)])
    done = living.compact(living.CompactConfig(index=gallery.uri))
    assert (
        done["factory"] == "Dealt16,IVF8,PQ8x4fs"
    )  # 330 rows are not far from where flat ends: nothing goes to and fro
    gallery.delete([f"a{row:04d}" for row in range(90)])
    done = living.compact(living.CompactConfig(index=gallery.uri))
    assert (done["factory"], done["recall@7"], "nprobe" in done) == ("Flat", 1, False)
    gallery.check()


def test_a_reader_sees_one_version_or_the_next(tmp_path: Path) -> None:
    gallery = Gallery(tmp_path)
    stop = threading.Event()
    faults: list[str] = []
    seen: list[int] = []
    kept = {f"a{row:04d}" for row in range(100, 110)}
    queries = np.array([gallery.held[name] for name in sorted(kept)], np.float32)

    def read() -> None:
        while not stop.is_set():
            try:
                artifact, searcher = open_newest_searcher(gallery.uri, nprobe=8, refine=1000)
                found = {hits[0].image_id for hits in searcher.search(queries, 1)}
                seen.append(artifact.manifest.number)
                assert found == kept
                assert len(searcher) == artifact.manifest.summary["rows"]
            except Exception as error:
                faults.append(repr(error))
                return

    reader = threading.Thread(target=read)
    reader.start()
    try:
        gallery.add("b", 60, 1)
        gallery.delete(["a0001", "b0001"])
        living.compact(living.CompactConfig(index=gallery.uri, shard_rows=100))
        living.prune(living.PruneConfig(index=gallery.uri, keep=1))
        gallery.delete(["a0002"])
    finally:
        stop.set()
        reader.join(timeout=120)
    assert faults == []
    assert seen == sorted(seen)
    gallery.check()


def test_every_flipped_bit_is_refused_by_name(tmp_path: Path) -> None:
    gallery = Gallery(tmp_path, rows=120)
    gallery.delete(["a0001"])
    names = [
        part.name
        for part in open_index(gallery.uri).manifest.parts
        if part.name.startswith(("shard", "tomb", "trained"))
    ]
    rng = np.random.default_rng(0)
    every = [*names, "versions/manifest-00002.json"]
    for name in (every * FLIPS)[:FLIPS]:
        path = Path(gallery.uri) / name
        whole = path.read_bytes()
        torn = bytearray(whole)
        torn[rng.integers(len(torn))] ^= 1 << int(rng.integers(8))
        path.write_bytes(bytes(torn))
        with pytest.raises(ClusterError, match=name.replace(".", r"\.")):
            open_searcher(open_index(gallery.uri))
        path.write_bytes(whole)
    gallery.check()


def test_like_vectors_are_near_duplicates_at_any_threshold(tmp_path: Path) -> None:
    """The product of a stored vector with itself may be a little below 1."""
    one = vectors_of(60, 0, spread=1)
    ids = [f"{name}{row:04d}" for name in "ab" for row in range(60)]
    descriptors = describe(tmp_path / "d", ids, np.concatenate([one, one]))
    index.run(index.Config(descriptors=descriptors, factory="Flat", out=str(tmp_path / "index")))
    done = dedup.run(dedup.Config(index=str(tmp_path / "index"), threshold=1, out=str(tmp_path / "groups")))
    assert (done["pictures"], done["groups"]) == (120, 60)


def test_groups_are_the_planted_ones(tmp_path: Path) -> None:
    base = vectors_of(120, 0, spread=1).astype(np.float32)  # no cluster: no pair is near by chance
    near = base[:30] + 0.02 * np.random.default_rng(3).standard_normal((30, DIM))
    both = np.concatenate([base, near / np.linalg.norm(near, axis=1, keepdims=True)]).astype(np.float16)
    ids = [f"a{row:04d}" for row in range(120)] + [f"b{row:04d}" for row in range(30)]
    cosine = both.astype(np.float64) @ both.astype(np.float64).T - 2 * np.eye(150)
    pairs = [(ids[i], ids[j]) for i, j in np.argwhere(cosine >= 0.97)]
    descriptors = describe(tmp_path / "d", ids, both)
    flags: dict[str, Any] = {"descriptors": descriptors, "factory": "IVF4,PQ4x4", "shard_rows": 60}
    index.run(index.Config(out=str(tmp_path / "index"), **flags))
    done = dedup.run(dedup.Config(index=str(tmp_path / "index"), nprobe=4, out=str(tmp_path / "groups")))
    groups = dict(zip(*pq.read_table(tmp_path / "groups" / "groups.parquet").to_pydict().values(), strict=True))
    assert groups == dedup.joined(pairs)
    assert done["pictures"] == len(groups) >= 55
    index.run(index.Config(out=str(tmp_path / "once"), dedup=str(tmp_path / "groups"), **flags))
    dedup.run(dedup.Config(index=str(tmp_path / "once"), nprobe=4, out=str(tmp_path / "again")))
    assert pq.read_table(tmp_path / "again" / "groups.parquet").equals(
        pq.read_table(tmp_path / "groups" / "groups.parquet")
    )
    hits = open_searcher(open_index(str(tmp_path / "once")), nprobe=4).search(both[:30], 7)
    for answers in hits:
        seen = [groups.get(hit.image_id, hit.image_id) for hit in answers]
        assert len(set(seen)) == 7


def test_chains_are_joined() -> None:
    pairs = [("d", "c"), ("b", "a"), ("c", "b"), ("y", "x")]
    assert dedup.joined(pairs) == {"a": "a", "b": "a", "c": "a", "d": "a", "x": "x", "y": "x"}
