"""Bytes -> the picture that the network sees: THE decode path of training, gallery and query.

uint8 [size, size, 3], RGB: upright by its EXIF, longer side at `size`, centred on white. Pillow reads the header (format,
size, frames, mode) before anything is decoded; OpenCV decodes, but for the modes that it gets wrong (CMYK, palette or grey
with transparency), which Pillow does.
"""

import io
import re
import warnings
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from pydantic import BaseModel, ConfigDict, Field

from manet.errors import PictureError, Reason, one_line

Pixels = np.ndarray[Any, np.dtype[Any]]
_FORMATS = {"JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF"}
_KNOWN_ELSEWHERE = {b"%PDF": "PDF", b"<svg": "SVG", b"<?xml": "SVG or XML", b"\x00\x00\x00": "HEIF or AVIF"}
_WHITE = 255
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]")  # of a JPEG's segment; the others stand in the data of a scan
_START, _END, _SCAN = 0xD8, 0xD9, 0xDA
_EOI = bytes((0xFF, _END))
_REDUCED = ((8, cv2.IMREAD_REDUCED_COLOR_8), (4, cv2.IMREAD_REDUCED_COLOR_4), (2, cv2.IMREAD_REDUCED_COLOR_2))


class PictureConfig(BaseModel):
    """How pictures are prepared."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    size: int = Field(default=480, ge=1)
    """Longer side, px, and side of the padded square."""
    max_pixels: int = Field(default=100_000_000, ge=1)
    """Largest width x height that is decoded at all."""


def auto_batch(size: int) -> int:
    """Pictures of one pass on a CPU: about as many pixels as one picture of 480 px has; beyond that the caches overflow."""
    return max(1, min(8, 480 * 480 // (size * size)))


def decode(data: bytes, config: PictureConfig) -> Pixels:
    """Prepare a picture: uint8 [size, size, 3], RGB.

    Raises:
        PictureError: whatever is wrong with the bytes; nothing else is ever raised for bad bytes.
    """
    header = _header(data, config.max_pixels)
    try:
        rgb = _pixels(data, header, config.size)
    except PictureError:
        raise
    except MemoryError:
        raise PictureError(Reason.TOO_LARGE, f"{header.format}: not enough memory to decode it") from None
    except Exception as error:  # a decoder's own error, whatever its type: these bytes are at fault
        if "Insufficient memory" in str(error):
            raise PictureError(Reason.TOO_LARGE, f"{header.format}: not enough memory to decode it") from None
        raise PictureError(Reason.CORRUPT, f"{header.format}: {one_line(error)}") from None
    return _square(rgb, config.size)


def _header(data: bytes, max_pixels: int) -> Image.Image:
    """Format, size and mode, nothing decoded; refuses what must not or cannot be decoded."""
    if not data:
        raise PictureError(Reason.EMPTY, "0 bytes")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of large pictures; the bound below is ours
            image = Image.open(io.BytesIO(data))
    except Image.DecompressionBombError as error:
        raise PictureError(Reason.TOO_LARGE, one_line(error)) from None
    except UnidentifiedImageError:
        raise _unidentified(data, max_pixels) from None
    except Exception as error:
        raise _bad_header(data, error) from None
    width, height = image.size
    if width * height > max_pixels:
        raise _too_large(width, height, max_pixels)
    if image.format not in _FORMATS:
        raise PictureError(Reason.UNSUPPORTED, f"format {image.format}")
    try:
        frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)  # an MPO is one picture with previews
    except Exception as error:  # to count them Pillow reads the headers of all
        raise _bad_header(data, error) from None
    if frames > 1:
        raise PictureError(Reason.ANIMATED, f"{image.format} of {frames} frames")
    return image


def _bad_header(data: bytes, error: Exception) -> PictureError:
    short = "truncated" in str(error).lower() or (data[:4] == b"RIFF" and len(data) < _riff_bytes(data))
    return PictureError(Reason.TRUNCATED if short else Reason.CORRUPT, f"header: {one_line(error)}")


def _unidentified(data: bytes, max_pixels: int) -> PictureError:
    head = data[:64].lstrip()
    for magic, name in _KNOWN_ELSEWHERE.items():
        if head.startswith(magic):
            return PictureError(Reason.UNSUPPORTED, f"format {name}")
    if head.startswith(b"\x89PNG") and head[12:16] == b"IHDR" and len(head) >= 24:  # Pillow wants more than the header
        width, height = (int.from_bytes(head[at : at + 4], "big") for at in (16, 20))
        if width * height > max_pixels:
            return _too_large(width, height, max_pixels)
        if not width * height:
            return PictureError(Reason.CORRUPT, f"header: {width} x {height} px")
    if head.startswith((b"\xff\xd8\xff", b"\x89PNG", b"RIFF", b"GIF8")):
        return PictureError(Reason.TRUNCATED, f"{len(data)} bytes, the header is not whole")
    return PictureError(Reason.NOT_A_PICTURE, f"starts with {data[:12]!r}")


def _too_large(width: int, height: int, max_pixels: int) -> PictureError:
    return PictureError(Reason.TOO_LARGE, f"{width} x {height} px, at most {max_pixels} in all are decoded")


def _pixels(data: bytes, header: Image.Image, size: int) -> Pixels:
    """RGB uint8 [h, w, 3], upright, at least `size` on the longer side unless the picture is smaller."""
    _refuse_truncated(data, header)
    by_opencv = header.format in {"JPEG", "MPO", "PNG", "WEBP", "BMP"} and header.mode in {
        "RGB",
        "L",
        "I;16",
        "RGBA",
        "I",
    }
    if not by_opencv or "transparency" in header.info:
        return _by_pillow(header)
    if header.format in {"JPEG", "MPO"}:
        flag = next((flag for times, flag in _REDUCED if max(header.size) // times >= size), cv2.IMREAD_COLOR)
        bgr = _imdecode(data, flag)
        return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)
    raw = _imdecode(data, cv2.IMREAD_UNCHANGED)
    if raw.dtype == np.uint16:
        raw = (raw / 257 + 0.5).astype(np.uint8)
    return _upright(_on_white(raw), header)


def _imdecode(data: bytes, flag: int) -> Pixels:
    bgr = cv2.imdecode(np.frombuffer(data, np.uint8), flag)
    if bgr is None:
        raise PictureError(Reason.CORRUPT, "the decoder gave nothing")
    return bgr


def _refuse_truncated(data: bytes, header: Image.Image) -> None:
    """Decoders fill what is missing with grey: look for the end that each format must have."""
    if header.format in {"JPEG", "MPO"}:
        whole = _comes_to_its_end(data)
    elif header.format == "PNG":
        whole = b"IEND" in data[-4096:]
    elif header.format == "WEBP":
        whole = len(data) >= _riff_bytes(data)
    else:
        return
    if not whole and header.format in {"JPEG", "MPO"} and data.rstrip(b"\0\r\n").endswith(_EOI):
        raise PictureError(Reason.CORRUPT, f"{header.format}: its segments do not lead to its end")
    if not whole:
        raise PictureError(Reason.TRUNCATED, f"{header.format} of {len(data)} bytes without its end")


def _comes_to_its_end(data: bytes) -> bool:
    """Whether the segments of a JPEG, one after the other, come to its end marker; what lies behind it may be anything (a
    phone's film, more pictures).
    """
    at, scanned = 2, False
    while found := _MARKER.search(data, at):
        kind, at = data[found.end() - 1], found.end()
        if kind == _END:
            return scanned
        scanned |= kind == _SCAN
        at += int.from_bytes(data[at : at + 2], "big") if kind != _START else 0
    return False


def _riff_bytes(data: bytes) -> int:
    """Size that a WebP file states of itself."""
    return int.from_bytes(data[4:8], "little") + 8


def _by_pillow(header: Image.Image) -> Pixels:
    """Modes that OpenCV gets wrong or does not read."""
    try:
        header.load()
    except (OSError, SyntaxError, EOFError) as error:
        reason = Reason.TRUNCATED if "truncated" in str(error).lower() else Reason.CORRUPT
        raise PictureError(reason, f"{header.format}: {one_line(error)}") from None
    upright = ImageOps.exif_transpose(header)
    if upright.mode in {"RGBA", "LA", "PA"} or "transparency" in upright.info:
        rgba = upright.convert("RGBA")
        ground = Image.new("RGBA", rgba.size, (_WHITE,) * 4)
        upright = Image.alpha_composite(ground, rgba)
    if upright.mode.startswith("I") or upright.mode == "F":
        grey = np.asarray(upright, np.float64)
        scale = 257 if grey.max(initial=0) > _WHITE else 1
        return np.repeat(np.clip(grey / scale + 0.5, 0, _WHITE).astype(np.uint8)[..., None], 3, 2)
    return np.asarray(upright.convert("RGB"))


def _on_white(raw: Pixels) -> Pixels:
    """Grey, BGR or BGRA uint8 as RGB, transparent parts on white."""
    if raw.ndim == 2:
        return cv2.cvtColor(raw, cv2.COLOR_GRAY2RGB)
    if raw.shape[2] == 3:
        return cv2.cvtColor(raw, cv2.COLOR_BGR2RGB)
    rgba = cv2.cvtColor(raw, cv2.COLOR_BGRA2RGBA)
    if rgba[..., 3].min() == _WHITE:
        return np.ascontiguousarray(rgba[..., :3])
    alpha = rgba[..., 3:].astype(np.uint16)
    mixed = rgba[..., :3].astype(np.uint16) * alpha + _WHITE * (_WHITE - alpha)
    return ((mixed + 127) // _WHITE).astype(np.uint8)


def _upright(rgb: Pixels, header: Image.Image) -> Pixels:
    """Turned as EXIF says, for the formats whose orientation OpenCV leaves alone when alpha is kept."""
    orientation = header.getexif().get(0x0112, 1)
    turns = {
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: a[::-1].transpose(1, 0, 2),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: a[:, ::-1].transpose(1, 0, 2),
    }
    return np.ascontiguousarray(turns[orientation](rgb)) if orientation in turns else rgb


def _square(rgb: Pixels, size: int) -> Pixels:
    """Longer side to `size`, centred on a white square."""
    height, width = rgb.shape[:2]
    scale = size / max(height, width)
    wide, high = max(1, round(width * scale)), max(1, round(height * scale))
    if (wide, high) != (width, height):
        method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        rgb = cv2.resize(rgb, (wide, high), interpolation=method)
    square = np.full((size, size, 3), _WHITE, np.uint8)
    top, left = (size - high) // 2, (size - wide) // 2
    square[top : top + high, left : left + wide] = rgb
    return square
