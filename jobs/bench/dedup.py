"""`bench dedup`: how many planted near-duplicates the job `dedup` finds, and how many pictures it joins wrongly.

  manet bench vectors --rows 50000 --duplicates 5000 --out bench/doubled
  manet index --descriptors bench/doubled --out bench/doubled-index
  manet bench dedup --index bench/doubled-index --descriptors bench/doubled

Counted in pairs of pictures of one group: planted pairs among all that were found, and found pairs among all that were planted.
"""

import tempfile
from itertools import combinations
from pathlib import Path
from typing import Any

from pydantic import Field

from cluster.artifact import open_artifact
from cluster.errors import BadInputError
from cluster.session import SessionConfig
from jobs.bench.probing import measured_job
from jobs.bench.vectors import Config as VectorsConfig
from jobs.bench.vectors import planted, row_name
from jobs.parquet import read_parquet
from jobs.querying import open_index


class Config(SessionConfig):
    """Flags of `manet bench dedup`."""

    index: str
    """Index artifact over the descriptors."""
    descriptors: str
    """Descriptors artifact of `manet bench vectors --duplicates N`."""
    threshold: float = Field(default=0.97, gt=0, le=1)
    """Least similarity (cosine) of two pictures that are near-duplicates."""


def run(config: Config) -> dict[str, Any]:
    """Run the job in a process of its own; returns precision and recall, seconds and peak memory."""
    descriptors = open_artifact(config.descriptors, "descriptors")
    if not descriptors.manifest.config.get("duplicates"):
        raise BadInputError(
            f"--descriptors {config.descriptors}: no near-duplicate in it; make it with `manet bench vectors --duplicates N`"
        )
    built_from = open_index(config.index).manifest.inputs.get("descriptors")
    if built_from is None or built_from.sha256 != descriptors.sha256:
        raise BadInputError(f"--index {config.index} was not built from {descriptors.uri}")
    made = VectorsConfig.model_validate(descriptors.manifest.config)
    first = made.rows - made.duplicates
    true = {(row_name(origin), row_name(first + place)) for place, origin in enumerate(planted(made).tolist())}
    with tempfile.TemporaryDirectory(prefix="manet-bench-") as scratch:
        out = Path(scratch) / "groups"
        flags = {
            "--index": config.index,
            "--threshold": config.threshold,
            "--out": out,
            "--object-store-mib": config.object_store_mib,
        }
        run = measured_job("dedup", flags)
        table = read_parquet(out / "groups.parquet").to_pydict()
    groups: dict[str, list[str]] = {}
    for name, group in zip(table["image_id"], table["group"], strict=True):
        groups.setdefault(group, []).append(name)
    found = {pair for names in groups.values() for pair in combinations(sorted(names), 2)}
    both = len(found & true)
    return {
        "kind": "bench",
        "rows": made.rows,
        "planted": len(true),
        "found": len(found),
        "precision": round(both / max(1, len(found)), 4),
        "recall": round(both / len(true), 4),
        "seconds": run.seconds,
        "peak_own_mib": run.peak_own_mib,
    }
