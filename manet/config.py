"""`config.json` of a model: the network and its preprocessing. Without torch: a driver that only plans reads it too."""

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from manet.errors import InputError
from manet.images import PictureConfig
from manet.names import LEARNED, NEED_TEXT, DescriptorName

CONFIG = "config.json"
Attention = Literal["s*f", "(1+s)*f", "none"]
TextSource = Literal["logits", "scores"]
RegionWeights = Literal["salient", "learned"]


class NetworkConfig(BaseModel):
    """All that rebuilds the network and its preprocessing, weights aside."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    backbone: str = "efficientnet-lite0"
    """Network of the backbone: a name of timm."""
    saliency: str = "efficientnet-lite0"
    """Encoder of the saliency branch: a name of timm."""
    saliency_size: int = Field(default=256, ge=32)
    """Longer side of the picture that the saliency branch sees, px."""
    text: str = "none"
    """Backbone of the text branch (EAST): a name of timm, `vgg16-east` (the public layout), or `none`: T = 1."""
    text_size: int = Field(default=480, ge=32)
    """Longer side of the picture that the text branch sees, px, at most."""
    attention: Attention = "s*f"
    """How saliency weighs F; `none` is the plain backbone."""
    text_source: TextSource = "logits"
    """What equation 2 is fed: EAST's score map before or after its own sigmoid."""
    region_weights: RegionWeights = "salient"
    """What a region weighs in the descriptor that training learns from: its salient share (equation 5), or that times a
    weight of its level (the size of its square), learned."""
    classes: int = Field(default=0, ge=0)
    """Categories of the classification head; 0: no head."""
    pictures: PictureConfig = PictureConfig()
    """How pictures are prepared."""


class ModelConfig(BaseModel):
    """`config.json`: the network, and the names of its classes in order."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    network: NetworkConfig
    categories: tuple[str, ...] = ()


def lacks(network: NetworkConfig, descriptor: DescriptorName) -> str:
    """What a network would need for a descriptor and does not have, in words; "": nothing."""
    if descriptor.partition("@")[2] in NEED_TEXT and network.text == "none":
        return "text branch"
    return "learned weights of levels" if descriptor == LEARNED and network.region_weights != "learned" else ""


def refuse_lacking(network: NetworkConfig, descriptors: Iterable[DescriptorName]) -> None:
    """Refuse descriptors that a network cannot give.

    Raises:
        InputError: the first of them.
    """
    for name in descriptors:
        if lacking := lacks(network, name):
            raise InputError(f"descriptor {name}: the model has no {lacking}; leave it out")


def read_config(folder: Path) -> ModelConfig:
    """A model's `config.json`.

    Raises:
        InputError: missing, or not of this form.
    """
    try:
        return ModelConfig.model_validate_json((folder / CONFIG).read_bytes())
    except FileNotFoundError:
        raise InputError(f"{folder}: no {CONFIG}: not a model") from None
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"{folder / CONFIG}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
