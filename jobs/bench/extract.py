"""`bench extract`: the extraction job against the bare model.

  manet bench extract --model run/model --catalog shop/catalog --pictures 512

Pictures a second of the job (fetch, decode, describe, write) over those of the bare model on decoded pictures in
memory, in the same run, with the same number of model workers and threads. The job's rate is that of its steady state:
from the first finished part to the last one; its start-up is reported apart.
"""

import tempfile
import time
from typing import Any

import numpy as np
from pydantic import Field

from cluster.artifact import Artifact, ArtifactWriter
from cluster.errors import BadInputError
from cluster.session import cluster_cpus, ray_session
from cluster.tasks import run_tasks
from cluster.telemetry import say
from jobs.inputs import Table, open_model, open_table
from jobs.pictures import load_picture
from jobs.streaming import Describe, DescribeConfig, cut, picture_config, stream
from manet.errors import PictureError
from manet.pooling import DescriptorName


class Config(DescribeConfig):
    """Flags of `manet bench extract`."""

    catalog: str
    """Catalog artifact, or a Parquet file."""
    model: str
    """Model artifact."""
    pictures: int = Field(default=512, ge=2)
    """Pictures of the catalogue that are described."""
    descriptor: DescriptorName = "sr-mac"
    """Descriptor to compute."""


def run(config: Config) -> dict[str, Any]:
    """Measure the job and the bare model on the same cores; returns both rates and their ratio."""
    table, model = open_table(config.catalog, "catalog", "--catalog"), open_model(config.model)
    rows = min(config.pictures, table.rows)
    units = cut(rows, config.part_rows)
    if len(units) < 2:
        raise BadInputError(
            f"--pictures {rows} make one part of {config.part_rows}: give more, or a smaller --part-rows"
        )
    with ray_session(config):
        workers = config.model_actors or cluster_cpus()
        bare = _bare(config, table, model, workers, rows)
        job = _job(config, table, model, units)
    ratio = round(job["rate"] / bare, 3)
    say(f"bare model {bare:.2f} pictures/s on {workers} workers, job {job['rate']:.2f}: ratio {ratio}")
    return {
        "kind": "bench",
        "pictures": rows,
        "workers": workers,
        "bare_pictures_per_s": round(bare, 2),
        "job_pictures_per_s": round(job["rate"], 2),
        "ratio": ratio,
        "start_up_s": round(job["start_up"], 1),
    }


def _bare(config: Config, table: Table, model: Artifact, workers: int, rows: int) -> float:
    """Pictures a second of the model alone: `workers` tasks side by side, pictures decoded beforehand."""
    share = max(config.batch_size, min(128, rows // workers))
    pictures = picture_config(model, config.size)

    def measure(worker: int) -> tuple[float, float, int]:
        decoded = [load_picture(uri, pictures) for _, uri in table.pictures(0, min(share, table.rows))]
        pixels = np.stack([picture for picture in decoded if not isinstance(picture, PictureError)])
        describer = Describe.load(model, (config.descriptor,), config)
        describer.describe(pixels[: config.batch_size])  # warm
        meet = time.time() // 10 * 10 + 20  # all workers start together, on the clock
        time.sleep(max(0.0, meet - time.time()))
        started, done = time.time(), 0
        while time.time() - started < 15:
            describer.describe(pixels)
            done += len(pixels)
        return started, time.time(), done

    spans = list(run_tasks(measure, list(range(workers)), cpus=config.model_cpus, gpus=config.model_gpus))
    return float(sum(done / (stop - start) for start, stop, done in spans))


def _job(config: Config, table: Table, model: Artifact, units: list[Any]) -> dict[str, float]:
    """Steady rate of the stream, and the seconds to its first finished part."""
    with tempfile.TemporaryDirectory() as scratch:
        writer = ArtifactWriter.open(f"{scratch}/out", "descriptors", config={}, claimed=(), inputs={})
        started = time.monotonic()
        marks = []
        done = 0
        for counts in stream(writer.store, table, model, config, (config.descriptor,), units):
            done += int(counts["rows"] + counts["rejects"])
            marks.append((time.monotonic(), done))
    first, last = marks[0], marks[-1]
    return {"rate": (last[1] - first[1]) / (last[0] - first[0]), "start_up": first[0] - started}
