"""The text branch: EAST (Zhou et al. 2017), frozen. Only its score map is used here. Source: METHOD.md "Network", 3.

Two layouts: `East` merges the pyramid of any network of timm; `PublicEast` is EAST over VGG16 as the widely used PyTorch
version lays it out, for its files. Shape letters: B pictures, h x w cells of the score map, a quarter of the input's resolution.
"""

from collections.abc import Mapping

import torch
import torchvision
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


class TextBranch(nn.Module):
    """What both layouts share: frozen unless it is itself what is trained, whatever `train()` says."""

    stem: nn.Module
    geometry: nn.Module

    def __init__(self) -> None:
        super().__init__()
        self._learns = False

    def freeze(self) -> None:
        """No gradient, no update of batch statistics: so it stands inside MANet."""
        self._learns = False
        self.requires_grad_(False)
        self.eval()

    def learn(self) -> None:
        """Let the score map be trained; the geometry head, which nothing here reads, stays as it is."""
        self._learns = True
        self.requires_grad_(True)
        self.geometry.requires_grad_(False)

    def train(self, mode: bool = True) -> "TextBranch":
        """Stays in eval mode while it is frozen."""
        return super().train(mode and self._learns)


class East(TextBranch):
    """RGB in [0, 1] -> score map before its sigmoid [B, 1, h, w] and geometry (4 distances px, 1 angle) [B, 5, h, w].

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
        self.freeze()

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


class _PublicMerge(nn.Module):
    """The feature merging branch under the names of the public files: conv1/bn1 to conv7/bn7."""

    def __init__(self) -> None:
        super().__init__()
        inputs, outputs = (1024, 128, 384, 64, 192, 32, 32), (128, 128, 64, 64, 32, 32, 32)
        for place, (fan_in, fan_out) in enumerate(zip(inputs, outputs, strict=True), 1):
            size = 3 if place % 2 == 0 or place == len(inputs) else 1
            self.add_module(f"conv{place}", nn.Conv2d(fan_in, fan_out, size, padding=size // 2))
            self.add_module(f"bn{place}", nn.BatchNorm2d(fan_out))

    def forward(self, maps: list[Tensor]) -> Tensor:
        top = maps[3]
        for place, fine in ((1, maps[2]), (3, maps[1]), (5, maps[0])):
            up = F.interpolate(top, size=fine.shape[-2:], mode="bilinear", align_corners=True)
            top = self._layer(place + 1, self._layer(place, torch.cat([up, fine], 1)))
        return self._layer(7, top)

    def _layer(self, place: int, x: Tensor) -> Tensor:
        normed: Tensor = self.get_submodule(f"bn{place}")(self.get_submodule(f"conv{place}")(x))
        return F.relu(normed)


class PublicEast(TextBranch):
    """EAST over VGG16 with batch norm in the layout of the public PyTorch files (`extractor`, `merge`, `output`).

    The same outputs as `East`; its pictures are normalised with mean and deviation 0.5, its maps aligned at their corners.
    """

    def __init__(self) -> None:
        super().__init__()
        self.extractor = nn.ModuleDict({"features": torchvision.models.vgg16_bn(weights=None).features})
        self.normalise = Normalise((0.5,) * 3, (0.5,) * 3)
        self.merge = _PublicMerge()
        self.output = nn.ModuleDict(
            {name: nn.Conv2d(32, channels, 1) for name, channels in (("conv1", 1), ("conv2", 4), ("conv3", 1))}
        )
        self.freeze()

    @property
    def stem(self) -> nn.Module:  # type: ignore[override]
        """VGG16's convolutions."""
        return self.extractor["features"]

    @property
    def geometry(self) -> nn.Module:  # type: ignore[override]
        """The heads of distances and angle."""
        return nn.ModuleList([self.output["conv2"], self.output["conv3"]])

    def forward(self, rgb: Tensor) -> tuple[Tensor, Tensor]:
        """Score logits and geometry."""
        x, maps = self.normalise(rgb), []
        for layer in self.extractor["features"]:  # type: ignore[attr-defined]
            x = layer(x)
            if isinstance(layer, nn.MaxPool2d):
                maps.append(x)
        top = self.merge(maps[1:])
        distances = torch.sigmoid(self.output["conv2"](top)) * _SCOPE
        angle = (torch.sigmoid(self.output["conv3"](top)) - 0.5) * torch.pi
        return self.output["conv1"](top), torch.cat([distances, angle], 1)


PUBLIC = "vgg16-east"


def text_branch(name: str) -> TextBranch:
    """The text branch of a name: `vgg16-east` is the public layout, any other a network of timm; frozen, at random.

    Raises:
        InputError: timm knows no such network.
    """
    return PublicEast() if name == PUBLIC else East(name)


def without_wrapper(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights under the names of the network itself, where they were saved from inside a DataParallel wrapper."""
    return {name.removeprefix("module."): value for name, value in tensors.items()}
