"""Score an index: index + queries -> MAP@7 and its kin.

  manet evaluate --index s3://shop/index --queries s3://shop/queries --out s3://shop/evaluation

Describes the queries into OUT/query-descriptors (resumable, as `extract`), searches the index, and writes `rankings.parquet`
(query_id, ranked, scores) and `metrics.json`: MAP@7 as the challenge computes it and in its standard form, recall@1,
recall@7, a 95% bootstrap interval, and the same through exact search of the stored descriptors.
"""

import json
from functools import partial
from typing import Any, ClassVar

import pyarrow as pa
from pydantic import Field

from cluster.artifact import Artifact, ArtifactWriter, Blob, open_artifact, put_unit
from cluster.session import available_cpus
from jobs.config import JobConfig, how
from jobs.inputs import Table, open_table
from jobs.make import make
from jobs.parquet import parquet_bytes
from jobs.querying import QuerySpec, open_searcher, query_spec, read_all, relevant_ids
from jobs.streaming import DescribeConfig, describe_into, unit_names
from manet.metrics import drop_self, retrieval_metrics

RANKINGS = pa.schema([("query_id", pa.string()), ("ranked", pa.list_(pa.string()))])


class Config(JobConfig, DescribeConfig):
    """Flags of `manet evaluate`; --size, --batch-size and --precision are taken from the index."""

    INPUTS: ClassVar[tuple[str, ...]] = ("index", "queries", "model")

    index: str
    """Index artifact."""
    queries: str
    """Queries artifact, or a Parquet file with the columns query_id, uri and relevant."""
    model: str = ""
    """Where the index's model lies now, if it was moved."""
    k: int = Field(default=7, ge=1, le=1000)
    """Answers for each query."""
    nprobe: int = Field(default=0, ge=0)
    """Cells visited in each shard; 0: derived from their number."""
    refine: int = Field(default=0, ge=0)
    """Candidates of each shard re-scored with the stored vectors; 0: the default depth."""
    threads: int = how(0, ge=0)
    """Threads of the search; 0: one per CPU."""


def run(config: Config) -> dict[str, Any]:
    """Run the job; returns its summary."""
    index = open_artifact(config.index, "index")
    queries = open_table(config.queries, "queries", "--queries")
    inputs = {"index": index.as_input(), "queries": queries.source}
    return make(config, "evaluation", inputs, partial(_build, config, index, queries))


def _build(config: Config, index: Artifact, queries: Table, writer: ArtifactWriter) -> tuple[list[str], dict[str, Any]]:
    spec = query_spec(index)
    described = _describe_queries(config, spec, queries)
    searcher = open_searcher(
        index, nprobe=config.nprobe, refine=config.refine, threads=config.threads or available_cpus()
    )
    ids, vectors = read_all(described)
    hits = dict(zip(ids, searcher.search(vectors, config.k + 1), strict=True))
    relevant = relevant_ids(queries)
    ranked = {query: drop_self([hit.image_id for hit in hits.get(query, [])], query, config.k) for query in relevant}
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
    put_unit(writer.store, "evaluation", blobs)
    return ["evaluation"], summary


def _describe_queries(config: Config, spec: QuerySpec, queries: Table) -> Artifact:
    """The queries' descriptors, an artifact of its own beside the figures."""
    model = spec.open_model(config.model)
    describing = spec.apply(config)
    nested = describing.model_copy(update={"out": f"{config.out.rstrip('/')}/query-descriptors"})

    def build(writer: ArtifactWriter) -> tuple[list[str], dict[str, Any]]:
        counts = describe_into(writer, queries, model, describing, names=(spec.descriptor,))
        return unit_names(queries, describing), counts

    make(
        nested,
        "descriptors",
        {"catalog": queries.source, "model": model.as_input()},
        build,
        claimed=config.describing(),
    )
    return open_artifact(nested.out, "descriptors")
