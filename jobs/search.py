"""Find the products in pictures: index + pictures -> ranked ids.

  manet search --index s3://shop/index --picture photo.jpg --picture s3://inbox/other.png
  manet search --index s3://shop/index --picture photo.jpg --category lipstick --ids in-stock.txt
  manet search --index s3://shop/index --queries s3://shop/queries --out s3://shop/answers

Reads an index (its newest version, or --version) and the model that it names. Pictures are described exactly as `extract`
describes the gallery. With --picture nothing is written but stdout: one line a picture with its k best ids, scores, uris and
descriptions, or with its error; then the summary. With --queries a whole table is searched, by Ray: its descriptors are
written to OUT/query-descriptors, the answers to `answers-*.parquet` (query_id, ranked, scores), one part a part of the
descriptors; the same command again keeps the finished ones. A picture that cannot be used is a reject of the descriptors.
"""

import hashlib
import json
import sys
import time
from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, model_validator

from cluster.artifact import Artifact, ArtifactWriter, Blob, Input, Part, Receipt, Units
from cluster.errors import BadInputError, IntegrityError
from cluster.session import available_cpus, ray_session
from cluster.tasks import run_tasks
from cluster.telemetry import Meter
from jobs.config import how
from jobs.inputs import Table, local_copy, open_table
from jobs.make import make
from jobs.parquet import parquet_bytes, read_parquet
from jobs.pictures import load_picture
from jobs.querying import (
    QueriesConfig,
    answer_row,
    dead_rows,
    describe_queries,
    open_index,
    open_newest_searcher,
    open_searcher,
    query_spec,
    read_descriptors,
    read_ids,
    worker_searcher,
)
from jobs.streaming import picture_config
from manet.errors import PictureError
from manet.names import DEAD
from manet.search import Allowed, Searcher

ANSWERS = pa.schema([("query_id", pa.string()), ("ranked", pa.list_(pa.string())), ("scores", pa.list_(pa.float32()))])


class Config(QueriesConfig):
    """Flags of `manet search`."""

    INPUTS: ClassVar[tuple[str, ...]] = ("index", "queries", "model", "version", "ids")

    index: str
    """Index artifact."""
    picture: tuple[str, ...] = how(())
    """Picture to search with: a path or a URI."""
    queries: str = ""
    """Table of pictures to search with: a queries artifact, or a Parquet file with the columns query_id and uri."""
    out: str = ""
    """Folder of the artifact to write where a table is searched with: a local path or s3://bucket/prefix."""
    k: int = Field(default=7, ge=1, le=1000)
    """Answers for each picture."""
    category: tuple[str, ...] = ()
    """Only pictures of this category answer."""
    ids: str = ""
    """File of image ids, one a line: only these answer."""
    version: int = Field(default=0, ge=0)
    """Version of the index; 0: the newest."""
    nprobe: int = Field(default=0, ge=0)
    """Cells visited; 0: what the index was tuned to."""
    refine: int = Field(default=0, ge=0)
    """Candidates re-scored with the stored vectors; 0: what the index was tuned to."""
    expand: int = Field(default=-1, ge=-1, le=100)
    """Best answers that a query is expanded with before it is searched again; -1: what the index was built with, 0: none."""
    threads: int = how(0, ge=0)
    """Threads; 0: one per CPU with --picture, one in each task with --queries."""
    gpu: bool = how(False)
    """Describe the pictures of --picture on a GPU (those of --queries: --model-gpus)."""

    @model_validator(mode="after")
    def _one_of_two(self) -> "Config":
        if bool(self.picture) == bool(self.queries):
            raise ValueError("give either --picture or --queries; see --help")
        if bool(self.queries) != bool(self.out):
            raise ValueError("--queries and --out go together: a table's answers are written, a picture's are printed")
        return self


def run(config: Config) -> dict[str, Any]:
    """Run the job; returns its summary."""
    wanted = tuple(read_ids(config.ids, "--ids")) if config.ids else None
    if config.queries:
        return _search_table(config, wanted)
    return _search_pictures(config, wanted)


def _search_pictures(config: Config, wanted: tuple[str, ...] | None) -> dict[str, Any]:
    import torch

    started = time.monotonic()
    threads = config.threads or available_cpus()
    torch.set_num_threads(1)  # as in extraction: more threads add up in another order, and the last bits differ
    nprobe, refine = config.nprobe, config.refine
    if config.version:
        index = open_index(config.index, config.version)
        searcher = open_searcher(index, nprobe=nprobe, refine=refine, threads=threads, expand=config.expand)
    else:
        index, searcher = open_newest_searcher(
            config.index, nprobe=nprobe, refine=refine, threads=threads, expand=config.expand
        )
    spec = query_spec(index)
    model = spec.open_model(config.model)
    allowed = _allowed(config, searcher, wanted)
    describer = spec.describer(local_copy(model), gpu=config.gpu)
    pictures = picture_config(model, spec.size)
    failed = 0
    for uri in config.picture:
        loaded = load_picture(uri, pictures)
        described = None if isinstance(loaded, PictureError) else describer.describe(loaded[None])
        if described is None or described.dead[0]:
            failed += 1
            error = loaded if isinstance(loaded, PictureError) else DEAD
            sys.stdout.write(json.dumps({"picture": uri, "error": str(error)}) + "\n")
            continue
        hits = searcher.search(described.vectors[spec.descriptor], config.k, allowed)[0]
        sys.stdout.write(json.dumps({"picture": uri, "results": [answer_row(hit) for hit in hits]}) + "\n")
    if failed == len(config.picture):
        raise BadInputError(f"--picture: none of the {failed} could be used, the last: {uri}: {error}")
    seconds = round(time.monotonic() - started, 2)
    return {"kind": "search", "pictures": len(config.picture), "failed": failed, "seconds": seconds}


def _allowed(config: Config, searcher: Searcher, wanted: tuple[str, ...] | None) -> Allowed | None:
    """The filter of --ids and --category; None where neither is given.

    Raises:
        BadInputError: nothing passes it.
    """
    if wanted is None and not config.category:
        return None
    allowed = searcher.allow(ids=wanted, categories=config.category or None)
    if not allowed.rows:
        unknown = sorted(set(config.category) - set(searcher.categories()))
        what = f"--category {unknown[0]}: no such category" if unknown else "--category, --ids"
        raise BadInputError(f"{what}: no picture of {config.index} passes the filter; nothing could answer")
    return allowed


def _passes(index: Artifact, ids: tuple[str, ...] | None, categories: Sequence[str]) -> bool:
    """Whether any picture of an index has one of these ids (None: any) and one of these categories (none: any). Reads as many
    tables as it takes, and no vectors.
    """
    dead = dead_rows(index)
    filters = {"image_id": ids, "category": categories or None}
    for part in index.parts("shard-", ".ids.parquet"):
        table = read_parquet(index.read(part))
        live = np.ones(len(table), bool)
        live[list(dead.get(part.name.split(".")[0], ()))] = False
        for column, values in filters.items():
            if values is not None:
                known = table[column] if column in table.column_names else pa.nulls(len(table), pa.string())
                live &= pc.is_in(known, value_set=pa.array(values, pa.string())).to_numpy(zero_copy_only=False)
        if live.any():
            return True
    return False


def _search_table(config: Config, wanted: tuple[str, ...] | None) -> dict[str, Any]:
    index = open_index(config.index, config.version)
    queries = open_table(config.queries, "queries", "--queries", relevant=False)
    inputs = {"index": index.as_input(), "queries": queries.source}
    if wanted is not None:
        inputs["ids"] = Input(uri=config.ids, sha256=hashlib.sha256("\n".join(wanted).encode()).hexdigest())
    if (wanted is not None or config.category) and not _passes(index, wanted, config.category):
        raise BadInputError(
            f"--category, --ids: no picture of {config.index} passes the filter; nothing could answer"
        )  # before the folder is claimed and a picture is described
    return make(config, "answers", inputs, partial(_build, config, index, queries, wanted))


def _build(
    config: Config, index: Artifact, queries: Table, wanted: tuple[str, ...] | None, writer: ArtifactWriter
) -> tuple[list[str], dict[str, Any]]:
    """Describe the table, then one Ray task a part of its descriptors; answers + rejects = queries, from storage."""
    with ray_session(config):
        described = describe_queries(config, query_spec(index), queries)
        parts = [part for part in described.parts("part-") if part.rows]
        done = writer.finished()
        todo = [part for part in parts if _unit(part) not in done]
        work = partial(_answer, config, index, described, wanted, writer.units)
        with Meter("search", sum(part.rows for part in todo), "queries") as meter:
            for receipt in run_tasks(work, todo, cpus=max(1, config.threads)):
                meter.advance(int(receipt.counts["rows"]), part=receipt.unit)
    units = [_unit(part) for part in parts]
    answered = int(sum(receipt.counts["rows"] for receipt in writer.receipts(units)))
    rejected = sum(part.rows for part in described.parts("rejects-"))
    if answered + rejected != queries.rows:
        raise IntegrityError(
            f"{writer.store.uri('')}: {answered} answers and {rejected} rejects of {queries.rows} queries"
        )
    return units, {"rows": answered, "rejected_queries": rejected, "k": config.k, "version": index.manifest.number}


def _unit(part: Part) -> str:
    return part.name.replace("part-", "answers-").removesuffix(".parquet")


def _answer(
    config: Config,
    index: Artifact,
    described: Artifact,
    wanted: tuple[str, ...] | None,
    units: Units,
    part: Part,
) -> Receipt:
    """The answers to one part of the queries, written."""
    threads = max(1, config.threads)
    searcher = worker_searcher(index, nprobe=config.nprobe, refine=config.refine, threads=threads, expand=config.expand)
    allowed = _allowed(config, searcher, wanted)
    names, vectors = read_descriptors(described, part)
    hits = searcher.search(vectors, config.k, allowed)
    ranked = [[hit.image_id for hit in each] for each in hits]
    scores = [[hit.score for hit in each] for each in hits]
    table = pa.table([names, ranked, scores], schema=ANSWERS)
    blob = Blob(data=parquet_bytes(table), rows=len(names))
    unit = _unit(part)
    return units.put(unit, {f"{unit}.parquet": blob}, {"rows": len(names)})
