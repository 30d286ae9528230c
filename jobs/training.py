"""Data-parallel training of MANet on Ray Train: what runs on the driver (`fit`) and on every worker (`_loop`).

Two stages (METHOD.md "Training"): the saliency branch alone on Dice, then backbone and saliency branch together on
cross-entropy + lambda * Dice + an instance loss over two views of every picture. Pictures come as a Ray Data stream that
every epoch decodes and augments anew; no worker holds the set. Every epoch ends with a checkpoint in the store; a run that
lost a worker, or its driver, goes on from the newest.
"""

import contextlib
import json
import math
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from pydantic import BaseModel, ConfigDict

from cluster.artifact import Artifact
from cluster.errors import ClusterError, JobFailedError
from cluster.session import beside_driver, cluster_cpus, quiet, require_resources
from cluster.storage import arrow_filesystem
from cluster.streams import alive_nodes, configure_data
from cluster.telemetry import Meter, say
from jobs.inputs import fetch_weights, local_copy
from jobs.memory import FOR_TRAINING
from jobs.parquet import read_parquet
from jobs.pictures import load_picture
from manet.config import NetworkConfig
from manet.errors import ManetError, PictureError
from manet.images import PictureConfig
from manet.network import InitialWeights

if TYPE_CHECKING:
    import torch

    from manet.network import MANet

DECODER_TIMES = 10  # how much faster the saliency decoder, which starts at random, learns than its pretrained encoder
DECODE_CPUS = 0.25  # of one task that decodes and augments a part
_MOMENTS = "optimizer.safetensors"


class Plan(BaseModel):
    """All that a training run is made of; the fields are those of `jobs.train.Config`."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    network: NetworkConfig
    weights: InitialWeights
    init: Artifact | None
    train_rows: int
    categories: tuple[str, ...]
    train_size: int
    saliency_epochs: int
    epochs: int
    batch_size: int
    saliency_lr: float
    lr: float
    head_lr: float
    weight_decay: float
    saliency_loss: float
    instance_loss: float
    frozen_stride: int
    seed: int
    workers: int
    worker_cpus: float
    worker_gpus: float
    retries: int

    @property
    def batch(self) -> int:
        """Pictures that each worker takes a step."""
        return max(1, self.batch_size // self.workers)

    @property
    def steps(self) -> int:
        """Steps of one epoch."""
        return max(1, math.ceil(self.train_rows / (self.batch * self.workers)))

    @property
    def views(self) -> int:
        """Augmented views of a training picture in one batch: two where the instance loss compares them."""
        return 2 if self.instance_loss > 0 and self.epochs > 0 else 1

    def stage(self, epoch: int) -> str:
        """`saliency` or `joint`."""
        return "saliency" if epoch < self.saliency_epochs else "joint"

    def goes_on(self, epoch: int) -> bool:
        """Whether an epoch follows another one of its stage."""
        return 0 < epoch < self.saliency_epochs + self.epochs and self.stage(epoch) == self.stage(epoch - 1)


def default_cpus(workers: int, gpus: float) -> float:
    """CPUs of a training worker where nobody says: 1 beside a GPU, else an equal share of what decoding leaves, on one node."""
    share = max(0.5, (cluster_cpus() - DECODE_CPUS) / workers)
    return 1.0 if gpus else min(share, max((cpus for cpus, _ in alive_nodes() if cpus), default=share))


def fit(plan: Plan, masks: Artifact, checkpoints: str, into: Path, meter: Meter) -> list[dict[str, Any]]:
    """Train, or go on from the newest checkpoint; leave the model's files in `into`; return one row an epoch.

    The first worker's steps advance `meter`; every epoch's figures are said.

    Raises:
        JobFailedError: training failed more often than `plan.retries`.
    """
    import ray.data
    import ray.exceptions
    import ray.train
    from ray.train.torch import TorchTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError
    from ray.util.queue import Queue

    configure_data()
    quiet("ray.train")
    require_resources(
        cpus=plan.worker_cpus,
        gpus=plan.worker_gpus,
        workers=plan.workers,
        spare_cpus=DECODE_CPUS,
        flags="--workers / --worker-cpus / --worker-gpus",
    )
    filesystem, path = arrow_filesystem(checkpoints)
    in_order = ray.data.ExecutionOptions(preserve_order=True)  # the same run again sees the same batches
    progress, clock = Queue(actor_options=beside_driver()), _open_clock()
    trainer = TorchTrainer(
        _loop,
        train_loop_config={"plan": plan, "progress": progress, "clock": clock},
        scaling_config=ray.train.ScalingConfig(
            num_workers=plan.workers,
            use_gpu=plan.worker_gpus > 0,
            resources_per_worker={"CPU": plan.worker_cpus} | ({"GPU": plan.worker_gpus} if plan.worker_gpus else {}),
        ),
        run_config=cast(Any, ray.train.RunConfig)(  # its types are those of Ray Train's first version
            name="run",
            worker_runtime_env={"env_vars": FOR_TRAINING},
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=ray.train.FailureConfig(max_failures=plan.retries),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
        ),
        datasets={split: _stream(masks, split, plan, clock) for split in ("train", "val")},
        dataset_config=ray.train.DataConfig(execution_options=in_order),
    )
    listener = threading.Thread(target=_listen, args=(progress, meter), daemon=True)
    listener.start()
    try:
        result = trainer.fit()
    except TrainingFailedError as error:
        raise _cause(error) from error
    finally:
        with contextlib.suppress(ray.exceptions.RayError):  # it is gone with a session that was stopped
            progress.put(None)
            listener.join(10)
            progress.shutdown()
            ray.kill(clock)
    if result.error is not None or result.checkpoint is None:
        raise JobFailedError(f"training failed: {result.error or 'no epoch was finished'}")
    with result.checkpoint.as_directory() as folder:
        for name in ("model.safetensors", "config.json"):
            (into / name).write_bytes((Path(folder) / name).read_bytes())
        history: list[dict[str, Any]] = json.loads((Path(folder) / "history.json").read_text())
    return history


def _cause(error: Any) -> Exception:  # noqa: ANN401 - ray.train.v2.api.exceptions.TrainingFailedError, imported lazily
    """What ended training, in one line: the first failed worker's own error where it has one."""
    failures = getattr(error, "worker_failures", None) or {}
    first = failures[min(failures)] if failures else getattr(error, "controller_failure", error)
    first = getattr(first, "cause", None) or first
    if isinstance(first, (ClusterError, ManetError)):
        return first
    lines = [line.strip() for line in str(first).splitlines() if line.strip()] or [type(first).__name__]
    worker = f"worker {min(failures)}: " if failures else ""
    return JobFailedError(
        f"training failed: {worker}{lines[-1][:300]}; the same command goes on from the newest checkpoint"
    )


def _listen(progress: Any, meter: Meter) -> None:  # noqa: ANN401 - ray.util.queue.Queue, imported lazily
    """On the driver: steps done in all, and the figures of finished epochs, until None comes."""
    import ray.exceptions

    with contextlib.suppress(ray.exceptions.RayError):  # the session was stopped
        while (news := progress.get()) is not None:
            if isinstance(news, int):
                meter.advance(news - meter.done)
            else:
                say("train: " + ", ".join(f"{name} {value}" for name, value in news.items()))


def _open_clock() -> Any:  # noqa: ANN401 - a handle of a Ray actor
    """An actor that knows the epoch. A stream of Ray Data counts how often it was played, but anew after a restart."""
    import ray

    class Clock:
        def __init__(self) -> None:
            self._epoch = 0

        def set(self, epoch: int) -> None:
            self._epoch = epoch

        def get(self) -> int:
            return self._epoch

    return ray.remote(**beside_driver())(Clock).remote()


def _stream(masks: Artifact, split: str, plan: Plan, clock: Any) -> Any:  # noqa: ANN401 - ray.data.Dataset, imported lazily
    """A Ray Data stream of one split: `pixels` [V, S, S, 3], `mask` [V, S, S], `label`; V augmented views for training, else
    the picture as it is.
    """
    import ray

    parts = [part for part in masks.parts(f"masks-{split}-") if part.rows]
    rows = [{"part": part.name, "at": at} for at, part in enumerate(parts)]
    return ray.data.from_items(rows, override_num_blocks=len(parts)).map_batches(
        cast(Any, _decode),
        batch_size=1,
        fn_args=(masks, plan.train_size, plan.views if split == "train" else 0, plan.seed, clock),
        num_cpus=DECODE_CPUS,
    )


def _decode(
    batch: dict[str, Any],
    masks: Artifact,
    size: int,
    views: int,
    seed: int,
    clock: Any,  # noqa: ANN401 - a handle of a Ray actor
) -> dict[str, Any]:
    import cv2
    import ray
    import torch

    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    draws = np.random.SeedSequence((seed, ray.get(clock.get.remote()), int(batch["at"][0])))
    torch.manual_seed(int(draws.generate_state(1)[0]))  # other views in every epoch, the same ones after a restart
    part = next(part for part in masks.manifest.parts if part.name == batch["part"][0])
    pixels, grey, labels = [], [], []
    for row in read_parquet(masks.read(part)).to_pylist():
        picture = load_picture(row["uri"], PictureConfig(size=size))
        if isinstance(picture, PictureError):
            raise JobFailedError(f"{row['uri']} was usable when the masks were made and is not now: {picture.detail}")
        pixels.append(picture)
        mask = cv2.imdecode(np.frombuffer(row["mask"], np.uint8), cv2.IMREAD_GRAYSCALE)
        grey.append(cv2.resize(mask, (size, size)))
        labels.append(row["label"])
    kinds = [(np.stack(pixels), np.stack(grey))]
    if views:
        kinds = [_augmented(pixels, grey) for _ in range(views)]
    return {
        "pixels": np.stack([pictures for pictures, _ in kinds], 1),
        "mask": np.stack([masks for _, masks in kinds], 1),
        "label": np.array(labels, np.int64),
    }


def _augmented(pixels: list[Any], grey: list[Any]) -> tuple[Any, Any]:
    """One random view of every picture and of its mask, [n, S, S, 3] and [n, S, S]."""
    import torch

    from manet.augment import consumer_view

    others = [pixels[int(index)] for index in torch.randperm(len(pixels))]
    views = [consumer_view(*three) for three in zip(pixels, grey, others, strict=True)]
    return np.stack([picture for picture, _ in views]), np.stack([mask for _, mask in views])


def _loop(config: dict[str, Any]) -> None:
    """What every worker runs: all epochs that the newest checkpoint has not done."""
    import ray
    import ray.train
    import torch

    plan: Plan = config["plan"]
    first = ray.train.get_context().get_world_rank() == 0
    tell = config["progress"].put_nowait if first else lambda _: None
    begin = (lambda epoch: ray.get(config["clock"].set.remote(epoch))) if first else lambda _: None
    torch.set_num_threads(math.ceil(plan.worker_cpus))
    torch.manual_seed(plan.seed)
    device = ray.train.torch.get_device()
    network, history, moments = _start(plan)
    network.to(device).to(memory_format=torch.channels_last)
    tell(len(history) * plan.steps)
    step: _Stage | None = None
    for epoch in range(len(history), plan.saliency_epochs + plan.epochs):
        if step is None or plan.stage(epoch) != plan.stage(epoch - 1):
            step = _Stage(network, plan, epoch, device, moments)
            moments = {}
        begin(epoch)  # no worker's share of the stream is played before all ask for theirs
        row = step.train_epoch(epoch, ray.train.get_dataset_shard("train"), tell)
        row |= step.validate(ray.train.get_dataset_shard("val"))
        history.append({"epoch": epoch, "stage": plan.stage(epoch), **row})
        tell(history[-1])
        _report(network, plan, history, step.moments() if first and plan.goes_on(epoch + 1) else {})


def _start(plan: Plan) -> tuple["MANet", list[dict[str, Any]], dict[str, "torch.Tensor"]]:
    """The network, the epochs done, the optimiser's moments within a stage: from the newest checkpoint, else from the
    initial weights.
    """
    import ray.train
    from safetensors.torch import load_file

    from manet.checkpoint import load_model
    from manet.network import MANet, initial
    from manet.weights import load_into

    checkpoint = ray.train.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as folder:
            history = json.loads((Path(folder) / "history.json").read_text())
            goes_on, path = plan.goes_on(len(history)), Path(folder) / _MOMENTS
            if goes_on and not path.exists():
                raise JobFailedError("the newest checkpoint is of an older version; train anew with --overwrite")
            return load_model(Path(folder)), history, load_file(path) if goes_on else {}
    if plan.init is None:
        return initial(plan.network, plan.weights, fetch_weights), [], {}
    network = MANet(plan.network)
    own = network.state_dict()
    source = load_model(local_copy(plan.init)).state_dict()
    fits = {
        name: value for name, value in source.items() if not name.startswith("head.") or _fits(value, own.get(name))
    }
    load_into(network, {**own, **fits}, plan.init.uri, strict=False)
    return network, [], {}


def _fits(value: "torch.Tensor", place: "torch.Tensor | None") -> bool:
    return place is not None and value.shape == place.shape


def _report(network: "MANet", plan: Plan, history: list[dict[str, Any]], moments: dict[str, "torch.Tensor"]) -> None:
    """End of an epoch: metrics, and from the first worker a checkpoint."""
    import ray.train
    from safetensors.torch import save_file

    from manet.checkpoint import save_model

    with tempfile.TemporaryDirectory() as scratch:
        checkpoint = None
        if ray.train.get_context().get_world_rank() == 0:
            save_model(Path(scratch), network, plan.categories)
            (Path(scratch) / "history.json").write_text(json.dumps(history))
            save_file(moments, Path(scratch) / _MOMENTS)
            checkpoint = ray.train.Checkpoint.from_directory(scratch)
        ray.train.report(history[-1], checkpoint=checkpoint)


def _like(mask: "torch.Tensor", saliency_B1hw: "torch.Tensor") -> "torch.Tensor":
    """Grey masks [B, S, S] at the saliency map's resolution, [B, h, w]."""
    from torch.nn import functional as F

    size = saliency_B1hw.shape[-2:]
    return F.interpolate(mask[:, None].float(), size=size, mode="bilinear", antialias=True, align_corners=False)[:, 0]


class _Stage:
    """Optimiser, schedule and steps of one stage."""

    def __init__(
        self,
        network: "MANet",
        plan: Plan,
        epoch: int,
        device: "torch.device",
        moments: Mapping[str, "torch.Tensor"],
    ) -> None:
        import ray.train
        import ray.train.torch
        import torch

        from manet.backbone import freeze_early
        from manet.network import JointStage, SaliencyStage

        self._network, self._plan, self._device = network, plan, device
        self._saliency_only = plan.stage(epoch) == "saliency"
        self._first = 0 if self._saliency_only else plan.saliency_epochs
        self._epochs = plan.saliency_epochs if self._saliency_only else plan.epochs
        self._batch, self._steps = plan.batch, plan.steps
        network.backbone.requires_grad_(not self._saliency_only)
        for net in (network.backbone.net, network.saliency.encoder):
            freeze_early(net, plan.frozen_stride)
        if network.head is not None:
            network.head.requires_grad_(not self._saliency_only)
        module = SaliencyStage(network) if self._saliency_only else JointStage(network)
        self._module = ray.train.torch.prepare_model(module, parallel_strategy_kwargs={"broadcast_buffers": False})
        if self._saliency_only:
            groups = [
                {"params": network.saliency.encoder.parameters(), "lr": plan.saliency_lr},
                {"params": network.saliency.decoder_parameters(), "lr": plan.saliency_lr * DECODER_TIMES},
            ]
        else:
            groups = [{"params": part.parameters(), "lr": plan.lr} for part in (network.saliency, network.backbone)]
            if network.head is not None:
                groups.append({"params": network.head.parameters(), "lr": plan.head_lr})
        self._optimizer = torch.optim.AdamW(groups, weight_decay=plan.weight_decay)
        self._peaks = [group["lr"] for group in self._optimizer.param_groups]
        if moments:
            state: dict[int, dict[str, torch.Tensor]] = {}
            parameters = [each for group in self._optimizer.param_groups for each in group["params"]]
            for name, value in moments.items():
                index, _, key = name.partition(".")
                like = parameters[int(index)]  # its layout in memory too
                moment = torch.empty_like(like, device="cpu").copy_(value) if value.shape == like.shape else value
                state.setdefault(int(index), {})[key] = moment
            self._optimizer.load_state_dict({**self._optimizer.state_dict(), "state": state})

    def moments(self) -> dict[str, "torch.Tensor"]:
        """The optimiser's state, by parameter and name."""
        state: dict[int, dict[str, torch.Tensor]] = self._optimizer.state_dict()["state"]
        return {
            f"{index}.{key}": value.detach().cpu().contiguous()
            for index, values in state.items()
            for key, value in values.items()
        }

    def train_epoch(self, epoch: int, shard: Any, tell: Callable[[Any], None]) -> dict[str, float]:  # noqa: ANN401
        """One pass over this worker's share (a ray.data.DataIterator); mean losses. `tell` hears of every step."""
        import torch

        from manet.network import freeze_statistics

        torch.manual_seed(self._plan.seed + epoch)
        self._module.train()
        freeze_statistics(self._network)
        sums: dict[str, float] = {}
        count = 0
        for index, batch in enumerate(self._batches(shard, shuffle_seed=self._plan.seed + epoch)):
            if index == self._steps:  # every worker takes the same number of steps, whatever its share
                break
            self._schedule((epoch - self._first) * self._steps + index)
            losses = self._losses(batch)
            self._optimizer.zero_grad(set_to_none=True)
            losses["loss"].backward()
            self._optimizer.step()
            count += 1
            tell(epoch * self._steps + count)
            for name, value in losses.items():
                sums[name] = sums.get(name, 0.0) + float(value.detach())
        return {name: round(total / max(1, count), 5) for name, total in sums.items()}

    def validate(self, shard: Any) -> dict[str, float]:  # noqa: ANN401 - ray.data.DataIterator
        """Dice loss and class accuracy over the validation split (this worker's share of it)."""
        import torch

        from manet.losses import binarise_at_mean, dice_loss

        self._module.eval()
        rows, dice, right = 0, 0.0, 0
        with torch.inference_mode():
            for batch in self._batches(shard):
                saliency, logits, _ = self._module(batch["pixels"])
                mask = binarise_at_mean(_like(batch["mask"], saliency))
                here = len(batch["label"])
                dice += float(dice_loss(saliency[:, 0], mask)) * here
                if logits is not None:
                    right += int((logits.argmax(1) == batch["label"]).sum())
                rows += here
        rows = max(1, rows)
        return {"val_dice_loss": round(dice / rows, 5)} | (
            {} if self._saliency_only else {"val_accuracy": round(right / rows, 5)}
        )

    def _batches(self, shard: Any, shuffle_seed: int | None = None) -> Iterator[dict[str, Any]]:  # noqa: ANN401
        shuffle = shuffle_seed is not None
        for batch in shard.iter_torch_batches(
            batch_size=self._batch,
            device=self._device,
            drop_last=shuffle and self._steps > 1,
            local_shuffle_buffer_size=self._batch * 8 if shuffle else None,
            local_shuffle_seed=shuffle_seed,
        ):
            views = batch["pixels"].shape[1]  # side by side: view v of picture b is row b * V + v
            yield {
                "pixels": batch["pixels"].flatten(0, 1),
                "mask": batch["mask"].flatten(0, 1),
                "label": batch["label"].long().repeat_interleave(views),
            }

    def _losses(self, batch: dict[str, Any]) -> dict[str, Any]:
        from torch.nn import functional as F

        from manet.losses import binarise_at_mean, dice_loss, instance_loss

        saliency, logits, descriptors = self._module(batch["pixels"])
        dice = dice_loss(saliency[:, 0], binarise_at_mean(_like(batch["mask"], saliency)))
        if self._saliency_only:
            return {"loss": dice, "dice_loss": dice}
        entropy = F.cross_entropy(logits, batch["label"])
        losses = {"dice_loss": dice, "cross_entropy": entropy}
        total = entropy + self._plan.saliency_loss * dice
        if self._plan.views == 2:
            losses["instance_loss"] = instance_loss(descriptors.unflatten(0, (-1, 2)))
            total = total + self._plan.instance_loss * losses["instance_loss"]
        return {"loss": total, **losses}

    def _schedule(self, step: int) -> None:
        """Cosine from the peak to 0 over the stage, after a warm-up of a twentieth of it."""
        total = self._epochs * self._steps
        warm = max(1, total // 20)
        factor = (
            (step + 1) / warm if step < warm else 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))
        )
        for group, peak in zip(self._optimizer.param_groups, self._peaks, strict=True):
            group["lr"] = peak * factor
