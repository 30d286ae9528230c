"""What the API answers, as pydantic models: the schema of OpenAPI is made from these."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class Problem(_Answer):
    """What was wrong."""

    code: str
    """One word for programs."""
    message: str
    """One line for people."""


class ErrorAnswer(_Answer):
    """An error."""

    error: Problem


class Pair(_Answer):
    """Two regions that matched: boxes are (left, top, width, height), shares of the picture on its white square."""

    part: float
    """What the pair adds to the score: over all pairs these add up to it."""
    query: tuple[float, float, float, float]
    answer: tuple[float, float, float, float]


class Result(_Answer):
    """One picture of the gallery."""

    image_id: str
    score: float
    """Cosine of the two descriptors; of the expanded query where the index expands, as quantized where it is not re-ranked."""
    uri: str | None
    """Where the picture lies; null where that is a file of the server."""
    description: str | None
    category: str | None
    image: str
    """Path of its picture in this API."""
    why: list[Pair] | None = None
    """The strongest pairs of regions, where they were asked for; null where the picture is gone."""


class Maps(_Answer):
    """Where the network looked: JPEG pictures as data URIs, the map in colours over the query on its white square."""

    query: str
    """The query itself, as the network saw it."""
    saliency: str
    text: str | None
    """Null: the model has no text branch."""


class SearchAnswer(_Answer):
    """The answers to one picture, best first."""

    version: int
    """Version of the index that answered."""
    results: list[Result]
    maps: Maps | None = None
    milliseconds: dict[str, float]
    """Where the time went: filter, decode, describe, search, explain."""


class BatchItem(_Answer):
    """The answers to one picture of a batch, or what was wrong with it."""

    answer: SearchAnswer | None = None
    error: Problem | None = None


class BatchAnswer(_Answer):
    """One item a picture, then one an id, each in the order of the request, whatever order they were mixed in."""

    items: list[BatchItem]


class Item(_Answer):
    """A picture of the gallery."""

    image_id: str
    uri: str | None
    description: str | None
    category: str | None
    image: str
    version: int


class Items(_Answer):
    """Some pictures of the gallery."""

    items: list[Item]


class Category(_Answer):
    """A category and its pictures in the index."""

    name: str
    pictures: int


class Rejects(_Answer):
    """Pictures of the gallery that could not be described."""

    count: int
    reasons: dict[str, int]
    first: list[dict[str, str]]


class Limits(_Answer):
    """What a request may ask for."""

    body_bytes: int
    pixels: int
    answers: int
    pictures: int
    """In one batch."""
    url: bool
    """Whether a search may name its picture by URL."""


class IndexAnswer(_Answer):
    """The index: its manifest's figures, and the recall that was measured when it was built."""

    version: int
    created: str
    sha256: str
    """Of the manifest."""
    rows: int
    """Live pictures."""
    dim: int | None
    shards: int
    factory: str | None
    nprobe: int
    refine: int
    folds_duplicates: bool
    model_sha256: str
    descriptor: str
    report: dict[str, Any]
    """The index's report.json."""
    recall_plot: bool
    """Whether `/v1/index/recall.png` is there."""
    categories: list[Category]
    rejects: Rejects | None
    """Null: the descriptors are not at hand any more."""
    limits: Limits


class Health(_Answer):
    """How the service is."""

    status: str = Field(examples=["ok"])
