"""Index and search against exact search."""

from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from manet.errors import InputError
from manet.exact import exact_search
from manet.index import build_shard, choose_factory, train, training_rows
from manet.search import Searcher, ShardFiles

DIM = 32
Matrix = np.ndarray[Any, np.dtype[Any]]


@pytest.fixture(scope="module")
def vectors() -> Matrix:
    """4,000 unit vectors around 200 centres."""
    rng = np.random.default_rng(0)
    found = np.repeat(rng.standard_normal((200, DIM)), 20, 0) + 0.25 * rng.standard_normal((4000, DIM))
    return np.asarray(found / np.linalg.norm(found, axis=1, keepdims=True), np.float16)


def _shards(folder: Path, trained: bytes, vectors: Matrix, count: int) -> list[ShardFiles]:
    shards = []
    for number, rows in enumerate(np.array_split(np.arange(len(vectors)), count)):
        files = ShardFiles(
            index=folder / f"{number}.faiss", ids=folder / f"{number}.parquet", refine=folder / f"{number}.npy"
        )
        faiss.write_index(build_shard(trained, [vectors[rows][:100], vectors[rows][100:]]), str(files.index))
        pq.write_table(pa.table({"image_id": [f"p{row:05d}" for row in rows]}), files.ids)
        np.save(files.refine, vectors[rows])
        shards.append(files)
    return shards


def test_exact_search_against_a_full_sort(vectors: Matrix) -> None:
    queries = vectors[::500]
    scores, rows = exact_search(vectors, queries, 7, block=333)
    full = queries.astype(np.float64) @ vectors.astype(np.float64).T
    np.testing.assert_allclose(scores, -np.sort(-full, 1)[:, :7], atol=1e-6)
    np.testing.assert_array_equal(rows[:, 0], np.arange(0, 4000, 500))
    assert exact_search(vectors[:3], queries, 7)[1].shape == (8, 3)


def test_equal_scores_come_in_order_of_row() -> None:
    same = np.ones((6, 4), np.float16)
    assert exact_search(same, same[:1], 4, block=2)[1].tolist() == [[0, 1, 2, 3]]


@pytest.mark.parametrize(
    ("rows", "dim", "factory"),
    [
        (100, 1280, "Flat"),
        (39 * 64 - 1, 1280, "Flat"),
        (39 * 64, 1280, "OPQ64_256,IVF64,PQ64x6"),
        (39 * 256, 1280, "OPQ64_256,IVF256,PQ64"),
        (500_000, 2048, "OPQ64_256,IVF2048,PQ64"),
        (500_000, 2, "Flat"),
    ],
)
def test_choice_of_factory(rows: int, dim: int, factory: str) -> None:
    chosen, why = choose_factory(rows, dim)
    assert chosen == factory
    assert why
    assert 0 < training_rows(chosen, rows) <= rows


@pytest.mark.parametrize("factory", ["Flat", "OPQ8_32,IVF32,PQ8x6", "IVF16,SQ8"])
def test_any_number_of_shards_answers_as_one(factory: str, vectors: Matrix, tmp_path: Path) -> None:
    """With candidates enough, refined answers are the exact ones, however the gallery is cut."""
    trained = train(vectors.astype(np.float32), factory)
    queries = vectors[5::400].astype(np.float32)
    scores, rows = exact_search(vectors, queries, 7)
    for count in (1, 3):
        folder = tmp_path / str(count)
        folder.mkdir()
        hits = Searcher(_shards(folder, trained, vectors, count), nprobe=32, refine=200).search(queries, 7)
        for query, answers in enumerate(hits):
            assert [hit.image_id for hit in answers] == [f"p{row:05d}" for row in rows[query]]
            np.testing.assert_allclose([hit.score for hit in answers], scores[query], atol=1e-5)


def test_the_same_sample_trains_the_same_bytes(vectors: Matrix) -> None:
    sample = vectors.astype(np.float32)
    one = train(sample, "OPQ8_32,IVF16,PQ8x6", seed=3)
    assert one == train(sample, "OPQ8_32,IVF16,PQ8x6", seed=3)
    assert one != train(sample, "OPQ8_32,IVF16,PQ8x6", seed=4)


def test_shards_are_stock_faiss(vectors: Matrix, tmp_path: Path) -> None:
    _shards(tmp_path, train(vectors.astype(np.float32), "IVF16,PQ8x6"), vectors, 1)
    index = faiss.read_index(str(tmp_path / "0.faiss"))
    assert (index.ntotal, index.d, index.metric_type) == (4000, DIM, faiss.METRIC_INNER_PRODUCT)


def test_mistakes_are_named(vectors: Matrix, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--factory NONSENSE: faiss"):
        train(vectors.astype(np.float32), "NONSENSE")
    with pytest.raises(InputError, match="without shards"):
        Searcher([])
    shards = _shards(tmp_path, train(vectors.astype(np.float32), "Flat"), vectors, 1)
    with pytest.raises(InputError, match="8 dimensions for an index of 32"):
        Searcher(shards).search(np.ones((1, 8), np.float32), 7)
    np.save(shards[0].refine, vectors[:10])
    with pytest.raises(InputError, match="do not belong together: faiss 4000, ids 4000, refine 10"):
        Searcher(shards)


def test_fewer_rows_than_answers(vectors: Matrix, tmp_path: Path) -> None:
    shards = _shards(tmp_path, train(vectors.astype(np.float32), "Flat"), vectors[:3], 1)
    assert len(Searcher(shards).search(vectors[:2].astype(np.float32), 7)[0]) == 3
    assert Searcher(shards).search(np.empty((0, DIM), np.float32), 7) == []
