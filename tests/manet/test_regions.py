"""Regions and pooling against a slow float64 reference, in the layout of cirtorch."""

import numpy as np
import pytest
import torch

from manet.regions import rmac_regions


def reference_boxes(height: int, width: int, levels: int = 3) -> list[tuple[int, int, int]]:
    """METHOD.md "SR-MAC", line for line, with torch's float32 as cirtorch has it."""
    shorter = min(height, width)
    steps = torch.tensor([2, 3, 4, 5, 6, 7], dtype=torch.float32)
    b = (max(height, width) - shorter) / (steps - 1)
    nearest = int(torch.argmin(torch.abs(((shorter**2 - shorter * b) / shorter**2) - 0.4)))
    extra_h = nearest + 1 if height > width else 0
    extra_w = nearest + 1 if height < width else 0
    boxes = []
    for level in range(1, levels + 1):
        side = int(np.floor(2 * shorter / (level + 1)))
        if side == 0:
            continue
        half = float(np.floor(side / 2 - 1))

        def starts(length: int, count: int, side: int = side, half: float = half) -> list[int]:
            step = 0 if count == 1 else (length - side) / (count - 1)
            places = torch.floor(half + torch.arange(count, dtype=torch.float32) * step) - half
            return [int(place) for place in places]

        boxes += [(i, j, side) for i in starts(height, level + extra_h) for j in starts(width, level + extra_w)]
    return boxes


def _shapes() -> list[tuple[int, int]]:
    rng = np.random.default_rng(0)
    known = [(1, 1), (1, 40), (40, 1), (2, 2), (1, 2), (3, 4), (15, 20), (27, 15), (33, 4), (8, 36), (35, 6), (15, 15)]
    return known + [(int(h), int(w)) for h, w in rng.integers(1, 41, (200, 2))]


@pytest.mark.parametrize(("height", "width"), _shapes())
def test_boxes_are_cirtorchs_and_lie_inside(height: int, width: int) -> None:
    regions = rmac_regions(height, width)
    assert regions.boxes == reference_boxes(height, width)
    assert len(regions) == len(regions.boxes) > 0
    for top, left, side in regions.boxes:
        assert 0 <= top <= height - side
        assert 0 <= left <= width - side


def test_numbers_of_regions() -> None:
    assert len(rmac_regions(15, 15)) == 14
    assert len(rmac_regions(15, 20)) == 20
    with pytest.raises(ValueError, match="no cells"):
        rmac_regions(0, 4)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 40), (5, 3), (15, 20), (12, 12)])
def test_max_and_mean_of_every_region(height: int, width: int) -> None:
    generator = torch.Generator().manual_seed(height * 100 + width)
    x = torch.rand(2, 6, height, width, generator=generator)
    share = (torch.rand(2, height, width, generator=generator) > 0.5).float()
    regions = rmac_regions(height, width)
    peaks, means = regions.max(x), regions.mean(share)
    for number, (top, left, side) in enumerate(regions.boxes):
        inside = np.s_[..., top : top + side, left : left + side]
        np.testing.assert_array_equal(peaks[:, number].numpy(), x.numpy()[inside].max((-2, -1)))
        np.testing.assert_allclose(means[:, number], share.numpy().astype(np.float64)[inside].mean((-2, -1)), rtol=1e-6)
    with pytest.raises(ValueError, match="given one of"):
        regions.max(x[..., :-1] if width > 1 else x[..., :-1, :])
