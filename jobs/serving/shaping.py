"""What the API says of hits and maps: answers made from what the searcher and the embedder give."""

from typing import TypeVar
from urllib.parse import quote

import cv2
import numpy as np

from jobs.drawing import data_uri, heat, jpeg
from jobs.pictures import Picture
from jobs.querying import answer_row
from jobs.serving.answers import Item, Maps, Pair, Result
from jobs.serving.embedder import Seen
from jobs.serving.refusals import Refusal
from manet.search import Hit

_T = TypeVar("_T")
_MAP_SIDE = 256  # px of the query's maps


def present(value: _T | None) -> _T:
    """A value that is there, by what was asked for."""
    assert value is not None  # noqa: S101 - for the type checker
    return value


def item_of(hit: Hit, version: int) -> Item:
    """A gallery picture of one version."""
    return Item(
        image_id=hit.image_id, uri=public(hit.uri), description=hit.description, category=hit.category,
        image=image_path(hit.image_id), version=version,
    )  # fmt: skip


def result_of(hit: Hit, why: list[Pair] | None) -> Result:
    """An answer, with its regions where they were asked for."""
    row = answer_row(hit)
    return Result(
        image_id=hit.image_id, score=row["score"], uri=public(hit.uri), description=hit.description,
        category=hit.category, image=image_path(hit.image_id), why=why,
    )  # fmt: skip


def image_path(image_id: str) -> str:
    """Path of a gallery picture in the API."""
    return f"/v1/items/{quote(image_id, safe='')}/image"


def public(uri: str | None) -> str | None:
    """An address that tells nothing of the server's files."""
    return uri if uri is not None and uri.startswith(("https://", "http://", "s3://")) else None


def uri_of(hit: Hit) -> str:
    """Where a gallery picture lies.

    Raises:
        Refusal: the index does not say.
    """
    if not hit.uri:
        raise Refusal(404, "no_picture", "The index does not know where its pictures lie.")
    return hit.uri


def shrunk(pixels: Picture, side: int) -> Picture:
    """A picture at another side, px."""
    return np.asarray(cv2.resize(pixels, (side, side), interpolation=cv2.INTER_AREA))


def maps_of(pixels: Picture, seen: Seen) -> Maps:
    """Where the network looked, over the query."""
    small = shrunk(pixels, _MAP_SIDE)
    return Maps(
        query=data_uri(jpeg(small)),
        saliency=data_uri(jpeg(heat(small, present(seen.saliency_hw)))),
        text=None if seen.text_hw is None else data_uri(jpeg(heat(small, seen.text_hw))),
    )


def boxes_of(seen: Seen) -> list[tuple[float, float, float, float]]:
    """The regions of a picture: (left, top, width, height), shares of its square."""
    return [(row[0], row[1], row[2], row[3]) for row in np.round(present(seen.boxes_R4), 4).tolist()]
