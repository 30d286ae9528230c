"""Prepared pictures -> descriptors: THE path of extract, search and evaluate.

Shape letters: N pictures, D descriptor length, R regions.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeVar, cast

import numpy as np
import torch

from manet.config import refuse_lacking
from manet.errors import InputError
from manet.folding import folded
from manet.images import auto_batch
from manet.names import LEARNED, DescriptorName, Features, PoolingName, Precision
from manet.network import MANet, Maps, features_of
from manet.pooling import dead_rows, pool, sr_mac_parts
from manet.regions import rmac_regions

Array = np.ndarray[Any, np.dtype[Any]]
_Used = TypeVar("_Used")
_Pooled = tuple[Array, dict[DescriptorName, Array]]
_Look = tuple[Array, Array | None]
MOST_TOGETHER = 64
"""Pictures of a pass whose size is found by trying: enough to keep a GPU busy, and no query waits for a pass of hundreds."""
_NO_ROOM = ("unable to find an engine", "CUDNN_STATUS_ALLOC_FAILED", "CUBLAS_STATUS_ALLOC_FAILED")  # without memory
_FOLDED = 1e-3  # of a map's largest value: how far folding may move it (rounding moves it by 1e-5)


@dataclass(frozen=True, kw_only=True)
class Described:
    """Descriptors by name, float16 [N, D] of unit length; rows of `dead`, bool [N], are zero and have none."""

    vectors: dict[DescriptorName, Array]
    dead: Array


@dataclass(frozen=True, kw_only=True)
class Observed:
    """All that one pass over pictures yields: descriptors, and what they came from."""

    described: Described
    saliency_Nhw: Array
    """Saliency in [0, 1]."""
    text_Nhw: Array | None
    """EAST's score map in [0, 1]; None without a text branch."""
    parts_NRD: Array | None
    """What each region adds to the descriptor, float32 (`sr_mac_parts`); None unless the descriptor is SR-MAC of X~."""
    boxes_R4: Array
    """Regions as (left, top, width, height) in shares of the prepared square."""


class Describer:
    """Describes pictures in full batches, in order, so that a picture has the same bits wherever it stands.

    Every pass has the same shape: a batch that is not full is filled up with black, because libraries choose their kernels
    by the shape. So one picture alone, a part of a gallery and a set of queries come out alike.

    Args:
        network: the model; a copy of it describes, its batch norms folded into its convolutions where that changes nothing.
        names: descriptors wanted; one pass serves all.
        device: cpu or cuda.
        batch_size: pictures of one pass; 0: by the pictures' size on a CPU; on a GPU the largest power of two up to 64 that fits
            (found by trying).
        precision: number type of the network's pass; pooling is float32 in any case. With float32 cuDNN's TF32 is off.
        scales: sizes that a picture is described at, as shares of its own; the descriptors are summed and brought to unit length.
        compiled: let torch.compile build the network's kernels (GPU only).

    Raises:
        InputError: `compiled` without a GPU, a GPU that torch does not find, or a descriptor that needs what the model has not.
    """

    def __init__(
        self,
        network: MANet,
        *,
        names: Sequence[DescriptorName] = ("sr-mac",),
        device: str = "cpu",
        batch_size: int = 0,
        precision: Precision = "float32",
        scales: Sequence[float] = (1.0,),
        compiled: bool = False,
    ) -> None:
        if torch.device(device).type == "cuda" and not torch.cuda.is_available():
            raise InputError("torch finds no CUDA device on this node; see to its driver, or ask for no GPU")
        refuse_lacking(network.config, names)
        if torch.device(device).type == "cuda" and precision == "float32":
            torch.backends.cudnn.allow_tf32 = False  # torch's own default rounds convolutions to 10 bits
        self._network = _folded(network.eval()).to(device).to(memory_format=torch.channels_last)
        self._names, self._device, self._batch = tuple(names), torch.device(device), batch_size
        self._dtype, self._scales = getattr(torch, precision), tuple(scales)
        self.dim = network.backbone.channels
        self.halvings = 0  # times that a batch did not fit and was halved
        if compiled and self._device.type != "cuda":
            raise InputError("--compile is for GPUs: it gains nothing on a CPU; drop it, or give --model-gpus 1")
        self._pass: Callable[[torch.Tensor], Maps] = (
            torch.compile(self._network, mode="max-autotune") if compiled else self._network
        )

    def describe(self, pixels_NSS3: Array) -> Described:
        """Descriptors of uint8 pictures [N, S, S, 3]."""
        sums, dead = self._nothing(len(pixels_NSS3))
        for scale in self._scales:
            for rows, pooled in self._passes(pixels_NSS3, scale, self._pooled):
                self._add(sums, dead, rows, pooled)
        return self._described(sums, dead)

    def observe(self, pixels_NSS3: Array) -> Observed:
        """Descriptors as `describe` gives them, the maps that `maps` gives, and the regions' parts, from the same passes.

        Of several scales the maps are those of the first, and there are no parts: the sum is brought to unit length as a whole.
        """
        sums, dead = self._nothing(len(pixels_NSS3))
        seen = list(self._passes(pixels_NSS3, self._scales[0], self._observed))
        for rows, (pooled, *_) in seen:
            self._add(sums, dead, rows, pooled)
        for scale in self._scales[1:]:
            for rows, pooled in self._passes(pixels_NSS3, scale, self._pooled):
                self._add(sums, dead, rows, pooled)
        saliency, text = _joined([look for _, (_, look, _, _) in seen])
        parts = [part for _, (_, _, part, _) in seen if part is not None]
        _, (*_, cells) = seen[0]
        return Observed(
            described=self._described(sums, dead),
            saliency_Nhw=saliency,
            text_Nhw=text,
            parts_NRD=np.concatenate(parts) if parts else None,
            boxes_R4=_boxes(*cells),
        )

    @property
    def batch_size(self) -> int:
        """Pictures of one pass; 0 while it is not known, before the first one."""
        return self._batch

    def _nothing(self, count: int) -> tuple[dict[DescriptorName, Array], Array]:
        """Sums of descriptors, and which pictures are dead, before the first pass."""
        return {name: np.zeros((count, self.dim), np.float32) for name in self._names}, np.zeros(count, bool)

    def _described(self, sums: dict[DescriptorName, Array], dead: Array) -> Described:
        """What the passes found; a picture that is dead at one scale is dead."""
        vectors = {}
        for name, total in sums.items():
            length = np.linalg.norm(total, axis=1, keepdims=True) if len(self._scales) > 1 else np.float32(1)
            unit = total / np.maximum(length, np.float32(1e-12))
            vectors[name] = np.where(dead[:, None], np.float32(0), unit).astype(np.float16)
        return Described(vectors=vectors, dead=dead)

    def _pooled(self, maps: Maps) -> _Pooled:
        """What is pooled of one pass: which pictures are dead, and the others' descriptors, float32."""
        gone = dead_rows(maps.backbone_BKHW) | dead_rows(maps.attended_BKHW)
        found: dict[DescriptorName, Array] = {}
        for name in self._names if (~gone).any() else ():
            pooling, _, features = name.partition("@")
            x = features_of(maps, cast(Features, features or "attended"), self._network.config)
            seen = (x[~gone], maps.salient_BHW[~gone], maps.saliency_BHW[~gone])
            found[name] = pool(cast(PoolingName, pooling), *seen, self._learned(pooling)).cpu().numpy()
        return gone.cpu().numpy(), found

    def _observed(self, maps: Maps) -> tuple[_Pooled, _Look, Array | None, tuple[int, int]]:
        """What is pooled of one pass and what it looked at, its regions' parts, and the cells of its map."""
        parts: Array | None = None
        only = self._names[0] if len(self._names) == 1 else ""
        if len(self._scales) == 1 and only in {"sr-mac", "sr-mac-as-printed", LEARNED}:
            each = sr_mac_parts(
                maps.attended_BKHW,
                maps.salient_BHW,
                level_weights_L=self._learned(only),
                as_printed=only == "sr-mac-as-printed",
            )
            parts = each.float().cpu().numpy()
        height, width = maps.salient_BHW.shape[-2:]
        return self._pooled(maps), _look(maps), parts, (height, width)

    @staticmethod
    def _add(sums: dict[DescriptorName, Array], dead: Array, rows: slice, pooled: _Pooled) -> None:
        """One pass's descriptors, added at its rows; the dead ones are marked."""
        gone, found = pooled
        dead[rows] |= gone
        alive = np.arange(len(dead))[rows][~gone]
        for name, values in found.items():
            sums[name][alive] += values

    def _learned(self, name: str) -> torch.Tensor | None:
        """The levels' weights, where a descriptor takes them."""
        return cast(torch.Tensor, self._network.level_weights_L).detach() if name == LEARNED else None

    def maps(self, pixels_NSS3: Array) -> tuple[Array, Array | None]:
        """Saliency [N, h, w] in [0, 1], and EAST's score map [N, h, w] in [0, 1] where there is a text branch."""
        return _joined([look for _, look in self._passes(pixels_NSS3, self._scales[0], _look)])

    @torch.inference_mode()
    def _passes(self, pixels_NSS3: Array, scale: float, use: Callable[[Maps], _Used]) -> Iterator[tuple[slice, _Used]]:
        """What is made of each pass's maps, with its rows. Maps are used before the next pass, whose buffers may be the same,
        and within its bounds of memory: a pass that does not fit with its use is halved.
        """
        count, start = len(pixels_NSS3), 0
        if count and not self._batch:
            self._batch = self._fitting(round(pixels_NSS3.shape[1] * max(self._scales)))
        while start < count:
            rows = slice(start, min(start + self._batch, count))
            try:
                batch = _scaled(self._full(pixels_NSS3[rows]), scale)
                used = use(_first(self._run(batch, self._pass), rows.stop - rows.start))
            except RuntimeError as error:
                if not _is_too_large(error) or self._batch == 1:
                    raise
                self._batch //= 2
                self.halvings += 1
                torch.cuda.empty_cache()
                continue
            yield rows, used
            start = rows.stop

    def _full(self, pixels_nSS3: Array) -> torch.Tensor:
        """A batch on the device, filled up to its full size; the copy to a GPU does not wait for it."""
        full = np.zeros((self._batch, *pixels_nSS3.shape[1:]), np.uint8)
        full[: len(pixels_nSS3)] = pixels_nSS3
        batch = torch.from_numpy(full)
        if self._device.type != "cuda":
            return batch
        return batch.pin_memory().to(self._device, non_blocking=True)

    def _run(self, batch_BSS3: torch.Tensor, network: Callable[[torch.Tensor], Maps]) -> Maps:
        with torch.autocast(self._device.type, self._dtype, enabled=self._dtype != torch.float32):
            return network(batch_BSS3)

    def _fitting(self, size: int) -> int:
        """The batch size to work with: on a GPU the largest power of two, up to 64, of which half as many again fit."""
        if self._device.type != "cuda":
            return auto_batch(size)
        fits = 1
        try:
            while fits < MOST_TOGETHER:
                self._run(torch.zeros((fits * 3, size, size, 3), dtype=torch.uint8, device=self._device), self._network)
                fits *= 2
        except RuntimeError as error:
            if not _is_too_large(error):
                raise
            torch.cuda.empty_cache()
        return fits


def _is_too_large(error: RuntimeError) -> bool:
    """Whether a pass failed because memory ran out: torch's own, or that which its libraries wanted."""
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in _NO_ROOM)


def _look(maps: Maps) -> _Look:
    """Saliency [n, h, w] of one pass, and the text score where there is one."""
    saliency = maps.saliency_B1hw[:, 0].float().cpu().numpy()
    if maps.text_B1hw is None:
        return saliency, None
    return saliency, torch.sigmoid(maps.text_B1hw[:, 0].float()).cpu().numpy()


def _joined(looks: Sequence[_Look]) -> _Look:
    """What all passes looked at."""
    texts = [text for _, text in looks if text is not None]
    return np.concatenate([saliency for saliency, _ in looks]), np.concatenate(texts) if texts else None


def _folded(network: MANet) -> MANet:
    """A network with its batch norms folded; as it is, where a convolution's output is used elsewhere too."""
    draw = torch.Generator().manual_seed(0)
    example = torch.randint(0, 256, (2, 96, 96, 3), dtype=torch.uint8, generator=draw)
    found = folded(network, example)
    with torch.inference_mode():
        before, after = network(example), found(example)
    for field in fields(before):
        one, other = getattr(before, field.name), getattr(after, field.name)
        if one is None or "salient" in field.name:
            continue
        if not (one - other).abs().max() <= _FOLDED * one.abs().max():  # true of NaN too
            return network
    return found


def _scaled(batch_BSS3: torch.Tensor, scale: float) -> torch.Tensor:
    """Pictures at another size, uint8 as the network takes them; at scale 1 they are left alone."""
    size = max(32, round(batch_BSS3.shape[1] * scale))
    if size == batch_BSS3.shape[1]:
        return batch_BSS3
    planes = batch_BSS3.permute(0, 3, 1, 2).float()
    resized = torch.nn.functional.interpolate(planes, size=(size, size), mode="bilinear", antialias=True)
    return resized.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def _boxes(height: int, width: int) -> Array:
    """R-MAC's regions of an H x W map as (left, top, width, height) in shares of it, [R, 4]."""
    boxes = rmac_regions(height, width).boxes
    return np.array([(left / width, top / height, side / width, side / height) for top, left, side in boxes])


def _first(maps: Maps, count: int) -> Maps:
    """The maps of a batch's first pictures."""
    kept: dict[str, Any] = {}
    for field in fields(maps):
        map_B = getattr(maps, field.name)
        kept[field.name] = None if map_B is None else map_B[:count]
    return Maps(**kept)
