"""Score an index: index + queries -> MAP@7 and its kin.

  manet evaluate --index s3://shop/index --queries s3://shop/queries --out s3://shop/evaluation

Describes the queries into OUT/query-descriptors (resumable, as `extract`), searches the index, and writes `rankings.parquet`
(query_id, ranked) and `metrics.json`: MAP@7 as the challenge computes it, with its 95% bootstrap interval, and in its standard
form, recall@1, recall@7. A picture of the gallery that is a query does not answer itself.
"""

import json
from functools import partial
from typing import Any, ClassVar

import pyarrow as pa
from pydantic import Field

from cluster.artifact import Artifact, ArtifactWriter, Blob
from cluster.session import available_cpus
from jobs.config import how
from jobs.inputs import Table, open_table
from jobs.make import make
from jobs.parquet import parquet_bytes
from jobs.querying import QueriesConfig, describe_queries, open_index, open_searcher, query_spec, read_all, relevant_ids
from manet.metrics import retrieval_metrics

RANKINGS = pa.schema([("query_id", pa.string()), ("ranked", pa.list_(pa.string()))])


class Config(QueriesConfig):
    """Flags of `manet evaluate`."""

    INPUTS: ClassVar[tuple[str, ...]] = ("index", "queries", "model")

    index: str
    """Index artifact."""
    queries: str
    """Queries artifact, or a Parquet file with the columns query_id, uri and relevant."""
    k: int = Field(default=7, ge=1, le=1000)
    """Answers for each query."""
    nprobe: int = Field(default=0, ge=0)
    """Cells visited; 0: what the index was tuned to."""
    refine: int = Field(default=0, ge=0)
    """Candidates re-scored with the stored vectors; 0: what the index was tuned to."""
    expand: int = Field(default=-1, ge=-1, le=100)
    """Best answers that a query is expanded with before it is searched again; -1: what the index was built with, 0: none."""
    threads: int = how(0, ge=0)
    """Threads of the search; 0: one per CPU."""


def run(config: Config) -> dict[str, Any]:
    """Run the job; returns its summary."""
    index = open_index(config.index)
    queries = open_table(config.queries, "queries", "--queries")
    inputs = {"index": index.as_input(), "queries": queries.source}
    return make(config, "evaluation", inputs, partial(_build, config, index, queries))


def _build(config: Config, index: Artifact, queries: Table, writer: ArtifactWriter) -> tuple[list[str], dict[str, Any]]:
    threads = config.threads or available_cpus()
    searcher = open_searcher(index, nprobe=config.nprobe, refine=config.refine, threads=threads, expand=config.expand)
    spec = query_spec(index)
    described = describe_queries(config, spec, queries)
    ids, vectors = read_all(described)
    hits = dict(zip(ids, searcher.search(vectors, config.k, own=ids), strict=True))
    relevant = relevant_ids(queries)
    ranked = {query: [hit.image_id for hit in hits.get(query, [])] for query in relevant}
    summary = {
        **retrieval_metrics(ranked, relevant, k=config.k),
        "rejected_queries": queries.rows - len(ids),  # they count as queries without an answer
        "descriptor": spec.descriptor,
    }
    table = pa.table({"query_id": list(ranked), "ranked": list(ranked.values())}, schema=RANKINGS)
    blobs = {
        "rankings.parquet": Blob(data=parquet_bytes(table), rows=len(ranked)),
        "metrics.json": Blob(data=json.dumps(summary, indent=1).encode()),
    }
    writer.units.put("evaluation", blobs)
    return ["evaluation"], summary
