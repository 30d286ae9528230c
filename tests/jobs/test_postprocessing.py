"""Whitening, database augmentation and query expansion, against slow references in float64."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.artifact import open_artifact
from cluster.errors import BadInputError
from cluster.session import SessionConfig, ray_session
from jobs import compare, dedup, index, living
from jobs.bench import search as bench_search
from jobs.bench.search import Engines
from jobs.querying import open_index, open_searcher
from manet import whitening
from manet.errors import InputError
from manet.whitening import learn_whitening, whiten
from tests.jobs.test_living import DIM, Matrix, describe, vectors_of

ROWS, WIDE, NEAR, BEST = 300, 12, 3, 4
POWER = 0.5  # what --whiten-power is unless it is given


@pytest.fixture(scope="module", autouse=True)
def session() -> Iterator[None]:
    with ray_session(SessionConfig(ray_cpus=2, object_store_mib=128)):
        yield


def unit(rows: Matrix) -> Matrix:
    found: Matrix = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return found


def whitened(gallery: Matrix, vectors: Matrix, dim: int, power: float = POWER) -> Matrix:
    """By singular values, float64 (signs of axes are free: they do not change inner products)."""
    mean = gallery.mean(0)
    _, values, axes = np.linalg.svd(gallery - mean, full_matrices=False)
    return unit((vectors - mean) @ axes[:dim].T / (values[:dim] / len(gallery) ** 0.5) ** power)


def as_stored(vectors: Matrix) -> Matrix:
    """Rounded to float16: which neighbours are nearest may hang on it."""
    return vectors.astype(np.float16).astype(np.float64)


def expanded(vectors: Matrix, gallery: Matrix, count: int, *, itself: bool) -> Matrix:
    """One vector after the other."""
    found = []
    for vector in vectors:
        scores = gallery @ vector
        total = vector * itself
        for row in np.argsort(-scores)[:count]:
            total = total + max(scores[row], 0) ** 3 * gallery[row]
        found.append(total)
    return unit(np.array(found))


def built(tmp_path: Path, gallery: Matrix, **fields: int) -> str:
    descriptors = describe(tmp_path / "gallery", [f"a{row:04d}" for row in range(len(gallery))], gallery)
    out = str(tmp_path / "index")
    flags: dict[str, Any] = {"descriptors": descriptors, "out": out, "factory": "Flat", "shard_rows": 100, **fields}
    index.run(index.Config(**flags))
    return out


@pytest.fixture
def gallery() -> Matrix:
    return vectors_of(ROWS, 0, spread=0.5)


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_whitening_is_that_of_the_singular_values(gallery: Matrix, power: float) -> None:
    wide = gallery.astype(np.float64)
    found = whiten(learn_whitening(gallery, WIDE, power), gallery).astype(np.float64)
    wanted = whitened(wide, wide, WIDE, power)
    np.testing.assert_allclose(found @ found.T, wanted @ wanted.T, atol=2e-3)
    matrix = learn_whitening(gallery, WIDE, power)
    np.testing.assert_array_equal(whiten(matrix, gallery[7:8])[0], whiten(matrix, gallery)[7])


def test_a_comparison_whitens_block_by_block_on_spread_rows(gallery: Matrix, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whitening, "_BLOCK", 7)
    monkeypatch.setattr(compare, "SAMPLE", ROWS // 3)
    ids, queries = [f"a{row}" for row in range(ROWS)], vectors_of(9, 7, spread=0.5)
    (kept, white), (_, asked) = compare._whitened((ids, gallery), (ids[:9], queries), WIDE, POWER)
    wanted = whitened(gallery[::3].astype(np.float64), gallery.astype(np.float64), WIDE)
    wanted_queries = whitened(gallery[::3].astype(np.float64), queries.astype(np.float64), WIDE)
    assert kept == ids
    np.testing.assert_allclose(asked @ white.astype(np.float32).T, wanted_queries @ wanted.T, atol=3e-3)


def test_what_is_not_whitened_is_what_it_was_before_the_flags() -> None:
    """Folders that were made before `--whiten-power` are taken up again."""
    plain = index.Config(descriptors="d", out="o")
    assert "whiten_power" not in plain.claimed()
    assert {"whiten", "whiten_power"} <= set(plain.model_copy(update={"whiten": 4}).claimed())
    table = compare.Config(catalog="c", queries="q", model="m", out="o")
    assert not {"whiten", "whiten_power"} & set(table.claimed())
    assert {"whiten", "whiten_power"} <= set(table.model_copy(update={"whiten": 4}).claimed())


def test_whitening_refuses_what_it_cannot_do(gallery: Matrix, tmp_path: Path) -> None:
    with pytest.raises(
        BadInputError, match=f"--whiten 17: {ROWS} descriptors of {DIM} dimensions can keep {DIM} at most"
    ):
        built(tmp_path, gallery, whiten=17)
    flat = gallery.copy()
    flat[:, 3:] = 0
    with pytest.raises(InputError, match="vary in 3 directions"):
        learn_whitening(flat, 4, POWER)
    with pytest.raises(InputError, match="8 dimensions for a whitening of 16"):
        whiten(learn_whitening(gallery, 4, POWER), gallery[:, :8])


def test_an_index_of_all_three(gallery: Matrix, tmp_path: Path) -> None:
    """Whitened, each row averaged with its neighbours, queries expanded: the reference's ids and scores; rows added too."""
    out = built(tmp_path, gallery, whiten=WIDE, augment=NEAR, expand=BEST)
    wide, queries = gallery.astype(np.float64), vectors_of(40, 7, spread=0.5)
    white = as_stored(whitened(wide, wide, WIDE))
    stored = as_stored(expanded(white, white, NEAR + 1, itself=False))  # its own row is the first of them
    asked = whitened(wide, queries.astype(np.float64), WIDE)
    for expand, final in ((-1, expanded(asked, stored, BEST, itself=True)), (0, asked)):
        scores = final @ stored.T
        found = open_searcher(open_index(out), expand=expand).search(queries, 7)
        for row, hits in enumerate(found):
            np.testing.assert_allclose([hit.score for hit in hits], np.sort(scores[row])[::-1][:7], atol=4e-3)
            by_id = [scores[row, int(hit.image_id[1:])] for hit in hits]
            np.testing.assert_allclose([hit.score for hit in hits], by_id, atol=4e-3)
    summary = open_index(out).manifest.summary
    assert (summary["whiten"], summary["augment"], summary["expand"], summary["dim"]) == (WIDE, NEAR, BEST, WIDE)
    assert summary["whiten_power"] == POWER
    assert not list(Path(out).glob("*plain*"))
    plain = open_artifact(str(tmp_path / "gallery"), "descriptors")
    with pytest.raises(BadInputError, match="was built with --whiten, --augment, --expand"):
        Engines(bench_search.Config(index=out, descriptors=plain.uri), open_index(out), plain, tmp_path)
    new = vectors_of(30, 8, spread=0.5)  # none has two neighbours of almost one score at the border
    added = describe(tmp_path / "new", [f"b{row:04d}" for row in range(30)], new)
    living.add(living.AddConfig(index=out, descriptors=added))
    late = expanded(as_stored(whitened(wide, new.astype(np.float64), WIDE)), stored, NEAR, itself=True)
    searcher = open_searcher(open_index(out), expand=0)
    items = [searcher.item(f"b{row:04d}") for row in range(30)]
    kept = np.array([item[1] for item in items if item is not None], np.float64)
    np.testing.assert_allclose(kept @ kept.T, late @ late.T, atol=4e-3)  # axes have free signs
    for row, item in enumerate(items):
        assert item is not None
        hits = searcher.search(item[1][None], 2, stored=True)[0]
        assert hits[0].image_id == f"b{row:04d}" or hits[0].score > 0.999


def test_a_quantized_index_is_tuned_on_what_it_stores(gallery: Matrix, tmp_path: Path) -> None:
    many = vectors_of(1500, 3, spread=0.5)
    descriptors = describe(tmp_path / "many", [f"a{row:04d}" for row in range(1500)], many)
    np.save(tmp_path / "queries.npy", vectors_of(50, 8, spread=0.5))
    out = str(tmp_path / "index")
    flags: dict[str, Any] = {"descriptors": descriptors, "out": out, "factory": "IVF8,PQ6x4fs", "whiten": WIDE}
    flags["whiten_power"] = 1.0
    done = index.run(index.Config(queries=str(tmp_path / "queries.npy"), recall_target=0.9, expand=2, **flags))
    assert done["recall@7"] >= 0.9
    matrix = np.load(Path(out) / "whitening.npy")
    projected = (many - matrix[-1]) @ matrix[:-1].T
    np.testing.assert_allclose(projected.std(0), 1, atol=0.02)  # the power 1: all vary alike
    groups = dedup.run(dedup.Config(index=out, nprobe=8, out=str(tmp_path / "groups")))
    assert groups["pictures"] < 1500
