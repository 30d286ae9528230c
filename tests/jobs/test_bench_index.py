"""The measuring side of the index: generated vectors, memory of processes, stock faiss by hand, whole benches when small."""

import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest

from cluster.artifact import open_artifact
from cluster.errors import BadInputError, JobFailedError
from cluster.session import SessionConfig, ray_session
from jobs import index
from jobs.bench import index as bench_index
from jobs.bench import search as bench_search
from jobs.bench import vectors
from jobs.bench.by_hand import Stock, build, open_usearch, usearch
from jobs.bench.probing import measured
from jobs.bench.truth import gallery_file, recall
from jobs.plotting import frontier_png
from jobs.querying import open_index, open_searcher
from manet.exact import exact_search
from tests.conftest import Run
from tests.jobs.helpers import assert_refused, checksums, summary_of

ROWS, DIM, FACTORY = 3000, 32, "IVF32,PQ8x4"


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """3000 vectors in parts of 512, with 60 queries."""
    folder = tmp_path_factory.mktemp("bench") / "vectors"
    vectors.run(vectors.Config(rows=ROWS, dim=DIM, queries=60, part_rows=512, out=str(folder)))
    return folder


@pytest.fixture(scope="module")
def built(gallery: Path) -> Iterator[Path]:
    """An index of three shards over it; the session stays up for the module."""
    out = gallery.parent / "index"
    with ray_session(SessionConfig(ray_cpus=1, object_store_mib=128)):
        index.run(index.Config(descriptors=str(gallery), out=str(out), factory=FACTORY, shard_rows=1024))
        yield out


def test_vectors_are_the_same_again_and_of_unit_length(gallery: Path, tmp_path: Path) -> None:
    other = tmp_path / "again"
    config = vectors.Config(rows=ROWS, dim=DIM, queries=60, part_rows=512, out=str(other))
    vectors.run(config)
    assert checksums(other) == checksums(gallery)
    ids = gallery_file(open_artifact(str(gallery), "descriptors"), tmp_path / "all.npy")
    rows = np.load(tmp_path / "all.npy")
    assert ids == sorted(set(ids))
    assert rows.shape == (ROWS, DIM)
    assert np.linalg.norm(rows.astype(np.float64), axis=1) == pytest.approx(np.ones(ROWS), abs=2e-3)
    assert (rows >= 0).all()


def test_a_damaged_part_is_made_again(tmp_path: Path) -> None:
    config = vectors.Config(rows=300, dim=8, queries=5, part_rows=100, out=str(tmp_path / "v"))
    vectors.run(config)
    before = checksums(tmp_path / "v")
    (tmp_path / "v" / "manifest.json").unlink()
    (tmp_path / "v" / "part-00001.parquet").write_bytes(b"torn")
    vectors.run(config)
    assert checksums(tmp_path / "v") == before


def test_queries_are_held_out_but_near(gallery: Path, tmp_path: Path) -> None:
    descriptors = open_artifact(str(gallery), "descriptors")
    queries = vectors.held_out(descriptors).astype(np.float64)
    gallery_file(descriptors, tmp_path / "all.npy")
    rows = np.load(tmp_path / "all.npy").astype(np.float64)
    nearest = (queries @ rows.T).max(1)
    assert len(queries) == 60
    assert nearest.max() < 0.9995  # none of them is a row
    assert nearest.mean() > np.sort(queries @ rows.T, axis=1)[:, ROWS // 2].mean() + 0.1


def test_one_cell_is_not_enough(built: Path, gallery: Path, tmp_path: Path) -> None:
    """The vectors are hard: at nprobe 1 recall is clearly below 1, and it comes with more cells."""
    descriptors = open_artifact(str(gallery), "descriptors")
    queries = vectors.held_out(descriptors).astype(np.float32)
    ids = gallery_file(descriptors, tmp_path / "all.npy")
    truth = exact_search(np.load(tmp_path / "all.npy"), queries, 7)[1]
    found = {}
    for nprobe in (1, 32):
        searcher = open_searcher(open_index(str(built)), nprobe=nprobe, refine=ROWS)
        found[nprobe] = recall(bench_index.found_rows(searcher, queries, ids), truth)
    assert found[1] < 0.9
    assert found[32] == 1.0


def test_descriptors_without_queries_are_refused(built: Path, tmp_path: Path) -> None:
    from tests.jobs.test_living import describe, vectors_of

    with pytest.raises(BadInputError, match="bench vectors"):
        vectors.held_out(open_artifact(describe(tmp_path / "d", ["a", "b"], vectors_of(2, 0)), "descriptors"))
    other = vectors.Config(rows=300, dim=DIM, queries=5, out=str(tmp_path / "other"))
    vectors.run(other)
    with pytest.raises(BadInputError, match="is not version 1 of an index that was built from"):
        bench_search.run(bench_search.Config(index=str(built), descriptors=other.out))


def test_memory_of_a_child_of_a_child_is_seen() -> None:
    held = "import time; held = bytearray(200 << 20); time.sleep(3); print('{\"a\": 1}')"
    outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {held!r}], check=True)"
    run = measured([sys.executable, "-c", outer], "a test")
    assert run.result == {"a": 1}
    assert run.peak_mib >= run.largest_mib > 190
    with pytest.raises(JobFailedError, match=r"a test failed: ValueError: wrong"):
        measured([sys.executable, "-c", "raise ValueError('wrong')"], "a test")


def test_stock_faiss_by_hand(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((2000, 16)).astype(np.float16)
    np.save(tmp_path / "rows.npy", rows)
    done = build(str(tmp_path / "rows.npy"), str(tmp_path / "x.faiss"), "IVF8,PQ4x4", "2000", "0", "1")
    assert done["build_s"] >= done["train_s"] > 0
    stock = Stock(faiss.read_index(str(tmp_path / "x.faiss")), np.load(tmp_path / "rows.npy", mmap_mode="r"))
    queries = rng.standard_normal((20, 16)).astype(np.float32)
    truth = exact_search(rows, queries, 7)[1]
    assert stock.search(queries, 7, 8, 2000).tolist() == truth.tolist()
    assert recall(stock.search(queries, 7, 8, 0).tolist(), truth) < 0.95
    assert recall(stock.search(queries, 7, 1, 2000).tolist(), truth) < 0.95


def test_a_dealt_rotation_becomes_opq() -> None:
    assert bench_index.stock_factory("Dealt256,IVF2048,PQ64", 1280) == "OPQ64_256,IVF2048,PQ64"
    assert bench_index.stock_factory("IVF8,PQ4x4", 16) == "IVF8,PQ4x4"
    assert bench_index.ratios({"seconds": 2.0, "build_s": 0}, {"seconds": 3.0, "build_s": 1}) == {"seconds": 1.5}


def test_recall() -> None:
    truth = np.array([[1, 2], [3, 4]])
    assert recall([[2, 9], [3, 4]], truth) == 0.75
    assert recall([[], [4]], truth) == 0.25


def test_every_query_is_counted_once() -> None:
    seen: list[int] = []

    def search(batch: np.ndarray[Any, Any]) -> None:
        seen.append(len(batch))

    rate = bench_search.per_second({"one": search}, np.zeros((10, 2)), 4, 1, 1e-9)
    assert seen == [4, 4]  # the first of them warms up
    assert rate["one"] > 0


def test_bench_search(built: Path, gallery: Path, tmp_path: Path) -> None:
    config = bench_search.Config(
        index=str(built),
        descriptors=str(gallery),
        out=str(tmp_path / "out"),
        nprobe=(1, 32),
        refine=(50, 3000),
        threads=(1,),
        rounds=1,
        seconds=0.01,
    )
    found = bench_search.run(config)
    by_point = {(row["nprobe"], row["refine"]): row for row in found["sweep"]}
    assert by_point[32, 3000]["manet_recall@7"] == by_point[32, 3000]["faiss_recall@7"] == 1.0
    assert by_point[1, 50]["manet_recall@7"] < 0.9
    assert all(abs(row["manet_recall@7"] - row["faiss_recall@7"]) < 0.03 for row in found["sweep"])
    row = found["rates"][0]
    assert row["ratio_faiss"] == pytest.approx(row["manet_qps"] / row["faiss_qps"], abs=1e-3)
    assert row["flat_qps"] > 0
    assert {"manet", "faiss"} == set(found["fresh_process"])
    assert all(cold["first_answer_s"] >= cold["open_s"] > 0 for cold in found["fresh_process"].values())
    assert json.loads((tmp_path / "out" / "search.json").read_text()) == found
    assert (tmp_path / "out" / "search.png").read_bytes().startswith(b"\x89PNG")


def test_a_plot_without_exact_search() -> None:
    row = {"nprobe": 1, "refine": 5, **{f"{n}_{f}": 0.5 for n in ("manet", "faiss") for f in ("recall@7", "qps")}}
    assert io.BytesIO(frontier_png([row], [{"threads": 1}])).read(4) == b"\x89PNG"


def test_planted_near_duplicates(gallery: Path, tmp_path: Path) -> None:
    config = vectors.Config(
        rows=ROWS, dim=DIM, queries=60, part_rows=512, duplicates=200, out=str(tmp_path / "doubled")
    )
    vectors.run(config)
    gallery_file(open_artifact(config.out, "descriptors"), tmp_path / "doubled.npy")
    gallery_file(open_artifact(str(gallery), "descriptors"), tmp_path / "plain.npy")
    doubled, plain = (np.load(tmp_path / f"{name}.npy").astype(np.float64) for name in ("doubled", "plain"))
    assert (doubled[:-200] == plain[:-200]).all()
    cosines = (doubled[-200:] * doubled[vectors.planted(config)]).sum(1)
    assert 0.975 < cosines.min() < 0.985  # changed by up to a fifth
    assert cosines.max() > 0.999
    with pytest.raises(BadInputError, match="at most half"):
        vectors.planted(config.model_copy(update={"duplicates": ROWS}))


@pytest.mark.slow
def test_bench_dedup(manet: Run, gallery: Path, tmp_path: Path) -> None:
    rows = ("--rows", 3000, "--dim", 64, "--latent", 64, "--spread", 3)
    manet("bench", "vectors", *rows, "--duplicates", 300, "--out", tmp_path / "rows")
    summary_of(manet("index", "--descriptors", tmp_path / "rows", "--out", tmp_path / "index"))
    found = summary_of(manet("bench", "dedup", "--index", tmp_path / "index", "--descriptors", tmp_path / "rows"))
    assert (found["planted"], found["recall"]) == (300, 1.0)
    assert found["precision"] > 0.99
    refused = manet("bench", "dedup", "--index", tmp_path / "index", "--descriptors", gallery)
    assert_refused(refused, 2, "no near-duplicate in it", "--duplicates")


def test_a_graph_of_usearch_finds_what_is_near(gallery: Path, tmp_path: Path) -> None:
    descriptors = open_artifact(str(gallery), "descriptors")
    gallery_file(descriptors, tmp_path / "rows.npy")
    queries = vectors.held_out(descriptors)
    np.save(tmp_path / "queries.npy", queries)
    assert usearch(str(tmp_path / "rows.npy"), str(tmp_path / "graph"), "1")["factory"].startswith("HNSW16")
    found = open_usearch(str(tmp_path / "graph"), str(tmp_path / "queries.npy"), "1")
    truth = exact_search(np.load(tmp_path / "rows.npy"), queries.astype(np.float32), 7)[1]
    assert recall(found["rows"], truth) > 0.9
    assert found["resident_bytes_per_vector"] > 2 * DIM  # the vectors are inside


@pytest.mark.slow
def test_bench_index(manet: Run, gallery: Path) -> None:
    found = summary_of(manet("bench", "index", "--descriptors", gallery, "--factory", FACTORY, "--shard-rows", 1024))
    own, stock = found["table"]
    assert (own["builder"], stock["builder"]) == ("manet index", "faiss by hand")
    assert all(row["peak_mib"] >= row["largest_process_mib"] > 10 for row in found["table"])
    assert abs(own["recall@7"] - stock["recall@7"]) < 0.1
    assert stock["raw_recall@7"] < stock["recall@7"]
    assert found["ratios"]["faiss by hand"]["seconds"] == pytest.approx(stock["seconds"] / own["seconds"], abs=1e-3)
