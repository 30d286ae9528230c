"""The whole way: catalog + queries -> few-shot set, model, descriptors, index, figures, report.

  manet pipeline --catalog shop/catalog --queries shop/queries --out run

Calls the other jobs in order, each into a folder of its own below --out (fewshot, pretrained, model, descriptors, index,
evaluation, comparison, report). A stage that is committed for the same inputs is skipped; a killed run goes on where it
was. Any flag of a stage can be set with --set JOB.FLAG=VALUE, e.g. --set train.epochs=5. Ends with a table and the
report's address.
"""

import time
from typing import Any

from pydantic import Field, ValidationError, field_validator

from cluster.errors import BadInputError
from cluster.session import SessionConfig
from cluster.telemetry import say
from jobs import compare, evaluate, extract, fewshot, index, report, train
from jobs.config import JobConfig, first_fault, how

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


def run(config: Config) -> dict[str, Any]:
    """Run every stage; returns figures and times."""
    out = config.out.rstrip("/")
    times: dict[str, float] = {}
    summaries: dict[str, dict[str, Any]] = {}

    def stage(name: str, job: str, **fields: Any) -> str:  # noqa: ANN401 - the fields of any job's config
        started = time.monotonic()
        say(f"--- {name}")
        module = STAGES[job]
        summaries[name] = module.run(_config_of(config, job, out=f"{out}/{name}", **fields))
        times[name] = round(time.monotonic() - started, 1)
        return f"{out}/{name}"

    few = stage("fewshot", "fewshot", catalog=config.catalog)
    pretrained = stage("pretrained", "train", fewshot=few, size=config.size, epochs=0)
    shared = {"masks": f"{pretrained}/masks", "init": pretrained}
    model = stage("model", "train", fewshot=few, size=config.size, saliency_epochs=0, **shared)
    descriptors = stage("descriptors", "extract", catalog=config.catalog, model=model)
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
    rows = summaries["comparison"]["table"]
    for line in report.table_lines(rows):
        say(line)
    address = f"{summaries['report']['out'].rstrip('/')}/report.html"
    say(f"report: {address}")
    return {
        "kind": "pipeline",
        "out": out,
        "map@7": summaries["evaluation"]["map@7"],
        "recall@1": summaries["evaluation"]["recall@1"],
        "stage_seconds": times,
        "report": address,
    }


def _config_of(config: Config, job: str, **fields: Any) -> Any:  # noqa: ANN401 - configs of several jobs
    """A stage's config: the session and --overwrite of the pipeline, --set, and what the stage itself decides."""
    session = {name: getattr(config, name) for name in (*SessionConfig.model_fields, "overwrite")}
    taken = train.OF_INIT if "init" in fields else ()
    chosen = {key: value for name, key, value in map(_split, config.set) if name == job and key not in taken}
    module = STAGES[job]
    try:
        return module.Config(**{**session, **chosen, **fields})
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
