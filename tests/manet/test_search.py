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
from manet.index import build_shard, choose_factory, quantization_error, train, training_rows
from manet.rotation import deal, principal_rotation, rotate
from manet.search import Searcher, _How, widened
from manet.shards import ShardFiles

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
        (9_999, 1280, "Flat"),
        (10_000, 1280, "Dealt160,IVF256,PQ80x4fs"),
        (500_000, 2048, "Dealt160,IVF2048,PQ80x4fs"),
        (500_000, 128, "Dealt128,IVF2048,PQ64x4fs"),
        (500_000, 3, "Flat"),
    ],
)
def test_choice_of_factory(rows: int, dim: int, factory: str) -> None:
    chosen, why = choose_factory(rows, dim)
    assert chosen == factory
    assert why
    assert 0 < training_rows(chosen, rows) <= rows


@pytest.mark.parametrize(
    "factory", ["Flat", "OPQ8_32,IVF32,PQ8x6", "IVF16,SQ8", "Dealt32,IVF32,PQ8x6", "Dealt32,IVF32,PQ16x4fs"]
)
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


@pytest.mark.parametrize("factory", ["Dealt16,IVF32,PQ4x6", "Dealt16,IVF32,PQ8x4fs", "Flat"])
def test_answers_do_not_depend_on_the_cut_or_the_order(factory: str, vectors: Matrix, tmp_path: Path) -> None:
    """Few candidates, so that their choice matters; every vector stands there twice, so that ties do."""
    trained = train(vectors, factory)
    doubled = np.repeat(vectors, 2, 0)
    queries = vectors[3::40].astype(np.float32)
    wanted = None
    for count, order in ((1, slice(None)), (4, slice(None)), (7, slice(None, None, -1))):
        folder = tmp_path / f"{count}"
        folder.mkdir()
        shards = _shards(folder, trained, doubled, count)[order]
        found = Searcher(shards, nprobe=4, refine=11, threads=2).search(queries, 7)
        assert wanted is None or found == wanted
        wanted = found
        alone = [Searcher(shards, nprobe=4, refine=11).search(query[None], 7)[0] for query in queries[:5]]
        assert alone == found[:5]


def test_filters_and_deleted_rows(vectors: Matrix, tmp_path: Path) -> None:
    trained = train(vectors, "Dealt32,IVF16,PQ8x6")
    shards = _shards(tmp_path, trained, vectors, 3)
    rows = [int(files.ids.stem) * 1334 for files in shards]
    first_rows = [0, 1334, 2667]
    for files in shards:
        table = pq.read_table(files.ids)
        odd = [f"kind {int(name[1:]) % 3}" for name in table["image_id"].to_pylist()]
        pq.write_table(table.append_column("category", pa.array(odd)), files.ids)
    queries = vectors[::333].astype(np.float32)
    dead = np.arange(0, 4000, 333)  # the queries themselves
    shards = [
        ShardFiles(index=f.index, ids=f.ids, refine=f.refine, dead=dead[(dead >= low) & (dead < high)] - low)
        for f, low, high in zip(shards, first_rows, [*first_rows[1:], 4000], strict=True)
    ]
    assert rows == [0, 1334, 2668]
    searcher = Searcher(shards, nprobe=16, refine=200)
    assert len(searcher) == 4000 - len(dead)
    live = np.setdiff1d(np.arange(4000), dead)
    for allowed, kept in (
        (None, live),
        (searcher.allow(categories=["kind 1"]), live[live % 3 == 1]),
        (searcher.allow(ids=["p00009", "p00003", "p00000", "none"]), np.array([3, 9])),
        (searcher.allow(ids=[]), np.array([], int)),
    ):
        _, exact = exact_search(vectors[kept], queries, 7)
        found = searcher.search(queries, 7, allowed)
        assert [[hit.image_id for hit in hits] for hits in found] == [[f"p{kept[i]:05d}" for i in row] for row in exact]
    with pytest.raises(InputError, match="has no group"):
        searcher._shards[0].matching("group", pa.array(["x"]))


@pytest.mark.parametrize("factory", ["IVF16,PQ8x6", "IVF16,PQ16x4fs"])
def test_filters_that_leave_many_rows_go_through_the_cells(factory: str, vectors: Matrix, tmp_path: Path) -> None:
    shards = _shards(tmp_path, train(vectors, factory), vectors, 2)
    searcher = Searcher(shards, nprobe=16, refine=300, exact_below=0)
    kept = np.arange(0, 4000, 2)
    allowed = searcher.allow(ids=[f"p{row:05d}" for row in kept])
    _, exact = exact_search(vectors[kept], vectors[1::400], 7)
    found = searcher.search(vectors[1::400].astype(np.float32), 7, allowed)
    assert [[hit.image_id for hit in hits] for hits in found] == [[f"p{kept[i]:05d}" for i in row] for row in exact]


@pytest.mark.parametrize("factory", ["IVF64,PQ8x6", "Dealt32,IVF64,PQ16x4fs"])
def test_a_filter_whose_rows_lie_far_away_is_answered(factory: str, vectors: Matrix, tmp_path: Path) -> None:
    """Rows on one side of the gallery, queries on the other: the cells near them hold none that may answer."""
    shards = _shards(tmp_path, train(vectors, factory), vectors, 2)
    searcher = Searcher(shards, nprobe=1, refine=100, exact_below=0)
    axis = np.linalg.svd(vectors.astype(np.float64), full_matrices=False)[2][0]
    order = np.argsort(vectors @ axis)
    kept, queries = np.sort(order[:1500]), vectors[order[-5:]].astype(np.float32)
    allowed = searcher.allow(ids=[f"p{row:05d}" for row in kept])
    found = searcher.search(queries, 7, allowed)
    assert [len(hits) for hits in found] == [7] * 5
    assert {hit.image_id for hits in found for hit in hits} <= {f"p{row:05d}" for row in kept}
    how = _How(k=7, folded=False, rerank=True)  # a query without a candidate beside one with some
    ranked = searcher._rescored(queries[:2], [[], [(1, np.arange(3), None)]], how)
    assert [len(hits) for hits in searcher._named(ranked, how)] == [0, 3]
    few = searcher.allow(ids=[f"p{row:05d}" for row in kept[:3]])
    assert [len(hits) for hits in searcher.search(queries, 7, few)] == [3] * 5
    assert searcher.search(queries, 7, searcher.allow(ids=[])) == [[]] * 5


def test_a_querys_own_picture_costs_no_answer_and_no_candidate(
    vectors: Matrix, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = _shards(tmp_path, train(vectors, "IVF16,PQ8x6"), vectors, 2)
    searcher, counts = Searcher(shards, nprobe=16, refine=50), list[int]()
    rescored = searcher._rescored

    def counted(queries: Matrix, chosen: Any, how: Any) -> Any:  # noqa: ANN401
        counts.extend(len(np.concatenate([piece[1] for piece in pieces])) for pieces in chosen)
        return rescored(queries, chosen, how)

    monkeypatch.setattr(searcher, "_rescored", counted)
    queries, own = vectors[:3].astype(np.float32), ["p00000", "p00001", "nowhere"]
    found = searcher.search(queries, 7, own=own)
    assert [len(hits) for hits in found] == [7] * 3
    assert all(hit.image_id != name for hits, name in zip(found, own, strict=True) for hit in hits)
    assert set(counts) == {51}
    counts.clear()
    searcher.search(queries, 7)
    assert set(counts) == {50}


def test_groups_are_answered_once(vectors: Matrix, tmp_path: Path) -> None:
    shards = _shards(tmp_path, train(vectors, "Flat"), vectors, 2)
    for files in shards:
        table = pq.read_table(files.ids)
        group = [f"g{int(name[1:]) // 4}" if int(name[1:]) < 2000 else None for name in table["image_id"].to_pylist()]
        pq.write_table(table.append_column("group", pa.array(group, pa.string())), files.ids)
    queries = vectors[[0, 3000]].astype(np.float32)
    one, other = Searcher(shards).search(queries, 7)
    assert len({int(hit.image_id[1:]) // 4 for hit in one}) == 7
    ((best, *_),) = Searcher(shards).search(queries[:1], 7, own=["p00000"])
    assert best.image_id in {"p00001", "p00002", "p00003"}  # one of its group answers in its place
    assert [hit.image_id for hit in other] == [f"p{row:05d}" for row in exact_search(vectors, queries[1:], 7)[1][0]]


@pytest.mark.parametrize("factory", ["Flat", "Dealt32,IVF32,PQ16x4fs"])
@pytest.mark.parametrize("filtered", [False, True])
@pytest.mark.parametrize("nprobe", [1, 32])
def test_a_group_larger_than_the_candidates_leaves_room_for_others(
    factory: str, filtered: bool, nprobe: int, vectors: Matrix, tmp_path: Path
) -> None:
    """A placeholder that hundreds of listings share is one answer, and six others stand beside it."""
    query = vectors[:1].astype(np.float32)
    order = exact_search(vectors, query, len(vectors))[1][0]
    alike = {f"p{row:05d}" for row in order[:900]}
    shards = _shards(tmp_path, train(vectors, factory), vectors, 2)
    for files in shards:
        table = pq.read_table(files.ids)
        group = ["none" if name in alike else None for name in table["image_id"].to_pylist()]
        pq.write_table(table.append_column("group", pa.array(group, pa.string())), files.ids)
    searcher = Searcher(shards, nprobe=nprobe, exact_below=0)
    allowed = searcher.allow(without=["p03999"]) if filtered else None
    queries = np.concatenate([query, vectors[order[-1:]].astype(np.float32)])
    (best, *others), far = searcher.search(queries, 7, allowed)
    assert best.image_id in alike
    assert len(others) == 6
    assert not {hit.image_id for hit in others} & alike
    assert len(far) == 7
    if factory == "Flat":
        assert [hit.image_id for hit in others] == [f"p{row:05d}" for row in order[900:906]]
    ((first, *rest),) = searcher.search(query, 7, own=["p00000"])
    assert first.image_id in alike - {"p00000"}
    assert len(rest) == 6
    assert len(searcher.search(query, 4000)[0]) == 3101  # no more groups than there are
    deep = Searcher(shards, nprobe=nprobe, refine=800, exact_below=0)
    assert len(deep.search(query, 200, allowed)[0]) == 200


def test_a_querys_own_picture_does_not_expand_it(vectors: Matrix, tmp_path: Path) -> None:
    """As if it were not in the gallery."""
    queries = vectors[[5, 70]].astype(np.float32)
    own = ["p00005", "p00070"]
    whole = Searcher(_shards(tmp_path, train(vectors, "Flat"), vectors, 2), expand=3)
    found = whole.search(queries, 7, own=own)
    without = whole.search(queries, 7, whole.allow(without=own))
    assert found == without
    assert whole.search(queries, 7) != found


def test_pictures_are_drawn_evenly_and_none_that_is_deleted(vectors: Matrix, tmp_path: Path) -> None:
    shards = _shards(tmp_path, train(vectors, "Flat"), vectors, 3)
    dead = [ShardFiles(index=each.index, ids=each.ids, refine=each.refine, dead=np.arange(1300)) for each in shards]
    searcher = Searcher(dead)
    assert len(searcher) == 100
    live = {f"p{row:05d}" for rows in np.array_split(np.arange(4000), 3) for row in rows[1300:]}
    assert {hit.image_id for hit in searcher.sample(200)} == live
    few = searcher.sample(7, seed=1)
    assert len({hit.image_id for hit in few} & live) == 7
    assert few == searcher.sample(7, seed=1) != searcher.sample(7, seed=2)
    whole, counts = Searcher(shards), np.zeros(4000, int)
    for seed in range(400):
        counts[[int(hit.image_id[1:]) for hit in whole.sample(40, seed)]] += 1
    thirds = [counts[rows].sum() for rows in np.array_split(np.arange(4000), 3)]
    assert sum(thirds) == 16_000
    assert max(thirds) - min(thirds) < 600  # some 60 by chance


def test_shards_of_two_quantizers_are_refused(vectors: Matrix, tmp_path: Path) -> None:
    shards = []
    for name, factory in (("a", "IVF16,PQ8x6"), ("b", "IVF8,PQ8x6")):
        (tmp_path / name).mkdir()
        shards += _shards(tmp_path / name, train(vectors, factory), vectors, 1)
    with pytest.raises(InputError, match="not built with the same quantizer"):
        Searcher(shards)


def test_widening_is_exact() -> None:
    half = np.arange(65536, dtype=np.uint16).view(np.float16)
    half = half[np.isfinite(half)]
    np.testing.assert_array_equal(widened(half), half.astype(np.float32))


def test_the_rotation_deals_every_axis_once_and_evenly() -> None:
    variance = np.sort(np.random.default_rng(0).exponential(size=32))[::-1]
    dealt = deal(variance, 8)
    assert sorted(axis for group in dealt for axis in group) == list(range(32))
    assert {len(group) for group in dealt} == {4}
    products = [np.log(variance[group]).sum() for group in dealt]
    in_order = [np.log(variance[i : i + 4]).sum() for i in range(0, 32, 4)]
    assert np.ptp(products) < np.ptp(in_order) / 4


def test_the_rotation_keeps_what_lies_in_few_dimensions(vectors: Matrix) -> None:
    basis = np.linalg.qr(np.random.default_rng(1).standard_normal((64, DIM)))[0]
    flat = vectors.astype(np.float32) @ basis.T.astype(np.float32)  # 32 dimensions inside 64
    turned = rotate(principal_rotation(flat, 32, 8), flat)
    np.testing.assert_allclose(turned[:9] @ turned[:9].T, flat[:9] @ flat[:9].T, atol=1e-4)


@pytest.mark.parametrize("factory", ["Dealt32,IVF64,PQ16x6", "Dealt32,IVF64,PQ16x4fs"])
def test_quantization_error_tells_other_vectors(factory: str, vectors: Matrix) -> None:
    index = faiss.deserialize_index(np.frombuffer(train(vectors[:3000], factory), np.uint8))
    own = quantization_error(index, vectors[1::7])
    other = np.random.default_rng(2).standard_normal((500, DIM))
    other /= np.linalg.norm(other, axis=1, keepdims=True)
    assert 0 < own < 0.8 * quantization_error(index, other)
    assert quantization_error(faiss.IndexFlatIP(DIM), vectors) == 0
