"""Every pooling against float64 loops."""

import numpy as np
import pytest
import torch
from torch import Tensor

from manet.errors import PictureError, Reason
from manet.names import PoolingName
from manet.pooling import dead_rows, gem, pool, r_mac, sr_mac, sr_mac_parts
from tests.manet.test_regions import reference_boxes

NAMES: tuple[PoolingName, ...] = (
    "mac", "spoc", "gem", "crow", "r-mac", "r-mac-global", "ra-mac", "grmac", "sr-mac", "sr-mac-as-printed",
    "sr-mac-soft", "sr-mac-learned",
)  # fmt: skip
LEVEL_WEIGHTS = np.array([1.0, 0.25, 3.0])


def _unit(vector: np.ndarray) -> np.ndarray:
    norm = np.linalg.norm(vector)
    return vector / norm if norm > 0 else vector


def reference(name: str, x: np.ndarray, salient: np.ndarray) -> np.ndarray:
    """A descriptor [C] of one map [C, H, W], in float64."""
    x = x.astype(np.float64)
    if name == "mac":
        return _unit(x.max((1, 2)))
    if name == "spoc":
        return _unit(x.mean((1, 2)))
    if name == "gem":
        return _unit((np.maximum(x, 1e-6) ** 3).mean((1, 2)) ** (1 / 3))
    if name == "crow":
        return _unit(_crow(x))
    if name in {"ra-mac", "grmac"}:
        return _unit(_region_attention(x, name))
    total = np.zeros(len(x))
    if name == "r-mac-global":
        total += _unit(x.max((1, 2)))
    for region, (top, left, side) in enumerate(reference_boxes(*x.shape[1:])):
        inside = np.s_[..., top : top + side, left : left + side]
        weight = salient[inside].mean() if salient.any() else 1.0
        peak = x[inside].max((1, 2))
        if name.startswith("r-mac"):
            total += _unit(peak)
        elif name in {"sr-mac", "sr-mac-soft"}:
            total += weight * _unit(peak)
        elif name == "sr-mac-learned":
            total += LEVEL_WEIGHTS[reference_level(x.shape[1], x.shape[2], region)] * weight * _unit(peak)
        else:
            total += _unit(weight * peak)
    return _unit(total)


def reference_level(height: int, width: int, region: int) -> int:
    return next(level for level in range(3) if region < len(reference_boxes(height, width, level + 1)))


def _crow(x: np.ndarray) -> np.ndarray:
    cells = x.sum(0)
    weights = np.sqrt(cells / np.sqrt((cells**2).sum()))
    density = np.array([(channel > 0).mean() for channel in x])
    out = np.zeros(len(x))
    for c, channel in enumerate(x):
        if density[c] > 0:
            out[c] = (channel * weights).sum() * np.log(density.sum() / density[c])
    return out


def _region_attention(x: np.ndarray, name: str) -> np.ndarray:
    cells = x.sum(0)
    least = cells.min()
    threshold = cells.mean() if name == "ra-mac" else ((cells - least) ** 3).mean() ** (1 / 3) + least
    boxes = [np.s_[top : top + side, left : left + side] for top, left, side in reference_boxes(*cells.shape)]
    shares = np.array([(cells[box] > threshold).mean() for box in boxes])
    weights = np.where(shares > 1 / 3, shares, 0)
    weights = weights if weights.any() else np.ones(len(boxes))
    return sum((w * _unit(x[:, b[0], b[1]].max((1, 2))) for w, b in zip(weights, boxes, strict=True)), np.zeros(len(x)))


def _maps(height: int, width: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.relu(torch.randn(4, 16, height, width, generator=generator) + 0.3)
    x[:, 0] += 0.01  # no map is dead
    salient = (torch.rand(4, height, width, generator=generator) > 0.6).float()
    salient[3] = 0
    return x, salient


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 40), (40, 1), (2, 3), (7, 7), (15, 20), (33, 4)])
def test_against_the_reference(name: PoolingName, height: int, width: int) -> None:
    x, salient = _maps(height, width)
    soft = (
        torch.rand(salient.shape, generator=torch.Generator().manual_seed(1))
        * (salient.flatten(1).amax(1)[:, None, None])
    )
    got = pool(name, x, salient, soft, torch.from_numpy(LEVEL_WEIGHTS).float())
    looked_at = soft if name == "sr-mac-soft" else salient
    wanted = np.stack([reference(name, one.numpy(), mask.numpy()) for one, mask in zip(x, looked_at, strict=True)])
    np.testing.assert_allclose(got.numpy(), wanted, atol=2e-6)
    np.testing.assert_allclose(got.norm(dim=1).numpy(), 1, atol=1e-5)


def test_weights_of_levels() -> None:
    x, salient = _maps(9, 12)
    weights = torch.from_numpy(LEVEL_WEIGHTS).float()
    parts = sr_mac_parts(x, salient, level_weights_L=weights)
    torch.testing.assert_close(parts.sum(1), sr_mac(x, salient, level_weights_L=weights))
    torch.testing.assert_close(sr_mac(x, salient, level_weights_L=torch.full((3,), 2.0)), sr_mac(x, salient))
    assert not torch.allclose(sr_mac(x, salient, level_weights_L=weights), sr_mac(x, salient), atol=1e-3)
    with pytest.raises(ValueError, match="has learned no weights of levels"):
        pool("sr-mac-learned", x, salient, salient)


def test_nothing_or_everything_salient_is_plain_r_mac() -> None:
    x, salient = _maps(9, 12)
    torch.testing.assert_close(sr_mac(x, torch.zeros_like(salient)), r_mac(x))
    torch.testing.assert_close(sr_mac(x, torch.ones_like(salient)), r_mac(x))
    assert not torch.allclose(sr_mac(x, salient)[0], r_mac(x)[0], atol=1e-4)


def test_salient_cells_outside_all_regions_are_none() -> None:
    """The regions of a long map do not cover it."""
    x, salient = _maps(1, 40)
    covered = {left + i for _, left, side in reference_boxes(1, 40) for i in range(side)}
    salient = torch.zeros_like(salient)
    salient[:, 0, next(cell for cell in range(40) if cell not in covered)] = 1
    torch.testing.assert_close(sr_mac(x, salient), r_mac(x))


def test_cirtorch_adds_the_global_vector() -> None:
    x, _ = _maps(9, 12)
    wanted = [_unit(_sum_of_regions(one.numpy()) + reference("mac", one.numpy(), np.zeros(1))) for one in x]
    np.testing.assert_allclose(r_mac(x, global_vector=True).numpy(), np.stack(wanted), atol=2e-6)


def _sum_of_regions(x: np.ndarray) -> np.ndarray:
    boxes = reference_boxes(*x.shape[1:])
    return sum((_unit(x[:, t : t + s, left : left + s].max((1, 2))) for t, left, s in boxes), np.zeros(len(x)))


def test_gem_lies_between_mean_and_maximum() -> None:
    x, salient = _maps(6, 6)
    torch.testing.assert_close(gem(x, p=1.0), pool("spoc", x, salient, salient), atol=1e-5, rtol=0)
    torch.testing.assert_close(gem(x, p=20.0), pool("mac", x, salient, salient), atol=0.05, rtol=0)


def test_a_dead_map_has_no_descriptor() -> None:
    x, salient = _maps(5, 5)
    x[2] = 0
    assert dead_rows(x).tolist() == [False, False, True, False]
    x[0, 0, 0, 0], x[1, 0, 0, 0] = torch.inf, torch.nan
    assert dead_rows(x).tolist() == [True, True, True, False]
    with pytest.raises(PictureError) as error:
        pool("sr-mac", x, salient, salient)
    assert error.value.reason is Reason.DEAD_FEATURE_MAP
