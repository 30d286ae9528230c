"""Describe a gallery: catalog + model -> descriptors.

  manet extract --catalog s3://shop/catalog --model s3://shop/model --out s3://shop/descriptors

Reads the catalog (an artifact or one Parquet file) and a model. Writes `part-*.parquet` (image_id, descriptor) and
`rejects-*.parquet`. The same command again resumes: finished parts are verified and kept. It fails, after everything
else is saved, when more than --max-rejects of the pictures cannot be used.
"""

from typing import Any, ClassVar

from cluster.artifact import ArtifactWriter
from jobs.config import JobConfig
from jobs.inputs import open_model, open_table
from jobs.make import make
from jobs.streaming import DescribeConfig, describe_into, unit_names
from manet.pooling import DescriptorName


class Config(JobConfig, DescribeConfig):
    """Flags of `manet extract`."""

    INPUTS: ClassVar[tuple[str, ...]] = ("catalog", "model")

    catalog: str
    """Catalog artifact, or a Parquet file with the columns image_id and uri."""
    model: str
    """Model artifact."""
    descriptor: DescriptorName = "sr-mac"
    """How the feature map of a picture becomes its descriptor."""


def run(config: Config) -> dict[str, Any]:
    """Run the job; returns its summary."""
    table = open_table(config.catalog, "catalog", "--catalog")
    model = open_model(config.model)

    def build(writer: ArtifactWriter) -> tuple[list[str], dict[str, Any]]:
        summary = describe_into(writer, table, model, config, names=(config.descriptor,))
        return unit_names(table, config), {**summary, "descriptor": config.descriptor}

    return make(config, "descriptors", {"catalog": table.source, "model": model.as_input()}, build)
