"""Every descriptor side by side: catalog + queries + model(s) -> the letter's table.

  manet compare --catalog C --queries Q --model MODEL --plain PLAIN --baseline PRETRAINED --out OUT

One pass over the pictures for each network: its feature maps are computed once and pooled in many ways, before attention
(`backbone`, F), after it (`attended`, X~), and with one part of the attention changed (`no-text`, `other-saliency`, ...: see
`manet.names.Features`). Answers come from exact search, so the table compares descriptors and nothing else. `behind` says
by how much MAP@7 the trained network's SR-MAC is ahead of a row on the same queries, with the 95% bootstrap interval of that
paired difference over resampled queries; `behind_product_low` and `_high` are that over resampled products, wider where products
have several queries. With --whiten the columns `whitened_...` hold MAP@7 of the same rows whitened, each by what is learned on
the gallery's descriptors of that row; by how much that is a gain; and `behind` among whitened rows, each with its interval.
What besides attention differs between the trainings of --model and --plain is said on stderr.
With --fuse there is a row `mff`: CroW of two plain networks, fused. Writes OUT/NETWORK/{gallery,queries} (resumable, as
`extract`), `table.json`, `table.csv` and `table.png`.
"""

import csv
import io
import json
from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from pydantic import Field

from cluster.artifact import Artifact, ArtifactWriter, Blob, Manifest, open_artifact
from cluster.errors import BadInputError
from cluster.telemetry import say
from jobs.config import JobConfig
from jobs.inputs import Table, network_of, open_model, open_table
from jobs.make import make
from jobs.parquet import read_parquet
from jobs.plotting import table_png
from jobs.postprocessing import SAMPLE
from jobs.querying import DescribedConfig, filled, relevant_ids
from jobs.streaming import DescribeConfig, describe_into, unit_names
from manet.config import NetworkConfig, lacks
from manet.errors import InputError
from manet.exact import exact_search
from manet.metrics import drop_self, paired_interval, retrieval_metrics
from manet.names import DescriptorName
from manet.tables import descriptors_to_numpy
from manet.whitening import learn_whitening, whiten

Vectors = np.ndarray[Any, np.dtype[Any]]
Column = tuple[list[str], Vectors]  # ids, and one descriptor of each
Ranking = dict[str, list[str]]  # query_id -> its `K` best gallery ids
Described = tuple[Artifact, Artifact]  # descriptors of the gallery, and of the queries
PLAIN: tuple[DescriptorName, ...] = (
    "spoc@backbone",
    "mac@backbone",
    "gem@backbone",
    "crow@backbone",
    "r-mac@backbone",
    "r-mac-global@backbone",
    "ra-mac@backbone",
    "grmac@backbone",
)
K = 7  # answers, as the challenge counts them
FUSED: DescriptorName = "crow@backbone"  # what MFF fuses
BOLTED_ON: tuple[DescriptorName, ...] = ("sr-mac@backbone", "sr-mac@other-saliency")
BUDGET = (
    "backbone", "backbone_weights", "train_size", "epochs", "batch_size", "lr", "head_lr", "weight_decay", "instance_loss",
    "pasted", "frozen_stride", "balance", "patience", "precision", "seed",
)  # fmt: skip
"""Flags of `train` that decide how a backbone learns, attention aside."""
ATTENDED: tuple[DescriptorName, ...] = (
    "spoc",
    "mac",
    "gem",
    "crow",
    "r-mac",
    "r-mac-global",
    "ra-mac",
    "grmac",
    "sr-mac",
    "sr-mac-as-printed",
    "sr-mac-soft",
    "sr-mac-learned",
    "sr-mac@other-saliency",
)
WITH_TEXT: tuple[DescriptorName, ...] = ("sr-mac@no-text", "r-mac@no-saliency", "sr-mac@other-text")
COLUMNS = (
    "network",
    "features",
    "descriptor",
    "map@7",
    "map@7_low",
    "map@7_high",
    "map@7_standard",
    "recall@1",
    "recall@7",
    "behind",
    "behind_low",
    "behind_high",
    "behind_product_low",
    "behind_product_high",
    "whitened_map@7",
    "whitened_gain",
    "whitened_gain_low",
    "whitened_gain_high",
    "whitened_behind",
    "whitened_behind_low",
    "whitened_behind_high",
    "whitened_behind_product_low",
    "whitened_behind_product_high",
)


class Config(JobConfig, DescribeConfig):
    """Flags of `manet compare`."""

    INPUTS: ClassVar[tuple[str, ...]] = ("catalog", "queries", "model", "plain", "baseline", "fuse")
    ONLY_WITH: ClassVar[dict[str, str]] = {"whiten": "whiten", "whiten_power": "whiten"}

    catalog: str
    """Catalog artifact, or a Parquet file."""
    queries: str
    """Queries artifact, or a Parquet file."""
    model: str
    """Model artifact: the trained network."""
    plain: str = ""
    """A model that was trained without attention under the same budget."""
    baseline: str = ""
    """The network before it was trained on the categories."""
    fuse: str = ""
    """A second such network, as MFF has VGG16 beside ResNet50: CroW of both networks' features, fused, is the row mff."""
    whiten: int = Field(default=0, ge=0)
    """Dimensions after PCA-whitening, in columns of their own; 0: no such columns."""
    whiten_power: float = Field(default=0.5, ge=0, le=1)
    """With --whiten: the power of its standard deviation that each axis is divided by; 1: all vary alike, 0: PCA alone."""


def run(config: Config) -> dict[str, Any]:
    """Run the job; returns its summary."""
    gallery = open_table(config.catalog, "catalog", "--catalog")
    queries = open_table(config.queries, "queries", "--queries")
    if config.fuse and not config.baseline:
        raise BadInputError("--fuse: give --baseline too; mff fuses the two")
    if config.whiten >= gallery.rows:
        raise BadInputError(f"--whiten {config.whiten}: {gallery.rows} pictures can keep {gallery.rows - 1} at most")
    given = {"pretrained": config.baseline, "fused": config.fuse, "plain": config.plain, "trained": config.model}
    models = {name: open_model(uri) for name, uri in given.items() if uri}
    if network_of(models["trained"]).attention == "none":
        raise BadInputError(f"--model {config.model}: was trained without attention; give it as --plain")
    _check_alike(config, {name: network_of(model) for name, model in models.items()})
    if config.plain and (found := learned_otherwise(models["plain"].manifest, models["trained"].manifest)):
        say(f"compare: the plain and the trained network differ by more than attention: {'; '.join(found)}")
    inputs = {"catalog": gallery.source, "queries": queries.source}
    inputs |= {name: model.as_input() for name, model in models.items()}
    return make(config, "comparison", inputs, partial(_build, config, gallery, queries, models))


def _check_alike(config: Config, networks: dict[str, NetworkConfig]) -> None:
    """Refuse what would not compare one thing.

    Raises:
        BadInputError: a plain network that learned with attention, or one for pictures of another size.
    """
    if plain := networks.get("plain"):
        if plain.attention != "none":
            raise BadInputError(
                f"--plain {config.plain}: was trained with attention {plain.attention}; give one without"
            )
        if plain.text != "none":
            raise BadInputError(f"--plain {config.plain}: was trained with text attention; give one of --text none")
    sizes = {name: network.pictures.size for name, network in networks.items()}
    if not config.size and len(set(sizes.values())) > 1:
        told = ", ".join(f"{name} {size} px" for name, size in sizes.items())
        raise BadInputError(f"the models are for pictures of different sizes ({told}); give --size, the same for all")


def learned_otherwise(plain: Manifest, trained: Manifest) -> list[str]:
    """What of two trainings' budgets differs, in words; what a manifest does not tell is passed over."""

    def told(model: Manifest, name: str) -> object:
        source = model.inputs.get(name)
        return source.sha256[:12] if source else "none" if name == "init" else model.config.get(name)

    names = [*BUDGET, "fewshot", "init"]
    if all(model.config.get("pasted") for model in (plain, trained)):
        names.append("pseudo_masks")  # then they decide what is cut out
    if any("init" in model.inputs for model in (plain, trained)):
        names = [name for name in names if not name.startswith("backbone")]  # flags that --init answers
    pairs = [(name, told(plain, name), told(trained, name)) for name in names]
    return [
        f"--{name.replace('_', '-')} {one} and {two}"
        for name, one, two in pairs
        if one is not None and two is not None and one != two
    ]


def _build(
    config: Config, gallery: Table, queries: Table, models: dict[str, Artifact], writer: ArtifactWriter
) -> tuple[list[str], dict[str, Any]]:
    relevant = relevant_ids(queries)
    rows: list[dict[str, Any]] = []
    rankings: dict[str, list[Ranking]] = {"": [], **({"whitened_": []} if config.whiten else {})}

    def add(network: str, descriptor: str, described: Sequence[Described]) -> None:
        gallery_of, queries_of = (_beside([_column(pair[side], descriptor) for pair in described]) for side in (0, 1))
        pooling, _, features = descriptor.partition("@")
        pooling = pooling if len(described) == 1 else "mff"
        ranked = _rank(gallery_of, queries_of)
        rankings[""].append(ranked)
        row: dict[str, Any] = {"network": network, "features": features or "attended", "descriptor": pooling}
        row |= retrieval_metrics(ranked, relevant, k=K)
        if config.whiten:
            try:
                white = _rank(*_whitened(gallery_of, queries_of, config.whiten, config.whiten_power))
            except InputError as error:
                raise BadInputError(f"{network} network, {descriptor}: {error}") from None
            rankings["whitened_"].append(white)
            row["whitened_map@7"] = retrieval_metrics(white, relevant, k=K)["map@7"]
            row |= _difference("whitened_gain", white, ranked, relevant)
        rows.append(row)

    found: dict[str, Described] = {}
    for network, model in models.items():
        names = PLAIN if network == "fused" else descriptors_of(network_of(model))
        found[network] = (
            _describe(config, network, "gallery", gallery, model, names),
            _describe(config, network, "queries", queries, model, names),
        )
        if network == "fused":
            add("pretrained", FUSED, [found["pretrained"], found["fused"]])
            continue
        for descriptor in names:
            add(network, descriptor, [found[network]])
    for prefix, ranked in rankings.items():
        _add_distance_behind(rows, ranked, relevant, prefix)
    blobs = {
        "table.json": Blob(data=json.dumps(rows, indent=1).encode(), rows=len(rows)),
        "table.csv": Blob(data=_csv(rows), rows=len(rows)),
        "table.png": Blob(data=table_png(rows)),
    }
    writer.units.put("table", blobs)
    return ["table"], {"table": [{key: row[key] for key in COLUMNS if key in row} for row in rows]}


def descriptors_of(network: NetworkConfig) -> tuple[DescriptorName, ...]:
    """The rows of a network: what its branches allow."""
    if network.attention == "none":
        return (*PLAIN, *BOLTED_ON)
    attended = tuple(name for name in ATTENDED if not lacks(network, name))
    return (*PLAIN, *attended, *(WITH_TEXT if network.text != "none" else ()))


def _add_distance_behind(
    rows: list[dict[str, Any]], rankings: list[Ranking], relevant: dict[str, list[str]], prefix: str
) -> None:
    """To each row: by how much MANet's SR-MAC (the last network's) is ahead of it on the same queries, and the 95% interval."""
    own = max(i for i, row in enumerate(rows) if (row["features"], row["descriptor"]) == ("attended", "sr-mac"))
    for row, ranked in zip(rows, rankings, strict=True):
        row.update(_difference(f"{prefix}behind", rankings[own], ranked, relevant))
        _, low, high = paired_interval(rankings[own], ranked, relevant, K, by_product=True)
        row.update({f"{prefix}behind_product_low": round(low, 6), f"{prefix}behind_product_high": round(high, 6)})


def _difference(name: str, ranked: Ranking, other: Ranking, relevant: dict[str, list[str]]) -> dict[str, float]:
    """MAP@7 of `ranked` less that of `other`, and the 95% interval."""
    names = (name, f"{name}_low", f"{name}_high")
    return dict(zip(names, (round(x, 6) for x in paired_interval(ranked, other, relevant, K)), strict=True))


def _describe(
    config: Config, network: str, name: str, table: Table, model: Artifact, names: tuple[DescriptorName, ...]
) -> Artifact:
    out = f"{config.out.rstrip('/')}/{network}/{name}"
    nested = DescribedConfig.of(config, out, names, overwrite=config.overwrite)

    def build(writer: ArtifactWriter) -> tuple[list[str], dict[str, Any]]:
        say(f"compare: {network} network, {name}")
        return unit_names(table, config), describe_into(writer, table, model, config, names=names)

    make(nested, "descriptors", {table.kind: table.source, "model": model.as_input()}, build)
    return open_artifact(nested.out, "descriptors")


def _rank(gallery: Column, queries: Column) -> Ranking:
    """Exact search of one descriptor."""
    (ids, vectors), (query_ids, query_vectors) = gallery, queries
    _, rows = exact_search(vectors, query_vectors, K + 1)
    return {query: drop_self([ids[i] for i in row], query, K) for query, row in zip(query_ids, rows, strict=True)}


def _whitened(gallery: Column, queries: Column, dim: int, power: float) -> tuple[Column, Column]:
    """Both whitened by what is learned on the gallery, on evenly spread rows where they are many; as an index stores the
    gallery (float16) and searches with queries (float32).
    """
    ids, vectors = gallery
    matrix = learn_whitening(vectors[:: -(-len(vectors) // SAMPLE)], dim, power)
    return (ids, whiten(matrix, vectors).astype(np.float16)), (queries[0], whiten(matrix, queries[1]))


def _beside(columns: Sequence[Column]) -> Column:
    """The vectors of several networks side by side, which sums their similarities: pictures that all could describe, in the
    first one's order.
    """
    if len(columns) == 1:
        return columns[0]
    places = [{name: at for at, name in enumerate(ids)} for ids, _ in columns]
    order = [name for name in columns[0][0] if all(name in place for place in places)]
    rows = [vectors[[place[name] for name in order]] for (_, vectors), place in zip(columns, places, strict=True)]
    return order, np.concatenate(rows, 1)


def _column(descriptors: Artifact, name: str) -> Column:
    column = f"descriptor_{name}"
    parts = [read_parquet(descriptors.read(part), ["image_id", column]) for part in filled(descriptors)]
    return descriptors_to_numpy(pa.concat_tables(parts), column=column)


def _csv(rows: list[dict[str, Any]]) -> bytes:
    sink = io.StringIO()
    columns = [column for column in COLUMNS if column in rows[0]]
    writer = csv.DictWriter(sink, columns, extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    return sink.getvalue().encode()
