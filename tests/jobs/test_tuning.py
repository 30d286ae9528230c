"""An index is measured as it is built, and searched as it was measured: against exact search done here."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.errors import BadInputError, JobFailedError
from cluster.session import SessionConfig, ray_session
from jobs import index, living, tuning
from jobs.querying import open_index, open_searcher
from manet.errors import InputError
from manet.exact import exact_search
from manet.index import choose_factory
from manet.search import Searcher
from tests.jobs.helpers import checksums
from tests.jobs.test_living import Matrix, describe, vectors_of

ROWS = 3000
FACTORY = "IVF64,PQ4x4"


@pytest.fixture(scope="module", autouse=True)
def session() -> Iterator[None]:
    with ray_session(SessionConfig(ray_cpus=2, object_store_mib=128)):
        yield


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gallery")
    describe(folder / "rows", [f"a{row:04d}" for row in range(ROWS)], vectors_of(ROWS, 0), part_rows=500)
    describe(folder / "queries", [f"q{row:04d}" for row in range(200)], vectors_of(200, 1))
    return folder


def built(gallery: Path, out: Path, **fields: object) -> str:
    wanted = {"descriptors": str(gallery / "rows"), "out": str(out), "factory": FACTORY, "shard_rows": 1000, **fields}
    index.run(index.Config.model_validate(wanted))
    return str(out)


def test_the_stored_setting_finds_what_the_report_says(gallery: Path, tmp_path: Path) -> None:
    uri = built(gallery, tmp_path / "index", recall_target=0.9, queries=str(gallery / "queries"))
    report = json.loads((tmp_path / "index" / "report.json").read_text())["tuning"]
    searcher = open_searcher(open_index(uri))
    assert (searcher.nprobe, searcher.refine) == (report["nprobe"], report["refine"])
    queries = vectors_of(200, 1).astype(np.float32)
    found = [{hit.image_id for hit in hits} for hits in searcher.search(queries, 7)]
    truth = [{f"a{row:04d}" for row in rows} for rows in exact_search(vectors_of(ROWS, 0), queries, 7)[1]]
    recall = float(np.mean([len(ours & true) / 7 for ours, true in zip(found, truth, strict=True)]))
    assert report["recall@7"] == pytest.approx(recall, abs=5e-3)  # neighbours equally close count there by their score
    assert recall >= 0.9
    assert report["recall@7_low"] <= report["recall@7"] <= report["recall@7_high"]
    assert any(each["recall"] < 0.9 for each in report["seen"])  # the target chose: there was something cheaper
    assert (tmp_path / "index" / "recall.png").read_bytes().startswith(b"\x89PNG")


def test_without_queries_the_gallery_is_searched_with_its_own(gallery: Path, tmp_path: Path) -> None:
    built(gallery, tmp_path / "one", recall_target=0.97)
    report = json.loads((tmp_path / "one" / "report.json").read_text())["tuning"]
    assert report["queries"] == 500
    assert report["recall@7"] >= 0.97
    built(gallery, tmp_path / "two", recall_target=0.97)
    assert checksums(tmp_path / "one", "index") == checksums(tmp_path / "two", "index")


def test_a_target_out_of_reach_fails_after_all_is_saved(tmp_path: Path) -> None:
    describe(tmp_path / "rows", [f"a{row:04d}" for row in range(ROWS)], vectors_of(ROWS, 0, spread=1), part_rows=500)
    uri = str(tmp_path / "index")
    for _ in range(2):  # the same command says the same again
        with pytest.raises(JobFailedError, match=r"is written, but recall@7 is 0\.\d+ .*--recall-target is 1"):
            built(tmp_path, tmp_path / "index", factory="IVF8,PQ1x2", recall_target=1)
    reached = open_index(uri).manifest.summary["recall@7"]
    assert 0 < reached < 1
    said = living.tune(living.TuneConfig(index=uri, recall_target=0.2))
    assert (said["version"], said["recall@7"] >= 0.2) == (2, True)
    again = living.tune(living.TuneConfig(index=uri, recall_target=0.2))
    assert again["version"] == 2  # nothing new to say
    (tmp_path / "gone.txt").write_text("\n".join(f"a{row:04d}" for row in range(0, ROWS, 2)))
    living.delete(living.DeleteConfig(index=uri, ids=str(tmp_path / "gone.txt")))
    assert "recall@7" not in open_index(uri).manifest.summary  # it was that of other rows
    said = living.tune(living.TuneConfig(index=uri, recall_target=0.6))
    assert 0.6 <= said["recall@7"] < 1  # through the cells, though so few rows are compared one by one
    said = living.compact(living.CompactConfig(index=uri))
    assert 0.6 <= said["recall@7"] < 1
    index_now = open_index(uri)
    index_now.verify()
    assert len([part for part in index_now.manifest.parts if part.name.endswith((".json", ".png"))]) == 2
    held = vectors_of(ROWS, 0, spread=1)[1::2]
    queries = vectors_of(200, 8, spread=1).astype(np.float32)
    hits = open_searcher(index_now, exact_below=0).search(queries, 7)
    found = [{int(hit.image_id[1:]) // 2 for hit in each} for each in hits]
    recall = np.mean(
        [len(ours & set(rows)) / 7 for ours, rows in zip(found, exact_search(held, queries, 7)[1], strict=True)]
    )
    assert recall > 0.5  # what was stored for the compacted rows is how they are searched


def test_queries_of_other_dimensions_are_refused(gallery: Path, tmp_path: Path) -> None:
    describe(tmp_path / "flat", ["q"], np.ones((1, 4), np.float16))
    with pytest.raises(BadInputError, match="4 dimensions, the index has 16"):
        built(gallery, tmp_path / "index", queries=str(tmp_path / "flat"))


def test_queries_that_are_none_are_refused(gallery: Path, tmp_path: Path) -> None:
    for name, array in (("zero", np.zeros((3, 16))), ("text", np.array(["a"])), ("flat", np.ones(16))):
        np.save(tmp_path / f"{name}.npy", array)
        with pytest.raises(BadInputError, match=f"{name}.npy"):
            built(gallery, tmp_path / "index", queries=str(tmp_path / f"{name}.npy"))
    with pytest.raises(BadInputError, match="gone"):
        built(gallery, tmp_path / "index", queries=str(tmp_path / "gone.npy"))
    assert not (tmp_path / "index").exists()


def test_memory_sets_the_length_of_the_codes(gallery: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"--memory-per-vector.*--factory auto"):
        built(gallery, tmp_path / "index", memory_per_vector=80)
    for memory, length in ((80, 48), (60, 40), (0, 40), (160, 96)):
        assert choose_factory(500_000, 1280, memory)[0] == f"Dealt{4 * length},IVF2048,PQ{2 * length}x4fs"
    with pytest.raises(InputError, match="the smallest code needs"):
        choose_factory(500_000, 1280, 8)


def test_made_up_queries_are_searched_as_seven_answers_are(
    gallery: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No more candidates than `search` re-scores, but for the row that a query was made of."""
    artifact = open_index(built(gallery, tmp_path / "index", factory="IVF4,SQ8", recall_target=0.5))
    counts: list[int] = []
    rescored = Searcher._rescored

    def counted(self: Searcher, queries: Matrix, chosen: Any, how: Any) -> Any:  # noqa: ANN401
        counts.extend(len(np.concatenate([piece[1] for piece in pieces])) for pieces in chosen)
        return rescored(self, queries, chosen, how)

    monkeypatch.setattr(Searcher, "_rescored", counted)
    queries = vectors_of(ROWS, 0)[:5].astype(np.float32)
    names = [f"a{row:04d}" for row in range(5)]
    for own, most in ((names, 201), (None, 200)):
        counts.clear()
        tuning._walk(artifact, (queries, own, np.zeros(5)), 7, (200,), 1.0)
        assert counts[:5] == [most] * 5


def test_a_compaction_is_tuned_on_the_queries_that_the_index_was(
    gallery: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    queries = tmp_path / "queries"
    shutil.copytree(gallery / "queries", queries)
    uri = built(gallery, tmp_path / "index", recall_target=0.9, queries=str(queries))

    def compacted(name: str) -> dict[str, Any]:
        new = describe(tmp_path / name, [f"{name}{row}" for row in range(90)], vectors_of(90, 3), part_rows=30)
        living.add(living.AddConfig(index=uri, descriptors=new, shard_rows=30))
        done = living.compact(living.CompactConfig(index=uri, shard_rows=1000))
        open_index(uri).verify()
        return done

    def report() -> dict[str, Any]:
        (part,) = open_index(uri).parts("report")
        return dict(json.loads(open_index(uri).read(part)))

    assert compacted("b")["recall@7"] >= 0.9
    assert report()["tuning"]["queries"] == 200  # 500 where they are made up
    measured, before = report()["tuning"], open_index(uri).manifest.summary
    plots = open_index(uri).parts("recall")
    (queries / "manifest.json").rename(queries / "gone")
    done = compacted("c")
    assert "searched as before" in capsys.readouterr().err
    assert (done["nprobe"], done["refine"]) == (before["nprobe"], before["refine"])
    assert "recall@7" not in done
    earlier = report()["tuning"]  # of the version before this one, and said so
    assert 1 < earlier.pop("of_version") < open_index(uri).manifest.number and earlier == measured
    assert plots and open_index(uri).parts("recall") == plots
    (queries / "gone").rename(queries / "manifest.json")
    manifest = json.loads((queries / "manifest.json").read_text())
    (queries / "manifest.json").write_text(json.dumps({**manifest, "checksum": ""}))
    compacted("d")
    assert "holds other queries now" in capsys.readouterr().err
    assert "queries" in open_index(uri).manifest.inputs
    living.tune(living.TuneConfig(index=uri, recall_target=0.9))
    assert "queries" not in open_index(uri).manifest.inputs
    assert report()["tuning"]["queries"] == 500
