"""MANet: backbone, saliency attention, text attention. Source: METHOD.md "Network", equations 2 and 3.

Shape letters: B pictures, K channels, H x W cells of the feature map, h x w pixels of a branch's own map.
"""

from dataclasses import dataclass

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn
from torch.nn import functional as F

from manet.backbone import Backbone, at_most, load_pretrained
from manet.config import Attention, NetworkConfig, TextSource
from manet.errors import WeightsError
from manet.losses import binarise_at_mean
from manet.names import NEED_TEXT, Features
from manet.pooling import r_mac, sr_mac
from manet.regions import LEVELS
from manet.saliency import SaliencyNet
from manet.text import text_branch, without_wrapper
from manet.weights import Fetch, load_into, read_tensors, resolve


class InitialWeights(BaseModel):
    """Where each branch's weights come from before training (see `manet.weights`)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    backbone: str
    saliency: str
    whole_saliency: bool = False
    """Whether nothing less than the whole saliency branch is taken: its encoder alone would leave a random decoder."""
    text: str = "none"
    text_stem: str = "none"
    """Of the text branch's stem alone, where that branch is what is trained."""


@dataclass(frozen=True, kw_only=True)
class Maps:
    """What one pass gives."""

    backbone_BKHW: Tensor
    attended_BKHW: Tensor
    saliency_B1hw: Tensor
    saliency_BHW: Tensor
    salient_BHW: Tensor
    text_B1hw: Tensor | None
    """EAST's score map before its sigmoid."""
    text_B1HW: Tensor | None
    """Tm of equation 2."""
    logits_BN: Tensor | None


def weigh_by_saliency(f_BKHW: Tensor, s_B1HW: Tensor, attention: Attention) -> Tensor:
    """X = S * F, or (1 + S) * F, or F itself, [B, K, H, W]."""
    if attention == "none":
        return f_BKHW
    return f_BKHW * (s_B1HW if attention == "s*f" else 1 + s_B1HW)


def weigh_by_text(x_BKHW: Tensor, tm_B1HW: Tensor) -> Tensor:
    """Equations 2 and 3: X~ = (sigmoid(Tm) + 1) * X, [B, K, H, W]."""
    return (torch.sigmoid(tm_B1HW) + 1) * x_BKHW


class MANet(nn.Module):
    """uint8 pictures -> feature maps, attention maps, class logits.

    Args:
        config: the network; its weights are random until they are loaded.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = Backbone(config.backbone)
        self.saliency = SaliencyNet(config.saliency, config.saliency_size)
        self.text = None if config.text == "none" else text_branch(config.text)
        self.head = nn.Linear(self.backbone.channels, config.classes) if config.classes else None
        self.log_level_weights_L = nn.Parameter(torch.zeros(LEVELS)) if config.region_weights == "learned" else None

    @property
    def level_weights_L(self) -> Tensor | None:
        """What a region of each level weighs in `sr-mac-learned`, float32 [L], 1 on average; None: none is learned here."""
        return None if self.log_level_weights_L is None else LEVELS * self.log_level_weights_L.float().softmax(0)

    def forward(self, pixels_BHW3: Tensor) -> Maps:
        """One pass over uint8 RGB pictures of one size."""
        rgb = as_rgb(pixels_BHW3)
        f = self.backbone(rgb)
        s = self.saliency(rgb)
        s_at_map = _resized(s, f)
        logits = None if self.text is None else self.text(at_most(rgb, self.config.text_size))[0]
        tm = None if logits is None else text_map(logits, self.config.text_source, f)
        x = _attended(f, s_at_map, tm, self.config.attention)
        return Maps(
            backbone_BKHW=f,
            attended_BKHW=x,
            saliency_B1hw=s,
            saliency_BHW=s_at_map[:, 0],
            salient_BHW=binarise_at_mean(s_at_map[:, 0]),
            text_B1hw=logits,
            text_B1HW=tm,
            logits_BN=None if self.head is None else self.head(x.float().mean((-2, -1))),
        )


def _attended(f_BKHW: Tensor, s_B1HW: Tensor, tm_B1HW: Tensor | None, attention: Attention) -> Tensor:
    """X~: F weighed by saliency, then by text where there is a branch."""
    x = weigh_by_saliency(f_BKHW, s_B1HW.to(f_BKHW.dtype), attention)
    return x if tm_B1HW is None else weigh_by_text(x, tm_B1HW.to(f_BKHW.dtype))


def text_map(logits_B1hw: Tensor, source: TextSource, like: Tensor) -> Tensor:
    """Tm of equation 2, from EAST's score map before its sigmoid, at the cells of a feature map."""
    return _resized(torch.sigmoid(logits_B1hw) if source == "scores" else logits_B1hw, like)


def features_of(maps: Maps, features: Features, config: NetworkConfig) -> Tensor:
    """What a descriptor pools, [B, K, H, W]: X~ of a pass, F, or X~ with one of its parts changed.

    Raises:
        ValueError: the text attention of a network that has none is to be changed.
    """
    if features == "attended":
        return maps.attended_BKHW
    f, tm = maps.backbone_BKHW, maps.text_B1HW
    if features == "backbone":
        return f
    if maps.text_B1hw is None and features in NEED_TEXT:
        raise ValueError(f"{features}: the network has no text branch")
    attention: Attention = config.attention
    if features == "no-saliency":
        attention = "none"
    elif features == "other-saliency":
        attention = "(1+s)*f" if attention == "s*f" else "s*f"
    elif features == "no-text":
        tm = None
    elif maps.text_B1hw is not None and features == "other-text":
        tm = text_map(maps.text_B1hw, "scores" if config.text_source == "logits" else "logits", f)
    return _attended(f, maps.saliency_BHW[:, None], tm, attention)


def as_rgb(pixels_BHW3: Tensor) -> Tensor:
    """uint8 [B, h, w, 3] as float in [0, 1], [B, 3, h, w], channels last in memory."""
    return pixels_BHW3.permute(0, 3, 1, 2).float() / 255


def _resized(map_B1hw: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(map_B1hw.float(), size=like.shape[-2:], mode="bilinear", align_corners=False)


def initial(config: NetworkConfig, weights: InitialWeights, fetch: Fetch | None = None) -> MANet:
    """A network ready for training: every branch from its weights spec, the head at random.

    Raises:
        WeightsError: weights that are missing or another network's; a text branch without weights.
        InputError: an unknown backbone.
    """
    network = MANet(config)
    load_pretrained(network.backbone.net, config.backbone, weights.backbone, fetch)
    saliency = network.saliency
    whole = weights.whole_saliency
    load_pretrained(saliency.encoder, config.saliency, weights.saliency, fetch, branch=saliency, whole=whole)
    load_text(network, weights, fetch)
    return network


def load_text(network: MANet, weights: InitialWeights, fetch: Fetch | None = None) -> None:
    """Fill the text branch, where there is one, from its weights spec.

    Raises:
        WeightsError: no weights are given, or they are missing or another network's.
    """
    if network.text is None:
        return
    if weights.text_stem != "none":
        load_pretrained(network.text.stem, network.config.text, weights.text_stem, fetch)
    elif weights.text == "none":
        raise WeightsError("the text branch has no weights: give --text-weights FILE, or --text none")
    elif weights.text != "random":
        load_into(network.text, without_wrapper(read_tensors(resolve(weights.text, fetch))), weights.text)


def freeze_statistics(network: MANet) -> None:
    """Put the batch norms of the pretrained parts (backbone, saliency encoder, text branch) into eval mode, and those of a
    saliency branch of which nothing learns.

    To be called after `train()`. Batches of some thirty pictures, a third of their products cut out, estimate
    ImageNet's statistics badly; with them frozen a step also means the same on any number of workers.
    """
    parts = [network.backbone, network.saliency.encoder, *([network.text.stem] if network.text is not None else [])]
    if not any(parameter.requires_grad for parameter in network.saliency.parameters()):
        parts.append(network.saliency)
    for part in parts:
        for module in part.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()


class SaliencyStage(nn.Module):
    """The first stage of training as one module: only the saliency branch takes part."""

    def __init__(self, network: MANet) -> None:
        super().__init__()
        self.saliency = network.saliency

    def forward(self, pixels_BHW3: Tensor) -> Tensor:
        """Saliency [B, 1, h, w]."""
        saliency_B1hw: Tensor = self.saliency(as_rgb(pixels_BHW3))
        return saliency_B1hw


class TextStage(nn.Module):
    """The training of the text branch as one module: nothing else takes part."""

    def __init__(self, network: MANet) -> None:
        super().__init__()
        if network.text is None:
            raise ValueError("the network has no text branch")
        network.text.learn()
        self.text = network.text

    def forward(self, pixels_BHW3: Tensor) -> Tensor:
        """Score map before its sigmoid, [B, 1, h, w]."""
        logits_B1hw: Tensor = self.text(as_rgb(pixels_BHW3))[0]
        return logits_B1hw


class JointStage(nn.Module):
    """The second stage of training as one module."""

    def __init__(self, network: MANet) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels_BHW3: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """Saliency [B, 1, h, w], class logits [B, N], SR-MAC descriptors [B, K] (`sr-mac-learned` where
        the levels' weights are learned; R-MAC without saliency attention).
        """
        maps = self.network(pixels_BHW3)
        plain = self.network.config.attention == "none"  # R-MAC then: regions have no weights
        with torch.autocast(pixels_BHW3.device.type, enabled=False):  # pooling is float32 in any case
            x_BKHW = maps.attended_BKHW.float()
            level_weights_L = self.network.level_weights_L
            descriptors_BK = (
                r_mac(x_BKHW) if plain else sr_mac(x_BKHW, maps.salient_BHW, level_weights_L=level_weights_L)
            )
        return maps.saliency_B1hw, maps.logits_BN, descriptors_BK
