"""A rendered beauty catalogue with exact ground truth: any size, from a seed, no files needed.

Products of 48 kinds are drawn as clean studio pictures (the gallery) and as photos that a consumer took (the queries).
"""

from manet.rendered.catalogue import Catalogue, Product, encode_jpeg
from manet.rendered.kinds import KINDS, Kind
from manet.rendered.scenes import Rendered

__all__ = ["KINDS", "Catalogue", "Kind", "Product", "Rendered", "encode_jpeg"]
