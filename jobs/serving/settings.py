"""How a service runs and what it refuses: fields that become flags of `manet serve`."""

import re

from pydantic import BaseModel, ConfigDict, Field, field_validator

MIB = 1 << 20
SIDES = (128, 256, 512)  # of an item's image, px
MOST_ANSWERS = 100
MOST_PICTURES = 32  # of one batch
AT_ONCE = 8  # pictures of one batch in hand
UPLOADS = 4  # on their way to a gateway, for each search that it may have in hand
_ORIGIN = re.compile(r"\*|https?://[^\s/?#@,]+")


class ServingConfig(BaseModel):
    """The index that answers, the processes that work, and the limits."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    index: str
    """Index artifact; its newest version answers, and a new one is taken up without a stop."""
    model: str = ""
    """Where the index's model lies now, if it was moved."""
    nprobe: int = Field(default=0, ge=0)
    """Cells visited; 0: what the index was tuned to."""
    refine: int = Field(default=0, ge=0)
    """Candidates re-scored with the stored vectors; 0: what the index was tuned to."""
    embedders: int = Field(default=1, ge=1)
    """Processes that describe pictures; each books one CPU, and a GPU with --gpu."""
    gpu: bool = False
    """Describe pictures on GPUs."""
    gateways: int = Field(default=1, ge=1)
    """Processes that answer HTTP, decode and search."""
    decoders: int = Field(default=2, ge=1)
    """Decode processes of each gateway for uploads, and as many for the gallery's pictures."""
    pending: int = Field(default=0, ge=0)
    """Searches that one gateway has in hand before it answers 503; 0: 8, or four passes, for each embedder.
    A `/v1/search:batch` counts as 8, an explained answer as one more; uploads on their way count apart, up to four times this."""
    request_seconds: float = Field(default=20.0, gt=0)
    """Most seconds of one request, from the last byte of its upload on."""
    upload_seconds: float = Field(default=60.0, gt=0)
    """Most seconds of one upload; four times as much for a batch."""
    picture_seconds: float = Field(default=4.0, gt=0)
    """Most seconds of decoding one upload."""
    max_body_mib: int = Field(default=16, ge=1)
    """Largest upload, MiB; four times as much for a batch."""
    max_pixels: int = Field(default=50_000_000, ge=1)
    """Largest width x height of an upload that is decoded at all."""
    rate: float = Field(default=0.0, ge=0)
    """Searches a second of one client (its token, else its address) on one gateway, with bursts of ten seconds; 0: no limit.
    Each picture of a batch, each explained answer and each map over a gallery picture counts as one."""
    allow_url: bool = False
    """Let a search name its picture by an https:// URL; only public addresses are fetched."""
    cors_origin: tuple[str, ...] = ()
    """Origin whose pages may call the API, e.g. https://shop.example, or * for every one; default: none."""
    refresh_seconds: float = Field(default=5.0, gt=0)
    """Seconds between two looks for a new version of the index."""

    @field_validator("cors_origin")
    @classmethod
    def _origins(cls, given: tuple[str, ...]) -> tuple[str, ...]:
        for origin in given:
            if not _ORIGIN.fullmatch(origin):
                raise ValueError(f"{origin!r} is no origin: scheme and host, as https://shop.example, without a path")
        return given

    @property
    def max_body(self) -> int:
        """Bytes of one picture's upload."""
        return self.max_body_mib * MIB
