"""R-MAC's regions of a feature map, and pooling over all of them at once.

Shape letters: B pictures, C channels, H x W cells, R regions. Source: METHOD.md "SR-MAC"; Tolias, Sicre, Jegou 2016,
in the layout of cirtorch.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

LEVELS = 3
OVERLAP = 0.4  # wanted between neighbours of the largest scale
_STEPS = range(2, 8)


@dataclass(frozen=True)
class Regions:
    """Squares of an H x W map. `groups`: for each side, its top rows and left columns, in cells.

    The regions are the groups in order, and in a group tops (outer) x lefts (inner).
    """

    height: int
    width: int
    groups: tuple[tuple[int, tuple[int, ...], tuple[int, ...]], ...]

    @property
    def boxes(self) -> list[tuple[int, int, int]]:
        """(top, left, side) of every region."""
        return [(top, left, side) for side, tops, lefts in self.groups for top in tops for left in lefts]

    @property
    def levels(self) -> list[int]:
        """The level of every region, from 0, the largest squares."""
        counts = [len(tops) * len(lefts) for _, tops, lefts in self.groups]
        return [level for level, count in enumerate(counts) for _ in range(count)]

    def __len__(self) -> int:
        return sum(len(tops) * len(lefts) for _, tops, lefts in self.groups)

    def max(self, x_BCHW: Tensor) -> Tensor:
        """Equation 4: the maximum of every channel over every region, [B, R, C].

        Separable: the maximum over rows first, once for all squares of one side, then over columns.
        """
        self._check(x_BCHW)
        x_BHWC = x_BCHW.permute(0, 2, 3, 1)
        peaks = []
        for side, tops, lefts in self.groups:
            rows = torch.stack([x_BHWC[:, top : top + side].amax(1) for top in tops], 1)
            cells = torch.stack([rows[:, :, left : left + side].amax(2) for left in lefts], 2)
            peaks.append(cells.flatten(1, 2))
        return torch.cat(peaks, 1)

    def mean(self, map_BHW: Tensor) -> Tensor:
        """The mean of a map over every region, [B, R]: equation 5 when the map is 0 or 1."""
        self._check(map_BHW)
        total = F.pad(map_BHW.to(torch.float64).cumsum(1).cumsum(2), (1, 0, 1, 0))
        means = []
        for top, left, side in self.boxes:
            low, right = top + side, left + side
            inside = total[:, low, right] - total[:, top, right] - total[:, low, left] + total[:, top, left]
            means.append(inside / side**2)
        return torch.stack(means, 1).float()

    def _check(self, x: Tensor) -> None:
        if tuple(x.shape[-2:]) != (self.height, self.width):
            raise ValueError(f"regions of a {self.height} x {self.width} map, given one of {tuple(x.shape[-2:])}")


@lru_cache(maxsize=256)
def rmac_regions(height: int, width: int, levels: int = LEVELS) -> Regions:
    """The regions of an H x W map at scales 1..levels: 14 on a square map, 20 on 15 x 20.

    A map too small for any scale (it cannot be: scale 1 has the whole shorter side) never comes out empty.

    Raises:
        ValueError: no cells.
    """
    if height < 1 or width < 1:
        raise ValueError(f"a map of {height} x {width} has no cells")
    extra_height, extra_width = _extra(height, width)
    groups = []
    for level in range(1, levels + 1):
        side = int(2 * min(height, width) // (level + 1))
        if side < 1:
            continue
        tops = _starts(height, side, level + extra_height)
        lefts = _starts(width, side, level + extra_width)
        groups.append((side, tops, lefts))
    return Regions(height=height, width=width, groups=tuple(groups))


def _extra(height: int, width: int) -> tuple[int, int]:
    """Regions that the longer side has beyond the scale's number."""
    shorter, longer = np.float32(min(height, width)), np.float32(max(height, width))
    if shorter == longer:
        return 0, 0
    steps = np.array(_STEPS, np.float32)
    stride = (longer - shorter) / (steps - np.float32(1))
    overlap = (shorter * shorter - shorter * stride) / (shorter * shorter)
    extra = int(np.argmin(np.abs(overlap - np.float32(OVERLAP)))) + 1
    return (extra, 0) if height > width else (0, extra)


def _starts(length: int, side: int, count: int) -> tuple[int, ...]:
    """First cells of `count` squares of one side along an axis, as cirtorch computes them, in float32."""
    half = np.floor(np.float32(side) / np.float32(2) - np.float32(1))
    stride = np.float32(0) if count == 1 else np.float32(length - side) / np.float32(count - 1)
    centres = np.floor(half + np.arange(count, dtype=np.float32) * stride) - half
    return tuple(int(start) for start in centres)
