"""Pictures spoilt in every way: each ends as a descriptor or as a reject with a reason; none hangs, none is lost."""

import io
import random
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.conftest import Run
from tests.jobs.helpers import summary_of

PICTURES = 2000
REASONS = {
    "missing", "unreadable", "empty", "not_a_picture", "truncated", "corrupt", "too_large", "animated", "unsupported",
    "crashed_decoder", "timed_out", "dead_feature_map",
}  # fmt: skip
SIZES = ((1, 1), (1, 20_000), (20_000, 1), (40, 30), (97, 61), (300, 200), (7, 400))
MODES = {
    "JPEG": ("RGB", "L", "CMYK"), "PNG": ("RGB", "RGBA", "L", "LA", "P", "1", "I;16"), "WEBP": ("RGB", "RGBA"),
    "GIF": ("P", "L"), "BMP": ("RGB", "L", "1"), "TIFF": ("RGB", "RGBA", "CMYK", "L", "F", "I;16"),
}  # fmt: skip


def whole(rng: random.Random, noise: np.random.Generator) -> bytes:
    """A picture of a random size, format and mode, now and then with a huge EXIF or ICC block."""
    kind = rng.choice(sorted(MODES))
    mode, (width, height) = rng.choice(MODES[kind]), rng.choice(SIZES)
    if kind == "WEBP" and max(width, height) > 16_000:
        width, height = 40, 30
    base = Image.fromarray(noise.integers(0, 256, (height, width, 3), np.uint8))
    if mode == "F":
        picture = base.convert("L").convert("F")
    elif mode == "I;16":
        picture = Image.fromarray(noise.integers(0, 65536, (height, width), np.uint16))
    else:
        picture = base.convert(mode)
    sink = io.BytesIO()
    extra: dict[str, Any] = {}
    if kind == "JPEG":
        extra = rng.choice(
            [{}, {"exif": b"Exif\0\0" + bytes(60_000)}, {"icc_profile": bytes(500_000)}, {"progressive": True}]
        )
    picture.save(sink, kind, **extra)
    return sink.getvalue()


def flipped(data: bytes, rng: random.Random) -> bytes:
    """Some bits turned over."""
    found = bytearray(data)
    for _ in range(rng.choice([1, 3, 30])):
        found[rng.randrange(len(found))] ^= 1 << rng.randrange(8)
    return bytes(found)


def bomb(rng: random.Random) -> bytes:
    """A small PNG that says it is huge, or one that is."""
    side = rng.choice([30_000, 65_000])

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1 << 20), 9)) + chunk(b"IEND", b"")


def spoilt(rng: random.Random, noise: np.random.Generator) -> bytes:
    """One file."""
    one, other = whole(rng, noise), whole(rng, noise)
    ways: list[Callable[[], bytes]] = [
        lambda: one,
        lambda: flipped(one, rng),
        lambda: one[: rng.randrange(len(one))],
        lambda: one[: rng.randrange(min(len(one), 64))] + other[rng.randrange(min(len(other), 64)) :],
        lambda: one + other,
        lambda: other[:24] + one[24:],
        lambda: rng.randbytes(rng.randrange(1, 4000)),
        lambda: bomb(rng),
    ]
    return rng.choice(ways)()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_spoilt_picture_ends_as_one_of_two(manet: Run, model: Path, tmp_path: Path) -> None:
    rng, noise = random.Random(4), np.random.default_rng(4)
    ids = [f"p{number:04d}" for number in range(PICTURES)]
    (tmp_path / "files").mkdir()
    for name in ids:
        (tmp_path / "files" / name).write_bytes(spoilt(rng, noise))
    catalog = tmp_path / "catalog.parquet"
    pq.write_table(pa.table({"image_id": ids, "uri": [f"files/{name}" for name in ids]}), catalog)
    command = ("extract", "--catalog", catalog, "--model", model, "--out", tmp_path / "out", "--part-rows", 256)
    done = summary_of(manet(*command, "--max-rejects", 1, timeout=1500))
    described = pa.concat_tables([pq.read_table(path) for path in sorted((tmp_path / "out").glob("part-*.parquet"))])
    rejects = pa.concat_tables([pq.read_table(path) for path in sorted((tmp_path / "out").glob("rejects-*.parquet"))])
    assert sorted(described["image_id"].to_pylist() + rejects["image_id"].to_pylist()) == ids
    assert (len(described), len(rejects)) == (done["rows"], done["rejects"])
    assert set(rejects["reason"].to_pylist()) <= REASONS
    assert min(len(described), len(rejects)) > PICTURES // 10
    lengths = np.linalg.norm(np.array(described["descriptor"].to_pylist(), np.float32), axis=1)
    np.testing.assert_allclose(lengths, 1, atol=2e-3)
