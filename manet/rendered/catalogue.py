"""The rendered catalogue: products by index, their studio pictures and consumers' photos. Everything follows from the seed.

No product needs another one, so any range can be drawn anywhere, in any order.
"""

import colorsys
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from manet.rendered import titles
from manet.rendered.kinds import KINDS, Kind
from manet.rendered.paint import Colour, Finish, paint
from manet.rendered.scenes import Rendered, consumer_photo, studio_picture
from manet.rendered.shapes import FORMS, Look

Array = np.ndarray[Any, np.dtype[Any]]
JPEG_QUALITY = 90
_SUPERSAMPLE = 1.5
# Streams of random numbers: one for what a product is, one for each picture, so that neither disturbs the other.
_BRAND, _PRODUCT, _STUDIO, _PHOTO = range(4)


@dataclass(frozen=True, kw_only=True)
class Product:
    """One product: what it is called and how it looks."""

    product_id: str
    kind: str
    brand: str
    title: str
    look: Look
    form: str


class Catalogue:
    """`products` beauty products, all different, the kinds in turn.

    Args:
        seed: the same seed gives the same catalogue on any machine.
        products: how many there are.
    """

    def __init__(self, seed: int, products: int) -> None:
        self.seed, self.products = seed, products

    def product(self, index: int) -> Product:
        """Product `index`; nothing is drawn.

        Raises:
            IndexError: there is no such product.
        """
        if not 0 <= index < self.products:
            raise IndexError(f"product {index} of a catalogue of {self.products}")
        rng = self._rng(_PRODUCT, index)
        kind = KINDS[index % len(KINDS)]
        brand_rng = self._rng(_BRAND, int(rng.integers(titles.BRANDS)))
        brand, house = titles.brand(brand_rng), _house_colours(brand_rng)
        line, shade = titles.line(rng), titles.shade(rng)
        title = titles.title(rng, kind, brand, line, shade, str(rng.choice(kind.sizes)))
        look = _look(rng, kind, house, (brand, line, kind.words[0]))
        return Product(product_id=f"p{index:06d}", kind=kind.name, brand=brand, title=title, look=look, form=kind.form)

    def gallery_views(self, index: int) -> int:
        """Studio pictures of a product: 1 to 3."""
        return 1 + int(self._rng(_STUDIO, index).integers(3))

    def studio(self, index: int, view: int, size: int) -> Rendered:
        """A clean studio picture; `size` is the longer side, px."""
        return studio_picture(self._rng(_STUDIO, index, view), self._sprite(index, size), size, view)

    def studio_of(self, image_id: str, size: int) -> Rendered:
        """The studio picture of an image_id, as `manet render` gives them: p000123-0.

        Raises:
            IndexError: the catalogue has no such picture.
        """
        product, _, view = image_id.removeprefix("p").partition("-")
        if not (product.isdecimal() and view.isdecimal() and int(view) < self.gallery_views(int(product))):
            raise IndexError(f"no picture {image_id!r} in a rendered catalogue")
        return self.studio(int(product), int(view), size)

    def photo(self, index: int, shot: int, size: int) -> Rendered:
        """A consumer's photo; `size` is the longer side, px."""
        rng = self._rng(_PHOTO, index, shot)
        others = [
            self._sprite(int(other), size // 2) for other in rng.integers(self.products, size=3) if other != index
        ]
        return consumer_photo(rng, self._sprite(index, size), others, size)

    def _sprite(self, index: int, size: int) -> Array:
        """The product alone, float32 RGBA premultiplied, drawn larger and reduced."""
        product = self.product(index)
        large = paint(FORMS[product.form](product.look), max(48, int(size * _SUPERSAMPLE)))
        side = max(32, size)
        return cv2.resize(large, (side, side), interpolation=cv2.INTER_AREA)

    def _rng(self, *stream: int) -> np.random.Generator:
        return np.random.Generator(np.random.PCG64(np.random.SeedSequence((self.seed, *stream))))


def _house_colours(rng: np.random.Generator) -> tuple[float, float]:
    """A brand's hue and saturation: its products are alike without being the same."""
    return float(rng.random()), float(rng.uniform(0.15, 0.85))


def _look(rng: np.random.Generator, kind: Kind, house: tuple[float, float], lines: tuple[str, str, str]) -> Look:
    hue = house[0] if rng.random() < 0.6 else float(rng.random())
    value = float(rng.uniform(0.35, 0.98))
    body = _colour(hue, house[1] if value < 0.9 else house[1] * 0.4, value)
    light = sum(body) / 3 > 0.55
    accent = _colour(hue + rng.choice([0.0, 0.08, 0.5]), rng.uniform(0.5, 0.95), rng.uniform(0.35, 0.8))
    caps: list[tuple[Colour, Finish]] = [
        ((0.10, 0.10, 0.12), "cylinder"),
        ((0.96, 0.96, 0.96), "cylinder"),
        ((0.86, 0.70, 0.40), "metal"),
        ((0.78, 0.79, 0.82), "metal"),
        (accent, "cylinder"),
        (body, "cylinder"),
    ]
    cap, finish = caps[int(rng.integers(len(caps)))]
    warm = kind.form in {"lipstick", "wand", "polish", "compact", "palette", "stick", "square_compact"}
    shade_hue = rng.uniform(-0.06, 0.09) if warm else rng.random()
    return Look(
        body=body,
        cap=cap,
        paper=(0.97, 0.96, 0.94) if rng.random() < 0.7 else _colour(hue + 0.1, 0.15, 0.95),
        ink=(0.12, 0.11, 0.13) if light else (0.98, 0.97, 0.95) if rng.random() < 0.5 else (0.93, 0.82, 0.55),
        accent=accent,
        shade=_colour(shade_hue, rng.uniform(0.35, 0.9), rng.uniform(0.4, 0.95)),
        lines=lines,
        style=int(rng.integers(1 << 16)),
        slim=float(rng.random()),
        tall=float(rng.random()),
        cap_finish=finish,
    )


def _colour(hue: float, saturation: float, value: float) -> Colour:
    return colorsys.hsv_to_rgb(float(hue) % 1.0, float(saturation), float(value))


def encode_jpeg(rgb: Array) -> bytes:
    """RGB uint8 as JPEG; the same pixels give the same bytes.

    Raises:
        ValueError: OpenCV cannot encode them.
    """
    done, data = cv2.imencode(".jpg", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    if not done:
        raise ValueError(f"a picture of shape {rgb.shape} cannot be encoded")
    return bytes(data)
