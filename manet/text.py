"""The text branch: EAST (Zhou et al. 2017), frozen. Only its score map is used here. Source: METHOD.md "Network", 3.

Shape letters: B pictures, h x w cells of the score map, a quarter of the input's resolution.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from manet.backbone import Normalise, create, mean_std
from manet.saliency import levels

_WIDTHS = (128, 64, 32)  # channels after each merge, as published
_SCOPE = 512.0  # px: largest distance of a box's side in the geometry map


class _Merge(nn.Module):
    """Unpool, concatenate with the next finer level, 1x1, 3x3 (feature merging branch of EAST)."""

    def __init__(self, coarse: int, fine: int, width: int) -> None:
        super().__init__()
        self.squeeze = nn.Sequential(
            nn.Conv2d(coarse + fine, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)
        )
        self.mix = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)
        )

    def forward(self, coarse: Tensor, fine: Tensor) -> Tensor:
        up = F.interpolate(coarse, size=fine.shape[-2:], mode="bilinear", align_corners=False)
        mixed: Tensor = self.mix(self.squeeze(torch.cat([up, fine], 1)))
        return mixed


class East(nn.Module):
    """RGB in [0, 1] -> score map before its sigmoid [B, 1, h, w] and geometry (4 distances px, 1 angle) [B, 5, h, w].

    Its weights never learn inside MANet, and its batch-norm stays in eval mode whatever `train()` says.

    Args:
        backbone: a network that timm offers as a feature pyramid with strides 4, 8, 16, 32.
    """

    def __init__(self, backbone: str) -> None:
        super().__init__()
        self.stem = create(backbone, features_only=True)
        self.normalise = Normalise(*mean_std(backbone, self.stem))
        fine_levels = [(index, channels) for index, (channels, stride) in enumerate(levels(self.stem)) if stride >= 4]
        self._used = [index for index, _ in fine_levels[-4:]]
        fine = [channels for _, channels in fine_levels[-4:]]
        coarse = (fine[3], *_WIDTHS[:2])
        self.merge = nn.ModuleList(
            _Merge(c, f, w) for c, f, w in zip(coarse, (fine[2], fine[1], fine[0]), _WIDTHS, strict=True)
        )
        self.last = nn.Sequential(
            nn.Conv2d(32, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(inplace=True)
        )
        self.score = nn.Conv2d(32, 1, 1)
        self.geometry = nn.Conv2d(32, 5, 1)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> "East":
        """Stays in eval mode: frozen."""
        del mode
        return super().train(False)

    def forward(self, rgb: Tensor) -> tuple[Tensor, Tensor]:
        """Score logits and geometry."""
        pyramid = self.stem(self.normalise(rgb))
        maps = [pyramid[index] for index in self._used]
        top = maps[3]
        for merge, fine in zip(self.merge, (maps[2], maps[1], maps[0]), strict=True):
            top = merge(top, fine)
        top = self.last(top)
        raw = torch.sigmoid(self.geometry(top))
        distances, angle = raw[:, :4] * _SCOPE, (raw[:, 4:] - 0.5) * torch.pi / 2
        return self.score(top), torch.cat([distances, angle], 1)
