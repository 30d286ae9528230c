"""Scenes: a product's sprite as a clean studio picture, or as a photo that a consumer took."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, kw_only=True)
class Rendered:
    """A picture, RGB uint8 [h, w, 3], and where the product is, uint8 [h, w], 255 or 0."""

    rgb: Array
    mask: Array


def studio_picture(rng: np.random.Generator, sprite: Array, size: int, view: int) -> Rendered:
    """The product on white, upright at view 0; turned, closer or twice in later views; with a soft shadow."""
    width, height = (size, size) if rng.random() < 0.6 else (int(size * 0.8), size)
    ground = np.full((height, width, 3), rng.choice([1.0, 1.0, 0.97, 0.95]), np.float32)
    scale = rng.uniform(0.78, 0.95) * (1.0 if view == 0 else rng.uniform(0.75, 1.0))
    angle = 0.0 if view == 0 else rng.uniform(-14, 14)
    places = [(0.5, 0.5, scale)]
    if view == 2 and rng.random() < 0.5:
        places = [(0.33, 0.47, scale * 0.72), (0.66, 0.54, scale * 0.72)]
    mask = np.zeros((height, width), np.float32)
    for x, y, share in places:
        layer = _placed(sprite, (width, height), (x * width, y * height), share * min(width, height), angle, 0.0)
        _shadow(ground, layer[..., 3], 0.22, size)
        _over(ground, layer)
        mask = np.maximum(mask, layer[..., 3])
    return Rendered(rgb=_bytes(ground), mask=_binary(mask))


def consumer_photo(rng: np.random.Generator, sprite: Array, others: Sequence[Array], size: int) -> Rendered:
    """The product in a room: clutter behind, a hand or an object before it, slant, odd light, blur, noise."""
    width, height = (int(size * 0.75), size) if rng.random() < 0.65 else (size, int(size * 0.75))
    scene = _background(rng, width, height)
    short = min(width, height)
    for other in others:
        at = (rng.uniform(0, width), rng.uniform(0.1, 0.8) * height)
        layer = _placed(other, (width, height), at, short * rng.uniform(0.35, 0.7), rng.uniform(-15, 15), 0.1)
        _shadow(scene, layer[..., 3], 0.3, size)
        _over(scene, layer)
    scene = cv2.GaussianBlur(scene, (0, 0), max(0.3, size / 480 * rng.uniform(0.6, 2.2)))  # the room is out of focus
    at = (width * rng.uniform(0.42, 0.58), height * rng.uniform(0.44, 0.56))
    layer = _placed(
        sprite, (width, height), at, short * rng.uniform(0.68, 1.05), rng.uniform(-25, 25), rng.uniform(0.05, 0.2), rng
    )
    _shadow(scene, layer[..., 3], 0.4, size)
    _over(scene, layer)
    mask = layer[..., 3]
    if rng.random() < 0.6:
        hand = _hand(rng, layer[..., 3])
        _over(scene, hand)
        mask = mask * (1 - hand[..., 3])
    return Rendered(rgb=_camera(rng, scene, size), mask=_binary(mask))


def _placed(
    sprite: Array,
    canvas: tuple[int, int],
    at: tuple[float, float],
    side: float,
    angle: float,
    slant: float,
    rng: np.random.Generator | None = None,
) -> Array:
    """A sprite warped onto a canvas (width, height): centre, side in px, rotation in degrees, perspective 0..1."""
    source = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], np.float32) * sprite.shape[0]
    turn = np.radians(angle)
    corners = np.array([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]], np.float32)
    if rng is not None:
        corners *= 1 - slant * rng.random((4, 2)).astype(np.float32)
    rotation = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]], np.float32)
    target = (corners @ rotation * side + np.array(at)).astype(np.float32)
    warp = cv2.getPerspectiveTransform(source, target)
    return cv2.warpPerspective(sprite, warp, canvas, flags=cv2.INTER_AREA if side < len(sprite) else cv2.INTER_LINEAR)


def _over(ground: Array, layer: Array) -> None:
    """Premultiplied `layer` over `ground`, in place."""
    ground *= 1 - layer[..., 3:]
    ground += layer[..., :3]


def _shadow(ground: Array, alpha: Array, strength: float, size: int) -> None:
    offset = np.array([[1, 0, size * 0.012], [0, 1, size * 0.02]], np.float32)
    moved = cv2.warpAffine(alpha, offset, alpha.shape[::-1])
    ground *= 1 - strength * cv2.GaussianBlur(moved, (0, 0), size * 0.022)[..., None]


def _background(rng: np.random.Generator, width: int, height: int) -> Array:
    """A wall and a table of wood, cloth, tiles or stone."""
    wall = _texture(rng, width, height)
    table = _texture(rng, width, height)
    edge = int(height * rng.uniform(0.35, 0.75))
    wall[edge:] = table[edge:]
    glow = np.linspace(rng.uniform(0.75, 1.1), rng.uniform(0.75, 1.1), width, dtype=np.float32)[None, :, None]
    return np.clip(wall * glow, 0, 1)


def _texture(rng: np.random.Generator, width: int, height: int) -> Array:
    base = rng.uniform(0.25, 0.9, 3).astype(np.float32)
    base = base * 0.5 + base.mean() * 0.5  # rooms are not colourful
    kind = int(rng.integers(4))
    noise: Array
    if kind == 0:  # wood: stretched noise
        noise = cv2.resize(rng.standard_normal((max(2, height // 3), 6)).astype(np.float32), (width, height))
    elif kind == 1:  # tiles
        pitch = max(8, int(min(width, height) * rng.uniform(0.12, 0.3)))
        y, x = np.mgrid[:height, :width]
        noise = -2.5 * ((x % pitch < 3) | (y % pitch < 3)).astype(np.float32)
    elif kind == 2:  # cloth: fine weave
        y, x = np.mgrid[:height, :width].astype(np.float32)
        noise = np.sin(x * rng.uniform(0.5, 1.2)) + np.sin(y * rng.uniform(0.5, 1.2))
    else:  # stone: cloudy noise
        noise = cv2.resize(
            rng.standard_normal((8, 8)).astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC
        )
        noise += 0.4 * rng.standard_normal((height, width)).astype(np.float32)
    return np.asarray(np.clip(base + 0.06 * noise[..., None], 0, 1), np.float32)


def _hand(rng: np.random.Generator, alpha: Array) -> Array:
    """Fingers that hold the product from one side, premultiplied RGBA."""
    height, width = alpha.shape
    layer = np.zeros((height, width, 4), np.float32)
    rows, columns = np.nonzero(alpha > 0.5)
    if not len(rows):
        return layer
    tone = np.array([0.87, 0.67, 0.55], np.float32) * rng.uniform(0.5, 1.08)
    from_left = rng.random() < 0.5
    edge = columns.min() if from_left else columns.max()
    low, high = np.quantile(rows, [0.35, 0.85])
    thick = (high - low) / 5
    for finger in range(int(rng.integers(2, 5))):
        y = low + finger * thick * 1.05
        reach = (columns.max() - columns.min()) * rng.uniform(0.12, 0.3)
        tip = (edge + reach if from_left else edge - reach, y + rng.uniform(-4, 4))
        root = (edge - width * 0.4 if from_left else edge + width * 0.4, y + thick * 1.5)
        mask = np.zeros((height, width), np.uint8)
        ends = [tuple(int(value) for value in point) for point in (root, tip)]
        cv2.line(mask, ends[0], ends[1], 255, max(3, int(thick * 0.95)), cv2.LINE_AA)
        cover = mask.astype(np.float32) / 255
        light = 0.8 + 0.25 * cv2.GaussianBlur(cover, (0, 0), max(1.0, thick * 0.25))
        layer *= 1 - cover[..., None]
        layer[..., :3] += (tone * light[..., None]) * cover[..., None]
        layer[..., 3] += cover
    return layer


def _camera(rng: np.random.Generator, scene: Array, size: int) -> Array:
    """White balance, exposure, vignette, blur, noise, and the artefacts of a JPEG of poor quality."""
    height, width = scene.shape[:2]
    scene = scene * rng.uniform(0.85, 1.15, 3).astype(np.float32) * np.float32(rng.uniform(0.7, 1.2))
    scene = np.clip(scene, 0, 1) ** rng.uniform(0.8, 1.3)
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j].astype(np.float32)
    scene *= 1 - np.float32(rng.uniform(0, 0.35)) * (x * x + y * y)[..., None] / 2
    scene = cv2.GaussianBlur(scene, (0, 0), max(0.2, size / 480 * rng.uniform(0.2, 1.1)))
    scene = scene + rng.standard_normal(scene.shape, np.float32) * np.float32(rng.uniform(0.004, 0.03))
    quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(40, 90))]
    _, coded = cv2.imencode(".jpg", _bytes(scene)[..., ::-1], quality)
    return np.ascontiguousarray(np.asarray(cv2.imdecode(coded, cv2.IMREAD_COLOR))[..., ::-1])


def _bytes(rgb: Array) -> Array:
    return np.clip(rgb * 255 + 0.5, 0, 255).astype(np.uint8)


def _binary(alpha: Array) -> Array:
    return ((alpha > 0.5) * 255).astype(np.uint8)
