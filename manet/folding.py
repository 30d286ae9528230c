"""Batch norms folded into the convolutions before them, for networks that no longer learn.

With fixed statistics a batch norm multiplies and adds once a channel, which its convolution's weights and bias can do: on a
CPU a quarter of a pass is saved (BENCHMARKS.md).
"""

import copy
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

Net = TypeVar("Net", bound=nn.Module)
_NORMS = (nn.BatchNorm2d, BatchNormAct2d)


def folded(network: Net, example: Tensor) -> Net:
    """A copy of a network, in evaluation mode, whose batch norms that take a convolution's output as it is are part of it.

    Args:
        network: on the CPU, its weights loaded.
        example: an input; the pairs are those that meet when it is passed through.

    What else is done with a convolution's output cannot be seen: the caller compares outputs.
    """
    copied = copy.deepcopy(network).eval()
    parents = {id(child): (parent, name) for parent in copied.modules() for name, child in parent.named_children()}
    for conv, norm in _pairs(copied, example):
        if norm.running_mean is None or norm.running_var is None:
            continue  # it has no statistics of its own
        conv.weight, conv.bias = fuse_conv_bn_weights(
            conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
        parent, name = parents[id(norm)]
        setattr(parent, name, norm.act if isinstance(norm, BatchNormAct2d) else nn.Identity())
    return copied


def _pairs(network: nn.Module, example: Tensor) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """Convolutions with the batch norm that takes their output, each of both used once."""
    outputs: dict[int, tuple[nn.Conv2d, Tensor]] = {}  # the tensor is kept, so that no other one gets its id
    pairs: list[tuple[nn.Conv2d, nn.BatchNorm2d]] = []
    uses: Counter[nn.Module] = Counter()

    def convolved(conv: nn.Conv2d, _: object, output: Tensor) -> None:
        outputs[id(output)] = (conv, output)
        uses[conv] += 1

    def normed(norm: nn.BatchNorm2d, inputs: tuple[Tensor, ...]) -> None:
        uses[norm] += 1
        if id(inputs[0]) in outputs:
            pairs.append((outputs[id(inputs[0])][0], norm))

    with _hooked(network, convolved, normed), torch.inference_mode():
        network(example)
    return [(conv, norm) for conv, norm in pairs if uses[conv] == uses[norm] == 1]


@contextmanager
def _hooked(network: nn.Module, convolved: Callable[..., None], normed: Callable[..., None]) -> Iterator[None]:
    hooks = [each.register_forward_hook(convolved) for each in network.modules() if isinstance(each, nn.Conv2d)]
    hooks += [each.register_forward_pre_hook(normed) for each in network.modules() if type(each) in _NORMS]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
