"""The names of what can be computed, for configurations: without torch, so that a worker that only needs names stays small."""

from typing import Literal

from manet.errors import PictureError, Reason

Precision = Literal["float32", "bfloat16", "float16"]
PoolingName = Literal[
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
    "sr-mac-soft",
    "sr-mac-learned",
]
Features = Literal["attended", "backbone", "no-text", "no-saliency", "other-saliency", "other-text"]
"""What is pooled: X~ as the model's configuration says; F before attention; or X~ with one thing changed: T = 1, S = 1,
(1 + S) * F in place of S * F (or S * F in place of any other), T of scores in place of logits (or the other way round)."""
LEARNED: PoolingName = "sr-mac-learned"
"""SR-MAC with a weight for each level of regions that the network has learned: only of one that did."""
NEED_TEXT: frozenset[Features] = frozenset({"no-text", "other-text"})
DescriptorName = Literal[
    PoolingName,
    "mac@backbone",
    "spoc@backbone",
    "gem@backbone",
    "crow@backbone",
    "r-mac@backbone",
    "r-mac-global@backbone",
    "ra-mac@backbone",
    "grmac@backbone",
    "sr-mac@backbone",
    "sr-mac@no-text",
    "r-mac@no-saliency",
    "sr-mac@other-saliency",
    "sr-mac@other-text",
]
"""A pooling of X~, or, behind an @, of other features."""
DEAD = PictureError(Reason.DEAD_FEATURE_MAP, "no positive activation in the feature map, or one that is not finite")
