"""The names of what can be computed, for configurations: without torch, so that a worker that only needs names stays small."""

from typing import Literal

from manet.errors import PictureError, Reason

Precision = Literal["float32", "bfloat16", "float16"]
PoolingName = Literal[
    "mac", "spoc", "gem", "crow", "r-mac", "r-mac-global", "ra-mac", "grmac", "sr-mac", "sr-mac-as-printed"
]
DescriptorName = Literal[
    "mac",
    "spoc",
    "gem",
    "crow",
    "r-mac",
    "r-mac-global",
    "ra-mac",
    "grmac",
    "sr-mac",
    "sr-mac-as-printed",
    "mac@backbone",
    "spoc@backbone",
    "gem@backbone",
    "crow@backbone",
    "r-mac@backbone",
    "r-mac-global@backbone",
    "ra-mac@backbone",
    "grmac@backbone",
    "sr-mac@backbone",
]
"""A pooling of X~; with `@backbone`, of the backbone's own F, before attention."""
DEAD = PictureError(Reason.DEAD_FEATURE_MAP, "no positive activation in the feature map")
