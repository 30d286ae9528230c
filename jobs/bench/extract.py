"""`bench extract`: the extraction job against the bare model, a plain DataLoader loop, decoding alone and reading alone.

  manet bench extract --model run/model --catalog shop/catalog --pictures 512 --out bench/extract

Pictures a second of the job (fetch, decode, describe, write), in the same run and on the same number of workers and threads,
beside: the bare model on decoded pictures in memory; what a person writes with a PyTorch DataLoader and the same model;
the loader alone; reads from the store alone. The job's rate is that of its steady state: for each model actor from its first
finished part to its last one while all work, summed; its start-up is reported apart. The bare model is measured before the
job and after it, and the better rate counts. With --out also `extract.json` and `extract.png` (where the time goes).
"""

import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from pydantic import Field

from cluster.artifact import Artifact, ArtifactWriter
from cluster.errors import BadInputError, JobFailedError
from cluster.session import ray_session
from cluster.storage import open_store, read_uri
from cluster.tasks import run_tasks
from cluster.telemetry import say
from jobs.bench.by_torchvision import Pictures
from jobs.inputs import Table, network_of, open_model, open_table
from jobs.loading import FETCHES
from jobs.memory import FOR_PASSES
from jobs.pictures import load_picture
from jobs.planning import cut
from jobs.plotting import seconds_png
from jobs.rates import ModelRate, Rates, add_rates, origin
from jobs.streaming import DescribeConfig, picture_config, plan_of, stream
from jobs.workers import Describe, make_loader
from manet.config import refuse_lacking
from manet.errors import PictureError
from manet.names import DescriptorName

_SECONDS = 15.0  # of each measurement that can be cut short
_PART = 64
_LEAST = 24  # pictures of one worker: a few batches
_PARTS = 3  # parts of one worker: between the ends of the first and the last it is measured
_STAGES = ("fetch_s", "decode_s", "wait_model_s", "model_s", "idle_s", "write_s")


class Config(DescribeConfig):
    """Flags of `manet bench extract`."""

    catalog: str
    """Catalog artifact, or a Parquet file."""
    model: str
    """Model artifact."""
    pictures: int = Field(default=512, ge=2)
    """Pictures of the catalogue that are described."""
    part_rows: int = Field(default=32, ge=1, le=4096)
    """Rows of one part; each worker needs a few parts."""
    descriptor: DescriptorName = "sr-mac"
    """Descriptor to compute."""
    out: str = ""
    """Folder for `extract.json` and `extract.png`; default: nothing is written."""
    rates: str = ""
    """File to write the model's rate into, for `manet plan`; default: it is printed only."""


def run(config: Config) -> dict[str, Any]:
    """Measure all on the same cores; returns the rates and the job's ratio to each."""
    table, model = open_table(config.catalog, "catalog", "--catalog"), open_model(config.model)
    refuse_lacking(network_of(model), [config.descriptor])
    rows = min(config.pictures, table.rows)
    units = cut(rows, config.part_rows)
    with ray_session(config):
        workers = plan_of(config, len(units)).models
        if rows < workers * _LEAST:
            raise BadInputError(f"--pictures {rows} are too few for {workers} workers: give {_LEAST} for each")
        if len(units) < workers * _PARTS:
            raise BadInputError(
                f"--pictures {rows} make {len(units)} part(s) of {config.part_rows} for {workers} workers: give more, or a "
                "smaller --part-rows"
            )
        loop = _together(config, workers, _loop(config, table, model, workers, rows))
        bare = _bare(config, table, model, workers, rows)
        job = _job(config, table, model, units)
        bare = max(bare, _bare(config, table, model, workers, rows))
        loader = _together(config, workers, _loader(config, table, model, workers, rows))
        store = _together(config, workers, _reads(table, workers, rows))
        device = next(iter(run_tasks(_device, [config.computes_on], gpus=config.model_gpus)))
    if config.rates:
        part_s = config.part_rows * workers * (1 / bare + 1 / loader)  # of the first part, which the start-up holds too
        measured = ModelRate(
            origin=origin("" if device == "cpu" else device),
            device=device,
            size=picture_config(model, config.size).size,
            pictures_per_s=bare / workers,
            descriptor_bytes=job["write_bytes"] / rows,
            start_s=max(0.0, job["start_up"] - part_s),
            precision=config.precision,
            model_cpus=config.model_cpus,
        )
        add_rates(config.rates, Rates(models={device: measured}))
    rates = {"bare_model": bare, "dataloader_loop": loop, "decode_alone": loader, "reads_alone": store}
    found = {
        "kind": "bench",
        "pictures": rows,
        "workers": workers,
        "job_pictures_per_s": round(job["rate"], 2),
        **{f"{name}_pictures_per_s": round(rate, 2) for name, rate in rates.items()},
        **{f"ratio_{name}": round(job["rate"] / rate, 4) for name, rate in rates.items() if rate},
        "start_up_s": round(job["start_up"], 1),
        "stages": {name: round(job[name], 2) for name in _STAGES},
    }
    for name, rate in {"job": job["rate"], **rates}.items():
        say(f"{name.replace('_', ' '):16} {rate:10.2f} pictures/s   job / this {job['rate'] / max(rate, 1e-9):.3f}")
    if config.out:
        sink = open_store(config.out)
        sink.write("extract.json", json.dumps(found, indent=1).encode())
        sink.write("extract.png", seconds_png({name: job[name] / rows for name in _STAGES}))
    return found


def _bare(config: Config, table: Table, model: Artifact, workers: int, rows: int) -> float:
    """Pictures a second of the model alone: `workers` tasks side by side, pictures decoded beforehand."""
    share = min(128, max(16, rows // workers))
    pictures = picture_config(model, config.size)

    def measure(worker: int) -> tuple[float, float, int]:
        decoded = [load_picture(uri, pictures) for _, uri in table.pictures(0, min(share, table.rows))]
        pixels = np.stack([picture for picture in decoded if not isinstance(picture, PictureError)])
        describer = Describe.load(model, (config.descriptor,), config)
        describer.describe(pixels[:16])  # warm
        meet = time.time() // 10 * 10 + 20  # all workers start together, on the clock
        time.sleep(max(0.0, meet - time.time()))
        started, done = time.time(), 0
        while time.time() - started < _SECONDS:
            describer.describe(pixels)
            done += len(pixels)
        return started, time.time(), done

    tasks = run_tasks(measure, list(range(workers)), cpus=config.model_cpus, gpus=config.model_gpus, environ=FOR_PASSES)
    spans = list(tasks)
    return float(sum(done / (stop - start) for start, stop, done in spans))


def _device(device: str) -> str:
    """What the model runs on: `cpu`, or the GPU's name."""
    if device == "cpu":
        return "cpu"
    import torch

    return str(torch.cuda.get_device_name())


def _job(config: Config, table: Table, model: Artifact, units: list[Any]) -> dict[str, float]:
    """Steady rate of the stream, the seconds to its first finished part, sums over all parts.

    Raises:
        JobFailedError: an actor described less than two parts while all worked.
    """
    with tempfile.TemporaryDirectory() as scratch:
        writer = ArtifactWriter.open(f"{scratch}/out", "descriptors", config={}, claimed=(), inputs={})
        started = time.monotonic()
        ends, sums = defaultdict[str, list[tuple[float, int]]](list), dict.fromkeys((*_STAGES, "write_bytes"), 0.0)
        for counts in stream(writer.units, table, model, config, (config.descriptor,), units):
            ends[str(counts["actor"])].append((time.monotonic(), int(counts["rows"] + counts["rejects"])))
            sums = {name: sums[name] + float(counts[name]) for name in sums}
    until = min(parts[-1][0] for parts in ends.values())  # from then on an actor has the cores to itself
    together = [[part for part in parts if part[0] <= until] for parts in ends.values()]
    if any(len(parts) < 2 for parts in together):
        raise JobFailedError(
            "an actor described a single part beside the others: give more --pictures, or a smaller --part-rows"
        )
    rate = sum(sum(rows for _, rows in parts[1:]) / (parts[-1][0] - parts[0][0]) for parts in together)
    return {**sums, "rate": rate, "start_up": min(parts[0][0] for parts in ends.values()) - started}


def _together(config: Config, workers: int, measure: Callable[[int], tuple[float, int]]) -> float:
    """Pictures a second of `workers` tasks side by side; each says its seconds and its pictures."""
    spans = list(run_tasks(measure, list(range(workers)), cpus=config.model_cpus, gpus=config.model_gpus))
    return float(sum(done / seconds for seconds, done in spans))


def _share(table: Table, worker: int, workers: int, rows: int) -> tuple[int, int]:
    """The rows of one of several workers."""
    step = max(1, min(rows, table.rows) // workers)
    return worker * step, min((worker + 1) * step, table.rows)


def _loop(config: Config, table: Table, model: Artifact, workers: int, rows: int) -> Callable[[int], tuple[float, int]]:
    """A DataLoader of one process beside each model: its pictures are described batch by batch, vectors kept."""
    pictures = picture_config(model, config.size)

    def measure(worker: int) -> tuple[float, int]:
        from torch.utils.data import DataLoader

        from manet.images import auto_batch

        describer = Describe.load(model, (config.descriptor,), config)
        uris = [uri for _, uri in table.pictures(*_share(table, worker, workers, rows))]
        batch = config.batch_size or (auto_batch(pictures.size) if config.computes_on == "cpu" else 32)
        dataset: Any = Pictures(uris, pictures.size)
        loader: Any = DataLoader(dataset, batch, num_workers=1, multiprocessing_context="spawn", prefetch_factor=8)
        kept, began, done = [], 0.0, 0
        for pixels in loader:
            kept.append(describer.describe(pixels.numpy()).vectors[config.descriptor])
            if not began:  # the loader has started, the model is warm
                began = time.monotonic()
            else:
                done += len(pixels)
        return time.monotonic() - began, done

    return measure


def _loader(
    config: Config, table: Table, model: Artifact, workers: int, rows: int
) -> Callable[[int], tuple[float, int]]:
    """Fetch and decode as the job does, without a model."""
    pictures = picture_config(model, config.size)

    def measure(worker: int) -> tuple[float, int]:
        start, stop = _share(table, worker, workers, rows)
        loader = make_loader(table, pictures, config)
        try:
            loader.load(start, min(start + 1, stop))  # its processes have started
            began, done = time.monotonic(), 0
            while time.monotonic() - began < _SECONDS / 3:
                for at in range(start, stop, _PART):
                    done += len(loader.load(at, min(at + _PART, stop)).pixels)
            return time.monotonic() - began, done
        finally:
            loader.close()

    return measure


def _reads(table: Table, workers: int, rows: int) -> Callable[[int], tuple[float, int]]:
    """The pictures' bytes, as many requests in flight as a loader has."""

    def measure(worker: int) -> tuple[float, int]:
        uris = [uri for _, uri in table.pictures(*_share(table, worker, workers, rows))]
        with ThreadPoolExecutor(FETCHES) as pool:
            began, done = time.monotonic(), 0
            while time.monotonic() - began < _SECONDS / 3:
                done += sum(1 for _ in pool.map(read_uri, uris))
            return time.monotonic() - began, done

    return measure
