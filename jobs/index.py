"""Build a sharded index: descriptors -> index.

  manet index --descriptors s3://shop/descriptors --out s3://shop/index

Ray tasks: one trains the quantizer (OPQ, IVF, PQ) on a uniform sample of all parts, then each shard is built from its own
descriptor parts with that same quantizer. Writes stock faiss files (`trained.faiss`, `shard-*.faiss`), the shards' ids and
float16 vectors (`shard-*.ids.parquet`, `shard-*.refine.npy`), `query.json` (how a query must be described) and
`report.json`. The same command again keeps the finished shards.
"""

import json
import tempfile
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from cluster.artifact import Artifact, ArtifactWriter, Blob, Part, open_artifact, put_unit
from cluster.session import cluster_cpus, ray_session
from cluster.storage import Store
from cluster.tasks import run_tasks
from cluster.telemetry import Meter, say
from jobs.config import JobConfig, how
from jobs.make import make
from jobs.parquet import read_parquet
from jobs.querying import QuerySpec


class Config(JobConfig):
    """Flags of `manet index`."""

    INPUTS: ClassVar[tuple[str, ...]] = ("descriptors",)

    descriptors: str
    """Descriptors artifact."""
    factory: str = "auto"
    """faiss index factory string, or `auto`: flat while a quantizer would lack training points, else OPQ,IVF,PQ."""
    shard_rows: int = Field(default=131072, ge=1)
    """Most rows of a shard (shards are cut at the borders of descriptor parts)."""
    seed: int = Field(default=0, ge=0)
    """Seed of sampling and training."""
    train_cpus: float = how(1.0, gt=0)
    """CPUs (threads) that train the quantizer."""
    train_gpus: int = how(0, ge=0)
    """GPUs that train the quantizer; 0: it is trained on the CPU."""


def run(config: Config) -> dict[str, Any]:
    """Run the job; returns its summary."""
    descriptors = open_artifact(config.descriptors, "descriptors")
    return make(
        config, "index", {"descriptors": descriptors.as_input()}, partial(_build, config, descriptors)
    )
