"""The training set as `train` reads it: every usable picture of a few-shot set with its pseudo-saliency mask, or text map.

An artifact of its own (kind `masks`), made by Ray tasks over row ranges: masks are computed once, not once an epoch, and a
picture that cannot be used is rejected here, with its reason, before training starts.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from cluster.artifact import Artifact, ArtifactWriter, Blob, Units, open_artifact
from cluster.errors import BadInputError, ClusterError
from cluster.tasks import run_tasks
from cluster.telemetry import Meter
from jobs.decoding import Decoder
from jobs.inputs import fetch_weights
from jobs.parquet import parquet_bytes, read_parquet
from jobs.pictures import Picture, check_rejects, fetch_picture, reject_row
from manet.errors import PictureError
from manet.images import PictureConfig, decode
from manet.tables import REJECTS

MapKind = Literal["saliency", "text"]
Mapper = Callable[[str, Picture], Picture]  # image_id and picture -> its map, grey, uint8
RENDERED = "rendered"  # in place of a network: the exact masks of a catalogue that `manet render` made
CLAIMS: dict[MapKind, tuple[str, ...]] = {"saliency": ("pseudo_masks",), "text": ("pseudo_text",)}
SIZES: dict[MapKind, int] = {"saliency": 256, "text": 480}  # px: where a product is needs no detail, letters do
UNIT_ROWS = 64
FETCHES = 8  # requests in flight of one task
PICTURE_SECONDS = 20.0  # time limit of decoding one picture
MASKS = pa.schema(
    [
        ("image_id", pa.string()),
        ("uri", pa.string()),
        ("label", pa.int32()),
        ("split", pa.string()),
        ("mask", pa.binary()),  # PNG, grey: the map in 0..255, before it is binarised
    ]
)


def build_masks(
    writer: ArtifactWriter, fewshot: Artifact, kind: MapKind, source: str, max_rejects: float
) -> tuple[list[str], dict[str, Any]]:
    """Write the maps of all pictures of a few-shot set, resuming what is done; Ray is up.

    Raises:
        JobFailedError: more rejects than `max_rejects`.
    """
    units = [
        (f"{split}-{part.name.split('-')[1].split('.')[0]}-{start // UNIT_ROWS:05d}", split, part.name, start)
        for split in ("train", "val")
        for part in fewshot.parts(f"{split}-", ".parquet")
        for start in range(0, part.rows, UNIT_ROWS)
    ]
    done = writer.finished()
    todo = [unit for unit in units if unit[0] not in done]
    if todo:
        what = "pseudo-masks" if kind == "saliency" else "text maps"
        with Meter(what, len(todo), f"parts of {UNIT_ROWS}") as meter:
            for _ in run_tasks(partial(_mask_unit, writer.units, fewshot, kind, source), todo):
                meter.advance(1)
    names = [unit[0] for unit in units]
    return names, check_rejects(writer, writer.receipts(names), max_rejects)


@cache
def teacher(kind: MapKind, source: str) -> Callable[[Picture], Picture]:
    """A function from a picture to its map of a kind, grey, uint8; a process brings and loads its network once.

    Raises:
        WeightsError: the network's file cannot be had or read.
    """
    from manet.pseudo_masks import pseudo_mask
    from manet.pseudo_text import pseudo_text

    seen = (pseudo_mask if kind == "saliency" else pseudo_text)(source, fetch_weights)
    return lambda picture: np.rint(seen(picture) * 255).astype(np.uint8)


def mapper(kind: MapKind, source: str, fewshot: Artifact) -> Mapper:
    """What makes the maps of a few-shot set's pictures.

    Raises:
        WeightsError: as `teacher`.
        BadInputError: exact masks of a catalogue that was not rendered.
    """
    if (kind, source) == ("saliency", RENDERED):
        return _exact(fewshot)
    seen = teacher(kind, source)
    return lambda _, picture: seen(picture)


def _exact(fewshot: Artifact) -> Mapper:
    """Where the product is, drawn again: a rendered catalogue follows from its seed."""
    import cv2

    from manet.rendered import Catalogue

    uri = fewshot.manifest.inputs["catalog"].uri
    try:
        made = open_artifact(uri, "catalog").manifest.config
        catalogue, size = Catalogue(seed=made["seed"], products=made["products"]), int(made["size"])
    except (ClusterError, KeyError) as error:
        raise BadInputError(
            f"--pseudo-masks {RENDERED}: the few-shot set's catalog {uri} is none that `manet render` made; give "
            "pip:u2netp or classical"
        ) from error

    def mask_of(image_id: str, picture: Picture) -> Picture:
        ground = 255 - catalogue.studio_of(image_id, size).mask  # white, as what a picture is put on
        prepared = decode(cv2.imencode(".png", ground)[1].tobytes(), PictureConfig(size=len(picture)))
        return np.ascontiguousarray(255 - prepared[..., 0])

    return mask_of


def _mask_unit(units: Units, fewshot: Artifact, kind: MapKind, source: str, unit: tuple[str, str, str, int]) -> None:
    import cv2

    cv2.setNumThreads(1)
    if source != RENDERED:
        import torch  # not for exact masks: no network makes them

        torch.set_num_threads(1)
    name, split, part, start = unit
    table = read_parquet(fewshot.read(fewshot.parts(part)[0])).slice(start, UNIT_ROWS)
    mask_of = mapper(kind, source, fewshot)
    rows: list[dict[str, Any]] = []
    rejects: list[dict[str, str]] = []
    listed = table.select(["image_id", "uri", "label"]).to_pylist()
    for row, picture in zip(listed, _prepared([row["uri"] for row in listed], SIZES[kind]), strict=True):
        if isinstance(picture, PictureError):
            rejects.append(reject_row(row["image_id"], row["uri"], "masks", picture))
            continue
        mask = cv2.imencode(".png", mask_of(row["image_id"], picture))[1].tobytes()
        rows.append({**row, "split": split, "mask": mask})
    blobs = {
        f"masks-{name}.parquet": Blob(data=parquet_bytes(pa.Table.from_pylist(rows, schema=MASKS)), rows=len(rows))
    }
    if rejects:
        table = pa.Table.from_pylist(rejects, schema=REJECTS)
        blobs[f"rejects-{name}.parquet"] = Blob(data=parquet_bytes(table), rows=len(rejects))
    units.put(name, blobs, {"rows": len(rows), "rejects": len(rejects)})


def _prepared(uris: list[str], size: int) -> list[Picture | PictureError]:
    """The pictures at a size, decoded in a process of their own: after this, training decodes them in its own."""
    with ThreadPoolExecutor(FETCHES) as pool:
        found: list[bytes | PictureError] = list(pool.map(fetch_picture, uris))
    readable = [place for place, data in enumerate(found) if isinstance(data, bytes)]
    frames = np.empty((len(readable), size, size, 3), np.uint8)
    decoder = Decoder(PictureConfig(size=size), PICTURE_SECONDS)
    try:
        faults = decoder.decode([data for data in found if isinstance(data, bytes)], frames)
    finally:
        decoder.close()
    pictures: list[Any] = list(found)
    for place, frame, fault in zip(readable, frames, faults, strict=True):
        pictures[place] = fault or frame
    return pictures
