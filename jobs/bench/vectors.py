"""`bench vectors`: a gallery of any size without pictures: seeded, clustered vectors as a descriptors artifact.

  manet bench vectors --rows 500000 --dim 1280 --out s3://bench/vectors

Writes a committed descriptors artifact (`part-*.parquet`, no model, no catalog) that `index` takes, and `queries.npy`: float16
[Q, D], further members of the same clusters that are not in the gallery. A vector is a point near one of the cluster
centres of a latent space, mixed into D dimensions, rectified, made noisy and of unit length: like a network's
features it is sparse, positive, correlated, and its neighbours lie across the borders of cells. Clusters are of unequal size.
With --duplicates the last rows are earlier ones again, a little changed (`bench dedup` looks for them).
The same command again keeps the finished parts; one part and the near-duplicates are in memory at a time.
"""

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import Field

from cluster.artifact import Artifact, ArtifactWriter, Blob
from cluster.errors import BadInputError
from cluster.telemetry import Meter
from jobs.config import JobConfig
from jobs.make import make
from jobs.parquet import parquet_bytes
from manet.tables import descriptor_column

QUERIES = "queries.npy"
_CHANGE = 0.2  # longest change of a near-duplicate: its cosine is 0.98 at least
_QUERY_STREAM = 1 << 40  # number of the queries' random stream: no part has it
Vectors = np.ndarray[Any, np.dtype[Any]]


class Config(JobConfig):
    """Flags of `manet bench vectors`."""

    rows: int = Field(ge=1)
    """Vectors of the gallery."""
    dim: int = Field(default=1280, ge=1)
    """Their dimensions."""
    queries: int = Field(default=2000, ge=1)
    """Held-out queries."""
    clusters: int = Field(default=0, ge=0)
    """Clusters; 0: one for each 32 vectors, as a shop has a few pictures of each kind."""
    latent: int = Field(default=32, ge=1)
    """Dimensions of the space that the clusters lie in: the more, the harder to search."""
    spread: float = Field(default=0.6, ge=0)
    """Distance of a vector from its centre, over that of the centres from each other: the more, the harder."""
    noise: float = Field(default=0.1, ge=0)
    """Standard deviation of the noise of each dimension, over that of the signal."""
    duplicates: int = Field(default=0, ge=0)
    """Near-duplicates among the rows: the last ones are earlier ones again, changed by up to a fifth of their length."""
    seed: int = Field(default=0, ge=0)
    """Seed of everything."""
    part_rows: int = Field(default=4096, ge=1)
    """Vectors of one part."""


@dataclass(frozen=True)
class Clusters:
    """The generator: any stream of it can be drawn alone, in any order, in any process.

    Shape letters: N rows, K clusters, L latent dimensions, D dimensions.
    """

    seed: int
    dim: int
    clusters: int
    latent: int
    spread: float
    noise: float

    @cached_property
    def _model(self) -> tuple[Vectors, Vectors, Vectors, Vectors]:
        """Centres [K, L], mixing [L, D], bias [D], cumulative shares of the clusters [K]."""
        rng = np.random.default_rng([self.seed, 0])
        centres_KL = rng.standard_normal((self.clusters, self.latent), np.float32)
        mixing_LD = rng.standard_normal((self.latent, self.dim), np.float32) / np.float32(self.latent**0.5)
        bias_D = rng.standard_normal(self.dim, np.float32) * np.float32(0.5) - np.float32(0.25)
        shares_K = rng.gamma(1.0, size=self.clusters)
        return centres_KL, mixing_LD, bias_D, np.cumsum(shares_K / shares_K.sum())

    def draw(self, stream: int, rows: int) -> Vectors:
        """`rows` vectors of unit length, float16 [N, D]: the same for the same stream."""
        centres_KL, mixing_LD, bias_D, shares_K = self._model
        rng = np.random.default_rng([self.seed, 1, stream])
        chosen_N = np.minimum(np.searchsorted(shares_K, rng.random(rows)), self.clusters - 1)
        point_NL = centres_KL[chosen_N] + np.float32(self.spread) * rng.standard_normal((rows, self.latent), np.float32)
        signal_ND = point_NL @ mixing_LD + bias_D
        signal_ND += np.float32(self.noise) * rng.standard_normal((rows, self.dim), np.float32)
        np.maximum(signal_ND, 0, out=signal_ND)
        signal_ND[~signal_ND.any(1), 0] = 1  # few dimensions: all may be cut off
        unit_ND = signal_ND / np.linalg.norm(signal_ND, axis=1, keepdims=True)
        return np.asarray(unit_ND, np.float16)

    def queries(self, count: int) -> Vectors:
        """Members of the clusters that no part holds, float16 [count, D]."""
        return self.draw(_QUERY_STREAM, count)


def planted(config: Config) -> Vectors:
    """The row that each of the last `duplicates` rows repeats."""
    if 2 * config.duplicates > config.rows:
        raise BadInputError(
            f"--duplicates {config.duplicates}: at most half of the {config.rows} rows can repeat others"
        )
    rng = np.random.default_rng([config.seed, 2])
    found: Vectors = rng.choice(config.rows - config.duplicates, config.duplicates, replace=False)
    return found


def _repeats(config: Config, source: Clusters) -> dict[int, Vectors]:
    """Row -> vector of each near-duplicate."""
    rng = np.random.default_rng([config.seed, 3])
    origins, found = planted(config), {}
    for number, rows in _cut(config.rows, config.part_rows):
        first = number * config.part_rows
        here = np.flatnonzero((origins >= first) & (origins < first + rows))
        vectors = source.draw(number, rows)[origins[here] - first].astype(np.float32) if len(here) else ()
        for place, vector in zip(here.tolist(), vectors, strict=True):
            change = rng.standard_normal(config.dim, np.float32)
            changed = vector + rng.uniform(0, _CHANGE) * change / np.linalg.norm(change)
            found[config.rows - config.duplicates + place] = changed / np.linalg.norm(changed)
    return found


def run(config: Config) -> dict[str, Any]:
    """Write the artifact; returns its summary."""
    planted(config)  # more than there can be are refused before the folder is claimed
    return make(config, "descriptors", {}, partial(_build, config))


def _build(config: Config, writer: ArtifactWriter) -> tuple[list[str], dict[str, Any]]:
    clusters = config.clusters or max(1, config.rows // 32)
    source = Clusters(config.seed, config.dim, clusters, config.latent, config.spread, config.noise)
    done, repeats = writer.finished(), _repeats(config, source)
    parts = [(f"{number:05d}", number, rows) for number, rows in _cut(config.rows, config.part_rows)]
    with Meter("vectors", config.rows, "rows") as meter:
        for unit, number, rows in parts:
            if unit not in done:
                blob = Blob(data=_part(source, number, rows, number * config.part_rows, repeats), rows=rows)
                writer.units.put(unit, {f"part-{unit}.parquet": blob}, {"rows": rows})
            meter.advance(rows)
    held_out = io.BytesIO()
    np.save(held_out, source.queries(config.queries))
    blob = Blob(data=held_out.getvalue(), rows=config.queries)
    writer.units.put("queries", {QUERIES: blob})
    units = [*(unit for unit, _, _ in parts), "queries"]
    return units, {"rows": config.rows, "rejects": 0, "dim": config.dim, "clusters": clusters}


def _cut(rows: int, step: int) -> Iterator[tuple[int, int]]:
    """Number and rows of each part."""
    yield from ((start // step, min(step, rows - start)) for start in range(0, rows, step))


def _part(source: Clusters, number: int, rows: int, first: int, repeats: Mapping[int, Vectors]) -> bytes:
    vectors = source.draw(number, rows)
    for row in repeats.keys() & range(first, first + rows):
        vectors[row - first] = repeats[row]
    ids = [row_name(row) for row in range(first, first + rows)]
    table = pa.table({"image_id": pa.array(ids, pa.string())})
    return parquet_bytes(table.append_column("descriptor", descriptor_column(vectors)))


def row_name(row: int) -> str:
    """The id of a row."""
    return f"v{row:09d}"


def held_out(descriptors: Artifact) -> Vectors:
    """The queries of a descriptors artifact that `bench vectors` wrote, float16 [Q, D].

    Raises:
        BadInputError: it has none.
    """
    parts = descriptors.parts(QUERIES)
    if not parts:
        raise BadInputError(
            f"--descriptors {descriptors.uri} has no {QUERIES}: it must be written by `manet bench vectors`, "
            "whose queries are not rows of the gallery"
        )
    queries: Vectors = np.load(io.BytesIO(descriptors.read(parts[0])))
    return queries
