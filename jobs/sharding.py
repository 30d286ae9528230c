"""Shards of an index: cut from parts, filled by Ray tasks from descriptors or from older shards, reconciled from storage."""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cluster.artifact import Artifact, Blob, Part, Receipt, Units
from cluster.errors import BadInputError, ClusterError, IntegrityError
from cluster.tasks import run_tasks
from cluster.telemetry import Meter
from jobs.inputs import Table, cache_folder, open_table
from jobs.parquet import parquet_bytes, read_parquet
from jobs.querying import Vectors, read_descriptors

DETAILS = ("uri", "description", "category")  # the catalogue's columns that answers carry
Rows = Callable[[Part], tuple[pa.Table, Vectors]]  # a part -> its ids and details, and its vectors
_ERROR_ROWS = 256  # rows of a part whose quantization error is measured


@dataclass(frozen=True, kw_only=True)
class Shard:
    """Parts that make one shard, and how many rows come out of them."""

    name: str
    parts: tuple[Part, ...]
    rows: int


def shard_limit(asked: int, factory: str) -> int:
    """Most rows of a shard: what was asked for, else what suits an index of this factory."""
    from manet.index import full_shard

    return asked or full_shard(factory)


def cut_shards(
    parts: Sequence[Part], shard_rows: int, prefix: str = "shard", live: Mapping[str, int] | None = None
) -> list[Shard]:
    """Cut parts into shards of at most `shard_rows` rows (one part at least), in order, from the manifest alone.

    Args:
        parts: what to cut.
        shard_rows: most rows of a shard.
        prefix: of the shards' names.
        live: rows of a part that are not deleted, where they are fewer than its rows.
    """
    counts = {part.name: (live or {}).get(part.name, part.rows) for part in parts}
    groups: list[list[Part]] = []
    for part in parts:
        if not groups or sum(counts[p.name] for p in groups[-1]) + counts[part.name] > shard_rows:
            groups.append([])
        groups[-1].append(part)
    return [
        Shard(name=f"{prefix}-{number:05d}", parts=tuple(group), rows=sum(counts[part.name] for part in group))
        for number, group in enumerate(groups)
    ]


@dataclass(frozen=True)
class DescriptorRows:
    """Rows of a descriptors artifact, with the details that its catalogue has of them."""

    descriptors: Artifact
    catalog: Table | None
    groups: Artifact | None = None

    @classmethod
    def of(
        cls, descriptors: Artifact, *, details: bool, catalog: str = "", groups: Artifact | None = None
    ) -> "DescriptorRows":
        """Rows with details from the catalogue that was described, where it was or at `catalog`.

        Raises:
            BadInputError: it lies there no more, or another catalogue does.
        """
        source = descriptors.manifest.inputs.get("catalog")
        if source is None or not details:
            return cls(descriptors, None, groups)
        try:
            table = open_table(catalog or source.uri, "catalog", "--catalog")
        except ClusterError as error:
            raise BadInputError(
                f"{error}; answers carry the catalogue's columns: say with --catalog where it lies now, or --no-details"
            ) from None
        if table.source.sha256 != source.sha256:
            raise BadInputError(f"--catalog {table.source.uri} is not the catalogue that {descriptors.uri} describes")
        return cls(descriptors, table, groups)

    @cached_property
    def _group_of(self) -> dict[str, str]:
        tables = [read_parquet(self.groups.read(part)) for part in self.groups.manifest.parts] if self.groups else []
        return {name: group for table in tables for name, group in zip(*table.to_pydict().values(), strict=True)}

    def __call__(self, part: Part) -> tuple[pa.Table, Vectors]:
        """A part's rows.

        Raises:
            IntegrityError: the catalogue has no such row.
        """
        ids, vectors = read_descriptors(self.descriptors, part)
        table = pa.table({"image_id": pa.array(ids, pa.string())})
        if self.groups is not None:
            names = pa.array([self._group_of.get(name) for name in ids], pa.string())
            table = table.append_column("group", names)
        if self.catalog is None:
            return table, vectors
        step = int(self.descriptors.manifest.config["part_rows"])  # part i describes rows i * step ...
        first = int(part.name.removeprefix("part-").removesuffix(".parquet")) * step
        known = self.catalog.read(first, min(first + step, self.catalog.rows))
        places = {name: place for place, name in enumerate(known["image_id"].to_pylist())}
        if missing := [name for name in ids if name not in places]:
            raise IntegrityError(f"{self.catalog.source.uri}: no row {missing[0]!r} where {part.name} has it")
        rows = pa.array([places[name] for name in ids], pa.int64())
        for column in DETAILS:
            if column in known.column_names:
                table = table.append_column(column, known[column].take(rows).cast(pa.string()))
        return table, vectors


@dataclass(frozen=True)
class ShardRows:
    """Live rows of an index's shards, named by their `.faiss` parts."""

    index: Artifact
    dead: Mapping[str, tuple[int, ...]]

    @cached_property
    def _parts(self) -> dict[str, Part]:
        return {part.name: part for part in self.index.manifest.parts}

    def __call__(self, part: Part) -> tuple[pa.Table, Vectors]:
        """A shard's rows, without the deleted ones."""
        table, vectors, live = self.whole(part)
        return (table, vectors) if live.all() else (table.filter(pa.array(live)), vectors[live])

    def whole(self, part: Part) -> tuple[pa.Table, Vectors, Vectors]:
        """All rows of a shard, their vectors mapped from its file, and which of them are live, bool."""
        name = part.name.removesuffix(".faiss")
        ids = self.index.local(self._parts[f"{name}.ids.parquet"], cache_folder())
        refine = self.index.local(self._parts[f"{name}.refine.npy"], cache_folder())
        table, vectors = read_parquet(ids), np.load(refine, mmap_mode="r")
        live = np.ones(len(table), bool)
        live[list(self.dead.get(name, ()))] = False
        return table, vectors, live


def build_shards(
    units: Units, trained: Part, dim: int, rows_of: Rows, shards: Sequence[Shard], label: str
) -> list[Receipt]:
    """Fill the shards that are not finished, one Ray task each, on the running session; all their receipts, in order.

    Args:
        units: of the index.
        trained: the quantizer, a file of it.
        dim: dimensions of the rows.
        rows_of: a part -> its rows.
        shards: what to fill.
        label: of the messages.

    Raises:
        IntegrityError: stored ids, codes and vectors of a shard differ in number.
    """
    receipts = {shard.name: units.finished(shard.name) for shard in shards}
    todo = [shard for shard in shards if receipts[shard.name] is None]
    with Meter(label, sum(shard.rows for shard in shards), "rows") as meter:
        meter.advance(sum(shard.rows for shard in shards if receipts[shard.name] is not None))
        for receipt in run_tasks(partial(_fill, units, trained, dim, rows_of), todo):
            receipts[receipt.unit] = receipt
            meter.advance(int(receipt.counts["rows"]), part=receipt.unit)
    found = [receipt for receipt in receipts.values() if receipt is not None]
    for shard, receipt in zip(shards, found, strict=True):
        with units.store.open(f"{shard.name}.ids.parquet") as file:
            stored = pq.ParquetFile(file).metadata.num_rows
        if not stored == shard.rows == receipt.counts["rows"]:
            raise IntegrityError(f"{units.store.uri(shard.name)}: {stored} ids for {shard.rows} descriptors")
    return found


def _fill(units: Units, trained: Part, dim: int, rows_of: Rows, shard: Shard) -> Receipt:
    """Add a shard's parts to the trained quantizer, one part in memory at a time."""
    import faiss

    from manet.index import build_shard, quantization_error

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        quantizer = Artifact.checked(units.store, trained)
        empty = faiss.deserialize_index(np.frombuffer(quantizer, np.uint8))
        refine = np.lib.format.open_memmap(folder / "refine.npy", "w+", np.float16, (shard.rows, dim))
        tables: list[pa.Table] = []
        errors: list[tuple[float, int]] = []  # of a few rows of each block, and how many

        def blocks() -> Iterator[Vectors]:
            start = 0
            for part in shard.parts:
                table, vectors = rows_of(part)
                refine[start : start + len(table)] = vectors
                start += len(table)
                tables.append(table)
                few = vectors[:: max(1, len(vectors) // _ERROR_ROWS)]
                errors.append((quantization_error(empty, few), len(few)))
                for at in range(0, len(vectors), 8192):
                    yield vectors[at : at + 8192]

        index = build_shard(quantizer, blocks(), threads=1)
        refine.flush()
        faiss.write_index(index, str(folder / "shard.faiss"))
        ids = pa.concat_tables(tables, promote_options="default")
        blobs = {
            f"{shard.name}.faiss": Blob(data=folder / "shard.faiss", rows=int(index.ntotal)),
            f"{shard.name}.ids.parquet": Blob(data=parquet_bytes(ids), rows=len(ids)),
            f"{shard.name}.refine.npy": Blob(data=folder / "refine.npy", rows=shard.rows),
        }
        error = sum(each * rows for each, rows in errors) / max(1, sum(rows for _, rows in errors))
        counts = {"rows": shard.rows, "quantization_error": round(error, 6)}
        return units.put(shard.name, blobs, counts)


@dataclass(frozen=True, kw_only=True)
class Training:
    """What is trained, from which seed, on how much of a machine."""

    factory: str
    seed: int
    cpus: float
    gpus: int


def trained_quantizer(
    units: Units,
    unit: str,
    rows_of: Rows,
    parts: Sequence[Part],
    training: Training,
    extra: Mapping[str, Blob] | None = None,
) -> Receipt:
    """The unit of a trained quantizer: as it stands, or made by one Ray task on the running session, with `extra` beside it."""
    standing = units.finished(unit)
    if standing is not None:
        return standing
    work = partial(_train, units, unit, rows_of, training, dict(extra or {}))
    return next(iter(run_tasks(work, [parts], cpus=training.cpus, gpus=training.gpus)))


def _train(
    units: Units,
    unit: str,
    rows_of: Rows,
    training: Training,
    extra: Mapping[str, Blob],
    parts: Sequence[Part],
) -> Receipt:
    """Train on a uniform sample over all rows of all parts, kept as float16; writes UNIT.faiss and `extra`."""
    from manet.index import train, training_rows

    rows = sum(part.rows for part in parts)
    sample_ND = sampled(rows_of, parts, training_rows(training.factory, rows), training.seed)
    threads = max(1, int(training.cpus))
    trained = train(sample_ND, training.factory, seed=training.seed, threads=threads, gpus=training.gpus)
    return units.put(unit, {f"{unit}.faiss": Blob(data=trained), **extra})


def sampled(rows_of: Rows, parts: Sequence[Part], wanted: int, seed: int) -> Vectors:
    """At most `wanted` vectors, drawn uniformly over all rows of all parts, float16 [n, D]; one part in memory beside them.

    Raises:
        IntegrityError: the parts hold no row.
    """
    rows = sum(part.rows for part in parts)
    wanted = min(rows, wanted)
    chosen = np.sort(np.random.default_rng(seed).choice(rows, wanted, replace=False))
    sample_ND: Vectors | None = None
    first = filled = 0
    for part in parts:
        here = chosen[(chosen >= first) & (chosen < first + part.rows)] - first
        if here.size:
            vectors = rows_of(part)[1]
            if sample_ND is None:  # filled in place: a second copy is what would need the most memory of a build
                sample_ND = np.empty((wanted, vectors.shape[1]), np.float16)
            taken = vectors[here[here < len(vectors)]]
            sample_ND[filled : filled + len(taken)] = taken
            filled += len(taken)
        first += part.rows
    if sample_ND is None or not filled:
        raise IntegrityError("no row to train on")
    return sample_ND[:filled]


def quantizer_of(index: Artifact) -> Part:
    """The trained quantizer of an index."""
    return index.parts("trained", ".faiss")[0]


def shard_summary(receipts: Sequence[Receipt]) -> dict[str, Any]:
    """Rows and mean quantization error of shards."""
    rows = int(sum(receipt.counts["rows"] for receipt in receipts))
    error = sum(receipt.counts["quantization_error"] * receipt.counts["rows"] for receipt in receipts) / max(1, rows)
    return {"rows": rows, "quantization_error": round(error, 6)}
