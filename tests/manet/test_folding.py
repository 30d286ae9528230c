"""Folding against the network as it is; and where it must not be done."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from manet.config import NetworkConfig
from manet.describe import _folded
from manet.folding import folded
from manet.images import PictureConfig
from manet.network import InitialWeights, MANet, initial


def _network(backbone: str) -> MANet:
    """Random weights, and batch norms with statistics that matter."""
    torch.manual_seed(0)
    config = NetworkConfig(
        backbone=backbone, saliency_size=64, text="efficientnet-lite0", classes=3, pictures=PictureConfig(size=96)
    )
    network = initial(config, InitialWeights(backbone="random", saliency="random", text="random")).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None and module.running_var is not None:
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
    return network


@pytest.mark.parametrize(("backbone", "left"), [("efficientnet-lite0", 0), ("resnet18", 0), ("densenet121", 62)])
def test_a_folded_network_sees_the_same(backbone: str, left: int) -> None:
    """DenseNet norms what several layers gave, before it is convolved: those norms stay."""
    network = _network(backbone)
    pixels = torch.randint(0, 256, (2, 96, 96, 3), dtype=torch.uint8)
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    with torch.inference_mode():
        wanted = network(pixels)
        found = _folded(network)
        seen = found(pixels)
    assert sum(isinstance(module, nn.BatchNorm2d) for module in found.modules()) == left
    assert sum(isinstance(module, nn.BatchNorm2d) for module in network.modules()) == norms > left  # it is a copy
    for name in ("backbone_BKHW", "attended_BKHW", "saliency_B1hw", "text_B1hw"):
        one, other = getattr(wanted, name), getattr(seen, name)
        torch.testing.assert_close(other, one, rtol=0, atol=float(one.abs().max()) * 1e-4)


class _Twice(nn.Module):
    """A convolution that two norms follow, one of them used again."""

    def __init__(self) -> None:
        super().__init__()
        self.once, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
        self.twice, self.again = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, given: Tensor) -> Tensor:
        """Something of it."""
        here: Tensor = self.norm(self.once(given))
        for _ in range(2):
            here = self.again(self.twice(here))
        return here


def test_what_is_used_twice_is_left_alone() -> None:
    torch.manual_seed(0)
    network, example = _Twice().eval(), torch.randn(1, 3, 5, 5)
    nn.init.constant_(network.again.bias, 0.3)
    found = folded(network, example)
    assert isinstance(found.norm, nn.Identity) and isinstance(found.again, nn.BatchNorm2d)
    torch.testing.assert_close(found(example), network(example))


@dataclass(frozen=True)
class _Seen:
    map_BKHW: Tensor


class _Elsewhere(nn.Module):
    """What a convolution gave is normed, and used as it is too."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.conv, self.norm, self.share = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), share

    def forward(self, pixels: Tensor) -> _Seen:
        """Both."""
        here = self.conv(pixels.permute(0, 3, 1, 2).float() / 255)
        return _Seen(map_BKHW=self.norm(here) + self.share * here)


def test_a_network_that_uses_a_convolutions_output_elsewhere_is_left_as_it_is() -> None:
    for share in (0.0, 0.5):
        network: Any = _Elsewhere(share).eval()
        nn.init.constant_(network.norm.weight, 1.7)
        assert (_folded(network) is network) == (share > 0)
