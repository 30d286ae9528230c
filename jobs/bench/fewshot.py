"""`bench fewshot`: the categories that are found in titles, held against what the products are: purity, seconds, memory.

  manet bench fewshot --titles 500000
  manet bench fewshot --catalog shop/catalog

Runs `manet fewshot` in a process of its own on rendered titles, or on a catalog that says of each picture in its column
`category` what it is (which `fewshot` does not look at). Purity: the share of the matched descriptions that are of the kind
most common in their category. Kinds found: those that are the most common one of some category.
"""

import json
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field

from cluster.artifact import open_artifact
from cluster.errors import BadInputError
from jobs.bench.probing import measured_job
from jobs.bench.truth import say_table
from jobs.inputs import open_table
from manet.rendered import Catalogue
from manet.tables import CATALOG

if TYPE_CHECKING:
    from manet.categories import Category

_BATCH = 10_000  # titles that are rendered at a time


class Config(BaseModel):
    """Flags of `manet bench fewshot`."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    titles: int = Field(default=500_000, ge=1)
    """Rendered titles, each of another product; unless --catalog is given."""
    catalog: str = ""
    """Catalog artifact, or a Parquet file, with a column category; default: rendered titles."""
    categories: int = Field(default=44, ge=1)
    """Categories to look for, as `manet fewshot`."""
    seed: int = Field(default=0, ge=0)
    """Seed of the titles."""


def run(config: Config) -> dict[str, Any]:
    """Measure; returns the figures, and a row for each category."""
    from manet.categories import Category, assign  # scikit-learn: the other benches' workers import this package too

    with tempfile.TemporaryDirectory() as scratch:
        catalog = config.catalog or str(_rendered(config, Path(scratch) / "titles.parquet"))
        table = open_table(catalog, "catalog", "--catalog").read()
        if "category" not in table.column_names or not table["category"].drop_null():
            raise BadInputError(f"--catalog {catalog}: no column 'category' to hold the categories against")
        out = f"{scratch}/fewshot"
        spent = measured_job("fewshot", {"--catalog": catalog, "--categories": config.categories, "--out": out})
        found = open_artifact(out, "fewshot")
        listed = json.loads(found.read(found.parts("categories.json")[0]))["categories"]
    categories = [
        Category(name=row["name"], keywords=tuple((word["word"], word["score"]) for word in row["keywords"]))
        for row in listed
    ]
    labels = assign([text or "" for text in table["description"].to_pylist()], categories)
    kinds = np.array([kind or "" for kind in table["category"].to_pylist()])
    rows = list(_rows(categories, labels, kinds))
    say_table(rows)
    right = sum(row["of_it"] for row in rows)
    matched = int((labels >= 0).sum())
    return {
        "kind": "bench",
        "descriptions": len(kinds),
        "seconds": spent.seconds,
        "peak_mib": spent.peak_mib,
        "categories": len(rows),
        "kinds": len(set(kinds)),
        "kinds_found": len({row["mostly"] for row in rows}),
        "matched": round(matched / len(kinds), 4),
        "purity": round(right / max(1, matched), 4),
        "table": rows,
    }


def _rendered(config: Config, path: Path) -> Path:
    """Titles as a catalog whose pictures nobody opens."""
    shop = Catalogue(seed=config.seed, products=config.titles)
    with pq.ParquetWriter(path, CATALOG) as writer:
        for start in range(0, config.titles, _BATCH):
            products = [shop.product(index) for index in range(start, min(start + _BATCH, config.titles))]
            rows = [
                {
                    "image_id": each.product_id,
                    "uri": f"{each.product_id}.jpg",
                    "description": each.title,
                    "category": each.kind,
                    "product_id": each.product_id,
                }
                for each in products
            ]
            writer.write_table(pa.Table.from_pylist(rows, schema=CATALOG))
    return path


def _rows(
    categories: "list[Category]", labels: np.ndarray[Any, Any], kinds: np.ndarray[Any, Any]
) -> Iterator[dict[str, Any]]:
    for label, category in enumerate(categories):
        counts = Counter(kinds[labels == label].tolist())
        kind, right = counts.most_common(1)[0] if counts else ("", 0)
        yield {"category": category.name, "descriptions": counts.total(), "mostly": kind, "of_it": right,
               "purity": round(right / max(1, counts.total()), 3)}  # fmt: skip
