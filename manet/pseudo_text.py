"""Pseudo text maps: where letters are, as a text detector sees it; what the text branch is trained on, and held against.

The detector runs in OpenCV's dnn: an ONNX network that gives a probability map of the picture's size (DB, Liao et al. 2020,
as PaddleOCR exports it), or TensorFlow's `frozen_east_text_detection.pb` (EAST, Zhou et al. 2017), whose score map is a
quarter of it.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from manet.errors import WeightsError, one_line
from manet.pseudo_masks import read_network
from manet.weights import Fetch, named, resolve

Array = np.ndarray[Any, np.dtype[Any]]
_STEP = 32  # px: both networks take sides that are multiples of it
_EAST_SCORE = "feature_fusion/Conv_7/Sigmoid"
_EAST_MEAN = np.array([123.68, 116.78, 103.94], np.float32)


def pseudo_text(source: str, fetch: Fetch | None = None) -> Callable[[Array], Array]:
    """A function from uint8 RGB [h, w, 3] to text scores float32 [h, w] in [0, 1].

    Args:
        source: `pip:db-text`, a path or a URI: an .onnx file as DB has it, or a .pb file as EAST has it.
        fetch: as in `manet.weights.resolve`.

    Raises:
        WeightsError: the network's file cannot be had, or is not what its ending says.
    """
    path, source = resolve(source, fetch), named(source)
    if path.suffix not in {".onnx", ".pb"}:
        raise WeightsError(f"{source}: a text detector is an .onnx file (DB) or a .pb file (frozen EAST)")
    find = _east(path, source) if path.suffix == ".pb" else _db(path, source)
    try:
        tried = find(np.zeros((_STEP * 2, _STEP * 2, 3), np.uint8))
    except (cv2.error, IndexError) as error:
        raise WeightsError(f"{source}: OpenCV cannot run this network: {one_line(error)}") from None
    if tried.shape != (_STEP * 2, _STEP * 2):
        raise WeightsError(f"{source}: gives {tried.shape}, not one map; is this a text detector?")
    return find


def _db(path: Path, source: str) -> Callable[[Array], Array]:
    net = read_network(cv2.dnn.readNetFromONNX, path, source)
    if (count := len(net.getUnconnectedOutLayersNames())) != 1:
        raise WeightsError(f"{source}: gives {count} maps where a text detector gives one; is this DB?")
    return lambda rgb: _scores(net, None, rgb, (_padded(rgb)[..., ::-1].astype(np.float32) / 255 - 0.5) / 0.5)  # BGR


def _east(path: Path, source: str) -> Callable[[Array], Array]:
    net = read_network(cv2.dnn.readNetFromTensorflow, path, source)
    if _EAST_SCORE not in net.getLayerNames():
        raise WeightsError(f"{source}: has no layer {_EAST_SCORE}; is it frozen_east_text_detection.pb?")
    return lambda rgb: _scores(net, _EAST_SCORE, rgb, _padded(rgb).astype(np.float32) - _EAST_MEAN)


def _padded(rgb: Array) -> Array:
    """A picture filled up with black below and on the right to the step of the networks."""
    below, right = (-side % _STEP for side in rgb.shape[:2])
    return np.pad(rgb, ((0, below), (0, right), (0, 0)))


def _scores(net: Any, layer: str | None, rgb: Array, scaled: Array) -> Array:  # noqa: ANN401 - cv2.dnn.Net
    net.setInput(np.ascontiguousarray(scaled.transpose(2, 0, 1)[None], np.float32))
    found = (net.forward(layer) if layer else net.forward())[0, 0]
    whole = cv2.resize(found, scaled.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    clipped: Array = np.clip(whole[: rgb.shape[0], : rgb.shape[1]], 0, 1).astype(np.float32)
    return clipped
