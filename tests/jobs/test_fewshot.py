"""`manet fewshot`, and the units of the jobs that write one by one, called in this process."""

import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.artifact import Artifact, ArtifactWriter, Receipt, Units, open_artifact
from jobs import masks, render
from jobs.fewshot import Config, run
from manet.tables import CATALOG
from tests.manet.test_images import JPEG

KINDS = ("lip gloss shiny red", "hair brush wooden round", "nail file metal small")
LONG = 200_000  # characters of one description
ROWS = 300


@pytest.fixture
def fewshot(tmp_path: Path) -> Artifact:
    """A small set; its first row has a very long description."""
    rows = [
        {"image_id": f"i{row}", "uri": "a.jpg", "description": f"{KINDS[row % 3]} {row}", "product_id": f"p{row}"}
        for row in range(ROWS)
    ]
    rows[0]["description"] += " red" * (LONG // 4)
    pq.write_table(pa.Table.from_pylist(rows, CATALOG), tmp_path / "c.parquet")
    (tmp_path / "a.jpg").write_bytes(JPEG)
    tracemalloc.start()
    try:
        run(Config(catalog=str(tmp_path / "c.parquet"), out=str(tmp_path / "fewshot"), categories=3))
        assert tracemalloc.get_traced_memory()[1] < ROWS * LONG  # not every description as long as the longest
    finally:
        tracemalloc.stop()
    return open_artifact(str(tmp_path / "fewshot"), "fewshot")


def _claim_of(store_folder: Path, unit: str) -> str:
    return Receipt.model_validate_json((store_folder / "receipts" / f"{unit}.json").read_bytes()).claim


def test_one_long_description_is_long_once_and_receipts_carry_the_claim(fewshot: Artifact, tmp_path: Path) -> None:
    assert sum(part.rows for part in fewshot.manifest.parts) == ROWS
    assert _claim_of(tmp_path / "fewshot", "fewshot")
    writer = ArtifactWriter.open(str(tmp_path / "masks"), "masks", config={}, claimed=(), inputs={})
    part = fewshot.parts("val-")[0].name
    masks._mask_unit(Units(writer.store, "of this run"), fewshot, "saliency", "classical", ("u", "val", part, 0))
    assert _claim_of(tmp_path / "masks", "u") == "of this run"


def test_receipts_of_render_carry_the_claim(tmp_path: Path) -> None:
    config = render.Config(products=1, size=32, out=str(tmp_path))
    writer = ArtifactWriter.open(str(tmp_path), "catalog", config={}, claimed=(), inputs={})
    render._render_unit(Units(writer.store, "of this run"), config, "catalog", ("00000", 0, 1))
    assert _claim_of(tmp_path, "00000") == "of this run"
