"""What a step of training computes, for each stage: its parameters, its losses, its figures on the validation split.

`saliency`: the saliency branch alone, on Dice (on its teacher's grey maps too, where its weights are all that is made).
`joint`: backbone and saliency branch, on cross-entropy + lambda * Dice + the instance loss. `text`: the text branch alone, on
a detector's maps and on words written over the pictures (`train --branch text`). Source: METHOD.md "Training". Runs on the
workers of `jobs.training`.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import ray.train.torch
import torch
from torch.nn import functional as F

from manet.backbone import freeze_early
from manet.losses import binarise_at_mean, dice_loss, instance_loss, teacher_loss, text_loss
from manet.metrics import pairs_average_precision
from manet.network import JointStage, MANet, SaliencyStage, TextStage, freeze_statistics

if TYPE_CHECKING:
    from jobs.training_plan import Plan

LEVELS_LR = 0.05  # peak, of the levels' weights: three logarithms, which some hundred steps move by some units
DECODER_TIMES = 10  # how much faster a branch's decoder, which starts at random, learns than its pretrained encoder
Losses = dict[str, torch.Tensor]
Batch = dict[str, torch.Tensor]
Groups = list[dict[str, Any]]


@dataclass
class Part:
    """What is done of an epoch: steps, and the sums of their losses."""

    steps: int = 0
    sums: dict[str, float] = field(default_factory=dict)

    def of_all(self) -> dict[str, float]:
        """The sums' means over all workers, which have taken as many steps; all ask together."""
        everyone = of_all_workers(self.sums)
        return {name: sum(sums[name] for sums in everyone) / len(everyone) for name in self.sums}


class Steps:
    """Optimiser, schedule and steps of one stage.

    Args:
        network: whose parts are trained.
        plan: the run.
        epoch: any epoch of the stage.
        workers: how many train.
        device: of this worker.
        moments: the optimiser's state within the stage, from a checkpoint; empty at its beginning.
    """

    def __init__(
        self,
        network: MANet,
        plan: "Plan",
        epoch: int,
        workers: int,
        device: torch.device,
        moments: Mapping[str, torch.Tensor],
    ) -> None:
        self._network, self._plan, self._device = network, plan, device
        self._first, self._epochs = plan.span(epoch)
        self._batch, self._steps = plan.batch_of(workers), plan.steps_of(workers)
        module, groups = self._parts(network)
        self._dtype = getattr(torch, plan.precision)
        self._module = ray.train.torch.prepare_model(module, parallel_strategy_kwargs={"broadcast_buffers": False})
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

    def _parts(self, network: MANet) -> tuple[torch.nn.Module, Groups]:
        """The stage as a module, and what of it learns how fast."""
        raise NotImplementedError

    def _losses(self, batch: Batch) -> Losses:
        """Losses of a batch by name; `loss` is what is minimised."""
        raise NotImplementedError

    def _seen(self, pixels: torch.Tensor) -> Any:  # noqa: ANN401 - of the stage's module
        """The module's outputs, with its products in the run's number type; weights, losses and sums are float32."""
        with torch.autocast(self._device.type, self._dtype, enabled=self._dtype != torch.float32):
            return self._module(pixels)

    def _figures(self, batch: Batch) -> dict[str, float]:
        """Figures of a batch of the validation split, means over its pictures."""
        raise NotImplementedError

    def moments(self) -> dict[str, torch.Tensor]:
        """The optimiser's state, by parameter and name."""
        state: dict[int, dict[str, torch.Tensor]] = self._optimizer.state_dict()["state"]
        return {
            f"{index}.{key}": value.detach().cpu().contiguous()
            for index, values in state.items()
            for key, value in values.items()
        }

    def train_epoch(
        self,
        epoch: int,
        shard: Any,  # noqa: ANN401 - ray.data.DataIterator
        tell: Callable[[Any], None],
        part: Part,
        after: Callable[[Part], None],
    ) -> dict[str, float]:
        """One pass over this worker's share; the losses' means over all workers.

        Args:
            epoch: counted over all stages.
            shard: this worker's share of the stream.
            tell: hears of every step.
            part: what is done of the epoch already: so many steps' pictures are passed over. Brought up to date.
            after: is called after every step.
        """
        torch.manual_seed(self._plan.seed + epoch)
        self._module.train()
        freeze_statistics(self._network)
        done = part.steps
        for index, batch in enumerate(self._batches(shard, shuffle_seed=self._plan.seed + epoch)):
            if index == self._steps:  # every worker takes the same number of steps, whatever its share
                break
            if index < done:
                continue
            self._schedule((epoch - self._first) * self._steps + index)
            losses = self._losses(batch)
            self._optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(losses["loss"])
            self._optimizer.step()
            part.steps += 1
            tell(epoch * self._steps + part.steps)
            for name, value in losses.items():
                part.sums[name] = part.sums.get(name, 0.0) + float(value.detach())
            after(part)
        return {name: round(total / max(1, part.steps), 5) for name, total in part.of_all().items()}

    def validate(self, shard: Any) -> dict[str, float]:  # noqa: ANN401 - ray.data.DataIterator
        """The stage's figures over the validation split, the same on every worker. All have the first one's statistics then: a
        decoder's batch norms learned those of each worker's own pictures.
        """
        self._module.eval()
        if _worker_count() > 1:
            for buffer in self._module.buffers():
                torch.distributed.broadcast(buffer, 0)
        rows, sums = 0, dict[str, float]()
        with torch.inference_mode():
            for batch in self._batches(shard):
                here = len(batch["label"])
                for name, value in self._figures(batch).items():
                    sums[name] = sums.get(name, 0.0) + value * here
                rows += here
        everyone = of_all_workers((rows, sums))
        total = max(1, sum(rows for rows, _ in everyone))
        names = dict.fromkeys(name for _, sums in everyone for name in sums)
        return {f"val_{name}": round(sum(sums.get(name, 0.0) for _, sums in everyone) / total, 5) for name in names}

    def _batches(self, shard: Any, shuffle_seed: int | None = None) -> Iterator[Batch]:  # noqa: ANN401
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
                "picture": batch["picture"].long(),
            }

    def _schedule(self, step: int) -> None:
        """Cosine from the peak to 0 over the stage, after a warm-up of a twentieth of it."""
        total = self._epochs * self._steps
        warm = max(1, total // 20)
        factor = (
            (step + 1) / warm if step < warm else 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))
        )
        for group, peak in zip(self._optimizer.param_groups, self._peaks, strict=True):
            group["lr"] = peak * factor


class _Saliency(Steps):
    def _parts(self, network: MANet) -> tuple[torch.nn.Module, Groups]:
        network.backbone.requires_grad_(False)
        if network.head is not None:
            network.head.requires_grad_(False)
        freeze_early(network.saliency.encoder, self._plan.frozen_stride)
        peak = self._plan.saliency_lr
        return SaliencyStage(network), [
            {"params": network.saliency.encoder.parameters(), "lr": peak},
            {"params": network.saliency.decoder_parameters(), "lr": peak * DECODER_TIMES},
        ]

    def _losses(self, batch: Batch) -> Losses:
        saliency = self._seen(batch["pixels"])
        if self._plan.branch == "saliency":  # its masks are its teacher's grey maps
            grey = _like(batch["mask"], saliency)
            dice = dice_loss(saliency[:, 0], binarise_at_mean(grey))
            return {"loss": teacher_loss(saliency[:, 0], grey / 255), "dice_loss": dice}
        dice = _dice(saliency, batch)
        return {"loss": dice, "dice_loss": dice}

    def _figures(self, batch: Batch) -> dict[str, float]:
        found = self._losses(_first_views(batch))
        return {
            name: float(value) for name, value in found.items() if name != "loss" or self._plan.branch == "saliency"
        }


class _Joint(Steps):
    def _parts(self, network: MANet) -> tuple[torch.nn.Module, Groups]:
        network.backbone.learn()
        for net in (network.backbone.net, network.saliency.encoder):
            freeze_early(net, self._plan.frozen_stride)
        learning: list[torch.nn.Module] = [network.saliency, network.backbone]
        if self._plan.frozen_saliency:
            network.saliency.requires_grad_(False)
            learning = [network.backbone]
        groups = [{"params": part.parameters(), "lr": self._plan.lr} for part in learning]
        if network.head is not None:
            network.head.requires_grad_(True)
            groups.append({"params": network.head.parameters(), "lr": self._plan.head_lr})
        if network.log_level_weights_L is not None:
            taught = self._plan.views == 2 and network.config.attention != "none"
            network.log_level_weights_L.requires_grad_(taught)
            if taught:
                groups.append({"params": [network.log_level_weights_L], "lr": LEVELS_LR, "weight_decay": 0.0})
        return JointStage(network), groups

    def _losses(self, batch: Batch) -> Losses:
        return joint_losses(self._seen(batch["pixels"]), batch, self._plan)

    def _figures(self, batch: Batch) -> dict[str, float]:
        """Of the pictures as they are; what their views are for: `validate`."""
        saliency, logits, descriptors = self._seen(batch["pixels"])
        self._pairs.append(descriptors.float().cpu().numpy())
        as_they_are = _first_views(batch)
        dice = _dice(saliency[::2], as_they_are)
        right = (logits[::2].argmax(1) == as_they_are["label"]).float().mean()
        return {"dice_loss": float(dice), "accuracy": float(right)}

    def validate(self, shard: Any) -> dict[str, float]:  # noqa: ANN401 - ray.data.DataIterator
        """Also MAP@7 of a view like a consumer's photo of each picture of the split, searched among them all."""
        self._pairs: list[Any] = []
        found = super().validate(shard)
        pairs = [each for theirs in of_all_workers(self._pairs) for each in theirs]
        views = np.concatenate(pairs) if pairs else np.empty((0, 1), np.float32)
        found_again = pairs_average_precision(views[1::2], views[::2]) if np.isfinite(views).all() else math.nan
        weights_L = self._network.level_weights_L
        levels = [] if weights_L is None else weights_L.detach().cpu().tolist()
        learned = {f"weight_of_level_{level}": round(weight, 3) for level, weight in enumerate(levels, 1)}
        return {**found, "val_map@7": round(found_again, 5), **learned}


class _Text(Steps):
    def _parts(self, network: MANet) -> tuple[torch.nn.Module, Groups]:
        network.requires_grad_(False)
        module = TextStage(network)
        freeze_early(module.text.stem, self._plan.frozen_stride)
        named = module.text.named_parameters()
        decoder = [each for name, each in named if not name.startswith("stem.") and each.requires_grad]
        return module, [
            {"params": module.text.stem.parameters(), "lr": self._plan.lr},
            {"params": decoder, "lr": self._plan.lr * DECODER_TIMES},
        ]

    def _losses(self, batch: Batch) -> Losses:
        logits = self._seen(batch["pixels"])
        loss = text_loss(logits[:, 0], _like(batch["mask"], logits) / 255)
        return {"loss": loss, "text_loss": loss}

    def _figures(self, batch: Batch) -> dict[str, float]:
        return {"text_loss": float(self._losses(batch)["text_loss"])}


def stage_of(
    network: MANet, plan: "Plan", epoch: int, workers: int, device: torch.device, moments: Mapping[str, torch.Tensor]
) -> Steps:
    """The steps of an epoch's stage."""
    kinds = {"saliency": _Saliency, "joint": _Joint, "text": _Text}
    return kinds[plan.stage(epoch)](network, plan, epoch, workers, device, moments)


def _first_views(batch: Batch) -> Batch:
    """The first view of every picture."""
    views = len(batch["label"]) // len(batch["picture"])
    return {name: values if name == "picture" else values[::views] for name, values in batch.items()}


def joint_losses(seen: tuple[torch.Tensor, torch.Tensor, torch.Tensor], batch: Batch, plan: "Plan") -> Losses:
    """Losses of the joint stage. The mean of the workers' gradients is that of one worker that has all their pictures, but for
    the batch norms of the saliency decoder, whose statistics are of each worker's own.

    Args:
        seen: outputs of `JointStage`: saliency, logits, descriptors.
        batch: this worker's pictures.
        plan: its weights and views.
    """
    saliency, logits, descriptors = seen
    dice = _dice(saliency, batch)
    entropy = F.cross_entropy(logits.float(), batch["label"])
    losses = {"dice_loss": dice, "cross_entropy": entropy}
    total = entropy + plan.saliency_loss * dice
    if plan.views == 2:
        everyones, pictures = _beside_the_others(descriptors.reshape(-1, 2, descriptors.shape[1]), batch["picture"])
        instance = losses["instance_loss"] = instance_loss(everyones, pictures)
        workers = len(pictures) // len(batch["picture"])
        # The value is everybody's; of its gradient each worker has its own part, and the mean over workers divides that.
        total = total + plan.instance_loss * (workers * instance - (workers - 1) * instance.detach())
    return {"loss": total, **losses}


def _beside_the_others(own_BVC: torch.Tensor, picture_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Descriptors and picture numbers of all workers, in their order; only this worker's carry a gradient."""
    if (workers := _worker_count()) == 1:
        return own_BVC, picture_B
    descriptors, pictures = ([torch.empty_like(each) for _ in range(workers)] for each in (own_BVC, picture_B))
    torch.distributed.all_gather(descriptors, own_BVC.detach().contiguous())
    torch.distributed.all_gather(pictures, picture_B)
    descriptors[torch.distributed.get_rank()] = own_BVC
    return torch.cat(descriptors), torch.cat(pictures)


def of_all_workers(own: Any) -> list[Any]:  # noqa: ANN401 - anything that pickles
    """What every worker has, in their order."""
    if (workers := _worker_count()) == 1:
        return [own]
    found: list[Any] = [None] * workers
    torch.distributed.all_gather_object(found, own)
    return found


def _worker_count() -> int:
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def _dice(saliency_B1hw: torch.Tensor, batch: Batch) -> torch.Tensor:
    """The saliency loss of a batch, against Y at the branch's resolution."""
    return dice_loss(saliency_B1hw[:, 0], (_like(batch["mask"], saliency_B1hw) > 127.5).float())


def _like(mask: torch.Tensor, map_B1hw: torch.Tensor) -> torch.Tensor:
    """Masks [B, S, S] at a branch's own resolution, [B, h, w]."""
    size = map_B1hw.shape[-2:]
    return F.interpolate(mask[:, None].float(), size=size, mode="bilinear", antialias=True, align_corners=False)[:, 0]
