"""What a training run is made of, and how its epochs are judged.

`jobs.train` makes the plan of its flags, `jobs.training` carries it out, `jobs.stages` takes the steps.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from cluster.artifact import Artifact
from manet.config import NetworkConfig
from manet.network import InitialWeights

Branch = Literal["all", "saliency", "text"]
Stage = Literal["saliency", "joint", "text"]
WORST = -1e9  # a score below any


class Plan(BaseModel):
    """All that a training run is made of; the fields are those of `jobs.train.Config`."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    branch: Branch
    network: NetworkConfig
    weights: InitialWeights
    init: Artifact | None
    train_rows: int
    categories: tuple[str, ...]
    pictures: tuple[int, ...]
    train_size: int
    saliency_epochs: int
    epochs: int
    batch_size: int
    saliency_lr: float
    lr: float
    head_lr: float
    weight_decay: float
    saliency_loss: float
    frozen_saliency: bool
    instance_loss: float
    pasted: float
    frozen_stride: int
    balance: float
    patience: int
    precision: Literal["float32", "bfloat16"]
    seed: int
    workers: int
    workers_min: int
    worker_cpus: float
    worker_gpus: float
    retries: int

    def batch_of(self, workers: int) -> int:
        """Pictures that each of so many workers takes a step."""
        return max(1, self.batch_size // workers)

    def steps_of(self, workers: int) -> int:
        """Steps of one epoch."""
        return max(1, self.train_rows // (self.batch_of(workers) * workers))  # a batch that is not full is left out

    @property
    def views(self) -> int:
        """Augmented views of a training picture in one batch: two where the instance loss compares them."""
        return 2 if self.branch == "all" and self.instance_loss > 0 and self.epochs > 0 else 1

    def score(self, row: Mapping[str, Any]) -> float:
        """How good an epoch is, by a figure of the last stage; one of another stage, or that has diverged, is behind all."""
        last = self.stage(self.saliency_epochs + self.epochs - 1)
        saliency = "val_loss" if self.branch == "saliency" else "val_dice_loss"
        name, sign = {"saliency": (saliency, -1), "joint": ("val_map@7", 1), "text": ("val_text_loss", -1)}[last]
        return sign * float(row[name]) if row.get("stage") == last and not has_diverged(row) else WORST

    def is_over(self, history: Sequence[Mapping[str, Any]]) -> bool:
        """Whether training has diverged, or the last stage has gone on for `patience` epochs without a better one."""
        if history and has_diverged(history[-1]):
            return True
        scores = [self.score(row) for row in history]
        best = max(scores, default=WORST)
        return best > WORST and 0 < self.patience < len(scores) - scores.index(best)

    @property
    def repeats(self) -> tuple[float, ...]:
        """How often a picture of each category is shown in an epoch, on average: its category's size to the power -`balance`,
        so that the epoch is as long as it was.
        """
        sizes = np.maximum(1.0, np.array(self.pictures or (1,), float))
        weights = sizes**-self.balance
        return tuple((weights * sizes.sum() / (weights * sizes).sum()).tolist())

    def stage(self, epoch: int) -> Stage:
        """What is trained in an epoch."""
        if self.branch == "text":
            return "text"
        return "saliency" if epoch < self.saliency_epochs else "joint"

    def span(self, epoch: int) -> tuple[int, int]:
        """The first epoch of an epoch's stage, and how many it has."""
        early = self.stage(epoch) == "saliency"
        return (0, self.saliency_epochs) if early else (self.saliency_epochs, self.epochs)

    def goes_on(self, epoch: int) -> bool:
        """Whether an epoch follows another one of its stage."""
        return 0 < epoch < self.saliency_epochs + self.epochs and self.stage(epoch) == self.stage(epoch - 1)


def has_diverged(row: Mapping[str, Any]) -> bool:
    """Whether an epoch's figures over the validation split, the same on all workers, are numbers no more."""
    return not all(math.isfinite(value) for name, value in row.items() if name.startswith("val_"))
