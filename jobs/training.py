"""Data-parallel training of MANet on Ray Train: what runs on the driver (`fit`) and on every worker (`_loop`).

Two stages (METHOD.md "Training"): the saliency branch alone on Dice, then backbone and saliency branch together on
cross-entropy + lambda * Dice + an instance loss over two views of every picture; or one stage, of the text branch alone.
What a step computes is in `jobs.stages`. Pictures come as a Ray Data stream that every epoch decodes and augments anew; no
worker holds the set. Every epoch ends with a checkpoint in the store, and so does a step after a node's loss was announced;
a run that lost a worker, or its driver, goes on from the newest.
"""

import contextlib
import itertools
import json
import math
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from cluster.artifact import Artifact
from cluster.errors import BadInputError, ClusterError, JobFailedError
from cluster.session import alive_nodes, beside_driver, cluster_cpus, quiet, require_resources, wait_for_room
from cluster.storage import Store, arrow_filesystem, open_store
from cluster.streams import configure_data
from cluster.telemetry import Meter, say
from jobs.failures import cause_of, restarts_told, why
from jobs.inputs import fetch_weights, local_copy
from jobs.memory import FOR_TRAINING
from jobs.training_plan import WORST, Plan, has_diverged
from jobs.views import DECODE_CPUS, open_clock, stream_of
from manet.errors import ManetError

if TYPE_CHECKING:
    import torch

    from jobs.stages import Part
    from manet.network import MANet

ASK_STEPS = 4  # steps between two looks for an announced loss of a node
_MOMENTS = "optimizer.safetensors"
_POSITION = "position.json"
_SNAPSHOT = "checkpoint_manager_snapshot.json"  # Ray Train's own record of what it saved


def default_cpus(workers: int, gpus: float) -> float:
    """CPUs of a training worker where nobody says: 1 beside a GPU, else an equal share of what decoding leaves, on one node."""
    share = max(0.5, (cluster_cpus() - DECODE_CPUS) / workers)
    return 1.0 if gpus else min(share, max((node["CPU"] for node in alive_nodes() if node.get("CPU")), default=share))


def fit(plan: Plan, masks: Artifact, checkpoints: str, into: Path, meter: Meter) -> tuple[list[dict[str, Any]], int]:
    """Train, or go on from the newest checkpoint; leave the model's files in `into`; return one row an epoch, and the number of
    the epoch that the model is of.

    The first worker's steps advance `meter`; every epoch's figures are said.

    Raises:
        JobFailedError: training failed more often than `plan.retries`, or diverged before it made a model.
    """
    import ray.exceptions
    from ray.train.v2.api.exceptions import PreemptionError, TrainingFailedError
    from ray.util.queue import Queue

    configure_data()
    quiet("ray.train")
    progress, clock = Queue(actor_options=beside_driver()), open_clock()
    listener = threading.Thread(target=_listen, args=(progress, meter, open_store(checkpoints)), daemon=True)
    listener.start()
    try:
        failures = 0
        for attempt in itertools.count():
            workers = _room(plan, again=attempt > 0)
            if (taken := workers * plan.batch_of(workers)) != plan.batch_size:
                say(f"train: {workers} workers take {taken} pictures a step, --batch-size is {plan.batch_size}")
            try:
                result = _trainer(plan, workers, masks, checkpoints, progress, clock).fit()
                break
            except TrainingFailedError as error:
                cause = cause_of(error)
                failures += not isinstance(error, PreemptionError)  # an announced loss is nobody's fault
                hopeless = isinstance(cause, (BadInputError, ManetError)) or failures > plan.retries
                if plan.workers_min == plan.workers or hopeless:
                    raise cause from error
                say(f"train: failed {why(error)}; going on with the workers that are left")
    finally:
        with contextlib.suppress(ray.exceptions.RayError):  # it is gone with a session that was stopped
            progress.put(None)
            listener.join(10)
            progress.shutdown()
            ray.kill(clock)
    if result.error is not None or result.checkpoint is None:
        raise JobFailedError(f"training failed: {result.error or 'no epoch was finished'}")
    chosen = result.checkpoint
    if plan.patience:
        chosen = max(result.best_checkpoints, key=lambda pair: float(pair[1]["score"]))[0]
    with chosen.as_directory() as folder:
        epoch = len(json.loads((Path(folder) / _POSITION).read_text())["history"]) - 1
        for name in ("model.safetensors", "config.json"):
            (into / name).write_bytes((Path(folder) / name).read_bytes())
    with result.checkpoint.as_directory() as folder:
        history: list[dict[str, Any]] = json.loads((Path(folder) / _POSITION).read_text())["history"]
    if has_diverged(history[epoch]) or (plan.patience and plan.score(history[epoch]) == WORST):
        raise JobFailedError(
            f"training diverged in epoch {len(history) - 1}: its figures are no numbers; lower --lr, --saliency-lr or --head-lr"
        )
    return history, epoch


def drop_checkpoints(store: Store) -> None:
    """Drop those of earlier runs; the records that name them first, so that none is gone on from that is half there."""
    entries = [entry.name for entry in store.list("checkpoints/")]
    for name in sorted(entries, key=lambda name: not name.endswith(_SNAPSHOT)):
        store.delete(name)


def _room(plan: Plan, *, again: bool) -> int:
    """Workers to start with: all are waited for; else, and after a loss, those that there is room for, at least the fewest.

    Raises:
        BadInputError: this machine alone is too small.
        JobFailedError: the cluster has not even room for `plan.workers_min` after --wait-for-resources.
    """
    flags = "--workers / --workers-min / --worker-cpus / --worker-gpus"
    one: dict[str, Any] = {"cpus": plan.worker_cpus, "gpus": plan.worker_gpus, "spare_cpus": DECODE_CPUS}
    if not again:
        try:
            require_resources(**one, workers=plan.workers, flags=flags)
            return plan.workers
        except (BadInputError, JobFailedError):
            if plan.workers_min == plan.workers:
                raise
    workers = min(plan.workers, wait_for_room(**one, least=plan.workers_min, ask=again, flags=flags))
    say(f"train: {workers} of {plan.workers} workers")
    return workers


def _trainer(plan: Plan, workers: int, masks: Artifact, checkpoints: str, progress: Any, clock: Any) -> Any:  # noqa: ANN401
    """A run of so many workers. Where their number may fall, a lost one ends the run, and the next has those that are left;
    else Ray Train starts it again when there is room.
    """
    import ray.data
    import ray.train
    from ray.train.torch import TorchTrainer

    filesystem, path = arrow_filesystem(checkpoints)
    in_order = ray.data.ExecutionOptions(preserve_order=True)  # the same run again sees the same batches
    elastic = plan.workers_min < plan.workers
    failures = {"controller_failure_limit": 2, "max_preemption_failures": 0} if elastic else {}
    left = max(1, int(cluster_cpus() - workers * plan.worker_cpus))
    tasks = left if len(alive_nodes()) == 1 else None
    by_score = {"checkpoint_score_attribute": "score", "checkpoint_score_order": "max"} if plan.patience else {}
    return TorchTrainer(
        _loop,
        train_loop_config={"plan": plan, "progress": progress, "clock": clock},
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers,
            use_gpu=plan.worker_gpus > 0,
            resources_per_worker={"CPU": plan.worker_cpus} | ({"GPU": plan.worker_gpus} if plan.worker_gpus else {}),
        ),
        run_config=cast(Any, ray.train.RunConfig)(  # its types are those of Ray Train's first version
            name="run",
            worker_runtime_env={"env_vars": FOR_TRAINING},
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=cast(Any, ray.train.FailureConfig)(max_failures=0 if elastic else plan.retries, **failures),
            callbacks=[restarts_told(progress)],
            checkpoint_config=cast(Any, ray.train.CheckpointConfig)(num_to_keep=2, **by_score),
        ),
        datasets={split: stream_of(masks, split, plan, clock, tasks) for split in ("train", "val")},
        dataset_config=ray.train.DataConfig(execution_options=in_order),
    )


def _listen(progress: Any, meter: Meter, store: Store) -> None:  # noqa: ANN401 - ray.util.queue.Queue, imported lazily
    """On the driver: steps done in all, and the figures of finished epochs, until None comes; these also for TensorBoard."""
    import ray.exceptions

    with contextlib.suppress(ray.exceptions.RayError):  # the session was stopped
        while (news := progress.get()) is not None:
            if isinstance(news, int):
                meter.advance(news - meter.done)
                continue
            say("train: " + ", ".join(f"{name} {value}" for name, value in news.items()))
            if "epoch" in news:
                _write_events(news, store)


def _write_events(row: Mapping[str, Any], store: Store) -> None:
    """An epoch's figures as a file for TensorBoard, which reads all of a folder. A writer's `flush` does not wait for what it
    was given before; its end does.
    """
    from tensorboardX import SummaryWriter

    with tempfile.TemporaryDirectory() as scratch:
        with SummaryWriter(scratch, filename_suffix=f".{row['epoch']}") as events:
            for name, value in row.items():
                if isinstance(value, float) and math.isfinite(value):
                    events.add_scalar(f"{row['stage']}/{name.replace('@', '_at_')}", value, row["epoch"])
        for file in Path(scratch).iterdir():
            with contextlib.suppress(ClusterError):  # the figures are in metrics.json too
                store.write(f"tensorboard/{file.name}", file.read_bytes())


def _loop(config: dict[str, Any]) -> None:
    """What every worker runs: all epochs that the newest checkpoint has not done."""
    import ray
    import ray.train
    import torch

    from jobs.stages import Part, Steps, stage_of

    plan: Plan = config["plan"]
    context = ray.train.get_context()
    first, workers = context.get_world_rank() == 0, context.get_world_size()
    tell = config["progress"].put_nowait if first else lambda _: None
    begin = (lambda epoch: ray.get(config["clock"].set.remote(epoch))) if first else lambda _: None
    torch.set_num_threads(math.ceil(plan.worker_cpus))
    torch.manual_seed(plan.seed)
    device = ray.train.torch.get_device()
    network, history, part, moments = _start(plan)
    network.to(device).to(memory_format=torch.channels_last)
    tell(len(history) * plan.steps_of(workers) + part.steps)
    if part.steps:
        tell({"going on": f"in epoch {len(history)} after step {part.steps}"})
    stage: Steps | None = None
    losses_of_nodes = _Announced()
    if not part.steps and plan.is_over(history):
        return
    for epoch in range(len(history), plan.saliency_epochs + plan.epochs):
        if stage is None or plan.stage(epoch) != plan.stage(epoch - 1):
            stage = stage_of(network, plan, epoch, workers, device, moments)
            moments = {}
        begin(epoch)  # no worker's share of the stream is played before all ask for theirs

        def after(here: Part, stage: Steps = stage) -> None:
            if here.steps % ASK_STEPS == 0 and losses_of_nodes.new():
                _report(network, plan, history, here, stage.moments() if first else {})

        row = stage.train_epoch(epoch, ray.train.get_dataset_shard("train"), tell, part, after)
        row |= stage.validate(ray.train.get_dataset_shard("val"))
        part = Part()
        history.append({"epoch": epoch, "stage": plan.stage(epoch), "workers": workers, **row})
        tell(history[-1])
        _report(network, plan, history, part, stage.moments() if first and plan.goes_on(epoch + 1) else {})
        if plan.is_over(history):
            break


class _Announced:
    """Nodes of this run whose loss was announced. All workers ask together, so that all know the same."""

    def __init__(self) -> None:
        self._known: set[str] = set()

    def new(self) -> bool:
        """Whether there is one more since it was asked last."""
        import ray.train

        info = cast(Any, ray.train).get_preemption_info()
        nodes = set() if info is None else set(info.preempted_node_ids) - self._known
        self._known |= nodes
        return bool(nodes)


def _start(plan: Plan) -> tuple["MANet", list[dict[str, Any]], "Part", dict[str, "torch.Tensor"]]:
    """The network, the epochs done, what is done of the next one, the optimiser's moments within a stage: from the newest
    checkpoint, else from the initial weights.
    """
    import ray.train
    from safetensors.torch import load_file

    from jobs.stages import Part
    from manet.checkpoint import load_model
    from manet.network import MANet, initial, load_text
    from manet.weights import load_into

    checkpoint = ray.train.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as folder:
            position = json.loads((Path(folder) / _POSITION).read_text())
            history, part = position["history"], Part(**position["part"])
            within = part.steps > 0 or plan.goes_on(len(history))
            return load_model(Path(folder)), history, part, load_file(Path(folder) / _MOMENTS) if within else {}
    if plan.init is None:
        return initial(plan.network, plan.weights, fetch_weights), [], Part(), {}
    network = MANet(plan.network)
    source = load_model(local_copy(plan.init))
    own, theirs = network.state_dict(), source.state_dict()
    fits = {
        name: value for name, value in theirs.items() if not name.startswith("head.") or _fits(value, own.get(name))
    }
    load_into(network, {**own, **fits}, plan.init.uri, strict=False)
    if source.text is None:
        load_text(network, plan.weights, fetch_weights)
    return network, [], Part(), {}


def _fits(value: "torch.Tensor", place: "torch.Tensor | None") -> bool:
    return place is not None and value.shape == place.shape


def _report(
    network: "MANet", plan: Plan, history: list[dict[str, Any]], part: "Part", moments: dict[str, "torch.Tensor"]
) -> None:
    """End of an epoch, or a place within one: metrics, and from the first worker a checkpoint."""
    import ray.train
    from safetensors.torch import save_file

    from manet.checkpoint import save_model

    position = {"history": history, "part": {"steps": part.steps, "sums": part.of_all()}}
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint = None
        if ray.train.get_context().get_world_rank() == 0:
            save_model(Path(scratch), network, plan.categories)
            (Path(scratch) / _POSITION).write_text(json.dumps(position))
            save_file(moments, Path(scratch) / _MOMENTS)
            checkpoint = ray.train.Checkpoint.from_directory(scratch)
        ended = bool(history) and not part.steps
        score = {"score": plan.score(history[-1]) if ended else WORST}
        ray.train.report({**(history[-1] if history else {}), **score}, checkpoint=checkpoint)
