"""Pseudo-saliency: a grey map of where the product is, made without anybody's annotation.

Source: METHOD.md "Training": any grey saliency map, binarised at its own mean (`manet.augment.binarised` does that).
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from manet.errors import WeightsError, one_line
from manet.weights import Fetch, load_into, named, read_tensors, resolve

Array = np.ndarray[Any, np.dtype[Any]]
_NET_SIDE = 320  # px: input of U2-Net and its kin
_MEAN, _STD = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)


def pseudo_mask(source: str, fetch: Fetch | None = None) -> Callable[[Array], Array]:
    """A function from uint8 RGB [h, w, 3] to saliency float32 [h, w] in [0, 1].

    Args:
        source: `classical`; a saliency branch of MANet (`own:saliency-lite0`, or a .safetensors file that `train --branch
            saliency` wrote); or an ONNX salient-object network (`pip:u2netp`); files by path or URI.
        fetch: as in `manet.weights.resolve`.

    Raises:
        WeightsError: the network's file cannot be had or read, or is another network's.
    """
    if source == "classical":
        return classical
    path, source = resolve(source, fetch), named(source)
    if path.suffix == ".safetensors":
        return _by_branch(path, source)
    net = read_network(cv2.dnn.readNetFromONNX, path, source)
    try:
        _by_network(net, np.zeros((_NET_SIDE, _NET_SIDE, 3), np.uint8))
    except (cv2.error, IndexError) as error:
        raise WeightsError(f"{source}: gives no map of a {_NET_SIDE} px picture: {one_line(error)}") from None
    return lambda rgb: _by_network(net, rgb)


def _by_branch(path: Path, source: str) -> Callable[[Array], Array]:
    from manet.config import NetworkConfig
    from manet.network import as_rgb  # with it timm, which the other sources do without
    from manet.saliency import SaliencyNet

    made_for = NetworkConfig()
    branch = SaliencyNet(made_for.saliency, made_for.saliency_size)
    load_into(branch, read_tensors(path), source)
    branch.eval().to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def seen(rgb: Array) -> Array:
        found = branch(as_rgb(torch.from_numpy(np.ascontiguousarray(rgb))[None]))[0, 0].numpy()
        grey: Array = cv2.resize(found, (rgb.shape[1], rgb.shape[0]), interpolation=cv2.INTER_LINEAR)
        return grey

    return seen


def read_network(read: Callable[[str], Any], path: Path, source: str) -> Any:  # noqa: ANN401 - cv2.dnn.Net
    """A network by one of OpenCV's readers.

    Raises:
        WeightsError: OpenCV cannot read it.
    """
    try:
        return read(str(path))
    except cv2.error as error:
        raise WeightsError(f"{source}: OpenCV cannot read this network: {one_line(error)}") from None


def _by_network(net: Any, rgb: Array) -> Array:  # noqa: ANN401 - cv2.dnn.Net
    scaled = cv2.resize(rgb, (_NET_SIDE, _NET_SIDE), interpolation=cv2.INTER_AREA).astype(np.float32)
    scaled = (scaled / max(float(scaled.max()), 1.0) - _MEAN) / _STD
    net.setInput(np.ascontiguousarray(scaled.transpose(2, 0, 1)[None], np.float32))
    found = net.forward(net.getUnconnectedOutLayersNames()[0])[0, 0]
    return _stretched(cv2.resize(found, (rgb.shape[1], rgb.shape[0]), interpolation=cv2.INTER_LINEAR))


def classical(rgb: Array) -> Array:
    """No weights: how far a pixel's colour is from those along the border, times a weight for the centre.

    Good where the background is plain and reaches the border, as on shop pictures. Colour distance after frequency-tuned
    saliency (Achanta et al. 2009), with the border in place of the mean (a boundary prior).
    """
    lab = cv2.cvtColor(cv2.GaussianBlur(rgb, (0, 0), 2), cv2.COLOR_RGB2LAB).astype(np.float32)
    edge = max(2, min(rgb.shape[:2]) // 32)
    border = np.concatenate([side.reshape(-1, 3) for side in (lab[:edge], lab[-edge:], lab[:, :edge], lab[:, -edge:])])
    centres = _few_colours(border)
    distance = np.min([np.linalg.norm(lab - centre, axis=2) for centre in centres], axis=0)
    rows = np.linspace(-1, 1, rgb.shape[0], dtype=np.float32)[:, None]
    columns = np.linspace(-1, 1, rgb.shape[1], dtype=np.float32)[None]
    return _stretched(distance * np.exp(-(rows**2 + columns**2)))


def _few_colours(colours: Array, count: int = 4) -> Array:
    """Representative colours of a border, deterministic k-means."""
    if (colours == colours[0]).all():
        return colours[:1]
    cv2.setRNGSeed(0)
    criteria = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 10, 1.0)
    _, _, centres = cv2.kmeans(
        colours[:: max(1, len(colours) // 2000)], count, None, criteria, 1, cv2.KMEANS_PP_CENTERS
    )
    return np.asarray(centres)


def _stretched(grey: Array) -> Array:
    low, high = float(grey.min()), float(grey.max())
    return ((grey - low) / (high - low) if high > low else np.zeros_like(grey)).astype(np.float32)
