"""The saliency branch: S = f(X; Theta), where the product is. Source: METHOD.md "Network", 2.

"Up-to-down": an encoder that deepens (where the object is). "Down-to-up": a decoder that merges the encoder's outputs of
all depths (its details). A network of its own: no weight is shared with the backbone.
Shape letters: B pictures, h x w pixels of the map (a quarter of the input's).
"""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from manet.backbone import Normalise, at_most, create, mean_std

_WIDTH = 48  # channels of the decoder


class _Block(nn.Sequential):
    """Depthwise-separable 3x3 convolution."""

    def __init__(self, width: int) -> None:
        super().__init__(
            nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False),
            nn.Conv2d(width, width, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
        )


class SaliencyNet(nn.Module):
    """RGB in [0, 1], [B, 3, H, W] -> saliency in [0, 1], [B, 1, h, w], h = H/4, w = W/4.

    Args:
        encoder: a network that timm offers as a feature pyramid.
        size: the picture is resized to this longer side first, px: where the product is needs no fine detail.
    """

    def __init__(self, encoder: str, size: int) -> None:
        super().__init__()
        self.size = size
        self.encoder = create(encoder, features_only=True)
        self.normalise = Normalise(*mean_std(encoder, self.encoder))
        channels = [c for c, r in levels(self.encoder) if r >= 4]
        self._used = [index for index, (_, r) in enumerate(levels(self.encoder)) if r >= 4]
        self.lateral = nn.ModuleList(nn.Conv2d(c, _WIDTH, 1) for c in channels)
        self.merge = nn.ModuleList(_Block(_WIDTH) for _ in channels)
        self.head = nn.Conv2d(_WIDTH, 1, 1)

    def forward(self, rgb: Tensor) -> Tensor:
        """Saliency of a batch."""
        pyramid = self.encoder(self.normalise(at_most(rgb, self.size)))
        top = self.merge[-1](self.lateral[-1](pyramid[self._used[-1]]))
        for level in range(len(self._used) - 2, -1, -1):
            here = self.lateral[level](pyramid[self._used[level]])
            up = F.interpolate(top, size=here.shape[-2:], mode="bilinear", align_corners=False)
            top = self.merge[level](here + up)
        return torch.sigmoid(self.head(top).float())

    def decoder_parameters(self) -> list[nn.Parameter]:
        """All parameters but the encoder's."""
        return [parameter for name, parameter in self.named_parameters() if not name.startswith("encoder.")]


def levels(encoder: nn.Module) -> list[tuple[int, int]]:
    """(channels, reduction) of each level of a timm feature pyramid."""
    info = cast(Any, encoder).feature_info
    return list(zip(info.channels(), info.reduction(), strict=True))
