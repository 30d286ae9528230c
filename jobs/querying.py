"""How a query meets an index: described exactly as the gallery was, searched in all shards."""

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, model_validator

from cluster.artifact import Artifact, ArtifactWriter, Input, Part, open_artifact
from cluster.errors import BadInputError, IntegrityError, JobFailedError, ObjectMissingError
from jobs.config import JobConfig
from jobs.inputs import Table, cache_folder, open_model, read_named
from jobs.make import make
from jobs.parquet import read_parquet
from jobs.streaming import DescribeConfig, describe_into, unit_names
from manet.names import DescriptorName, Precision
from manet.search import EXACT_BELOW, Hit, Searcher
from manet.shards import ShardFiles
from manet.tables import descriptors_to_numpy

if TYPE_CHECKING:
    from manet.describe import Describer

_Config = TypeVar("_Config", bound=DescribeConfig)
OF_INDEX = ("size", "batch_size", "precision", "scales")
Vectors = np.ndarray[Any, np.dtype[np.float16]]


class QuerySpec(BaseModel):
    """`query.json` of an index: all that decides a query's descriptor."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: Input
    descriptor: DescriptorName
    size: int
    batch_size: int
    precision: Precision
    scales: tuple[float, ...] = (1.0,)

    @classmethod
    def of(cls, descriptors: Artifact) -> "QuerySpec":
        """What described a descriptors artifact.

        Raises:
            BadInputError: it holds several descriptors, or does not say which.
        """
        config = descriptors.manifest.config
        if "descriptor" not in config:
            raise BadInputError(
                f"{descriptors.uri} does not say which descriptor it holds (an earlier program made it): describe the "
                "pictures again into another --out"
            )
        if "," in config["descriptor"]:
            raise BadInputError(
                f"{descriptors.uri} holds several descriptors ({config['descriptor']}); an index takes one: "
                "run extract with one --descriptor"
            )
        fields = {name: config[name] for name in ("descriptor", "size", "batch_size", "precision")}
        scales = tuple(config.get("scales", (1.0,)))  # descriptors of before have none
        return cls(model=descriptors.manifest.inputs["model"], scales=scales, **fields)

    def refuse_other(self, wanted: "QuerySpec", where: str) -> None:
        """Refuse vectors that were described otherwise than the gallery (`wanted`); `where` names them.

        Raises:
            BadInputError: another model, descriptor, size, precision, or other scales.
        """
        pairs = [
            (name, getattr(self, name), getattr(wanted, name)) for name in ("descriptor", "size", "precision", "scales")
        ] + [("model", self.model.sha256[:12], wanted.model.sha256[:12])]
        for name, own, other in pairs:
            if own != other:
                raise BadInputError(f"{where} was described with {name} {own}, the gallery with {other}")

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

    def describer(self, folder: Path, *, gpu: bool = False) -> "Describer":
        """What describes a query as the gallery was; `folder` holds the model's files."""
        from manet.checkpoint import load_model
        from manet.describe import Describer

        return Describer(
            load_model(folder),
            names=(self.descriptor,),
            device="cuda" if gpu else "cpu",
            batch_size=self.batch_size,
            precision=self.precision,
            scales=self.scales,
        )

    def apply(self, config: _Config) -> _Config:
        """The describing config of a job with the fields that must equal the gallery's."""
        return config.model_copy(update={name: getattr(self, name) for name in OF_INDEX})


class QueriesConfig(JobConfig, DescribeConfig):
    """Flags of a job that describes queries for an index, which itself says at which size, in which batches and how."""

    model: str = ""
    """Where the index's model lies now, if it was moved."""

    @model_validator(mode="after")
    def _as_the_gallery(self) -> "QueriesConfig":
        for name in OF_INDEX:
            if getattr(self, name) != type(self).model_fields[name].default:
                flag = f"--{name.replace('_', '-')}"
                raise ValueError(f"{flag}: queries are described as the index's pictures were; leave the flag out")
        return self


class DescribedConfig(JobConfig, DescribeConfig):
    """What the manifest of descriptors below another job's folder says, as that of `extract` does."""

    descriptor: str
    """The descriptors of one pass, parted by commas."""

    @classmethod
    def of(
        cls, config: DescribeConfig, out: str, names: Sequence[DescriptorName], *, overwrite: bool
    ) -> "DescribedConfig":
        """How a job describes pictures into `out`."""
        fields = {name: getattr(config, name) for name in DescribeConfig.model_fields}
        return cls(**fields, out=out, overwrite=overwrite, descriptor=",".join(names))


def describe_queries(config: QueriesConfig, spec: QuerySpec, queries: Table) -> Artifact:
    """The queries' descriptors, an artifact of its own below --out: made as `extract` makes the gallery's, resumable."""
    model = spec.open_model(config.model)
    describing, names = spec.apply(config), (spec.descriptor,)
    out = f"{config.out.rstrip('/')}/query-descriptors"
    nested = DescribedConfig.of(describing, out, names, overwrite=config.overwrite)

    def build(writer: ArtifactWriter) -> tuple[list[str], dict[str, Any]]:
        counts = describe_into(writer, queries, model, describing, names=names)
        return unit_names(queries, describing), counts

    inputs = {queries.kind: queries.source, "model": model.as_input()}
    make(nested, "descriptors", inputs, build)
    return open_artifact(nested.out, "descriptors")


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
    """All ids and descriptors of an artifact that fits in memory.

    Raises:
        JobFailedError: it has none: all its pictures were rejected.
    """
    pairs = [read_descriptors(descriptors, part) for part in filled(descriptors)]
    return [name for names, _ in pairs for name in names], np.concatenate([vectors for _, vectors in pairs])


def filled(descriptors: Artifact) -> list[Part]:
    """The parts that hold a descriptor.

    Raises:
        JobFailedError: there is none.
    """
    parts = [part for part in descriptors.parts("part-") if part.rows]
    if not parts:
        raise JobFailedError(f"{descriptors.uri}: none of its pictures could be described; its rejects say why")
    return parts


def read_ids(uri: str, flag: str) -> list[str]:
    """Image ids from a text file, one a line; sorted, each once.

    Raises:
        BadInputError: there is no such file, it is not text, or it has no line.
    """
    try:
        text = read_named(uri, flag, "text file; it has one id a line").decode("utf-8-sig")
    except UnicodeDecodeError:
        raise BadInputError(f"{flag} {uri}: it is no UTF-8 text; it has one id a line") from None
    lines = re.split(r"[\r\n]+", text)  # and not at what else Unicode calls a line's end
    ids = sorted({line.strip() for line in lines if line.strip()})
    if not ids:
        raise BadInputError(f"{flag} {uri}: the file has no ids; it has one a line")
    return ids


def relevant_ids(queries: Table) -> dict[str, list[str]]:
    """query_id -> the gallery ids that answer it."""
    table = queries.read(columns=["query_id", "uri", "relevant"])
    return dict(zip(table["query_id"].to_pylist(), table["relevant"].to_pylist(), strict=True))


def open_index(uri: str, version: int = 0) -> Artifact:
    """An index, its newest version or the one of a number."""
    return open_artifact(uri, "index", version=version)


def open_searcher(
    index: Artifact,
    *,
    nprobe: int = 0,
    refine: int = 0,
    threads: int = 1,
    folded: bool = True,
    exact_below: int = EXACT_BELOW,
    expand: int = -1,
) -> Searcher:
    """A searcher over all shards of an index: every file is held against the manifest before it is parsed.

    Args:
        index: the version to open.
        nprobe, refine: as `Searcher`; 0: what the index was tuned to.
        threads: how many search side by side.
        folded, exact_below: as `Searcher`.
        expand: as `Searcher`; below 0: what the index was built with.

    Raises:
        IntegrityError: a file differs from the manifest; it is named.
        ObjectMissingError: this version was pruned meanwhile (see `open_newest_searcher`).
    """
    parts = [*index.parts("shard-"), *index.parts("trained"), *index.parts("query.json")]
    with ThreadPoolExecutor(threads) as pool:
        paths = dict(zip(parts, pool.map(lambda part: index.local(part, cache_folder()), parts), strict=True))
    where = {part.name: path for part, path in paths.items()}
    dead = dead_rows(index)
    names = [part.name.removesuffix(".faiss") for part in index.parts("shard-", ".faiss")]
    shards = [
        ShardFiles(
            index=where[f"{name}.faiss"],
            ids=where[f"{name}.ids.parquet"],
            refine=where[f"{name}.refine.npy"],
            dead=np.array(dead.get(name, ()), np.int64),
        )
        for name in names
    ]
    tuned = index.manifest.summary
    nprobe, refine = nprobe or tuned.get("nprobe", 0), refine or tuned.get("refine", 0)
    return Searcher(
        shards,
        nprobe=nprobe,
        refine=refine,
        threads=threads,
        folded=folded,
        exact_below=exact_below,
        whitening=whitening_of(index),
        expand=expand if expand >= 0 else tuned.get("expand", 0),
    )


_opened: list[tuple[object, Searcher]] = []


def worker_searcher(index: Artifact, **options: Any) -> Searcher:  # noqa: ANN401 - as `open_searcher`
    """As `open_searcher`, opened once in each worker: the last one is kept."""
    key = (index.uri, tuple(part.sha256 for part in index.manifest.parts), tuple(sorted(options.items())))
    if not _opened or _opened[0][0] != key:
        _opened[:] = [(key, open_searcher(index, **options))]
    return _opened[0][1]


def open_newest_searcher(
    uri: str, *, nprobe: int = 0, refine: int = 0, threads: int = 1, expand: int = -1
) -> tuple[Artifact, Searcher]:
    """The newest version and its searcher; tried again when that version is pruned while it is being opened."""
    while True:
        index = open_index(uri)
        try:
            return index, open_searcher(index, nprobe=nprobe, refine=refine, threads=threads, expand=expand)
        except (ObjectMissingError, FileNotFoundError):
            if open_index(uri).manifest.number == index.manifest.number:
                raise


def answer_row(hit: Hit) -> dict[str, Any]:
    """An answer as `search` prints it and the service gives it."""
    return {"image_id": hit.image_id, "score": round(hit.score, 6), "uri": hit.uri, "description": hit.description}


def dead_rows(index: Artifact) -> dict[str, tuple[int, ...]]:
    """Shard -> its rows that were deleted."""
    found: dict[str, list[int]] = {}
    for part in index.parts("tombstones"):
        table = read_parquet(index.read(part))
        for shard, row in zip(table["shard"].to_pylist(), table["row"].to_pylist(), strict=True):
            found.setdefault(shard, []).append(row)
    return {shard: tuple(sorted(rows)) for shard, rows in found.items()}


def whitening_of(index: Artifact) -> np.ndarray[Any, np.dtype[Any]] | None:
    """What an index (or what is to become one) whitens with (`manet.whitening`), or None."""
    parts = index.parts("whitening")
    return np.load(index.local(parts[0], cache_folder()), allow_pickle=False) if parts else None


def query_dim(index: Artifact) -> int:
    """Dimensions of the descriptors that an index (or what is to become one) was built from, before it whitened them."""
    whitening = whitening_of(index)
    return int(index.manifest.summary["dim"] if whitening is None else whitening.shape[1])


def query_spec(index: Artifact) -> QuerySpec:
    """The index's `query.json`.

    Raises:
        BadInputError: it was built from vectors of no model.
    """
    parts = index.parts("query.json")
    if not parts:
        raise BadInputError(f"{index.uri} was built from vectors of no model: no picture can be described for it")
    return QuerySpec.model_validate_json(index.read(parts[0]))
