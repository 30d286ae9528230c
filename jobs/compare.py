"""Every descriptor side by side: catalog + queries + model(s) -> the letter's table.

  manet compare --catalog C --queries Q --model MODEL --baseline PRETRAINED --out OUT

One pass over the pictures for each network: its feature maps are computed once and pooled in many ways, before attention
(`backbone`, F) and after it (`attended`, X~). Answers come from exact search, so the table compares descriptors and nothing
else. `behind` says by how much MAP@7 the trained network's SR-MAC is ahead of a row on the same queries, with the 95%
bootstrap interval of that paired difference. Writes OUT/NETWORK/{gallery,queries} (resumable, as `extract`), `table.json`
and `table.csv`.
"""

import csv
import io
import json
from functools import partial
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from pydantic import Field

from cluster.artifact import Artifact, ArtifactWriter, Blob, open_artifact, put_unit
from cluster.telemetry import say
from jobs.config import JobConfig
from jobs.inputs import Table, open_model, open_table
from jobs.make import make
from jobs.parquet import read_parquet
from jobs.querying import relevant_ids
from jobs.streaming import DescribeConfig, describe_into, unit_names
from manet.exact import exact_search
from manet.metrics import drop_self, paired_interval, retrieval_metrics
from manet.names import DescriptorName
from manet.tables import descriptors_to_numpy

DESCRIPTORS: tuple[DescriptorName, ...] = (
    "spoc@backbone",
    "mac@backbone",
    "gem@backbone",
    "crow@backbone",
    "r-mac@backbone",
    "ra-mac@backbone",
    "grmac@backbone",
    "spoc",
    "mac",
    "gem",
    "crow",
    "r-mac",
    "r-mac-global",
    "ra-mac",
    "grmac",
    "sr-mac",
    "sr-mac-as-printed",
)
COLUMNS = (
    "network",
    "features",
    "descriptor",
    "map@7",
    "map@7_low",
    "map@7_high",
    "map@7_standard",
    "recall@1",
    "recall@7",
    "behind",
    "behind_low",
    "behind_high",
)


class Config(JobConfig, DescribeConfig):
    """Flags of `manet compare`."""

    INPUTS: ClassVar[tuple[str, ...]] = ("catalog", "queries", "model", "baseline")

    catalog: str
    """Catalog artifact, or a Parquet file."""
    queries: str
    """Queries artifact, or a Parquet file."""
    model: str
    """Model artifact: the trained network."""
    baseline: str = ""
    """Another model beside it, e.g. the network before it was trained on the categories."""
    k: int = Field(default=7, ge=1, le=1000)
    """Answers for each query."""


def run(config: Config) -> dict[str, Any]:
    """Run the job; returns its summary."""
    gallery = open_table(config.catalog, "catalog", "--catalog")
    queries = open_table(config.queries, "queries", "--queries")
    models = {"trained": open_model(config.model)}
    if config.baseline:
        models = {"pretrained": open_model(config.baseline), **models}
    inputs = {"catalog": gallery.source, "queries": queries.source}
    inputs |= {name: model.as_input() for name, model in models.items()}
    return make(config, "comparison", inputs, partial(_build, config, gallery, queries, models))


def _build(
    config: Config, gallery: Table, queries: Table, models: dict[str, Artifact], writer: ArtifactWriter
) -> tuple[list[str], dict[str, Any]]:
    relevant = relevant_ids(queries)
    rows: list[dict[str, Any]] = []
    rankings: list[dict[str, list[str]]] = []
    for network, model in models.items():
        tables = {"gallery": gallery, "queries": queries}
        described = {name: _describe(config, network, name, table, model) for name, table in tables.items()}
        for descriptor in DESCRIPTORS:
            ranked = _rank(described["gallery"], described["queries"], descriptor, config.k)
            scores = retrieval_metrics({query: ranked.get(query, []) for query in relevant}, relevant, k=config.k)
            pooling, _, source = descriptor.partition("@")
            rows.append({"network": network, "features": source or "attended", "descriptor": pooling, **scores})
            rankings.append(ranked)
    _add_distance_behind(rows, rankings, relevant, config.k)
    blobs = {
        "table.json": Blob(data=json.dumps(rows, indent=1).encode(), rows=len(rows)),
        "table.csv": Blob(data=_csv(rows), rows=len(rows)),
    }
    put_unit(writer.store, "table", blobs)
    return ["table"], {"table": [{key: row[key] for key in COLUMNS if key in row} for row in rows]}


def _add_distance_behind(
    rows: list[dict[str, Any]], rankings: list[dict[str, list[str]]], relevant: dict[str, list[str]], k: int
) -> None:
    """To each row: by how much MANet's SR-MAC (the last network's) is ahead of it on the same queries, and the 95% interval."""
    own = max(i for i, row in enumerate(rows) if (row["features"], row["descriptor"]) == ("attended", "sr-mac"))
    for row, ranked in zip(rows, rankings, strict=True):
        names = ("behind", "behind_low", "behind_high")
        row |= dict(zip(names, (round(x, 6) for x in paired_interval(rankings[own], ranked, relevant, k)), strict=True))


def _describe(config: Config, network: str, name: str, table: Table, model: Artifact) -> Artifact:
    nested = config.model_copy(update={"out": f"{config.out.rstrip('/')}/{network}/{name}"})

    def build(writer: ArtifactWriter) -> tuple[list[str], dict[str, Any]]:
        say(f"compare: {network} network, {name}")
        return unit_names(table, config), describe_into(writer, table, model, config, names=DESCRIPTORS)

    make(
        nested, "descriptors", {"catalog": table.source, "model": model.as_input()}, build, claimed=config.describing()
    )
    return open_artifact(nested.out, "descriptors")


def _rank(gallery: Artifact, queries: Artifact, descriptor: str, k: int) -> dict[str, list[str]]:
    """Exact search of one descriptor: query_id -> its k best gallery ids."""
    ids, vectors = _column(gallery, descriptor)
    query_ids, query_vectors = _column(queries, descriptor)
    _, rows = exact_search(vectors, query_vectors, k + 1)
    return {query: drop_self([ids[i] for i in row], query, k) for query, row in zip(query_ids, rows, strict=True)}


def _column(descriptors: Artifact, name: str) -> tuple[list[str], np.ndarray[Any, np.dtype[np.float16]]]:
    parts = [read_parquet(descriptors.read(part)) for part in descriptors.parts("part-") if part.rows]
    return descriptors_to_numpy(pa.concat_tables(parts), column=f"descriptor_{name}")


def _csv(rows: list[dict[str, Any]]) -> bytes:
    sink = io.StringIO()
    writer = csv.DictWriter(sink, COLUMNS, extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    return sink.getvalue().encode()
