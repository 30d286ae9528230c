"""Words written over pictures, with the map of where they are: what the text branch is trained on beside a detector's maps."""

import string
from functools import cache
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image, ImageDraw
from torchvision.transforms import v2

from manet.augment import moved_together
from manet.rendered.labels import FONTS, font

Array = np.ndarray[Any, np.dtype[Any]]
LETTERED = 0.5  # share of pictures that are written over
MOST = 4  # lines on one picture
_SHRINK = 0.4  # DB's ratio: its maps mark the inside of a line's box (Liao et al. 2020)
_LETTERS = string.ascii_letters + string.ascii_uppercase + string.digits + "%&.-!" + "\u00e5\u00e4\u00f6\u00e9\u00fc"


@cache
def _transform(size: int) -> v2.Compose:
    return v2.Compose(
        [
            v2.RandomApply([v2.RandomRotation(20)], p=0.4),
            v2.RandomResizedCrop(size, scale=(0.25, 1.0), ratio=(0.8, 1.25), antialias=True),
            v2.ColorJitter(brightness=0.35, contrast=0.3, saturation=0.3, hue=0.05),
            v2.RandomApply([v2.GaussianBlur(5, (0.2, 1.2))], p=0.2),
        ]
    )


def lettered_view(rgb: Array, grey: Array, size: int) -> tuple[Array, Array]:
    """A random piece of a picture and of its text map, [size, size, 3] and [size, size]; torch's random state decides.

    Args:
        rgb: uint8 [S, S, 3].
        grey: text scores, uint8 [S, S].
        size: px.
    """
    draw = np.random.default_rng(int(torch.randint(2**31, ())))
    if draw.random() < LETTERED:
        rgb, grey = written_over(rgb, grey, draw)
    return moved_together(rgb, grey, _transform(size))


def written_over(rgb: Array, grey: Array, draw: np.random.Generator) -> tuple[Array, Array]:
    """One to `MOST` lines of random letters over a picture, and the picture's text map with theirs."""
    rgb, grey = rgb.copy(), grey.copy()
    for _ in range(int(draw.integers(1, MOST + 1))):
        letters, inside = _line(draw, len(rgb))
        height, width = letters.shape
        top, left = (int(draw.integers(0, max(1, whole - part + 1))) for whole, part in
                     ((len(rgb), height), (rgb.shape[1], width)))  # fmt: skip
        place = np.s_[top : top + height, left : left + width]
        share = letters[: rgb[place].shape[0], : rgb[place].shape[1], None] / 255 * draw.uniform(0.75, 1)
        ground = rgb[place].reshape(-1, 3).mean(0)
        ink = draw.uniform(0, 110, 3) if ground.mean() > 128 else draw.uniform(145, 255, 3)
        rgb[place] = np.rint(rgb[place] * (1 - share) + ink * share).astype(np.uint8)
        under = cv2.dilate(letters, np.ones((5, 5), np.uint8))[: share.shape[0], : share.shape[1]] > 0
        grey[place] = np.where(under, 0, grey[place])  # what was written over is no longer to be read
        grey[place] = np.maximum(grey[place], inside[: share.shape[0], : share.shape[1]])
    return rgb, grey


def _line(draw: np.random.Generator, size: int) -> tuple[Array, Array]:
    """A turned line of words: coverage by ink, and the inside of its box, both uint8 of one shape that fits `size`."""
    words = ["".join(draw.choice(list(_LETTERS), int(draw.integers(2, 10)))) for _ in range(int(draw.integers(1, 4)))]
    if draw.random() < 0.5:
        words = [word.upper() for word in words]
    text, face = " ".join(words), FONTS[int(draw.integers(len(FONTS)))]
    height = int(np.exp(draw.uniform(np.log(size / 50), np.log(size / 8))))
    used = font(face, max(8, height))
    if used.getlength(text) > size * 0.9:
        text = words[0]
        used = font(face, max(8, min(height, int(height * size * 0.9 / max(1, used.getlength(text))))))
    left, top, right, bottom = used.getbbox(text)
    width, tall = int(right - left) + 1, int(bottom - top) + 1
    letters, inside = Image.new("L", (width + 4, tall + 4)), Image.new("L", (width + 4, tall + 4))
    ImageDraw.Draw(letters).text((2 - left, 2 - top), text, font=used, fill=255)
    inset = width * tall * (1 - _SHRINK**2) / (2 * (width + tall))  # area (1 - r^2) / perimeter
    inset = min(inset, (tall - 2) / 2, (width - 2) / 2)
    ImageDraw.Draw(inside).rectangle([2 + inset, 2 + inset, width + 1 - inset, tall + 1 - inset], fill=255)
    angle = float(draw.normal(0, 12)) + 90 * float(draw.random() < 0.08)
    turned = [np.asarray(each.rotate(angle, Image.Resampling.BILINEAR, expand=True)) for each in (letters, inside)]
    return turned[0][:size, :size], turned[1][:size, :size]
