"""Prepared pictures -> descriptors: THE path of extract, search and evaluate.

Shape letters: N pictures, D descriptor length.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import torch

from manet.network import MANet, Maps
from manet.pooling import DescriptorName, PoolingName, dead_rows, pool

Precision = Literal["float32", "bfloat16", "float16"]
Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, kw_only=True)
class Described:
    """Descriptors by name, float16 [N, D] of unit length; rows of `dead`, bool [N], are zero and have none."""

    vectors: dict[DescriptorName, Array]
    dead: Array


class Describer:
    """Describes pictures in batches cut from the rows given, in order, so that the same rows give the same bits.

    Args:
        network: the model.
        names: descriptors wanted; one pass serves all.
        device: cpu or cuda.
        batch_size: pictures of one pass.
        precision: number type of the network's pass; pooling is float32 in any case.
    """

    def __init__(
        self,
        network: MANet,
        *,
        names: Sequence[DescriptorName] = ("sr-mac",),
        device: str = "cpu",
        batch_size: int = 16,
        precision: Precision = "float32",
    ) -> None:
        self._network = network.eval().to(device).to(memory_format=torch.channels_last)
        self._names, self._device, self._batch = tuple(names), torch.device(device), batch_size
        self._dtype = getattr(torch, precision)
        self.dim = network.backbone.channels

    def describe(self, pixels_NSS3: Array) -> Described:
        """Descriptors of uint8 pictures [N, S, S, 3]."""
        count = len(pixels_NSS3)
        vectors = {name: np.zeros((count, self.dim), np.float16) for name in self._names}
        dead = np.zeros(count, bool)
        for rows, maps in self._passes(pixels_NSS3):
            gone = dead_rows(maps.backbone_BKHW) | dead_rows(maps.attended_BKHW)
            dead[rows] = gone.cpu().numpy()
            if not (~gone).any():
                continue
            alive = np.arange(count)[rows][~dead[rows]]
            for name in self._names:
                pooling, _, source = name.partition("@")
                x = maps.backbone_BKHW if source == "backbone" else maps.attended_BKHW
                pooled = pool(cast(PoolingName, pooling), x[~gone], maps.salient_BHW[~gone])
                vectors[name][alive] = pooled.cpu().numpy().astype(np.float16)
        return Described(vectors=vectors, dead=dead)

    def maps(self, pixels_NSS3: Array) -> tuple[Array, Array | None]:
        """Saliency [N, h, w] in [0, 1], and the text score [N, H, W] in [0, 1] where there is a text branch."""
        found = [maps for _, maps in self._passes(pixels_NSS3)]
        saliency = torch.cat([maps.saliency_B1hw[:, 0] for maps in found]).float().cpu().numpy()
        if any(maps.text_B1HW is None for maps in found):
            return saliency, None
        logits = torch.cat([cast(torch.Tensor, maps.text_B1HW)[:, 0] for maps in found]).float()
        source = self._network.config.text_source
        return saliency, (logits if source == "scores" else torch.sigmoid(logits)).cpu().numpy()

    @torch.inference_mode()
    def _passes(self, pixels_NSS3: Array) -> Iterator[tuple[slice, Maps]]:
        for start in range(0, len(pixels_NSS3), self._batch):
            rows = slice(start, min(start + self._batch, len(pixels_NSS3)))
            batch = torch.from_numpy(np.array(pixels_NSS3[rows])).to(self._device)
            with torch.autocast(self._device.type, self._dtype, enabled=self._dtype != torch.float32):
                yield rows, self._network(batch)
