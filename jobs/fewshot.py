"""Build a labelled few-shot set from a catalogue's descriptions: catalog -> fewshot.

  manet fewshot --catalog s3://shop/catalog --out s3://shop/fewshot

TF-IDF over all descriptions gives rough categories with keywords; pictures whose descriptions match are taken, up to
--per-category of each, and split 8:2 by category. Writes `train-*.parquet`, `val-*.parquet` (catalog columns + `label`, in
shuffled order) and `categories.json`. Deterministic under --seed.
"""

import json
from functools import partial
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from pydantic import Field

from cluster.artifact import ArtifactWriter, Blob
from cluster.errors import BadInputError
from cluster.telemetry import say
from jobs.config import JobConfig
from jobs.inputs import Table, open_table
from jobs.make import make
from jobs.parquet import parquet_bytes
from manet.categories import Category, assign, find_categories, select, split
from manet.tables import FEWSHOT

SPLITS = ("train", "val")


class Config(JobConfig):
    """Flags of `manet fewshot`."""

    INPUTS: ClassVar[tuple[str, ...]] = ("catalog",)

    catalog: str
    """Catalog artifact, or a Parquet file with a column description."""
    categories: int = Field(default=44, ge=1)
    """Categories to look for; fewer come out where the descriptions do not bear so many."""
    per_category: int = Field(default=800, ge=2)
    """Most pictures of a category."""
    validation: float = Field(default=0.2, gt=0, lt=1)
    """Share of the pictures held out for validation."""
    seed: int = Field(default=0, ge=0)
    """Seed of the selection, the split and the order."""


def run(config: Config) -> dict[str, Any]:
    """Run the job; returns its summary."""
    table = open_table(config.catalog, "catalog", "--catalog")
    if table.packed and ".tar#" in table.pictures(0, 1)[0][1]:
        raise BadInputError(
            f"--catalog {config.catalog}: of tar shards, which can be described but not trained on: training reads pictures by "
            "their URIs; ingest them as files"
        )
    return make(config, "fewshot", {"catalog": table.source}, partial(_build, config, table))


def _build(config: Config, table: Table, writer: ArtifactWriter) -> tuple[list[str], dict[str, Any]]:
    catalog = table.read()
    if "description" not in catalog.column_names:
        raise BadInputError(f"--catalog {config.catalog}: no column 'description' to make categories of")
    texts = [text or "" for text in catalog["description"].to_pylist()]
    categories = find_categories(texts, config.categories)
    labels = assign(texts, categories)
    rows = select(labels, config.per_category, config.seed)
    groups = catalog["product_id"].to_pylist() if "product_id" in catalog.column_names else texts
    held = split(labels[rows], [groups[row] or texts[row] for row in rows], config.seed, config.validation)
    order = np.random.default_rng(config.seed).permutation(len(rows))
    blobs = {}
    for name, wanted in zip(SPLITS, (False, True), strict=True):
        chosen = rows[order][held[order] == wanted]
        part = _rows(catalog, chosen, labels)
        blobs[f"{name}-00000.parquet"] = Blob(data=parquet_bytes(part), rows=part.num_rows)
    counts = np.bincount(labels[rows], minlength=len(categories))
    blobs["categories.json"] = Blob(data=_json(config, categories, counts, labels))
    writer.units.put("fewshot", blobs)
    summary = {
        "categories": len(categories),
        "asked": config.categories,
        "train": int((~held).sum()),
        "val": int(held.sum()),
        "short": int((counts < config.per_category).sum()),
        "unmatched": int((labels < 0).sum()),
    }
    say(f"fewshot: {len(categories)} categories, {len(rows)} pictures; {summary['short']} categories are short of "
        f"{config.per_category}; {summary['unmatched']} descriptions match none")  # fmt: skip
    return ["fewshot"], summary


def _rows(catalog: pa.Table, chosen: np.ndarray, labels: np.ndarray) -> pa.Table:
    taken = catalog.take(pa.array(chosen))
    columns = {
        field.name: taken[field.name].cast(field.type)
        if field.name in taken.column_names
        else pa.nulls(len(chosen), field.type)
        for field in FEWSHOT
        if field.name != "label"
    }
    return pa.table({**columns, "label": pa.array(labels[chosen], pa.int32())}, schema=FEWSHOT)


def _json(config: Config, categories: list[Category], counts: np.ndarray, labels: np.ndarray) -> bytes:
    matched = np.bincount(labels[labels >= 0], minlength=len(categories))
    rows = [
        {
            "label": label,
            "name": category.name,
            "keywords": [{"word": word, "score": score} for word, score in category.keywords],
            "matched": int(matched[label]),
            "pictures": int(counts[label]),
        }
        for label, category in enumerate(categories)
    ]
    return json.dumps({"asked": config.categories, "categories": rows}, indent=1, ensure_ascii=False).encode()
