"""Describe a gallery: catalog + model -> descriptors.

  manet extract --catalog s3://shop/catalog --model s3://shop/model --out s3://shop/descriptors

Reads the catalog (an artifact or one Parquet file) and a model. Writes `part-*.parquet` (image_id, descriptor) and
`rejects-*.parquet`. The same command again resumes: finished parts are verified and kept. It fails, after everything
else is saved, when more than --max-rejects of the pictures cannot be used.
"""

from typing import Any, ClassVar, cast, get_args

from pydantic import field_validator

from cluster.artifact import RECEIPTS, Artifact, ArtifactWriter
from cluster.session import ray_session
from cluster.storage import open_store
from cluster.telemetry import say
from jobs.config import JobConfig, how
from jobs.inputs import Table, network_of, open_model, open_table
from jobs.make import make
from jobs.planning import cut
from jobs.streaming import DescribeConfig, describe_into, plan_line, unit_names
from manet.config import refuse_lacking
from manet.names import DescriptorName


class Config(JobConfig, DescribeConfig):
    """Flags of `manet extract`."""

    INPUTS: ClassVar[tuple[str, ...]] = ("catalog", "model")

    catalog: str
    """Catalog artifact, or a Parquet file with the columns image_id and uri."""
    model: str
    """Model artifact."""
    descriptor: str = "sr-mac"
    """How the feature map of a picture becomes its descriptor; several in one pass: sr-mac,gem."""
    dry_run: bool = how(False)
    """Say what would run and stop; nothing is written."""

    @field_validator("descriptor")
    @classmethod
    def _known(cls, given: str) -> str:
        for name in given.split(","):
            if name not in get_args(DescriptorName):
                raise ValueError(f"unknown descriptor {name!r}; there are {', '.join(get_args(DescriptorName))}")
        if len(set(given.split(","))) < len(given.split(",")):
            raise ValueError("a descriptor is named twice")
        return given

    @property
    def names(self) -> tuple[DescriptorName, ...]:
        """The descriptors of one pass."""
        return cast(tuple[DescriptorName, ...], tuple(self.descriptor.split(",")))


def run(config: Config) -> dict[str, Any]:
    """Run the job; returns its summary."""
    table = open_table(config.catalog, "catalog", "--catalog")
    model = open_model(config.model)
    refuse_lacking(network_of(model), config.names)
    if config.dry_run:
        return _plan(config, table, model)

    def build(writer: ArtifactWriter) -> tuple[list[str], dict[str, Any]]:
        summary = describe_into(writer, table, model, config, names=config.names)
        return unit_names(table, config), {**summary, "descriptor": config.descriptor}

    return make(config, "descriptors", {"catalog": table.source, "model": model.as_input()}, build)


def _plan(config: Config, table: Table, model: Artifact) -> dict[str, Any]:
    """Say the plan; parts that an earlier run finished are counted from their receipts."""
    done = {entry.name.removeprefix(f"{RECEIPTS}/") for entry in open_store(config.out).list(f"{RECEIPTS}/")}
    todo = [unit for unit in cut(table.rows, config.part_rows) if f"{unit.name}.json" not in done]
    with ray_session(config):
        say(plan_line(table, model, config, todo))
    parts = len(unit_names(table, config))
    return {"kind": "plan", "out": config.out, "rows": table.rows, "parts": parts, "parts_to_do": len(todo)}
