"""Pictures that cannot be used: how one is loaded or refused, its row in the rejects, and the bound on their number."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from cluster.artifact import ArtifactWriter, Receipt
from cluster.errors import BadInputError, JobFailedError, ObjectDeniedError, ObjectMissingError
from cluster.storage import read_uri
from jobs.parquet import read_parquet
from manet.errors import PictureError, Reason
from manet.images import PictureConfig, decode

Picture = np.ndarray[Any, np.dtype[np.uint8]]
MAX_BYTES = 256 << 20  # of a picture's file: more than this is not held in memory


def fetch_picture(uri: str, data: bytes | None = None) -> bytes | PictureError:
    """A picture's bytes (its `data`, where they are at hand); or why there are none.

    Raises:
        StoreError: the store itself does not answer, or knows neither the bucket nor the keys: no picture's fault, so the
            job must fail, and a run that is taken up again asks for the picture again.
    """
    try:
        found = read_uri(uri, most=MAX_BYTES + 1) if data is None else data
    except ObjectMissingError:
        return PictureError(Reason.MISSING, "no such file")
    except (ObjectDeniedError, BadInputError) as error:  # a URI that no store has, too
        return PictureError(Reason.UNREADABLE, str(error))
    if data is None and len(found) > MAX_BYTES:
        return PictureError(Reason.TOO_LARGE, f"more than {MAX_BYTES >> 20} MiB")
    return found


def load_picture(uri: str, config: PictureConfig, data: bytes | None = None) -> Picture | PictureError:
    """Fetch and decode one picture in this process, uint8 [size, size, 3]; or why it cannot be used.

    Raises:
        StoreError: as `fetch_picture`.
    """
    found = fetch_picture(uri, data)
    try:
        return found if isinstance(found, PictureError) else decode(found, config)
    except PictureError as error:
        return error


def reject_row(image_id: str, uri: str, stage: str, error: PictureError) -> dict[str, str]:
    """A row of the rejects."""
    detail = " ".join(error.detail.split())[:300]
    return {"image_id": image_id, "uri": uri, "stage": stage, "reason": str(error.reason), "detail": detail}


def check_rejects(writer: ArtifactWriter, receipts: Sequence[Receipt], max_rejects: float) -> dict[str, Any]:
    """Add up rows and rejects of all units.

    Raises:
        JobFailedError: more rejects than `max_rejects`; what is finished stays in the folder.
    """
    rows = int(sum(receipt.counts["rows"] for receipt in receipts))
    reasons: Counter[str] = Counter()
    for receipt in receipts:
        for part in receipt.parts:
            if part.name.startswith("rejects-"):
                reasons.update(read_parquet(writer.store.read(part.name))["reason"].to_pylist())
    rejects = reasons.total()
    if rejects > max_rejects * (rows + rejects):
        listed = ", ".join(f"{reason} {count}" for reason, count in sorted(reasons.items()))
        raise JobFailedError(
            f"{rejects} of {rows + rejects} pictures were rejected ({listed}), more than --max-rejects {max_rejects:g}; "
            f"the other {rows} are saved in {writer.store.uri('')}: run again with a higher limit, or mend the pictures "
            "and run with --overwrite"
        )
    return {"rows": rows, "rejects": rejects, "reasons": dict(sorted(reasons.items()))}
