"""Build a sharded index: descriptors -> index.

  manet index --descriptors s3://shop/descriptors --out s3://shop/index

Ray tasks: one trains the quantizer (rotation, IVF, PQ) on a uniform sample of all parts, then each shard is built from its own
descriptor parts with that same quantizer. Then recall is measured against exact search, and the cheapest way to search that
reaches --recall-target becomes the index's own: `search` uses it unless told another. A target that the budget does not allow
fails (exit 1) after the index is written.

Writes stock faiss files (`trained.faiss`, `shard-*.faiss`), the shards' ids and float16 vectors (`shard-*.ids.parquet`,
`shard-*.refine.npy`), `query.json` (how a query must be described), `report.json` and `recall.png` (what was measured). The
same command again keeps the finished shards.

Later changes write the next version of the index, whole or not at all; readers see the old one or the new one:

  manet index add --index s3://shop/index --descriptors s3://shop/new
  manet index delete --index s3://shop/index --ids gone.txt
  manet index compact --index s3://shop/index
  manet index tune --index s3://shop/index --recall-target 0.99
  manet index versions --index s3://shop/index
  manet index prune --index s3://shop/index --keep 2
"""

import time
from functools import partial
from typing import Any, ClassVar

from pydantic import Field

from cluster.artifact import (
    Artifact,
    ArtifactWriter,
    Blob,
    Part,
    open_artifact,
    parts_of,
)
from cluster.errors import BadInputError
from cluster.session import ray_session
from cluster.telemetry import say
from jobs import living
from jobs.config import JobConfig, how
from jobs.make import make
from jobs.postprocessing import OPTIONS, WHITENING, AugmentedRows, learned_whitening, whitened
from jobs.querying import QuerySpec, read_descriptors
from jobs.sharding import (
    DescriptorRows,
    Rows,
    Training,
    build_shards,
    cut_shards,
    shard_limit,
    shard_summary,
    trained_quantizer,
)
from jobs.tuning import EXACT, Queries, TuningConfig, check_tuned, open_queries, tune, tuning_files

TRAINED, REPORT, SHARD = "trained", "report", "shard"  # names of the units, and what those of the shards begin with


class Config(JobConfig, TuningConfig):
    """Flags of `manet index`."""

    INPUTS: ClassVar[tuple[str, ...]] = ("descriptors", "catalog", "dedup", "queries")
    ONLY_WITH: ClassVar[dict[str, str]] = {"whiten_power": "whiten"}

    descriptors: str
    """Descriptors artifact."""
    details: bool = True
    """Store uri, description and category of each picture, so that answers carry them and can be filtered."""
    catalog: str = ""
    """Where the catalogue that was described lies now, if it was moved."""
    dedup: str = ""
    """Groups artifact of `manet dedup`: of a group only the best picture answers."""
    factory: str = "auto"
    """faiss index factory string, or `auto`: flat while a quantizer would lack training points, else rotation,IVF,PQ."""
    memory_per_vector: float = Field(default=0.0, ge=0)
    """Most bytes of memory a vector, the stored vectors (memory-mapped) not counted: the automatic factory takes the longest code
    that fits; 0: 40 bytes of code."""
    shard_rows: int = Field(default=0, ge=0)
    """Most rows of a shard (shards are cut at the borders of descriptor parts); 0: 262,144, more where there are many cells."""
    whiten: int = Field(default=0, ge=0)
    """Dimensions after PCA-whitening, learned on a sample of the descriptors; 0: they stay as they are."""
    whiten_power: float = Field(default=0.5, ge=0, le=1)
    """With --whiten: the power of its standard deviation that each axis is divided by; 1: all vary alike, 0: PCA alone."""
    augment: int = Field(default=0, ge=0, le=100)
    """Neighbours that each stored vector is averaged with, by score (database augmentation); 0: none."""
    expand: int = Field(default=0, ge=0, le=100)
    """Best answers that a query is expanded with before it is searched again (`search --expand` may differ); 0: none."""
    seed: int = Field(default=0, ge=0)
    """Seed of sampling and training."""
    train_cpus: float = how(1.0, gt=0)
    """CPUs (threads) that train the quantizer."""
    train_gpus: int = how(0, ge=0)
    """GPUs that train the quantizer; 0: it is trained on the CPU."""


def run(config: Config) -> dict[str, Any]:
    """Run the job; returns its summary."""
    if config.memory_per_vector and config.factory != "auto":
        raise BadInputError("--memory-per-vector chooses the code for --factory auto; a factory of yours has its own")
    descriptors = open_artifact(config.descriptors, "descriptors")
    spec = query_blobs(descriptors)  # what cannot be searched is refused before the folder is claimed
    inputs = {"descriptors": descriptors.as_input()}
    parts = [part for part in descriptors.parts("part-") if part.rows]
    if not parts:
        raise BadInputError(f"--descriptors {descriptors.uri}: no descriptor to index")
    dim = read_descriptors(descriptors, parts[0])[1].shape[1]
    rows = sum(part.rows for part in parts)
    if config.whiten > min(dim, rows - 1):
        raise BadInputError(
            f"--whiten {config.whiten}: {rows} descriptors of {dim} dimensions can keep {min(dim, rows - 1)} at most"
        )
    stored_dim = config.whiten or dim
    chosen = _factory(config, rows, stored_dim)
    queries = open_queries(config)
    if queries is not None:
        inputs["queries"] = queries.source
        queries.check(dim, QuerySpec.of(descriptors) if spec else None)
    groups = open_artifact(config.dedup, "groups") if config.dedup else None
    if groups is not None:
        inputs["dedup"] = groups.as_input()
    summary = make(
        config, "index", inputs, partial(_build, config, descriptors, (stored_dim, *chosen), groups, queries)
    )
    check_tuned(summary)
    return summary


def _factory(config: Config, rows: int, dim: int) -> tuple[str, str]:
    """The factory string, and why it is this one.

    Raises:
        InputError: faiss cannot make it, or no code fits --memory-per-vector.
    """
    from manet.index import check_factory, choose_factory

    if config.factory == "auto":
        return choose_factory(rows, dim, config.memory_per_vector)
    check_factory(config.factory, dim)
    return config.factory, "asked for by --factory"


def _build(
    config: Config,
    descriptors: Artifact,
    made_as: tuple[int, str, str],
    groups: Artifact | None,
    queries: Queries | None,
    writer: ArtifactWriter,
) -> tuple[list[str], dict[str, Any]]:
    dim, factory, reason = made_as
    parts = [part for part in descriptors.parts("part-") if part.rows]
    rows = sum(part.rows for part in parts)
    source: Rows = DescriptorRows.of(descriptors, details=config.details, catalog=config.catalog, groups=groups)
    say(f"index: {rows} x {dim}, {factory}: {reason}")
    limit = shard_limit(config.shard_rows, factory)
    shards, first = cut_shards(parts, limit), list[Part]()
    with ray_session(config):
        began = time.monotonic()
        if config.whiten:
            first += learned_whitening(
                writer.units, source, parts, config.whiten, config.whiten_power, config.seed
            ).parts
            source = whitened(writer.draft(first, {}), source)
        training = Training(factory=factory, seed=config.seed, cpus=config.train_cpus, gpus=config.train_gpus)
        blobs = query_blobs(descriptors)
        trained = trained_quantizer(writer.units, TRAINED, source, parts, training, blobs)
        quantizer = next(part for part in trained.parts if part.name.endswith(".faiss"))
        first += trained.parts
        trained_at = time.monotonic()
        steps = cut_shards(parts, limit, f"{SHARD}-plain") if config.augment else []  # here a row finds its neighbours
        if steps and not all(writer.units.finished(shard.name) for shard in shards):
            plain = build_shards(writer.units, quantizer, dim, source, steps, "index, plain")
            draft = writer.draft([*first, *parts_of(plain)], {"factory": factory, "dim": dim})
            source = AugmentedRows(source, draft, config.augment, inside=True)
        receipts = build_shards(writer.units, quantizer, dim, source, shards, "index")
        spent = {"train_s": round(trained_at - began, 2), "fill_s": round(time.monotonic() - trained_at, 2)}
        summary = {
            **shard_summary(receipts),
            "dim": dim,
            "factory": factory,
            "reason": reason,
            "shards": len(shards),
            "deleted": 0,
            **{name: getattr(config, name) for name in OPTIONS if getattr(config, name)},
            **({"whiten_power": config.whiten_power} if config.whiten else {}),
            **(
                {"memory_per_vector": config.memory_per_vector} if config.factory == "auto" else {}
            ),  # `compact` chooses too
        }
        index = writer.draft([*first, *parts_of(receipts)], summary)
        tuning = tune(index, config, queries, seed=config.seed)
    writer.units.drop([step.name for step in steps])
    writer.units.put(REPORT, tuning_files(tuning, summary))
    target = {"recall_target": config.recall_target, "latency_ms": config.latency_ms}
    summary |= (tuning.summary() if tuning else EXACT | target) | spent
    return [*([WHITENING] if config.whiten else []), TRAINED, *(shard.name for shard in shards), REPORT], summary


def query_blobs(descriptors: Artifact) -> dict[str, Blob]:
    """`query.json`, where a model described the vectors."""
    if "model" not in descriptors.manifest.inputs:
        return {}
    return {"query.json": Blob(data=QuerySpec.of(descriptors).model_dump_json(indent=1).encode())}


COMMANDS = living.COMMANDS  # `manet index add`, ...; `manet index` itself builds
