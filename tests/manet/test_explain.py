"""The parts of SR-MAC add up to its descriptor, and the pairs of parts to the score."""

import numpy as np
import pytest
import torch

from manet.explain import contributions, strongest
from manet.pooling import sr_mac, sr_mac_parts


@pytest.mark.parametrize("as_printed", [False, True])
@pytest.mark.parametrize("shape", [(10, 10), (15, 15), (7, 12), (1, 1)])
def test_pairs_add_up_to_the_score(shape: tuple[int, int], as_printed: bool) -> None:
    rng = torch.Generator().manual_seed(3)
    x = torch.rand(3, 32, *shape, generator=rng)
    salient = (torch.rand(3, *shape, generator=rng) > 0.6).float()
    salient[2] = 0  # no salient cell: every region weighs 1
    whole = sr_mac(x, salient, as_printed=as_printed).double().numpy()
    parts = sr_mac_parts(x, salient, as_printed=as_printed).numpy()
    assert parts.sum(1) == pytest.approx(whole, abs=1e-6)
    for one in range(3):
        for other in range(3):
            pairs = contributions(parts[one], parts[other])
            assert pairs.sum() == pytest.approx(float(whole[one] @ whole[other]), abs=1e-6)


def test_the_strongest_pairs_name_a_region_once() -> None:
    pairs = np.array([[0.5, 0.4, 0.0], [0.45, 0.1, 0.0], [0.0, 0.0, -0.2]])
    assert strongest(pairs, 5) == [(0, 0, 0.5), (1, 1, 0.1)]
    assert strongest(pairs, 1) == [(0, 0, 0.5)]
