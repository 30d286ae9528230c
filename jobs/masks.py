"""The training set as `train` reads it: every usable picture of a few-shot set with its pseudo-saliency mask.

An artifact of its own (kind `masks`), made by Ray tasks over row ranges: masks are computed once, not once an epoch, and a
picture that cannot be used is rejected here, with its reason, before training starts.
"""

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from cluster.artifact import Artifact, ArtifactWriter, Blob, put_unit
from cluster.storage import Store
from cluster.tasks import run_tasks
from cluster.telemetry import Meter
from jobs.decoding import Decoder
from jobs.inputs import fetch_weights
from jobs.parquet import parquet_bytes, read_parquet
from jobs.pictures import Picture, check_rejects, fetch_picture, reject_row
from manet.errors import PictureError
from manet.images import PictureConfig
from manet.tables import REJECTS

MASK_CLAIM = ("pseudo_masks",)
MASK_SIZE = 256  # px: the maps are smooth, and training resizes them anyway
UNIT_ROWS = 64
FETCHES = 8  # requests in flight of one task
PICTURE_SECONDS = 20.0  # time limit of decoding one picture
MASKS = pa.schema(
    [
        ("image_id", pa.string()),
        ("uri", pa.string()),
        ("label", pa.int32()),
        ("split", pa.string()),
        ("mask", pa.binary()),  # PNG, grey: the saliency map in 0..255 at MASK_SIZE, before it is binarised
    ]
)


def build_masks(
    writer: ArtifactWriter, fewshot: Artifact, source: str, max_rejects: float
) -> tuple[list[str], dict[str, Any]]:
    """Write the masks of all pictures of a few-shot set, resuming what is done; Ray is up.

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
        with Meter("pseudo-masks", len(todo), f"parts of {UNIT_ROWS}") as meter:
            for _ in run_tasks(partial(_mask_unit, writer.store, fewshot, source), todo):
                meter.advance(1)
    names = [unit[0] for unit in units]
    return names, check_rejects(writer, writer.receipts(names), max_rejects)


def _mask_unit(store: Store, fewshot: Artifact, source: str, unit: tuple[str, str, str, int]) -> None:
    import cv2

    from manet.pseudo_masks import pseudo_mask

    cv2.setNumThreads(1)
    name, split, part, start = unit
    table = read_parquet(fewshot.read(fewshot.parts(part)[0])).slice(start, UNIT_ROWS)
    saliency = pseudo_mask(source, fetch_weights)
    rows: list[dict[str, Any]] = []
    rejects: list[dict[str, str]] = []
    listed = table.select(["image_id", "uri", "label"]).to_pylist()
    for row, picture in zip(listed, _prepared([row["uri"] for row in listed]), strict=True):
        if isinstance(picture, PictureError):
            rejects.append(reject_row(row["image_id"], row["uri"], "masks", picture))
            continue
        grey = np.rint(saliency(picture) * 255).astype(np.uint8)
        rows.append({**row, "split": split, "mask": cv2.imencode(".png", grey)[1].tobytes()})
    blobs = {
        f"masks-{name}.parquet": Blob(data=parquet_bytes(pa.Table.from_pylist(rows, schema=MASKS)), rows=len(rows))
    }
    if rejects:
        table = pa.Table.from_pylist(rejects, schema=REJECTS)
        blobs[f"rejects-{name}.parquet"] = Blob(data=parquet_bytes(table), rows=len(rejects))
    put_unit(store, name, blobs, {"rows": len(rows), "rejects": len(rejects)})


def _prepared(uris: list[str]) -> list[Picture | PictureError]:
    """The pictures at MASK_SIZE, decoded in a process of their own: after this, training decodes them in its own."""
    with ThreadPoolExecutor(FETCHES) as pool:
        found: list[bytes | PictureError] = list(pool.map(fetch_picture, uris))
    readable = [place for place, data in enumerate(found) if isinstance(data, bytes)]
    frames = np.empty((len(readable), MASK_SIZE, MASK_SIZE, 3), np.uint8)
    decoder = Decoder(PictureConfig(size=MASK_SIZE), PICTURE_SECONDS)
    try:
        faults = decoder.decode([data for data in found if isinstance(data, bytes)], frames)
    finally:
        decoder.close()
    pictures: list[Any] = list(found)
    for place, frame, fault in zip(readable, frames, faults, strict=True):
        pictures[place] = fault or frame
    return pictures
