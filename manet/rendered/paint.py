"""Painting of parts: polygons in unit coordinates with shading, onto a premultiplied RGBA canvas.

Coordinates: x to the right, y down, the product's box is [0, 1] x [0, 1] of a square canvas.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
Colour = tuple[float, float, float]  # RGB in [0, 1]
Finish = Literal["flat", "cylinder", "metal", "glass", "sphere"]
_SHIFT = 4  # sub-pixel bits of cv2's polygons


@dataclass(frozen=True, kw_only=True)
class Part:
    """A filled polygon.

    Args:
        outline: its corners, [n, 2].
        colour: base colour.
        finish: how light falls on it.
        texture: a picture, RGB in [0, 1], stretched over the polygon's box and multiplied with the light.
        alpha: opacity.
    """

    outline: Array
    colour: Colour
    finish: Finish = "flat"
    texture: Array | None = None
    alpha: float = 1.0


def paint(parts: Sequence[Part], size: int) -> Array:
    """The parts in order on an empty canvas: float32 [size, size, 4], premultiplied RGBA in [0, 1]."""
    canvas = np.zeros((size, size, 4), np.float32)
    for part in parts:
        _paint_one(canvas, part, size)
    return canvas


def _paint_one(canvas: Array, part: Part, size: int) -> None:
    points = np.round(part.outline * size * (1 << _SHIFT)).astype(np.int32)
    mask = np.zeros((size, size), np.uint8)
    cv2.fillPoly(mask, [points], 255, cv2.LINE_AA, _SHIFT)
    left, top, width, height = cv2.boundingRect(cv2.findNonZero(mask)) if mask.any() else (0, 0, 0, 0)
    if not width or not height:
        return
    box = np.s_[top : top + height, left : left + width]
    alpha = mask[box].astype(np.float32)[..., None] / 255 * part.alpha
    base: Array = np.empty((height, width, 3), np.float32)
    base[:] = part.colour
    if part.texture is not None:
        base = cv2.resize(part.texture.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA)
    lit, gloss = _light(part.finish, width, height)
    rgb = np.clip(base * lit[..., None] + gloss[..., None], 0, 1)
    canvas[box][..., :3] *= 1 - alpha
    canvas[box][..., :3] += rgb * alpha
    canvas[box][..., 3:] *= 1 - alpha
    canvas[box][..., 3:] += alpha


def _light(finish: Finish, width: int, height: int) -> tuple[Array, Array]:
    """(factor on the colour, highlight added), both [height, width]."""
    x = np.linspace(-1, 1, width, dtype=np.float32)[None]
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    ones = np.ones((height, width), np.float32)
    if finish == "cylinder":
        return (0.55 + 0.45 * np.sqrt(np.clip(1 - (x * 0.98) ** 2, 0, 1))) * ones, 0.28 * _bump(x, -0.45, 0.16) * ones
    if finish == "metal":
        bands = 0.62 + 0.25 * np.cos(x * 5.2 + 0.8) + 0.2 * _bump(x, -0.5, 0.12) - 0.15 * _bump(x, 0.25, 0.2)
        return bands * ones, 0.3 * _bump(x, -0.5, 0.07) * ones
    if finish == "glass":
        edge = 0.72 + 0.28 * np.clip(1 - np.abs(x) ** 6, 0, 1)
        return edge * (1.02 - 0.08 * y), (0.4 * _bump(x, -0.62, 0.07) + 0.16 * _bump(x, 0.7, 0.05)) * ones
    if finish == "sphere":
        r2 = (x + 0.25) ** 2 + (y + 0.3) ** 2
        return np.clip(1.08 - 0.38 * r2, 0.4, 1.1), 0.3 * np.exp(-r2 / 0.06)
    return (1.03 - 0.07 * y) * ones, np.zeros_like(ones)


def _bump(x: Array, centre: float, width: float) -> Array:
    return np.exp(-(((x - centre) / width) ** 2))


def rect(left: float, top: float, right: float, bottom: float, radius: float = 0.0) -> Array:
    """A rectangle with round corners, [n, 2]."""
    radius = min(radius, (right - left) / 2, (bottom - top) / 2)
    if radius <= 0:
        return np.array([[left, top], [right, top], [right, bottom], [left, bottom]], np.float32)
    quarter = np.linspace(0, np.pi / 2, 8)
    corners = []
    for cx, cy, start in (
        (right - radius, top + radius, -np.pi / 2),
        (right - radius, bottom - radius, 0.0),
        (left + radius, bottom - radius, np.pi / 2),
        (left + radius, top + radius, np.pi),
    ):
        angle = quarter + start
        corners.append(np.stack([cx + radius * np.cos(angle), cy + radius * np.sin(angle)], 1))
    return np.concatenate(corners).astype(np.float32)


def ellipse(x: float, y: float, rx: float, ry: float, start: float = 0.0, stop: float = 360.0) -> Array:
    """An ellipse, or the segment of it between two angles in degrees, [n, 2]."""
    angle = np.radians(np.linspace(start, stop, 64))
    return np.stack([x + rx * np.cos(angle), y + ry * np.sin(angle)], 1).astype(np.float32)


def profile(x: float, heights: Sequence[tuple[float, float]]) -> Array:
    """A body symmetric about `x` from (y, half width) pairs, [n, 2]."""
    right = [(x + half, y) for y, half in heights]
    left = [(x - half, y) for y, half in reversed(heights)]
    return np.array(right + left, np.float32)
