"""Labels: brand, line, what it is and small print, as a texture. Fonts are those that matplotlib brings."""

from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Array = np.ndarray[Any, np.dtype[Any]]
Colour = tuple[float, float, float]
# All of them have Latin, Greek and Cyrillic letters.
FONTS = ("DejaVuSans-Bold", "DejaVuSerif", "DejaVuSans", "DejaVuSerif-Bold", "DejaVuSans-Oblique", "DejaVuSansMono-Bold",
         "DejaVuSerif-Italic")  # fmt: skip


@lru_cache(maxsize=512)
def font(name: str, size: int) -> ImageFont.FreeTypeFont:
    """A font of matplotlib's data folder, without importing matplotlib."""
    spec = find_spec("matplotlib")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("matplotlib, whose fonts the labels are set in, is not installed")
    return ImageFont.truetype(Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf" / f"{name}.ttf", size)


def label(
    width: int, height: int, ground: Colour, ink: Colour, accent: Colour, lines: tuple[str, str, str], style: int
) -> Array:
    """A label, RGB in [0, 1], [height, width, 3].

    Args:
        width: px.
        height: px.
        ground: colour of the paper or of the body itself.
        ink: colour of the letters.
        accent: colour of the mark and the band.
        lines: brand, product line, what it is.
        style: chooses layout, mark and fonts.
    """
    image = Image.new("RGB", (max(8, width), max(8, height)), _byte(ground))
    draw = ImageDraw.Draw(image)
    w, h = image.size
    names = (FONTS[style % len(FONTS)], FONTS[(style // 7) % len(FONTS)])
    layout = (style // 3) % 4
    if layout == 0:
        draw.rectangle([0, h * 0.62, w, h * 0.8], fill=_byte(accent))
    elif layout == 1:
        draw.rectangle([0, 0, w, h * 0.12], fill=_byte(accent))
        draw.rectangle([0, h * 0.88, w, h], fill=_byte(accent))
    elif layout == 2:
        draw.polygon([(0, h), (w, h * 0.55), (w, h)], fill=_byte(accent))
    else:
        draw.rectangle([w * 0.08, h * 0.05, w * 0.92, h * 0.95], outline=_byte(accent), width=max(1, w // 40))
    _mark(draw, w, h, _byte(accent), style)
    _fit(draw, lines[0], (w * 0.5, h * 0.36), w * 0.84, h * 0.17, names[0], _byte(ink))
    _fit(draw, lines[1], (w * 0.5, h * 0.51), w * 0.7, h * 0.09, names[1], _byte(ink))
    on_band = _byte(ground) if layout == 0 else _byte(ink)
    _fit(draw, lines[2], (w * 0.5, h * 0.71), w * 0.78, h * 0.09, names[1], on_band)
    for row in range(2):
        y, length = h * (0.83 + 0.05 * row), 0.5 - 0.12 * row
        draw.line([w * (0.5 - length / 2), y, w * (0.5 + length / 2), y], fill=_byte(ink), width=max(1, h // 150))
    return np.asarray(image, np.float32) / 255


def _mark(draw: ImageDraw.ImageDraw, w: int, h: int, colour: tuple[int, int, int], style: int) -> None:
    x, y, r = w * 0.5, h * 0.17, min(w, h) * (0.07 + 0.01 * (style % 4))
    shape = (style // 5) % 6
    if shape == 0:
        draw.ellipse([x - r, y - r, x + r, y + r], fill=colour)
    elif shape == 1:
        draw.ellipse([x - r, y - r, x + r, y + r], outline=colour, width=max(1, int(r / 3)))
    elif shape == 2:
        draw.polygon([(x, y - r), (x + r, y + r), (x - r, y + r)], fill=colour)
    elif shape == 3:
        draw.rectangle([x - r, y - r, x + r, y + r], fill=colour)
    elif shape == 4:
        draw.polygon([(x, y - r), (x + r, y), (x, y + r), (x - r, y)], fill=colour)
    else:
        for turn in range(5):
            angle = turn * 2 * np.pi / 5
            px, py = x + r * 0.7 * np.cos(angle), y + r * 0.7 * np.sin(angle)
            draw.ellipse([px - r / 2, py - r / 2, px + r / 2, py + r / 2], fill=colour)


def _fit(
    draw: ImageDraw.ImageDraw,
    text: str,
    at: tuple[float, float],
    width: float,
    height: float,
    name: str,
    ink: tuple[int, int, int],
) -> None:
    """Text centred at a point, as large as fits."""
    size = max(4, int(height))
    length = font(name, size).getlength(text)
    if length > width:
        size = max(4, int(size * width / length))
    draw.text(at, text, font=font(name, size), fill=ink, anchor="mm")


def _byte(colour: Colour) -> tuple[int, int, int]:
    red, green, blue = (round(255 * min(1.0, max(0.0, value))) for value in colour)
    return red, green, blue
