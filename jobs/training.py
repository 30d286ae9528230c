"""Data-parallel training of MANet on Ray Train: what runs on the driver (`fit`) and on every worker (`_loop`).

Two stages (METHOD.md "Training"): the saliency branch alone on Dice, then backbone and saliency branch together on
cross-entropy + lambda * Dice. Pictures come as a Ray Data stream that every epoch decodes and augments anew; no worker holds
the set. Every epoch ends with a checkpoint in the store; a run that lost a worker, or its driver, goes on from the newest.
"""

import json
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from cluster.artifact import Artifact
from cluster.errors import JobFailedError
from cluster.storage import arrow_filesystem
from cluster.telemetry import say
from jobs.inputs import fetch_weights
from jobs.parquet import read_parquet
from jobs.pictures import load_picture
from manet.errors import PictureError
from manet.images import PictureConfig
from manet.network import NetworkConfig

if TYPE_CHECKING:
    import torch

    from manet.network import MANet

DECODE_ROWS = 64  # pictures of one block of the stream


class Plan(BaseModel):
    """All that a training run is made of; the fields are those of `jobs.train.Config`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    network: NetworkConfig
    categories: tuple[str, ...]
    train_size: int
    saliency_epochs: int
    epochs: int
    batch_size: int
    lr: float
    head_lr: float
    weight_decay: float
    saliency_loss: float
    seed: int
    workers: int
    worker_cpus: float
    worker_gpus: float
    retries: int

    def stage(self, epoch: int) -> str:
        """`saliency` or `joint`."""
        return "saliency" if epoch < self.saliency_epochs else "joint"


def fit(plan: Plan, masks: Artifact, checkpoints: str, into: Path) -> list[dict[str, Any]]:
    """Train, or go on from the newest checkpoint; leave the model's files in `into`; return one row an epoch.

    Raises:
        JobFailedError: training failed more often than `plan.retries`.
    """
    import ray.train
    from ray.train.torch import TorchTrainer

    filesystem, path = arrow_filesystem(checkpoints)
    trainer = TorchTrainer(
        _loop,
        train_loop_config={"plan": plan.model_dump()},
        scaling_config=ray.train.ScalingConfig(
            num_workers=plan.workers,
            use_gpu=plan.worker_gpus > 0,
            resources_per_worker={"CPU": plan.worker_cpus} | ({"GPU": plan.worker_gpus} if plan.worker_gpus else {}),
        ),
        run_config=ray.train.RunConfig(
            name="run",
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=ray.train.FailureConfig(max_failures=plan.retries),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
        ),
        datasets={split: _stream(masks, split, plan) for split in ("train", "val")},
    )
    result = trainer.fit()
    if result.error is not None or result.checkpoint is None:
        raise JobFailedError(f"training failed: {result.error or 'no epoch was finished'}")
    with result.checkpoint.as_directory() as folder:
        for name in ("model.safetensors", "config.json"):
            (into / name).write_bytes((Path(folder) / name).read_bytes())
        history: list[dict[str, Any]] = json.loads((Path(folder) / "history.json").read_text())
    return history


def _stream(masks: Artifact, split: str, plan: Plan) -> Any:  # noqa: ANN401 - ray.data.Dataset, imported lazily
    """A Ray Data stream of one split: `pixels` [S, S, 3], `mask` [S, S], `label`; augmented for training."""
    import ray

    parts = [part for part in masks.parts(f"masks-{split}-") if part.rows]
    rows = [{"part": part.name, "rows": part.rows} for part in parts]
    return ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        _decode, batch_size=1, fn_args=(masks, plan.train_size, split == "train"), num_cpus=0.5
    )


def _decode(batch: dict[str, Any], masks: Artifact, size: int, augment: bool) -> dict[str, Any]:
    import cv2
    import torch

    from manet.augment import consumer_view

    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    part = next(part for part in masks.manifest.parts if part.name == batch["part"][0])
    pixels, grey, labels = [], [], []
    for row in read_parquet(masks.read(part)).to_pylist():
        picture = load_picture(row["uri"], PictureConfig(size=size))
        if isinstance(picture, PictureError):
            raise JobFailedError(f"{row['uri']} was usable when the masks were made and is not now: {picture.detail}")
        mask = cv2.resize(cv2.imdecode(np.frombuffer(row["mask"], np.uint8), cv2.IMREAD_GRAYSCALE), (size, size))
        if augment:
            picture, mask = consumer_view(picture, mask)
        pixels.append(picture)
        grey.append(mask)
        labels.append(row["label"])
    return {"pixels": np.stack(pixels), "mask": np.stack(grey), "label": np.array(labels, np.int64)}
