"""Render a beauty catalogue with exact ground truth: -> catalog + queries.

  manet render --products 400 --out demo/shop

Writes two artifacts: OUT/catalog (studio pictures) and OUT/queries (a consumer's photo of the same products), each a table
and the JPEGs beside it. The same seed gives the same bytes. The same command again resumes by ranges of products.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import pyarrow as pa
from pydantic import Field

from cluster.artifact import ArtifactWriter, Blob, Units
from cluster.session import ray_session
from cluster.storage import Store
from cluster.tasks import run_tasks
from cluster.telemetry import Meter
from jobs.config import JobConfig
from jobs.inputs import Kind
from jobs.make import make
from jobs.parquet import parquet_bytes
from manet.rendered import Catalogue, encode_jpeg
from manet.tables import CATALOG, QUERIES

UNIT_PRODUCTS = 64  # products of one unit of work


class Config(JobConfig):
    """Flags of `manet render`."""

    products: int = Field(default=400, ge=1)
    """Products in the catalogue; each has one to three studio pictures."""
    queries: int = Field(default=100, ge=0)
    """Products of which there is a consumer's photo too: the first so many."""
    size: int = Field(default=480, ge=32, le=4096)
    """Longer side of a picture, px."""
    seed: int = Field(default=0, ge=0)
    """Seed of the catalogue."""


def run(config: Config) -> dict[str, Any]:
    """Run the job; returns its summary."""
    wanted: dict[Kind, int] = {"catalog": config.products, "queries": min(config.queries, config.products)}
    summaries = {
        kind: make(_part_of(config, kind), kind, {}, partial(_build, config, kind, products))
        for kind, products in wanted.items()
        if products
    }
    return {
        "kind": "render",
        "products": config.products,
        **{f"{kind}_rows": summary["rows"] for kind, summary in summaries.items()},
        **{kind: summary["out"] for kind, summary in summaries.items()},
    }


def _part_of(config: Config, kind: str) -> Config:
    return config.model_copy(update={"out": f"{config.out.rstrip('/')}/{kind}"})


def _build(config: Config, kind: Kind, products: int, writer: ArtifactWriter) -> tuple[list[str], dict[str, Any]]:
    starts = range(0, products, UNIT_PRODUCTS)
    units = {f"{i:05d}": (start, min(start + UNIT_PRODUCTS, products)) for i, start in enumerate(starts)}
    done = writer.finished()
    todo = [(name, *span) for name, span in units.items() if name not in done]
    if todo:
        work = partial(_render_unit, writer.units, config, kind)
        with ray_session(config), Meter(f"render {kind}", products, "products") as meter:
            meter.advance(products - sum(stop - start for _, start, stop in todo))
            for count in run_tasks(work, todo):
                meter.advance(count)
    receipts = writer.receipts(list(units))
    return list(units), {"rows": sum(part.rows for receipt in receipts for part in receipt.parts)}


def _render_unit(units: Units, config: Config, kind: str, unit: tuple[str, int, int]) -> int:
    """Draw the pictures of some products, then write their rows."""
    name, start, stop = unit
    catalogue = Catalogue(seed=config.seed, products=config.products)
    rows_of: Callable[..., list[dict[str, Any]]] = _catalog_rows if kind == "catalog" else _query_rows
    rows = [
        row for product in range(start, stop) for row in rows_of(units.store, catalogue, product, config.size, name)
    ]
    table = pa.Table.from_pylist(rows, schema=CATALOG if kind == "catalog" else QUERIES)
    blob = Blob(data=parquet_bytes(table), rows=table.num_rows)
    units.put(name, {f"{kind}-{name}.parquet": blob})
    return stop - start


def _catalog_rows(store: Store, catalogue: Catalogue, index: int, size: int, folder: str) -> list[dict[str, Any]]:
    product = catalogue.product(index)
    rows = []
    for view in range(catalogue.gallery_views(index)):
        image_id = f"{product.product_id}-{view}"
        uri = f"images/{folder}/{image_id}.jpg"
        store.write(uri, encode_jpeg(catalogue.studio(index, view, size).rgb))
        rows.append(
            {
                "image_id": image_id,
                "uri": uri,
                "description": product.title,
                "category": product.kind,
                "product_id": product.product_id,
            }
        )
    return rows


def _query_rows(store: Store, catalogue: Catalogue, index: int, size: int, folder: str) -> list[dict[str, Any]]:
    product = catalogue.product(index)
    query_id = f"q{product.product_id[1:]}-0"
    uri = f"images/{folder}/{query_id}.jpg"
    store.write(uri, encode_jpeg(catalogue.photo(index, 0, size).rgb))
    relevant = [f"{product.product_id}-{view}" for view in range(catalogue.gallery_views(index))]
    return [{"query_id": query_id, "uri": uri, "relevant": relevant}]
