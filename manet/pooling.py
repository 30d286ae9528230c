"""Feature map -> descriptor: MAC, SPoC, GeM, CroW, R-MAC, RA-MAC, GRMAC and SR-MAC.

Shape letters: B pictures, C channels, H x W cells, R regions, L levels of regions. All maps are activations >= 0;
all descriptors are float32 of unit length. Source: METHOD.md "SR-MAC" and "The systems that the letter compares with".
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from manet.names import DEAD, LEARNED, PoolingName
from manet.regions import Regions, rmac_regions

GEM_P = 3.0
GRMAC_P = 3.0
RA_MAC_LEAST = 1 / 3  # a region whose active share is not above this does not count
_EPSILON = 1e-6


def dead_rows(x_BCHW: Tensor) -> Tensor:
    """Pictures without any positive activation, or with one that is not finite, bool [B]: they have no descriptor."""
    most_B = x_BCHW.flatten(1).amax(1)  # NaN where one is
    return ~((most_B > 0) & torch.isfinite(most_B))


def mac(x_BCHW: Tensor) -> Tensor:
    """Maximum of every channel, [B, C]."""
    return _units(x_BCHW.amax((-2, -1)).float())


def spoc(x_BCHW: Tensor) -> Tensor:
    """Mean of every channel, [B, C]."""
    return _units(x_BCHW.float().mean((-2, -1)))


def gem(x_BCHW: Tensor, p: float = GEM_P) -> Tensor:
    """Generalised mean of every channel, [B, C]."""
    return _units(x_BCHW.float().clamp(min=_EPSILON).pow(p).mean((-2, -1)).pow(1 / p))


def crow(x_BCHW: Tensor) -> Tensor:
    """Cross-dimensional weighting (Kalantidis et al. 2016), [B, C]: cells by their activity, channels by their rarity.

    A cell weighs sqrt(s / |s|_2) with s its channel-sum; a channel log(sum of all channels' densities / its own), a
    channel that is never active 0.
    """
    x = x_BCHW.float()
    s_BHW = x.sum(1)
    cell_BHW = (s_BHW / s_BHW.flatten(1).norm(dim=1).clamp(min=1e-12)[:, None, None]).sqrt()
    density_BC = (x > 0).flatten(2).float().mean(2)
    rarity_BC = torch.log(density_BC.sum(1, keepdim=True) / density_BC.clamp(min=1e-12))
    rarity_BC = torch.where(density_BC > 0, rarity_BC, torch.zeros_like(rarity_BC))
    return _units(torch.einsum("bchw,bhw->bc", x, cell_BHW) * rarity_BC)


def r_mac(x_BCHW: Tensor, *, global_vector: bool = False) -> Tensor:
    """Sum of the regions' unit-length maxima, [B, C]; `global_vector` adds the whole map's, as cirtorch does."""
    total_BC = _units(rmac_regions(*x_BCHW.shape[-2:]).max(x_BCHW).float()).sum(1)
    return _units(total_BC + mac(x_BCHW) if global_vector else total_BC)


def ra_mac(x_BCHW: Tensor) -> Tensor:
    """R-MAC with each region weighted by its share of active cells: those whose channel-sum exceeds the map's mean.

    A share of at most a third counts as 0; where no region has more, all weigh 1, so that no picture is without one. [B, C]
    """
    s_BHW = x_BCHW.float().sum(1)
    return _active_r_mac(x_BCHW, s_BHW > s_BHW.mean((-2, -1), keepdim=True))


def grmac(x_BCHW: Tensor, p: float = GRMAC_P) -> Tensor:
    """RA-MAC with a generalised mean of the channel-sums as threshold: (mean (s - s_min)^p)^(1/p) + s_min. [B, C]"""
    s_BHW = x_BCHW.float().sum(1)
    least_B11 = s_BHW.amin((-2, -1), keepdim=True)
    threshold_B11 = (s_BHW - least_B11).pow(p).mean((-2, -1), keepdim=True).pow(1 / p) + least_B11
    return _active_r_mac(x_BCHW, s_BHW > threshold_B11)


def _active_r_mac(x_BCHW: Tensor, active_BHW: Tensor) -> Tensor:
    regions = rmac_regions(*x_BCHW.shape[-2:])
    share_BR = regions.mean(active_BHW.float())
    weight_BR = torch.where(share_BR > RA_MAC_LEAST, share_BR, torch.zeros_like(share_BR))
    weight_BR = torch.where((weight_BR > 0).any(1, keepdim=True), weight_BR, torch.ones_like(weight_BR))
    return _weighted(regions, x_BCHW, weight_BR)


def sr_mac(
    x_BCHW: Tensor, salient_BHW: Tensor, *, level_weights_L: Tensor | None = None, as_printed: bool = False
) -> Tensor:
    """Sum of the regions' unit-length maxima, each weighted by its salient share, [B, C]; equations 4 to 7.

    Args:
        x_BCHW: the basic feature tensor X~.
        salient_BHW: 1 where the cell is salient, else 0 (or shares between: a region then weighs its mean). No salient
            cell at all: every weight is 1 (plain R-MAC).
        level_weights_L: what a region of each level weighs besides, largest squares first; None: all alike.
        as_printed: weigh before the norm, as the letter prints it; the weight is then a mere gate, 0 or 1.

    Raises:
        ValueError: the two maps differ in cells.
    """
    regions = rmac_regions(*x_BCHW.shape[-2:])
    return _weighted(regions, x_BCHW, _salient_weights(regions, salient_BHW, level_weights_L, as_printed=as_printed))


def sr_mac_parts(
    x_BCHW: Tensor, salient_BHW: Tensor, *, level_weights_L: Tensor | None = None, as_printed: bool = False
) -> Tensor:
    """What each region adds to `sr_mac`, [B, R, C]: the sum over regions is the descriptor.

    So the score of two pictures, the inner product of their descriptors, is the sum over all pairs of regions of the inner
    products of these parts: why this answer. Regions are in the order of `Regions.boxes`.
    """
    regions = rmac_regions(*x_BCHW.shape[-2:])
    weight_BR = _salient_weights(regions, salient_BHW, level_weights_L, as_printed=as_printed)
    parts_BRC = weight_BR[..., None] * _units(regions.max(x_BCHW).float())
    length_B11: Tensor = parts_BRC.sum(1, keepdim=True).norm(dim=-1, keepdim=True)
    return parts_BRC / length_B11.clamp(min=1e-12)


def _salient_weights(
    regions: Regions, salient_BHW: Tensor, level_weights_L: Tensor | None, *, as_printed: bool
) -> Tensor:
    """Equation 5: each region's salient share, [B, R]; 1 everywhere in a picture of whose regions none has a salient cell.
    Times the weight of its level, where these are given.
    """
    weight_BR = regions.mean(salient_BHW)
    if as_printed:
        weight_BR = (weight_BR > 0).float()
    weight_BR = torch.where((weight_BR > 0).any(1, keepdim=True), weight_BR, torch.ones_like(weight_BR))
    return weight_BR if level_weights_L is None else weight_BR * level_weights_L[regions.levels]


def _weighted(regions: Regions, x_BCHW: Tensor, weight_BR: Tensor) -> Tensor:
    """Sum over regions of weight times unit-length maximum, at unit length, [B, C]."""
    return _units(torch.einsum("br,brc->bc", weight_BR, _units(regions.max(x_BCHW).float())))


def pool(
    name: PoolingName, x_BCHW: Tensor, salient_BHW: Tensor, saliency_BHW: Tensor, level_weights_L: Tensor | None = None
) -> Tensor:
    """A pooling by name, [B, C]. Only SR-MAC looks at `salient_BHW`, `sr-mac-soft` at the saliency in [0, 1] itself,
    `sr-mac-learned` at `level_weights_L` too.

    Raises:
        PictureError: a picture's map is dead; `dead_rows` tells which.
        ValueError: `sr-mac-learned` without what was learned.
    """
    if dead_rows(x_BCHW).any():
        raise DEAD
    if name == LEARNED:
        if level_weights_L is None:
            raise ValueError(f"{name}: the network has learned no weights of levels")
        return sr_mac(x_BCHW, salient_BHW, level_weights_L=level_weights_L)
    return _BY_NAME[name](x_BCHW, saliency_BHW if name == "sr-mac-soft" else salient_BHW)


_BY_NAME: dict[PoolingName, Callable[[Tensor, Tensor], Tensor]] = {
    "mac": lambda x, _: mac(x),
    "spoc": lambda x, _: spoc(x),
    "gem": lambda x, _: gem(x),
    "crow": lambda x, _: crow(x),
    "r-mac": lambda x, _: r_mac(x),
    "r-mac-global": lambda x, _: r_mac(x, global_vector=True),
    "ra-mac": lambda x, _: ra_mac(x),
    "grmac": lambda x, _: grmac(x),
    "sr-mac": sr_mac,
    "sr-mac-as-printed": lambda x, salient: sr_mac(x, salient, as_printed=True),
    "sr-mac-soft": sr_mac,
}


def _units(vectors: Tensor) -> Tensor:
    """Each vector of the last axis at unit length; a zero vector stays zero."""
    return F.normalize(vectors, dim=-1, eps=1e-12)
