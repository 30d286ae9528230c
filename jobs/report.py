"""The report of a run, one self-contained page: figures, training curves, and what the network looked at.

  manet report --catalog C --queries Q --model M --index I --evaluation E --comparison T --out OUT

Reads what the other jobs wrote; writes `report.html`. For some queries it shows the picture, its saliency map, its text map
and the answers of the evaluation, hits framed. No file outside the page is needed to read it.
"""

import io
import json
from collections.abc import Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np
import pyarrow.compute as pc
from pydantic import Field

from cluster.artifact import Artifact, ArtifactWriter, Blob, open_artifact
from cluster.errors import BadInputError
from jobs.config import JobConfig
from jobs.drawing import data_uri, heat, jpeg
from jobs.inputs import Table, local_copy, open_model, open_table
from jobs.make import make
from jobs.parquet import read_parquet
from jobs.pictures import Picture, load_picture
from jobs.querying import query_spec, relevant_ids
from jobs.streaming import picture_config
from manet.errors import PictureError

THUMB = 150  # px
FEATURES = {
    "attended": "X~, after the saliency branch (and the text branch, where there is one)",
    "backbone": "the feature map F of the backbone, before attention",
    "no-text": "X~ without text (T = 1)",
    "no-saliency": "X~ without saliency (S = 1)",
    "other-saliency": "X~ by (1 + S) * F where the model has S * F, or the other way round",
    "other-text": "X~ by the text branch's scores where the model has its logits, or the other way round",
}
DESCRIPTORS = {
    "mff": "CroW of two networks, fused",
    "mac": "the greatest activation of each channel",
    "spoc": "the average",
    "gem": "a generalised mean",
    "crow": "an average weighted by place and by channel",
    "r-mac": "MAC of every region, summed",
    "r-mac-global": "R-MAC with the whole picture as one more region",
    "ra-mac": "R-MAC, each region weighted by its share of active cells",
    "grmac": "RA-MAC with a generalised mean as the threshold",
    "sr-mac": "R-MAC, each region weighted by its share of salient cells",
    "sr-mac-as-printed": "SR-MAC weighted before the regions' norm, so that a region counts fully or not at all",
    "sr-mac-soft": "SR-MAC with the saliency in [0, 1] itself in place of salient or not",
    "sr-mac-learned": "SR-MAC, each level of regions with a weight that was learned",
}
TEMPLATE = Path(__file__).with_name("report.html.j2")
FIGURES = ("map@7", "map@7_low", "map@7_high", "map@7_standard", "recall@1", "recall@7")
INK = "#0b0c0d"  # of text and axes in the plots: replaced by the page's own colour, so that it is right in the dark too
LOOK = Path(__file__).with_name("serving") / "page" / "look.css"  # shared with the search page


class Config(JobConfig):
    """Flags of `manet report`."""

    INPUTS: ClassVar[tuple[str, ...]] = ("catalog", "queries", "model", "index", "evaluation", "comparison")

    catalog: str
    """Catalog artifact, or a Parquet file."""
    queries: str
    """Queries artifact, or a Parquet file."""
    model: str
    """Model artifact."""
    index: str
    """Index artifact."""
    evaluation: str
    """Evaluation artifact."""
    comparison: str
    """Comparison artifact."""
    shown: int = Field(default=20, ge=1, le=200)
    """Queries shown with their answers."""
    seed: int = Field(default=0, ge=0)
    """Seed of their choice."""


def run(config: Config) -> dict[str, Any]:
    """Run the job; returns its summary."""
    catalog = open_table(config.catalog, "catalog", "--catalog")
    queries = open_table(config.queries, "queries", "--queries")
    opened = {
        "model": open_model(config.model),
        "index": open_artifact(config.index, "index"),
        "evaluation": open_artifact(config.evaluation, "evaluation"),
        "comparison": open_artifact(config.comparison, "comparison"),
    }
    evaluated = opened["evaluation"].manifest
    if missing := [name for name in FIGURES if name not in evaluated.summary]:
        raise BadInputError(
            f"--evaluation {config.evaluation} holds no {missing[0]} (it was made with --k {evaluated.config.get('k')}); "
            "the report shows figures at 7: evaluate with --k 7 into another --out"
        )
    rankings = _rankings(opened["evaluation"])
    _refuse_other(
        catalog, "image_id", {name for row in rankings for name in row["ranked"]}, f"--catalog {config.catalog}"
    )
    _refuse_other(queries, "query_id", {row["query_id"] for row in rankings}, f"--queries {config.queries}")
    inputs = {"catalog": catalog.source, "queries": queries.source}
    inputs |= {name: artifact.as_input() for name, artifact in opened.items()}
    return make(config, "report", inputs, partial(_build, config, catalog, queries, opened))


def _build(
    config: Config, catalog: Table, queries: Table, opened: dict[str, Artifact], writer: ArtifactWriter
) -> tuple[list[str], dict[str, Any]]:
    import jinja2

    template = jinja2.Environment(autoescape=True).from_string(TEMPLATE.read_text())
    history = json.loads(opened["model"].read(opened["model"].parts("metrics.json")[0]))["history"]
    rows = opened["comparison"].manifest.summary["table"]
    page = template.render(
        look=LOOK.read_text(),
        figures=opened["evaluation"].manifest.summary,
        groups=_groups(rows),
        best=max(row["map@7"] for row in rows),
        ahead=partial(_ahead, _reference(rows)),
        whitened="whitened_map@7" in rows[0],
        descriptors={row["descriptor"]: DESCRIPTORS.get(row["descriptor"]) for row in rows},
        index=opened["index"].manifest.summary,
        curves=_curves(history),
        queries=(shown := _query_rows(config, catalog, queries, opened)),
        has_text=any(row.get("text") for row in shown),
        seed=config.seed,
        created=opened["evaluation"].manifest.created,
        counts={"gallery": catalog.rows, "queries": queries.rows},
    )
    writer.units.put("report", {"report.html": Blob(data=page.encode())})
    return ["report"], {"shown": min(config.shown, queries.rows), "bytes": len(page.encode())}


def table_lines(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The comparison as lines of text: network and features, descriptor, MAP@7, recall@1; what whitening makes of it."""
    whitened = "whitened_map@7" in rows[0]
    heads = ("network", "features", "descriptor", "MAP@7", "recall@1", "SR-MAC ahead by")
    cells = [heads + ("whitened", "SR-MAC ahead by") * whitened]
    ahead = partial(_ahead, _reference(rows))
    for r in rows:
        line = (r["network"], r["features"], r["descriptor"], f"{r['map@7']:.3f}", f"{r['recall@1']:.3f}", ahead(r))
        cells.append(line + ((f"{r['whitened_map@7']:.3f}", ahead(r, "whitened_")) if whitened else ()))
    widths = [max(len(str(row[column])) for row in cells) for column in range(len(cells[0]))]
    return ["  ".join(str(cell).ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells]


def _groups(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The comparison's rows by network and features, in their order, with what the features are."""
    named = groupby(rows, key=lambda row: (row["network"], row["features"]))
    return [
        {"network": network, "features": features, "meaning": FEATURES.get(features), "rows": list(group)}
        for (network, features), group in named
    ]


def _reference(rows: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The row that every other is held against: the last network's attended SR-MAC."""
    return next((row for row in reversed(rows) if (row["features"], row["descriptor"]) == ("attended", "sr-mac")), None)


def _ahead(reference: dict[str, Any] | None, row: dict[str, Any], prefix: str = "") -> str:
    """By how much SR-MAC is ahead of a row, with the interval; the row that it is itself says so."""
    if row is reference:
        return "reference"
    mean, low, high = (row[f"{prefix}behind{end}"] for end in ("", "_low", "_high"))
    return f"{_signed(mean)} ({_signed(low)} to {_signed(high)})"


def _signed(value: float) -> str:
    """A difference with its sign, which 0 has none of."""
    text = f"{value:+.3f}"
    return text[1:] if float(text) == 0 else text


def _curves(history: Sequence[dict[str, Any]]) -> str:
    """Training curves as SVG, in the colours of the page around it."""
    import matplotlib as mpl

    inks = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
    colours: dict[Any, Any] = {**dict.fromkeys(inks, INK), "legend.framealpha": 0.0}
    with mpl.rc_context(colours):
        return _draw_curves(history).replace(INK, "currentColor")


def _draw_curves(history: Sequence[dict[str, Any]]) -> str:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 2.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    epochs = [row["epoch"] + 1 for row in history]
    for axes, key, label in ((left, "dice_loss", "saliency (Dice), train"),
                             (left, "val_dice_loss", "saliency (Dice), validation"),
                             (left, "cross_entropy", "classes (cross-entropy), train"),
                             (left, "instance_loss", "instances (NT-Xent), train"),
                             (right, "val_accuracy", "class accuracy, validation"),
                             (right, "val_map@7", "MAP@7 of consumer-like views, validation")):  # fmt: skip
        points = [(epoch, row[key]) for epoch, row in zip(epochs, history, strict=True) if key in row]
        if points:
            axes.plot(*zip(*points, strict=True), marker="o", label=label)
    left.set_title("losses")
    right.set_title("accuracy and retrieval")
    right.set_ylim(0, 1)
    for axes in (left, right):
        axes.set_xlabel("epoch")
        axes.set_xlim(0.5, max([*epochs, 1]) + 0.5)
        axes.set_xticks(epochs)
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8)
    sink = io.StringIO()
    figure.savefig(sink, format="svg", metadata={"Date": None}, transparent=True)
    return sink.getvalue()[sink.getvalue().index("<svg") :]


def _query_rows(config: Config, catalog: Table, queries: Table, opened: dict[str, Artifact]) -> list[dict[str, Any]]:
    from manet.checkpoint import load_model
    from manet.describe import Describer

    model, rankings = opened["model"], _rankings(opened["evaluation"])
    rng = np.random.default_rng(config.seed)
    chosen = [rankings[i] for i in sorted(rng.permutation(len(rankings))[: config.shown])]
    gallery = catalog.read()
    where = _rows_by_id(gallery, "image_id", {name for row in chosen for name in row["ranked"]})
    uris = _rows_by_id(queries.read(), "query_id", {row["query_id"] for row in chosen})
    pictures = picture_config(model, query_spec(opened["index"]).size)
    describer = Describer(load_model(local_copy(model)), names=())
    relevant = relevant_ids(queries)
    shown = []
    for row in chosen:
        query = row["query_id"]
        loaded = load_picture(uris[query]["uri"], pictures)
        if isinstance(loaded, PictureError):
            shown.append({"id": query, "error": str(loaded), "answers": []})
            continue
        saliency, text = describer.maps(loaded[None])
        small = pictures.model_copy(update={"size": THUMB})
        answers = []
        for rank, name in enumerate(row["ranked"], 1):
            item = where[name]
            answers.append(
                {
                    "rank": rank,
                    "id": name,
                    "hit": name in relevant[query],
                    "title": item.get("description") or item.get("category") or "",
                    "image": _data_uri(load_picture(item["uri"], small)),
                }
            )
        picture = cv2.resize(loaded, (THUMB, THUMB), interpolation=cv2.INTER_AREA)
        shown.append(
            {
                "id": query,
                "image": _data_uri(picture),
                "saliency": _data_uri(heat(picture, saliency[0])),
                "text": None if text is None else _data_uri(heat(picture, text[0])),
                "answers": answers,
                "hits": sum(answer["hit"] for answer in answers),
                "relevant": len(relevant[query]),
            }
        )
    return shown


def _rankings(evaluation: Artifact) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = read_parquet(evaluation.read(evaluation.parts("rankings.parquet")[0])).to_pylist()
    return rows


def _refuse_other(table: Table, key: str, wanted: set[str], given: str) -> None:
    """Refuse a table that has not all ids of the evaluation; `given` names it.

    Raises:
        BadInputError: it lacks one.
    """
    if missing := sorted(wanted - set(_rows_by_id(table.read(columns=[key, "uri"]), key, wanted))):
        raise BadInputError(f"{given} has no {key} {missing[0]}: it is not the one that --evaluation was made of")


def _rows_by_id(table: Any, key: str, wanted: set[str]) -> dict[str, dict[str, Any]]:  # noqa: ANN401 - pa.Table
    kept = table.filter(pc.field(key).isin(sorted(wanted)))
    return {row[key]: row for row in kept.to_pylist()}


def _data_uri(picture: Picture | PictureError) -> str:
    return "" if isinstance(picture, PictureError) else data_uri(jpeg(picture))
