"""Training pictures that look like a consumer's photo: another place, framing, angle, light and sharpness."""

from functools import cache
from typing import Any

import numpy as np
import torch
from torchvision import tv_tensors
from torchvision.transforms import v2

from manet.losses import binarise_at_mean

Array = np.ndarray[Any, np.dtype[Any]]
_LEAST = 0.05  # of a picture that its mask must mark; with less of it the product would be gone


@cache
def _transform(size: int) -> v2.Compose:
    return v2.Compose(
        [
            v2.RandomResizedCrop(size, scale=(0.45, 1.0), ratio=(0.8, 1.25), antialias=True),
            v2.RandomApply([v2.RandomRotation(20, fill={tv_tensors.Image: 255, tv_tensors.Mask: 0})], p=0.4),
            v2.RandomApply(
                [v2.RandomPerspective(0.25, p=1.0, fill={tv_tensors.Image: 255, tv_tensors.Mask: 0})], p=0.3
            ),
            v2.ColorJitter(brightness=0.35, contrast=0.3, saturation=0.3, hue=0.03),
            v2.RandomApply([v2.GaussianBlur(5, (0.2, 1.5))], p=0.2),
        ]
    )


@cache
def _framing(size: int) -> v2.Compose:
    return v2.Compose(
        [
            v2.RandomResizedCrop(size, scale=(0.6, 1.0), ratio=(0.8, 1.25), antialias=True),
            v2.RandomHorizontalFlip(),
            v2.ColorJitter(brightness=0.25, contrast=0.2, saturation=0.2, hue=0.02),
        ]
    )


def framed_view(rgb: Array, mask: Array) -> tuple[Array, Array]:
    """A square picture and its map, framed otherwise: what a teacher's map of the whole picture still holds for."""
    return moved_together(rgb, mask, _framing(len(rgb)))


def consumer_view(rgb: Array, mask: Array, pasted: float) -> tuple[Array, Array]:
    """A random view of a square picture, and Y of it: the picture's own, moved with it. Torch's random state decides.

    Args:
        rgb: uint8 [S, S, 3].
        mask: grey saliency, uint8 [S, S].
        pasted: share of the views in which the product is cut out by its mask and stands before a plain light ground.
    """
    if torch.rand(()) < pasted and (mask > 127).mean() >= _LEAST:
        rgb = _as_in_a_studio(rgb, mask)
    return moved_together(rgb, binarised(mask), _transform(len(rgb)))


def binarised(mask: Array) -> Array:
    """Y of a picture (METHOD.md "Training"): 255 where its grey map is greater than the map's own mean, else 0; uint8 [S, S]."""
    salient = binarise_at_mean(torch.from_numpy(np.ascontiguousarray(mask))[None].float())[0]
    return np.asarray(salient.numpy() * 255, np.uint8)


def moved_together(rgb: Array, mask: Array, transform: v2.Compose) -> tuple[Array, Array]:
    """A picture uint8 [h, w, 3] and its map uint8 [h, w] after the same random moves."""
    picture = tv_tensors.Image(torch.from_numpy(np.ascontiguousarray(rgb)).permute(2, 0, 1))
    grey = tv_tensors.Mask(torch.from_numpy(np.ascontiguousarray(mask))[None])
    picture, grey = transform(picture, grey)
    return picture.permute(1, 2, 0).contiguous().numpy(), grey[0].numpy()


def _as_in_a_studio(rgb: Array, mask: Array) -> Array:
    """The product of a picture (where its mask is bright) before a plain ground between white and light grey, hardly tinted."""
    ground = 255 * (0.75 + 0.25 * torch.rand(1).numpy()) * (0.94 + 0.06 * torch.rand(3).numpy())
    share = mask.astype(np.float32)[..., None] / 255
    return np.asarray(rgb * share + ground * (1 - share), np.uint8)
