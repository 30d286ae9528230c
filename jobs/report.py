"""The report of a run, one self-contained page: figures, training curves, and what the network looked at.

  manet report --catalog C --queries Q --model M --index I --evaluation E --comparison T --out OUT

Reads what the other jobs wrote; writes `report.html`. For some queries it shows the picture, its saliency map, its text map
and the answers of the evaluation, hits framed. No file outside the page is needed to read it.
"""

import io
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np
import pyarrow.compute as pc
from pydantic import Field

from cluster.artifact import Artifact, ArtifactWriter, Blob, open_artifact, put_unit
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
TEMPLATE = Path(__file__).with_name("report.html.j2")
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
        rows=rows,
        whitened="whitened_map@7" in rows[0],
        index=opened["index"].manifest.summary,
        curves=_curves(history),
        queries=_query_rows(config, catalog, queries, opened),
        created=opened["evaluation"].manifest.created,
        counts={"gallery": catalog.rows, "queries": queries.rows},
    )
    put_unit(writer.store, "report", {"report.html": Blob(data=page.encode())})
    return ["report"], {"shown": min(config.shown, queries.rows), "bytes": len(page.encode())}


def table_lines(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The comparison as lines of text: network and features, descriptor, MAP@7, recall@1; what whitening makes of it."""
    whitened = "whitened_map@7" in rows[0]
    heads = ("network", "features", "descriptor", "MAP@7", "recall@1", "SR-MAC ahead by")
    cells = [heads + ("whitened", "SR-MAC ahead by") * whitened]
    for r in rows:
        line = (r["network"], r["features"], r["descriptor"], f"{r['map@7']:.3f}", f"{r['recall@1']:.3f}", _ahead(r))
        cells.append(line + ((f"{r['whitened_map@7']:.3f}", _ahead(r, "whitened_")) if whitened else ()))
    widths = [max(len(str(row[column])) for row in cells) for column in range(len(cells[0]))]
    return ["  ".join(str(cell).ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells]


def _ahead(row: dict[str, Any], prefix: str = "") -> str:
    mean, low, high = (row[f"{prefix}behind{end}"] for end in ("", "_low", "_high"))
    return f"{mean:+.3f} ({low:+.3f} to {high:+.3f})"


def _curves(history: Sequence[dict[str, Any]]) -> str:
    """Training curves as SVG."""
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
    figure.savefig(sink, format="svg", metadata={"Date": None})
    return sink.getvalue()[sink.getvalue().index("<svg") :]


def _query_rows(config: Config, catalog: Table, queries: Table, opened: dict[str, Artifact]) -> list[dict[str, Any]]:
    from manet.checkpoint import load_model
    from manet.describe import Describer

    evaluation, model = opened["evaluation"], opened["model"]
    rankings = read_parquet(evaluation.read(evaluation.parts("rankings.parquet")[0])).to_pylist()
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


def _rows_by_id(table: Any, key: str, wanted: set[str]) -> dict[str, dict[str, Any]]:  # noqa: ANN401 - pa.Table
    kept = table.filter(pc.field(key).isin(sorted(wanted)))
    return {row[key]: row for row in kept.to_pylist()}


def _data_uri(picture: Picture | PictureError) -> str:
    return "" if isinstance(picture, PictureError) else data_uri(jpeg(picture))
