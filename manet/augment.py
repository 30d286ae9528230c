"""Training pictures that look like a consumer's photo: another framing, angle, light and sharpness."""

from functools import cache
from typing import Any

import numpy as np
import torch
from torchvision import tv_tensors
from torchvision.transforms import v2

Array = np.ndarray[Any, np.dtype[Any]]


@cache
def _transform(size: int) -> v2.Compose:
    return v2.Compose(
        [
            v2.RandomResizedCrop(size, scale=(0.45, 1.0), ratio=(0.8, 1.25), antialias=True),
            v2.RandomApply([v2.RandomRotation(20, fill=255)], p=0.4),
            v2.RandomApply([v2.RandomPerspective(0.25, p=1.0, fill=255)], p=0.3),
            v2.ColorJitter(brightness=0.35, contrast=0.3, saturation=0.3, hue=0.03),
            v2.RandomApply([v2.GaussianBlur(5, (0.2, 1.5))], p=0.2),
        ]
    )


def consumer_view(rgb: Array, mask: Array) -> tuple[Array, Array]:
    """A random view of a square picture, uint8 [S, S, 3], and of its grey mask, uint8 [S, S]; torch's random state decides."""
    picture = tv_tensors.Image(torch.from_numpy(rgb).permute(2, 0, 1))
    grey = tv_tensors.Mask(torch.from_numpy(mask)[None])
    picture, grey = _transform(len(rgb))(picture, grey)
    return picture.permute(1, 2, 0).contiguous().numpy(), grey[0].numpy()
