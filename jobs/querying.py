"""How a query meets an index: described exactly as the gallery was, searched in all shards."""

from typing import Any, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict

from cluster.artifact import Artifact, Input, Part
from cluster.errors import BadInputError, IntegrityError
from jobs.inputs import Table, local_copy, open_model
from jobs.parquet import read_parquet
from jobs.streaming import DescribeConfig
from manet.describe import Precision
from manet.pooling import DescriptorName
from manet.search import Searcher
from manet.shards import ShardFiles
from manet.tables import descriptors_to_numpy

_Config = TypeVar("_Config", bound=DescribeConfig)
Vectors = np.ndarray[Any, np.dtype[np.float16]]


class QuerySpec(BaseModel):
    """`query.json` of an index: all that decides a query's descriptor."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: Input
    descriptor: DescriptorName
    size: int
    batch_size: int
    precision: Precision

    @classmethod
    def of(cls, descriptors: Artifact) -> "QuerySpec":
        """What described a descriptors artifact."""
        config = descriptors.manifest.config
        fields = {name: config[name] for name in ("descriptor", "size", "batch_size", "precision")}
        return cls(model=descriptors.manifest.inputs["model"], **fields)

    def open_model(self, uri: str = "") -> Artifact:
        """The model that described the gallery, from where it was or from `uri`.

        Raises:
            BadInputError: another model lies there.
        """
        model = open_model(uri or self.model.uri)
        if model.sha256 != self.model.sha256:
            raise BadInputError(
                f"{model.uri} is not the model that described this index (sha256 {model.sha256[:12]}, "
                f"the index says {self.model.sha256[:12]}); give the right one with --model"
            )
        return model

    def apply(self, config: _Config) -> _Config:
        """The describing config of a job with the fields that must equal the gallery's."""
        fields = {"size": self.size, "batch_size": self.batch_size, "precision": self.precision}
        return config.model_copy(update=fields)


def read_descriptors(descriptors: Artifact, part: Part) -> tuple[list[str], Vectors]:
    """Ids and descriptors, float16 [n, D], of one part, checked against the manifest.

    Raises:
        IntegrityError: the file differs from the manifest.
    """
    ids, vectors = descriptors_to_numpy(read_parquet(descriptors.read(part)))
    if len(ids) != part.rows:
        raise IntegrityError(f"{descriptors.store.uri(part.name)} has {len(ids)} rows, the manifest says {part.rows}")
    return ids, vectors


def read_all(descriptors: Artifact) -> tuple[list[str], np.ndarray[Any, np.dtype[np.float16]]]:
    """All ids and descriptors of an artifact that fits in memory."""
    pairs = [read_descriptors(descriptors, part) for part in descriptors.parts("part-") if part.rows]
    return [name for names, _ in pairs for name in names], np.concatenate([vectors for _, vectors in pairs])


def relevant_ids(queries: Table) -> dict[str, list[str]]:
    """query_id -> the gallery ids that answer it."""
    table = queries.read(columns=["query_id", "uri", "relevant"])
    return dict(zip(table["query_id"].to_pylist(), table["relevant"].to_pylist(), strict=True))


def open_searcher(index: Artifact, *, nprobe: int = 0, refine: int = 0, threads: int = 1) -> Searcher:
    """A searcher over all shards of an index; its files are brought to this machine first, checked."""
    folder = local_copy(index, "shard-")
    names = [part.name.removesuffix(".faiss") for part in index.parts("shard-", ".faiss")]
    shards = [
        ShardFiles(index=folder / f"{n}.faiss", ids=folder / f"{n}.ids.parquet", refine=folder / f"{n}.refine.npy")
        for n in names
    ]
    return Searcher(shards, nprobe=nprobe, refine=refine, threads=threads)


def query_spec(index: Artifact) -> QuerySpec:
    """The index's `query.json`."""
    return QuerySpec.model_validate_json(index.read(index.parts("query.json")[0]))
