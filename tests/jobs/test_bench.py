"""`manet bench` extract, fewshot, pooling and serve: ratios that are ratios, shares that add up."""

import json
import statistics
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.errors import BadInputError
from jobs.bench import extract
from tests.conftest import Run
from tests.jobs.helpers import assert_refused, summary_of


@pytest.mark.slow
def test_the_ratio_of_the_job_to_the_bare_model(manet: Run, model: Path, shop: Path) -> None:
    done = manet("bench", "extract", "--catalog", shop / "catalog", "--model", model, "--part-rows", 16, timeout=280)
    summary = summary_of(done)
    assert summary["ratio_bare_model"] == pytest.approx(
        summary["job_pictures_per_s"] / summary["bare_model_pictures_per_s"], abs=0.01
    )
    assert 0.05 < summary["ratio_bare_model"] < 2
    assert min(summary[f"{name}_pictures_per_s"] for name in ("dataloader_loop", "decode_alone", "reads_alone")) > 0


def test_workers_are_as_many_as_gpus(model: Path, shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node with 2 CPUs and 1 GPU: what is measured is one actor, as the job has it."""
    import ray

    monkeypatch.setattr(ray, "init", partial(ray.init, num_gpus=1))
    config = extract.Config(
        catalog=str(shop / "catalog"), model=str(model), pictures=23, part_rows=4, model_gpus=1, model_cpus=2,
        device="cpu", ray_cpus=2, object_store_mib=128,
    )  # fmt: skip
    with pytest.raises(BadInputError, match="--pictures 23 are too few for 1 workers"):
        extract.run(config)


def test_categories_beside_what_the_products_are(manet: Run, shop: Path, tmp_path: Path) -> None:
    found = summary_of(manet("bench", "fewshot", "--titles", 2000, timeout=120))
    assert found["descriptions"] == 2000
    assert found["categories"] == 44
    assert 0.8 < found["purity"] <= 1
    assert found["purity"] * found["matched"] * 2000 == pytest.approx(
        sum(row["of_it"] for row in found["table"]), abs=1
    )
    assert found["seconds"] > 0
    assert summary_of(manet("bench", "fewshot", "--catalog", shop / "catalog"))["kinds"] == 48
    bare = pa.table({"image_id": ["a"], "uri": ["a.jpg"], "description": ["red lipstick"]})
    pq.write_table(bare, tmp_path / "bare.parquet")
    assert_refused(manet("bench", "fewshot", "--catalog", tmp_path / "bare.parquet"), 2, "no column 'category'")


def test_pooling_beside_its_network_and_a_loop(manet: Run, model: Path) -> None:
    found = summary_of(manet("bench", "pooling", "--model", model, "--size", 96, "--rounds", 3, timeout=120))
    assert found["regions"] == 14
    assert found["difference"] < 1e-6
    assert 0 < found["sr_mac_of_backbone"] < 1


@pytest.mark.slow
def test_the_service_beside_its_model(manet: Run, served_index: Path, shop: Path, tmp_path: Path) -> None:
    flags = ("--seconds", 2, "--rounds", 2, "--levels", 0.5, "--levels", 3, "--embedders", 1, "--out", tmp_path)
    queries = shop / "queries"
    found = summary_of(manet("bench", "serve", "--index", served_index, "--queries", queries, *flags, timeout=280))
    assert json.loads((tmp_path / "serve.json").read_text()) == found
    assert len(found["bare_model"]) == 1 + 2 * 2
    assert [len(rows) for rows in found["rounds"]] == [2, 2]
    for place, level in enumerate(found["levels"]):
        rounds = [rows[place] for rows in found["rounds"]]
        assert level["failed"] == 0
        assert level["refused"] == sum(row["refused"] for row in rounds)
        assert level["of_bare"] == pytest.approx(statistics.mean(row["of_bare"] for row in rounds), abs=0.001)
        assert level["of_bare_low"] <= level["of_bare"] <= level["of_bare_high"]
    assert found["peak_of_bare"] == max(level["of_bare"] for level in found["levels"])
    assert found["levels"][1]["refused"] > 0, "three times the bare rate overloads it"
