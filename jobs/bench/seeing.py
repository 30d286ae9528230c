"""What `bench maps` does: the attention branches run over pictures beside their teachers, figures and a sheet."""

import json
from typing import Any

import cv2
import numpy as np
import torch
from sklearn.metrics import roc_auc_score

from cluster.errors import BadInputError
from cluster.storage import open_store
from cluster.telemetry import Meter, say
from jobs.bench.maps import Config
from jobs.drawing import heat, jpeg
from jobs.inputs import fetch_weights, local_copy, open_model, open_table
from jobs.masks import SIZES, MapKind, teacher
from jobs.pictures import Picture, load_picture
from manet.backbone import load_pretrained
from manet.checkpoint import load_model
from manet.errors import PictureError
from manet.losses import TEXT_THRESHOLD, binarise_at_mean
from manet.network import InitialWeights, MANet, Maps, load_text

Grey = np.ndarray[Any, np.dtype[Any]]
_EVERY = 3  # of the pixels in each direction enter the ROC curve
_TILE = 160  # px: side of a picture on the sheet


def measure(config: Config) -> dict[str, Any]:
    """Measure; returns the figures."""
    cv2.setNumThreads(1)
    network = _network(config)
    teachers = {"saliency": teacher("saliency", config.pseudo_masks)}
    if network.text is not None:
        teachers["text"] = teacher("text", config.pseudo_text)
    seen = _Seen()
    tiles: list[Picture] = []
    uris = _uris(config)
    shown = set(np.linspace(0, len(uris) - 1, min(config.shown, len(uris))).astype(int).tolist())
    with Meter("maps", len(uris), "pictures") as meter, torch.inference_mode():
        for place, uri in enumerate(uris):
            picture = load_picture(uri, network.config.pictures)
            if isinstance(picture, PictureError):
                raise BadInputError(f"--queries: {uri}: {picture.detail}; leave it out")
            maps = network(torch.from_numpy(picture)[None])
            small = cv2.resize(picture, (SIZES["saliency"],) * 2, interpolation=cv2.INTER_AREA)
            wanted: dict[MapKind, Grey] = {"saliency": teachers["saliency"](small) / np.float32(255)}
            mirrored = teachers["saliency"](np.ascontiguousarray(small[:, ::-1]))[:, ::-1] / np.float32(255)
            if "text" in teachers:
                wanted["text"] = teachers["text"](picture) / np.float32(255)
            seen.add(maps, wanted, mirrored)
            if place in shown:
                tiles.append(_row(picture, maps, wanted))
            meter.advance(1)
    found = {"kind": "bench", "pictures": len(uris), **seen.figures()}
    if config.out:
        store = open_store(config.out)
        store.write("maps.json", json.dumps(found, indent=1).encode())
        store.write("sheet.jpg", jpeg(_sheet(tiles)))
        say(f"maps: {store.uri('sheet.jpg')}")
    return found


def _network(config: Config) -> MANet:
    network = load_model(local_copy(open_model(config.model)))
    if config.saliency_weights != "none":
        branch = network.saliency
        load_pretrained(
            branch.encoder, network.config.saliency, config.saliency_weights, fetch_weights, branch=branch, whole=True
        )
    if config.text == "none":
        if config.text_weights != "none":
            raise BadInputError(f"--text-weights {config.text_weights}: --text names their network")
        return network
    if network.text is not None:
        raise BadInputError(f"--text {config.text}: the model has a text branch of its own; leave the flag out")
    with_text = MANet(network.config.model_copy(update={"text": config.text}))
    with_text.load_state_dict({**with_text.state_dict(), **network.state_dict()})
    load_text(with_text, InitialWeights(backbone="", saliency="", text=config.text_weights), fetch_weights)
    return with_text.eval()


def _uris(config: Config) -> list[str]:
    table = open_table(config.queries, "queries", "--queries", relevant=False)
    uris = [uri for _, uri in table.pictures(0, table.rows)]
    return [uris[at] for at in np.linspace(0, len(uris) - 1, min(config.pictures, len(uris))).astype(int)]


class _Seen:
    """Figures over pictures."""

    def __init__(self) -> None:
        self._scores: list[Grey] = []
        self._text: list[Grey] = []
        self._saliency: list[tuple[float, ...]] = []

    def add(self, maps: Maps, wanted: dict[MapKind, Grey], mirrored: Grey) -> None:
        grey = wanted["saliency"]
        s = cv2.resize(maps.saliency_B1hw[0, 0].numpy(), grey.shape[::-1], interpolation=cv2.INTER_LINEAR)
        self._saliency.append((*_beside(s, grey), *_beside(mirrored, grey)))
        if "text" in wanted and maps.text_B1hw is not None:
            self._scores.append(_whole(maps.text_B1hw, wanted["text"])[::_EVERY, ::_EVERY].ravel())
            self._text.append(wanted["text"][::_EVERY, ::_EVERY].ravel() > TEXT_THRESHOLD)

    def figures(self) -> dict[str, float]:
        names = ("iou", "error", "grey_error")
        means = np.mean(self._saliency, 0)
        found = {
            f"saliency_{name}": round(float(value), 4)
            for name, value in zip([*names, *(f"mirrored_{name}" for name in names)], means, strict=True)
        }
        if not self._text:
            return found
        text = np.concatenate(self._text)
        if text.all() or not text.any():
            raise BadInputError(
                "--queries: the detector finds no text in any of the pictures; there is nothing to measure"
            )
        auc = float(roc_auc_score(text, np.concatenate(self._scores)))
        return {**found, "text_auc": round(auc, 4), "text_share": round(float(text.mean()), 5)}


def _beside(own: Grey, grey: Grey) -> tuple[float, float, float]:
    """Overlap of two maps binarised at their means; how far the first is from the other's mask, and from the other."""
    one, mask = (
        binarise_at_mean(torch.from_numpy(np.ascontiguousarray(each))[None])[0].numpy() > 0 for each in (own, grey)
    )
    union = float((one | mask).sum())
    overlap = float((one & mask).sum()) / union if union else 1.0
    return overlap, float(np.abs(own - mask).mean()), float(np.abs(own - grey).mean())


def _whole(logits_B1hw: torch.Tensor, like: Grey) -> Grey:
    """A branch's score map before its sigmoid at the size of a picture."""
    resized: Grey = cv2.resize(logits_B1hw[0, 0].float().numpy(), like.shape[::-1], interpolation=cv2.INTER_LINEAR)
    return resized


def _row(picture: Picture, maps: Maps, wanted: dict[MapKind, Grey]) -> Picture:
    """A picture with its maps beside it: saliency, its teacher's, text, its teacher's."""
    greys = [maps.saliency_B1hw[0, 0].float().numpy(), wanted["saliency"]]
    if maps.text_B1hw is not None:
        greys += [1 / (1 + np.exp(-_whole(maps.text_B1hw, wanted["text"]))), wanted["text"]]
    small = cv2.resize(picture, (_TILE, _TILE), interpolation=cv2.INTER_AREA)
    return np.hstack(
        [small, *(heat(small, cv2.resize(grey, (_TILE, _TILE), interpolation=cv2.INTER_AREA)) for grey in greys)]
    )


def _sheet(rows: list[Picture]) -> Picture:
    """Rows in two columns."""
    blank = np.zeros_like(rows[0])
    half = (len(rows) + 1) // 2
    return np.hstack([np.vstack(rows[:half]), np.vstack([*rows[half:], *([blank] * (half * 2 - len(rows)))])])
