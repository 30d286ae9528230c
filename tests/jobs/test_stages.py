"""What a step computes: over several workers, and how a run's epochs are chosen."""

import functools
import itertools
import multiprocessing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray.train.torch
import torch
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError
from torch import nn

from cluster.storage import open_store
from jobs.failures import why
from jobs.stages import Part, joint_losses, stage_of
from jobs.training import drop_checkpoints
from jobs.training_plan import Plan, has_diverged
from jobs.views import part_at
from manet.config import Attention, NetworkConfig, RegionWeights
from manet.images import PictureConfig
from manet.network import InitialWeights, JointStage, MANet, initial

ROWS = 4
PLAN: dict[str, Any] = {
    "branch": "all", "network": NetworkConfig(), "weights": InitialWeights(backbone="random", saliency="random"),
    "init": None, "train_rows": 100, "categories": ("a", "b"), "pictures": (80, 20), "train_size": 64,
    "saliency_epochs": 1, "epochs": 3, "batch_size": 4, "saliency_lr": 1e-3, "lr": 1e-3, "head_lr": 1e-3,
    "frozen_saliency": False, "weight_decay": 0, "saliency_loss": 0.7, "instance_loss": 1.3, "pasted": 0.3,
    "frozen_stride": 0, "balance": 0, "patience": 0, "precision": "float32", "seed": 0,
    "workers": 1, "workers_min": 1, "worker_cpus": 1, "worker_gpus": 0, "retries": 0,
}  # fmt: skip


def _network(attention: Attention = "s*f", region_weights: RegionWeights = "salient") -> MANet:
    torch.manual_seed(0)
    config = NetworkConfig(
        classes=3,
        saliency_size=64,
        attention=attention,
        region_weights=region_weights,
        pictures=PictureConfig(size=64),
    )
    return initial(config, InitialWeights(backbone="random", saliency="random")).eval()


def _batch(rows: slice) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (ROWS, 2, 64, 64, 3), generator=generator, dtype=torch.uint8)
    mask = torch.randint(0, 256, (ROWS, 2, 64, 64), generator=generator, dtype=torch.uint8)
    label = torch.tensor([0, 2, 1, 2])
    return {
        "pixels": pixels[rows].flatten(0, 1), "mask": mask[rows].flatten(0, 1),
        "label": label[rows].repeat_interleave(2), "picture": torch.tensor([5, 6, 7, 6])[rows],
    }  # fmt: skip


def _gradients(module: nn.Module, network: MANet, rows: slice) -> tuple[float, np.ndarray[Any, Any]]:
    batch = _batch(rows)
    losses = joint_losses(module(batch["pixels"]), batch, Plan(**PLAN))
    torch.autograd.backward(losses["loss"])
    found = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
    assert len(found) > 300
    return float(losses["loss"].detach()), torch.cat([each.flatten() for each in found]).numpy()


def _worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.Tensor.float = torch.Tensor.double  # type: ignore[method-assign]  # the code's casts, in this process
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    network = _network(region_weights="learned").double()
    module = nn.parallel.DistributedDataParallel(JointStage(network))
    loss, gradients = _gradients(module, network, slice(rank * 2, rank * 2 + 2))
    np.savez(f"{folder}/{rank}.npz", loss=loss, gradients=gradients)
    torch.distributed.destroy_process_group()


def test_two_workers_have_the_gradients_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the batch each, under DDP: to 1e-9 of the largest in float64; batch norms with fixed statistics."""
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_worker, args=(rank, str(tmp_path))) for rank in range(2)]
    for each in workers:
        each.start()
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    network = _network(region_weights="learned").double()
    loss, wanted = _gradients(JointStage(network), network, slice(0, ROWS))
    for each in workers:
        each.join(120)
        assert each.exitcode == 0
    found = [np.load(tmp_path / f"{rank}.npz") for rank in range(2)]
    scale = np.abs(wanted).max()
    assert np.mean([each["loss"] for each in found]) == pytest.approx(loss, rel=1e-12)
    for each in found:
        np.testing.assert_allclose(each["gradients"] / scale, wanted / scale, atol=1e-9)


class _Shard:
    """One batch, again and again."""

    def iter_torch_batches(self, **_: object) -> Iterator[dict[str, torch.Tensor]]:
        batch = _batch(slice(0, ROWS))
        views = {name: batch[name].reshape(ROWS, 2, *batch[name].shape[1:]) for name in ("pixels", "mask")}
        yield from itertools.repeat({**views, "label": batch["label"][::2], "picture": batch["picture"]}, 5)


def test_parts_come_in_another_order_every_epoch() -> None:
    """Each once, in the same order whenever it is asked for, so that a run goes on where it was."""
    orders = [[part_at(place, 40, 3, epoch) for place in range(40)] for epoch in (0, 1, 0)]
    assert orders[0] == orders[2] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(40))


def test_text_is_bit_equal_after_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps of the joint stage: the text branch's weights and statistics stay as they were, the others learn."""
    monkeypatch.setattr(ray.train.torch, "prepare_model", lambda module, **_: module)  # of a run of Ray Train
    torch.manual_seed(0)
    config = NetworkConfig(classes=3, saliency_size=64, text="efficientnet-lite0", pictures=PictureConfig(size=64))
    network = initial(config, InitialWeights(backbone="random", saliency="random", text="random"))
    plan = Plan(**{**PLAN, "network": config, "train_rows": 2 * ROWS, "weight_decay": 0.1})
    before = {name: value.clone() for name, value in network.state_dict().items()}
    part = Part()
    stage = stage_of(network, plan, 1, 1, torch.device("cpu"), {})
    stage.train_epoch(1, _Shard(), lambda _: None, part, lambda _: None)
    assert part.steps == 2
    after = network.state_dict()
    text = [name for name in before if name.startswith("text.")]
    assert len(text) > 100
    assert all(torch.equal(before[name], after[name]) for name in text)
    for branch in ("backbone", "saliency", "head"):
        assert any(not torch.equal(before[name], after[name]) for name in before if name.startswith(branch))


def _epoch_of(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    whole = Part(steps=2, sums={"loss": 2.0 * (1 + 2 * rank)})
    kept = Part(
        steps=1, sums=Part(steps=1, sums={"loss": 1.0 + 2 * rank}).of_all()
    )  # a checkpoint after the first step
    kept.sums["loss"] += 1.0 + 2 * rank
    assert whole.of_all() == kept.of_all() == {"loss": 4.0}
    torch.distributed.destroy_process_group()


def test_losses_are_of_all_workers_after_a_restart_too(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_epoch_of, args=(rank, str(tmp_path))) for rank in range(2)]
    for each in workers:
        each.start()
    for each in workers:
        each.join(120)
        assert each.exitcode == 0


def test_a_network_of_no_numbers_has_diverged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also without attention, where the saliency branch stays whole: its Dice and the accuracy are numbers still."""
    monkeypatch.setattr(ray.train.torch, "prepare_model", lambda module, **_: module)  # of a run of Ray Train
    network = _network("none")
    plan = Plan(**{**PLAN, "network": network.config})
    whole = stage_of(network, plan, 1, 1, torch.device("cpu"), {}).validate(_Shard())
    assert not has_diverged(whole)
    assert whole["val_map@7"] > 0
    with torch.no_grad():
        for parameter in network.backbone.parameters():
            parameter.fill_(torch.nan)
    found = stage_of(network, plan, 1, 1, torch.device("cpu"), {}).validate(_Shard())
    assert np.isfinite(found["val_dice_loss"])
    assert has_diverged(found)


@pytest.mark.parametrize("frozen", [False, True])
def test_a_frozen_saliency_branch_stays_as_it_is(frozen: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its weights and its batch norms' statistics, bit for bit, while the backbone learns through it."""
    monkeypatch.setattr(ray.train.torch, "prepare_model", lambda module, **_: module)  # of a run of Ray Train
    network = _network()
    steps = stage_of(
        network, Plan(**{**PLAN, "network": network.config, "frozen_saliency": frozen}), 1, 1, torch.device("cpu"), {}
    )
    before = {name: value.clone() for name, value in network.state_dict().items()}
    steps.train_epoch(1, _Shard(), lambda _: None, Part(), lambda _: None)
    changed = {name.partition(".")[0] for name, value in network.state_dict().items() if not value.equal(before[name])}
    assert changed == {"backbone", "head"} | (set() if frozen else {"saliency"})


@pytest.mark.parametrize(("instance_loss", "attention"), [(1.0, "s*f"), (0.0, "s*f"), (1.0, "none")])
def test_weights_of_levels_learn_where_a_loss_teaches_them(
    instance_loss: float, attention: Attention, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray.train.torch, "prepare_model", lambda module, **_: module)  # of a run of Ray Train
    network = _network(attention, "learned")
    plan = Plan(**{**PLAN, "network": network.config, "instance_loss": instance_loss})
    steps = stage_of(network, plan, 1, 1, torch.device("cpu"), {})
    learned = network.log_level_weights_L
    assert learned is not None
    batch = _batch(slice(0, ROWS))
    losses = joint_losses(JointStage(network)(batch["pixels"]), batch, plan)
    torch.autograd.backward(losses["loss"])
    taught = instance_loss > 0 and attention != "none"
    assert (learned.grad is not None) == taught == learned.requires_grad
    row = steps.train_epoch(1, _Shard(), lambda _: None, Part(), lambda _: None) | steps.validate(_Shard())
    assert (row["weight_of_level_1"] != 1) == taught


def test_the_record_of_checkpoints_goes_before_them(tmp_path: Path) -> None:
    """What is left of a run that was stopped as it dropped them is never gone on from."""
    store, dropped = open_store(str(tmp_path)), []
    for name in ("a/run/checkpoint_1/model", "a/run/checkpoint_manager_snapshot.json", "a/run/checkpoint_2/model"):
        store.write(f"checkpoints/{name}", b"x")
    delete = store.delete
    store.delete = lambda name: (dropped.append(name), delete(name))[1]  # type: ignore[method-assign, func-returns-value]
    drop_checkpoints(store)
    assert dropped[0].endswith("snapshot.json")
    assert not list(store.list("checkpoints/"))


def test_descriptors_are_float32_in_bfloat16_too() -> None:
    kinds: tuple[Attention, ...] = ("s*f", "none")
    for attention in kinds:
        stage = JointStage(_network(attention))
        with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
            saliency, logits, descriptors = stage(_batch(slice(0, 2))["pixels"])
        assert logits.dtype == torch.bfloat16
        assert saliency.dtype == descriptors.dtype == torch.float32
        torch.testing.assert_close(descriptors.norm(dim=1), torch.ones(4), atol=1e-5, rtol=0)


def test_categories_are_brought_together() -> None:
    plan = functools.partial(Plan, **{key: value for key, value in PLAN.items() if key != "balance"})
    assert plan(balance=0).repeats == pytest.approx((1, 1))
    assert plan(balance=1).repeats == pytest.approx((50 / 80, 50 / 20))  # of 100 shown, 50 of each
    half = plan(balance=0.5).repeats
    assert half[0] * 80 + half[1] * 20 == pytest.approx(100)
    assert half[0] * 80 / (half[1] * 20) == pytest.approx(2)


def test_training_stops_when_the_last_stage_gets_no_better() -> None:
    def rows(*scores: float) -> list[dict[str, Any]]:
        return [{"stage": "saliency", "val_dice_loss": 0.1}, *({"stage": "joint", "val_map@7": s} for s in scores)]

    plan = Plan(**{**PLAN, "patience": 2})
    assert not plan.is_over(rows())
    assert not plan.is_over(rows(0.5, 0.4))
    assert plan.is_over(rows(0.5, 0.4, 0.5))
    assert not plan.is_over(rows(0.5, 0.4, 0.6))
    assert not Plan(**PLAN).is_over(rows(0.5, 0.4, 0.3, 0.2))
    assert plan.is_over(rows(0.5, float("nan"), float("nan")))
    assert plan.score(rows(float("nan"))[1]) == plan.score(rows()[0]) < plan.score(rows(0)[1])
    only = Plan(**{**PLAN, "patience": 1, "branch": "saliency", "epochs": 0, "saliency_epochs": 4})
    losses: list[dict[str, Any]] = [
        {"stage": "saliency", "val_loss": loss, "val_dice_loss": 0.1 - loss} for loss in (0.3, 0.2, 0.25)
    ]
    assert not only.is_over(losses[:2])
    assert only.is_over(losses)


def test_why_a_worker_failed_is_one_line() -> None:
    """Ray's own text for a node without memory, or a worker that hangs, ends in advice; a traceback in what was raised."""
    memory = Exception(
        "ray.exceptions.OutOfMemoryError: the node is running low on memory: 21 of 23 GB\n\nRefer to the docs"
    )
    hanging = Exception("A worker health check has been hanging for 600 seconds.\nSet the RAY_TRAIN_... variable\n")
    raised = Exception("Traceback (most recent call last):\n  File x\nValueError: no such layer\n")
    assert why(WorkerGroupError("", {3: memory, 5: raised})) == f"worker 3: {str(memory).splitlines()[0]}"
    assert (
        why(WorkerGroupError("", {0: hanging})) == "worker 0: A worker health check has been hanging for 600 seconds."
    )
    assert why(ControllerError(raised)) == "ValueError: no such layer"
    assert why(WorkerGroupError("", {0: TimeoutError()})) == "worker 0: TimeoutError"
