"""The whole way: catalog + queries -> few-shot set, model, descriptors, index, figures, report.

  manet pipeline --catalog shop/catalog --queries shop/queries --out run

Calls the other jobs in order, each into a folder of its own below --out (fewshot, pretrained, model, descriptors, index,
evaluation, comparison, report). A stage that is committed for the same inputs is skipped; a killed run goes on where it
was. Any flag of a stage can be set with --set JOB.FLAG=VALUE, e.g. --set train.epochs=5 (several values of one flag by
commas: --set extract.scales=1,0.7). Ends with a table and the report's address.
"""

import time
import typing
from typing import Any, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from cluster.errors import BadInputError
from cluster.session import SessionConfig
from cluster.telemetry import say
from jobs import compare, evaluate, extract, fewshot, index, report, train
from jobs.config import JobConfig, first_fault, how
from manet.config import NetworkConfig, refuse_lacking

STAGES: dict[str, Any] = {
    "fewshot": fewshot,
    "train": train,
    "extract": extract,
    "index": index,
    "evaluate": evaluate,
    "compare": compare,
    "report": report,
}


class Config(JobConfig):
    """Flags of `manet pipeline`."""

    catalog: str
    """Catalog artifact, or a Parquet file."""
    queries: str
    """Queries artifact, or a Parquet file."""
    size: int = Field(default=480, ge=32)
    """Longer side of a described picture, px."""
    set: tuple[str, ...] = how(())
    """A flag of one stage: JOB.FLAG=VALUE."""

    @field_validator("set")
    @classmethod
    def _known(cls, given: tuple[str, ...]) -> tuple[str, ...]:
        for item in given:
            _split(item)
        return given

    @model_validator(mode="after")
    def _stages_are_sound(self) -> Self:
        _stages(self)
        return self


def run(config: Config) -> dict[str, Any]:
    """Run every stage; returns figures and times."""
    times: dict[str, float] = {}
    summaries: dict[str, dict[str, Any]] = {}
    for name, (job, made) in _stages(config).items():
        started = time.monotonic()
        say(f"--- {name}")
        summaries[name] = STAGES[job].run(made)
        times[name] = round(time.monotonic() - started, 1)
    rows = summaries["comparison"]["table"]
    for line in report.table_lines(rows):
        say(line)
    address = f"{summaries['report']['out'].rstrip('/')}/report.html"
    say(f"report: {address}")
    return {
        "kind": "pipeline",
        "out": config.out.rstrip("/"),
        "map@7": summaries["evaluation"]["map@7"],
        "recall@1": summaries["evaluation"]["recall@1"],
        "stage_seconds": times,
        "report": address,
    }


def _stages(config: Config) -> dict[str, tuple[str, Any]]:
    """Each stage in its turn: its job and that job's config.

    Raises:
        BadInputError: a value of --set is none for its flag.
        InputError: a descriptor that the model will not have.
    """
    out, made = config.out.rstrip("/"), dict[str, tuple[str, Any]]()

    def stage(name: str, job: str, **fields: Any) -> str:  # noqa: ANN401 - the fields of any job's config
        made[name] = job, _config_of(config, job, out=f"{out}/{name}", **fields)
        return f"{out}/{name}"

    few = stage("fewshot", "fewshot", catalog=config.catalog)
    pretrained = stage("pretrained", "train", fewshot=few, size=config.size, epochs=0, region_weights="salient")
    shared = {"masks": f"{pretrained}/masks", "init": pretrained}
    model = stage("model", "train", fewshot=few, size=config.size, saliency_epochs=0, **shared)
    descriptors = stage("descriptors", "extract", catalog=config.catalog, model=model)
    trained, wanted = made["model"][1], made["descriptors"][1]
    refuse_lacking(NetworkConfig(text=trained.text, region_weights=trained.region_weights), wanted.names)
    built = stage("index", "index", descriptors=descriptors)
    figures = stage("evaluation", "evaluate", index=built, queries=config.queries)
    table = stage(
        "comparison", "compare", catalog=config.catalog, queries=config.queries, model=model, baseline=pretrained
    )
    stage(
        "report",
        "report",
        catalog=config.catalog,
        queries=config.queries,
        model=model,
        index=built,
        evaluation=figures,
        comparison=table,
    )
    return made


def _config_of(config: Config, job: str, **fields: Any) -> Any:  # noqa: ANN401 - configs of several jobs
    """A stage's config: the session and --overwrite of the pipeline, --set, and what the stage itself decides."""
    session = {name: getattr(config, name) for name in (*SessionConfig.model_fields, "overwrite")}
    taken = train.OF_INIT if "init" in fields else ()
    chosen = {key: value for name, key, value in map(_split, config.set) if name == job and key not in taken}
    kind = STAGES[job].Config
    several = {key for key, field in kind.model_fields.items() if typing.get_origin(field.annotation) is tuple}
    given = {key: value.split(",") if key in several else value for key, value in chosen.items()}
    try:
        return kind(**{**session, **given, **fields})
    except ValidationError as error:
        raise BadInputError(f"--set {job}: {first_fault(error)}") from None


def _split(item: str) -> tuple[str, str, str]:
    flag, equals, value = item.partition("=")
    job, dot, key = flag.partition(".")
    key = key.replace("-", "_")
    if not equals or not dot:
        raise ValueError(f"{item!r} is not JOB.FLAG=VALUE")
    if job not in STAGES or key not in STAGES[job].Config.model_fields:
        raise ValueError(f"{item!r}: no flag {key.replace('_', '-')} of a job {job}; the jobs are {', '.join(STAGES)}")
    if (job, key, value) == ("train", "attention", "none"):
        raise ValueError(
            f"{item!r}: the pipeline compares attention with none; train such a model by itself: manet train"
        )
    if (job, key) == ("evaluate", "k"):
        raise ValueError(f"{item!r}: the pipeline itself decides that: the report shows 7 answers; see manet evaluate")
    if key in {"out", *STAGES[job].Config.INPUTS} or (job, key) == ("train", "size"):
        raise ValueError(f"{item!r}: the pipeline itself decides that; see --catalog, --queries, --size and --out")
    return job, key, value
