"""`bench pooling`: what pooling costs beside the network whose map it pools, and beside a loop over the regions.

  manet bench pooling --model run/model --size 480

One picture of noise at a time, on one thread; each figure is a median, and all are measured in turn within each round. `share` is
a pooling's time over the backbone's alone.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from jobs.bench.truth import say_table
from jobs.inputs import local_copy, open_model


class Config(BaseModel):
    """Flags of `manet bench pooling`."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    model: str
    """Model artifact."""
    size: int = Field(default=480, ge=32)
    """Longer side of the picture, px."""
    rounds: int = Field(default=40, ge=3)
    """Rounds of measurement."""


def run(config: Config) -> dict[str, Any]:
    """Measure; returns milliseconds and ratios."""
    import torch
    from torch.nn import functional as F

    from manet.checkpoint import load_model
    from manet.network import as_rgb
    from manet.pooling import pool
    from manet.regions import rmac_regions

    torch.set_num_threads(1)
    network = load_model(local_copy(open_model(config.model))).eval().to(memory_format=torch.channels_last)
    noise = torch.randint(
        0, 256, (1, config.size, config.size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    with torch.inference_mode():
        maps = network(noise)
        x, salient, saliency = maps.attended_BKHW, maps.salient_BHW, maps.saliency_BHW
        rgb, boxes = as_rgb(noise), rmac_regions(*x.shape[-2:]).boxes

        def loop() -> torch.Tensor:
            total = torch.zeros(x.shape[:2])
            for top, left, side in boxes:
                inside = slice(top, top + side), slice(left, left + side)
                weight = salient[:, inside[0], inside[1]].float().mean((1, 2))
                total = total + weight[:, None] * F.normalize(x[:, :, inside[0], inside[1]].amax((2, 3)), dim=1)
            return F.normalize(total, dim=1)

        named: dict[str, Callable[[], Any]] = {
            "backbone": lambda: network.backbone(rgb),
            "network": lambda: network(noise),
            "sr-mac": lambda: pool("sr-mac", x, salient, saliency),
            "r-mac": lambda: pool("r-mac", x, salient, saliency),
            "loop over the regions": loop,
        }
        apart = float((loop() - pool("sr-mac", x, salient, saliency)).abs().max())
        seconds: dict[str, list[float]] = {name: [] for name in named}
        for _ in range(config.rounds):
            for name, work in named.items():
                began = time.perf_counter()
                work()
                seconds[name].append(time.perf_counter() - began)
    median = {name: statistics.median(each) for name, each in seconds.items()}
    rows = [
        {"what": name, "ms": round(each * 1e3, 3), "share": round(each / median["backbone"], 4)}
        for name, each in median.items()
    ]
    say_table(rows)
    return {
        "kind": "bench",
        "size": config.size,
        "map": list(x.shape[1:]),
        "regions": len(boxes),
        "sr_mac_of_backbone": round(median["sr-mac"] / median["backbone"], 4),
        "loop_of_sr_mac": round(median["loop over the regions"] / median["sr-mac"], 2),
        "difference": apart,
        "table": rows,
    }
