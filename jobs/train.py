"""Train MANet: few-shot set -> model, on Ray Train.

  manet train --fewshot s3://shop/fewshot --out s3://shop/model --workers 8 --worker-gpus 1

Reads a few-shot set. First writes OUT/masks (the pictures' pseudo-saliency masks, an artifact of its own), then trains the
saliency branch alone on Dice, then backbone and saliency branch together on cross-entropy + lambda * Dice, and on an
instance loss over two views of every picture; the text branch is frozen, and so are the pretrained parts' batch statistics.
With --frozen-saliency the saliency branch, whose weights are given whole, stays as it is. Checkpoints go to OUT/checkpoints
after every epoch; the same command again goes on from the newest, --overwrite drops them. Writes
`model.safetensors`, `config.json` and `metrics.json`.

  manet train --branch text --fewshot s3://shop/fewshot --out s3://shop/text --text efficientnet-lite0 --batch-size 16

trains the text branch alone: on a text detector's maps of the pictures (OUT/masks) and on words written over them. Writes
`text.safetensors` (float16), for --text-weights, and `metrics.json`. `--branch saliency` trains the
saliency branch alone, on a teacher's grey maps; it writes `saliency.safetensors`, for --saliency-weights or --pseudo-masks.
"""

import json
import tempfile
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator

from cluster.artifact import Artifact, ArtifactWriter, Blob, Claim, open_artifact, peek
from cluster.errors import BadInputError, JobFailedError
from cluster.session import ray_session
from cluster.storage import open_store
from cluster.telemetry import Meter
from jobs.config import JobConfig, how
from jobs.inputs import fetch_weights, network_of, open_model
from jobs.make import make
from jobs.masks import CLAIMS, RENDERED, MapKind, build_masks, mapper
from jobs.training import default_cpus, drop_checkpoints, fit
from jobs.training_plan import Branch, Plan
from manet.backbone import are_of, create
from manet.checkpoint import load_model, save_branch, save_model
from manet.config import Attention, NetworkConfig, RegionWeights, TextSource
from manet.images import PictureConfig
from manet.network import InitialWeights, MANet, initial, load_text
from manet.text import PUBLIC
from manet.weights import pinned

LITE = "pip:efficientnet-lite0"
OF_INIT = ("backbone_weights", "saliency_weights", "text_weights")
"""Flags that --init answers: no network starts from two weights."""
OF_NETWORK = ("attention", "region_weights", "text", "text_source")
"""Flags that are the network's own; with --init that model's unless they are given."""


class Config(JobConfig):
    """Flags of `manet train`."""

    INPUTS: ClassVar[tuple[str, ...]] = ("fewshot", "masks", "init")

    fewshot: str
    """Few-shot artifact."""
    branch: Branch = "all"
    """What is trained: `all` but the text branch, which is frozen; or one branch alone, for its weights."""
    masks: str = ""
    """Folder of the pseudo-saliency masks (of the text maps, with --branch text), made there unless they are; default:
    OUT/masks."""
    init: str = ""
    """Model artifact to start from, in place of pretrained weights: its network is kept, its head too if it fits; a text
    branch and learned weights of levels may be added to one that has none."""
    backbone: str = "efficientnet-lite0"
    """Network of the backbone: efficientnet-lite0, -lite1 or -lite2, or a name that timm knows (resnet50, vgg16, densenet121,
    ...)."""
    backbone_weights: str = LITE
    """Its weights: pip:NAME (the first three), a file, a store URI, `pretrained` (downloads), or `random`."""
    saliency_weights: str = LITE
    """Weights that the saliency branch starts from, as --backbone-weights: of its encoder; or own:saliency-lite0, or a file of
    the whole branch."""
    pseudo_masks: str = "pip:u2netp"
    """What marks the product for the saliency loss: `classical` (no weights), own:saliency-lite0 (or a file that --branch
    saliency wrote), pip:u2netp, an ONNX salient-object net, or `rendered`, the exact masks of a catalogue that `manet render`
    made."""
    attention: Attention = "s*f"
    """How saliency weighs the backbone's features."""
    frozen_saliency: bool = False
    """Leave the saliency branch as its --saliency-weights (all of the branch, as own:saliency-lite0) or --init are: it has no
    stage of its own, and the joint stage does not change it. For a gallery of studio shots alone, which teach a branch that all
    that is not white is the product. With --epochs 0 the initial weights are the model (beside its masks)."""
    region_weights: RegionWeights = "salient"
    """What a region weighs in the descriptor of the instance loss: `salient`, its salient share; `learned`, that times a
    weight of its level (the size of its square), learned by that loss, for the descriptor sr-mac-learned."""
    text: str = "none"
    """Backbone of the text branch (EAST): a name that timm knows, `vgg16-east` (the public layout), or `none`."""
    text_weights: str = "none"
    """Weights of the text branch: own:east-lite0, a file or a URI; with --branch text of its backbone alone, as
    --backbone-weights."""
    pseudo_text: str = "pip:db-text"
    """What marks text for --branch text: an .onnx detector (DB), or frozen_east_text_detection.pb."""
    text_source: TextSource = "logits"
    """What equation 2 is fed: EAST's score map before (logits) or after (scores) its own sigmoid."""
    size: int = Field(default=480, ge=32)
    """Longer side of the pictures that the model will describe, px; with --init that model's unless it is given."""
    train_size: int = Field(default=224, ge=32)
    """Longer side of the pictures in training, px."""
    saliency_epochs: int = Field(default=2, ge=0)
    """Epochs of the saliency stage; with --frozen-saliency there is none."""
    epochs: int = Field(default=3, ge=0)
    """Epochs of the joint stage."""
    batch_size: int = Field(default=32, ge=2)
    """Pictures of one step, over all workers together."""
    saliency_lr: float = Field(default=1e-3, gt=0)
    """Peak learning rate of the saliency stage (AdamW, cosine): of the encoder; the decoder's is ten times that."""
    lr: float = Field(default=2e-4, gt=0)
    """Peak learning rate of the joint stage: of backbone and saliency branch."""
    head_lr: float = Field(default=2e-3, gt=0)
    """Peak learning rate of the classification head."""
    weight_decay: float = Field(default=1e-2, ge=0)
    """AdamW's weight decay."""
    saliency_loss: float = Field(default=1.0, ge=0)
    """Lambda: weight of the saliency loss in the joint stage."""
    instance_loss: float = Field(default=1.0, ge=0)
    """Weight of the instance loss in the joint stage (two views of a picture against all others of the batch); 0: off."""
    pasted: float = Field(default=0.3, ge=0, le=1)
    """Share of the training views in which the product, cut out by its mask, stands before a plain light ground, as in a
    studio; 0: none, and without attention no mask has a part in what the backbone learns."""
    frozen_stride: int = Field(default=4, ge=0)
    """Layers of the networks up to this stride are left as they are (edges, colours; with `random` weights give 0); 0: all
    learn."""
    balance: float = Field(default=0.0, ge=0, le=1)
    """How far categories of different sizes are brought together: 0, each picture is shown once an epoch; 1, each category
    equally often, in an epoch as long."""
    patience: int = Field(default=0, ge=0)
    """Early stopping: epochs of the last stage without a better one by the validation split (of the joint stage MAP@7 of
    consumer-like views), after which it ends; the model is that of the best epoch. 0: all epochs, and the last one's model."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Number type of the networks' passes in training; weights, losses and sums are float32."""
    seed: int = Field(default=0, ge=0)
    """Seed of initialisation, order and augmentation."""
    workers: int = how(1, ge=1)
    """Data-parallel training workers; where their number does not divide --batch-size, a step takes fewer pictures."""
    workers_min: int = how(0, ge=0)
    """Fewest workers: training starts with those that came within --wait-for-resources, and goes on with those that are left
    when nodes are lost; each takes its share of --batch-size. 0: as many as --workers."""
    worker_cpus: float = how(0.0, ge=0)
    """CPUs of one training worker; it computes on as many threads, rounded up. 0: with GPUs 1, else an equal share of all
    CPUs, less a quarter of one that decoding needs."""
    worker_gpus: float = how(0.0, ge=0)
    """GPUs of one training worker; 0: it runs on the CPU."""
    retries: int = how(3, ge=0)
    """Times that training restarts from the newest checkpoint after a lost worker."""
    max_rejects: float = how(0.01, ge=0, le=1)
    """Share of the few-shot pictures that may be unusable before the job fails."""

    @model_validator(mode="after")
    def _something_to_train(self) -> "Config":
        if self.frozen_saliency and self.branch != "all":
            raise ValueError(f"--frozen-saliency: --branch {self.branch} trains one branch alone; leave the flag out")
        if self.frozen_saliency and self.init and self.epochs == 0:
            raise ValueError("--frozen-saliency and --epochs 0: of --init nothing would be trained; give --epochs")
        if self.saliency_epochs + self.epochs == 0 and not self.frozen_saliency:
            raise ValueError("--saliency-epochs and --epochs are both 0: nothing would be trained; give one of them")
        if self.workers_min > self.workers:
            raise ValueError(f"--workers-min {self.workers_min} is more than --workers {self.workers}")
        if self.workers > self.batch_size:
            raise ValueError(f"--workers {self.workers}: --batch-size {self.batch_size} has not a picture for each")
        if self.worker_gpus % 1 and (self.worker_gpus > 1 or self.workers > 1):
            raise ValueError(
                f"--worker-gpus {self.worker_gpus:g}: several workers, or one on several GPUs, take whole ones"
            )
        if self.text == "none" and self.text_weights != "none" and not self.init:
            raise ValueError(f"--text-weights {self.text_weights}: --text names their network")
        if self.branch == "text" and self.text in {"none", PUBLIC}:
            raise ValueError("--branch text: --text names the network of timm that is trained")
        if self.region_weights == "learned":
            if self.attention == "none":
                raise ValueError("--region-weights learned: needs saliency attention")
            if self.branch != "all" or self.instance_loss == 0 or self.epochs == 0:
                raise ValueError(
                    "--region-weights learned: the instance loss of the joint stage teaches them, and there is none"
                )
        if self.branch != "all" and (self.init or not (self.epochs if self.branch == "text" else self.saliency_epochs)):
            raise ValueError(f"--branch {self.branch}: takes no --init, and epochs of its own")
        return self

    @property
    def stages(self) -> tuple[int, int]:
        """Epochs of the saliency stage (of the one stage of --branch saliency) and of the one after it."""
        untaught = self.branch == "text" or self.frozen_saliency
        return 0 if untaught else self.saliency_epochs, 0 if self.branch == "saliency" else self.epochs


def run(config: Config) -> dict[str, Any]:
    """Run the job; returns its summary."""
    fewshot = open_artifact(config.fewshot, "fewshot")
    init = open_model(config.init) if config.init else None
    _refuse_too_few(config, fewshot)
    config = _pinned(config)
    categories = json.loads(fewshot.read(fewshot.parts("categories.json")[0]))["categories"]
    network, weights = _network(config, init, len(categories)), _weights(config)
    if not config.masks:
        mapper(*_teaching(config), fewshot)
    if init is None:  # a mistake in the flags is said before the folder is claimed
        initial(network, weights, fetch_weights)
    decided = {name: getattr(network, name) for name in OF_NETWORK}
    config = config.model_copy(
        update={**decided, "size": network.pictures.size}
    )  # of --init where no flag says: claimed
    if config.masks:
        claim, _ = peek(open_store(config.masks))
        if claim is not None and not _fits(claim, config, fewshot):
            raise BadInputError(
                f"--masks {config.masks}: of another few-shot set, or made otherwise; choose another folder for these"
            )

    def build(writer: ArtifactWriter) -> tuple[list[str], dict[str, Any]]:
        if config.overwrite:  # before anything else: a run that is stopped and goes on has none of the old ones
            drop_checkpoints(writer.store)
        with ray_session(config):
            masks = _masks(config, fewshot)
            _refuse_too_few(config, masks, "masks-")  # some may have been rejected
            plan = Plan(
                network=network,
                weights=weights,
                init=init,
                train_rows=sum(part.rows for part in masks.parts("masks-train-")),
                categories=tuple(category["name"] for category in categories),
                pictures=tuple(category["pictures"] for category in categories),
                **{
                    name: getattr(config, name)
                    for name in Plan.model_fields
                    if name in Config.model_fields
                    and name not in {"init", "worker_cpus", "workers_min", "saliency_epochs", "epochs"}
                },
                saliency_epochs=config.stages[0],
                epochs=config.stages[1],
                workers_min=config.workers_min or config.workers,
                worker_cpus=config.worker_cpus or default_cpus(config.workers, config.worker_gpus),
            )
            return ["model"], _train(config, plan, masks, writer)

    inputs = {"fewshot": fewshot.as_input()} | ({"init": init.as_input()} if init else {})
    return make(config, "model" if config.branch == "all" else config.branch, inputs, build)


def _refuse_too_few(config: Config, pictures: Artifact, prefix: str = "") -> None:
    """Refuse a split of which some worker would see nothing; its parts' names begin with `prefix` and the split.

    Raises:
        BadInputError: there is one.
    """
    for split in ("train", "val"):
        rows = sum(part.rows for part in pictures.parts(f"{prefix}{split}-"))
        if rows < config.workers:
            raise BadInputError(
                f"--fewshot {config.fewshot}: {rows} usable pictures to {'learn from' if split == 'train' else 'validate with'}, "
                f"{config.workers} workers; make one of more pictures"
            )


def _pinned(config: Config) -> Config:
    """The flags with the checksums of the files that they name, so that other content at the same address is another command."""
    flags = (*OF_INIT, "pseudo_masks", "pseudo_text")
    given = {name: spec for name in flags if (spec := getattr(config, name)) not in {"classical", RENDERED}}
    found = {name: pinned(spec, fetch_weights) for name, spec in given.items()}
    return config.model_copy(update={name: spec for name, spec in found.items() if spec != given[name]})


def _teaching(config: Config) -> tuple[MapKind, str]:
    """The kind of map that the branch in training learns from, and what makes it."""
    return ("text", config.pseudo_text) if config.branch == "text" else ("saliency", config.pseudo_masks)


def _masks(config: Config, fewshot: Artifact) -> Artifact:
    """The masks at --masks, else the run's own; --overwrite makes these anew, unless they are finished and of these pictures."""
    kind, source = _teaching(config)
    name = "masks" if kind == "saliency" else "text-maps"
    uri = config.masks or f"{config.out.rstrip('/')}/masks"
    inputs = {"fewshot": fewshot.as_input()}
    build = lambda writer: build_masks(writer, fewshot, kind, source, config.max_rejects)  # noqa: E731
    claim, finished = peek(open_store(uri))
    kept = finished is not None and claim is not None and _fits(claim, config, fewshot)
    overwrite = config.overwrite and not config.masks and not kept
    nested = config.model_copy(update={"out": uri, "overwrite": overwrite})
    try:
        make(nested, name, inputs, build, claimed=CLAIMS[kind])
    except JobFailedError:  # another run made the same masks at --masks and was first
        claim, finished = peek(open_store(uri))
        if not config.masks or finished is None or claim is None or not _fits(claim, config, fewshot):
            raise
    return open_artifact(uri, name)


def _fits(claim: Claim, config: Config, fewshot: Artifact) -> bool:
    """Whether masks, finished or not, are of these pictures and made as the flags say."""
    kind, _ = _teaching(config)
    same = all(claim.config.get(flag) == getattr(config, flag) for flag in CLAIMS[kind])
    return same and claim.inputs.get("fewshot") == fewshot.sha256


def _network(config: Config, init: Artifact | None, classes: int) -> NetworkConfig:
    """The network to train: that of `init` for as many classes, or what the flags say.

    Raises:
        BadInputError: a flag that names another network than that of --init, or one whose weights no flag names.
        WeightsError: a text branch that is added has no weights.
    """
    if init is not None:
        theirs = network_of(init)
        for name in ("backbone", "text"):
            added = name == "text" and theirs.text == "none"
            if name in config.model_fields_set and not added and getattr(config, name) != getattr(theirs, name):
                raise BadInputError(
                    f"--{name} {getattr(config, name)}: the model of --init has {getattr(theirs, name)}; leave the flag out"
                )
        for name in OF_INIT[:2]:
            if name in config.model_fields_set:
                flag = f"--{name.replace('_', '-')}"
                raise BadInputError(f"{flag} {getattr(config, name)}: --init brings the weights; leave the flag out")
        chosen = {name: getattr(config, name) for name in OF_NETWORK if name in config.model_fields_set}
        if "size" in config.model_fields_set:
            chosen["pictures"] = PictureConfig(size=config.size)
        network = theirs.model_copy(update=chosen | {"classes": classes})
        if network.attention == "none":  # whose regions have no weights
            if chosen.get("region_weights") == "learned":
                raise BadInputError(
                    f"--region-weights learned: needs saliency attention, and the model of --init {config.init} has none; "
                    "leave the flag out"
                )
            network = network.model_copy(update={"region_weights": "salient"})
        if network.text != theirs.text:
            load_text(MANet(network), _weights(config), fetch_weights)
        elif config.text_weights != "none":
            raise BadInputError(
                f"--text-weights {config.text_weights}: the text branch of --init is kept; leave the flag out"
            )
        return network
    name = "text" if config.branch == "text" else "backbone"
    wanted = getattr(config, name)
    if {name, f"{name}_weights"} & config.model_fields_set == {name} and not are_of(LITE, wanted):
        create(wanted)  # an unknown one is told as such
        raise BadInputError(
            f"--{name} {wanted}: give its --{name}-weights (pip:NAME, a file, `pretrained` or `random`)"
        )
    return NetworkConfig(
        backbone=config.backbone,
        **{name: getattr(config, name) for name in OF_NETWORK},
        classes=classes,
        pictures=PictureConfig(size=config.size),
    )


def _weights(config: Config) -> InitialWeights:
    if config.branch == "text":
        stem = LITE if config.text_weights == "none" else config.text_weights
        return InitialWeights(backbone="random", saliency="random", text_stem=stem)
    return InitialWeights(
        backbone=config.backbone_weights,
        saliency=config.saliency_weights,
        whole_saliency=config.frozen_saliency,
        text=config.text_weights,
    )


def _train(config: Config, plan: Plan, masks: Artifact, writer: ArtifactWriter) -> dict[str, Any]:
    checkpoints = (
        f"{config.out.rstrip('/')}/checkpoints/{writer.units.claim[:16]}"  # another command's are never taken up
    )
    with tempfile.TemporaryDirectory() as scratch:
        if epochs := sum(config.stages):
            with Meter("train", plan.steps_of(plan.workers) * epochs, "steps") as meter:
                own, best = fit(plan, masks, checkpoints, Path(scratch), meter)
            before = _history(plan.init)
            history = [{**row, "epoch": epoch} for epoch, row in enumerate([*before, *own])]
            metrics = {"history": history, "epoch": len(before) + best}  # the one that the model is of
        else:  # its weights are what it was given, and its head is random
            torch.manual_seed(plan.seed)
            save_model(Path(scratch), initial(plan.network, plan.weights, fetch_weights), plan.categories)
            metrics = {"history": [], "epoch": None}
        (Path(scratch) / "metrics.json").write_text(json.dumps(metrics, indent=1))
        files = ["model.safetensors", "config.json", "metrics.json"]
        if config.branch != "all":
            files = [f"{config.branch}.safetensors", "metrics.json"]
            save_branch(load_model(Path(scratch)), config.branch, Path(scratch) / files[0])
        blobs = {name: Blob(data=Path(scratch) / name) for name in files}
        writer.units.put("model", blobs)
    metrics = json.loads(writer.store.read("metrics.json"))  # of another run of this command, where that made the model
    history, epoch = metrics["history"], metrics["epoch"]
    row = history[epoch] if history else {}
    validated = {key: value for key, value in row.items() if key.startswith("val_")}
    return {"categories": len(plan.categories), "epochs": len(history), "epoch": epoch, **validated}


def _history(init: Artifact | None) -> list[dict[str, Any]]:
    """The epochs that made the model to start from."""
    parts = init.parts("metrics.json") if init else []
    return json.loads(init.read(parts[0]))["history"] if init and parts else []
