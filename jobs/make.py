"""Claim, build, commit: the frame that every job which writes an artifact runs in."""

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from cluster.artifact import ArtifactWriter, Input
from cluster.telemetry import say
from jobs.config import JobConfig

CODE = "MANET_CODE"  # variable of the environment: what `code` says, as JSON
Build = Callable[[ArtifactWriter], tuple[list[str], dict[str, Any]]]


def make(
    config: JobConfig, kind: str, inputs: Mapping[str, Input], build: Build, claimed: Sequence[str] | None = None
) -> dict[str, Any]:
    """Write the artifact `config.out`, unless the same command has committed it before.

    Args:
        config: the job's configuration; `out`, `overwrite` and the claimed fields are used here.
        kind: kind of the artifact.
        inputs: what the job reads.
        claimed: the fields that decide the result, when the artifact is only a part of the job's (default: all such).
        build: writes the units that are not finished; returns the names of all units and the summary.

    Returns:
        The summary of the manifest, with the folder.
    """
    writer = ArtifactWriter.open(
        config.out,
        kind,
        config=config.as_json(),
        claimed=config.claimed() if claimed is None else claimed,
        inputs=inputs,
        overwrite=config.overwrite,
    )
    uri = writer.store.uri("")
    if writer.manifest is not None:
        say(f"{kind}: {uri} is committed for the same inputs; nothing to do")
        return {"kind": kind, "out": uri, **writer.manifest.summary}
    started = time.monotonic()
    units, summary = build(writer)
    summary = {**summary, "seconds": round(time.monotonic() - started, 2)}
    writer.commit(units, summary, code())
    return {"kind": kind, "out": uri, **summary}


@cache
def code() -> dict[str, str]:
    """What wrote an artifact: the package's version, and the git commit where this is a checkout.

    A job that was sent to a cluster without either is told by who sent it (`manet submit`).
    """
    if told := os.environ.get(CODE):
        return dict(json.loads(told))
    try:
        found = {"version": version("manet")}
    except PackageNotFoundError:
        found = {"version": "unknown"}  # shipped as a working directory, never installed
    git = ["git", "-C", str(Path(__file__).resolve().parent), "rev-parse", "HEAD"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        found["commit"] = subprocess.run(git, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    return found
