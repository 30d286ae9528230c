"""The forms of products: from a look to painted parts. One function a form; `FORMS` names them.

Coordinates as in `paint`: the product stands in the middle of the unit square.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from manet.rendered.labels import label
from manet.rendered.paint import Colour, Finish, Part, ellipse, profile, rect

Array = np.ndarray[Any, np.dtype[Any]]
_LABEL_PX = 320  # longer side of a label's texture
_STEEL: Colour = (0.78, 0.79, 0.82)
_GOLD: Colour = (0.86, 0.70, 0.40)
_DARK: Colour = (0.13, 0.13, 0.15)
_WOOD: Colour = (0.72, 0.53, 0.34)
_INK_DARK: Colour = (0.12, 0.11, 0.13)
_INK_LIGHT: Colour = (0.98, 0.97, 0.95)
_CREAM: Colour = (0.97, 0.95, 0.91)


@dataclass(frozen=True, kw_only=True)
class Look:
    """What makes one product look other than its neighbours of the same kind."""

    body: Colour
    cap: Colour
    paper: Colour
    ink: Colour
    accent: Colour
    shade: Colour
    lines: tuple[str, str, str]
    style: int
    slim: float  # 0..1: how narrow
    tall: float  # 0..1: how tall
    cap_finish: Finish

    def between(self, low: float, high: float, which: str = "slim") -> float:
        """A measure between two bounds, by one of the shape parameters."""
        share: float = getattr(self, which)
        return low + (high - low) * share

    def label(
        self,
        box: tuple[float, float, float, float],
        finish: Finish = "cylinder",
        paper: bool = True,
        on: Colour | None = None,
    ) -> Part:
        """A label over a box (left, top, right, bottom), on paper, on the body, or on another colour."""
        left, top, right, bottom = box
        scale = _LABEL_PX / max(right - left, bottom - top)
        size = int((right - left) * scale), int((bottom - top) * scale)
        ground = on or (self.paper if paper else self.body)
        legible = abs(sum(ground) - sum(self.ink)) > 0.9
        ink = self.ink if legible else _INK_DARK if sum(ground) > 1.5 else _INK_LIGHT
        texture = label(*size, ground, ink, self.accent, self.lines, self.style)
        return Part(outline=rect(*box, 0.008), colour=ground, finish=finish, texture=texture)


def _bottle(look: Look, shoulder: float = 0.1, neck: float = 0.06, top: float = 0.0) -> list[Part]:
    half = look.between(0.21, 0.13)
    top = top or look.between(0.30, 0.16, "tall")
    outline = profile(0.5, [(top, neck), (top + shoulder, half), (0.93, half), (0.95, half * 0.94)])
    finish: Finish = "glass" if look.style % 3 == 0 else "cylinder"
    body = Part(outline=outline, colour=look.body, finish=finish)
    high = top + shoulder + 0.05
    return [body, look.label((0.5 - half * 0.98, high, 0.5 + half * 0.98, 0.86), paper=look.style % 2 == 0)]


def _cap(look: Look, left: float, top: float, right: float, bottom: float) -> Part:
    return Part(outline=rect(left, top, right, bottom, 0.012), colour=look.cap, finish=look.cap_finish)


def bottle(look: Look) -> list[Part]:
    """A bottle with a screw cap."""
    top = look.between(0.30, 0.16, "tall")
    return [*_bottle(look), _cap(look, 0.42, top - 0.10, 0.58, top + 0.01)]


def flip_bottle(look: Look) -> list[Part]:
    """A broad bottle with a flip-top cap."""
    half = look.between(0.23, 0.16)
    top = look.between(0.30, 0.18, "tall")
    body = profile(0.5, [(top, half * 0.8), (top + 0.06, half), (0.6, half * 0.93), (0.92, half), (0.95, half * 0.9)])
    return [
        Part(outline=body, colour=look.body, finish="cylinder"),
        look.label((0.5 - half * 0.88, top + 0.1, 0.5 + half * 0.88, 0.87), paper=look.style % 2 == 0),
        _cap(look, 0.5 - half * 0.78, top - 0.09, 0.5 + half * 0.78, top + 0.01),
        Part(outline=rect(0.5 - half * 0.78, top - 0.03, 0.5 + half * 0.78, top - 0.024), colour=_DARK, alpha=0.35),
    ]


def pump(look: Look) -> list[Part]:
    """A bottle with a pump."""
    top = look.between(0.34, 0.24, "tall")
    return [
        Part(outline=rect(0.488, top - 0.16, 0.512, top), colour=_STEEL, finish="metal"),
        Part(outline=rect(0.36, top - 0.20, 0.56, top - 0.155, 0.015), colour=look.cap, finish=look.cap_finish),
        Part(outline=rect(0.345, top - 0.195, 0.375, top - 0.12, 0.01), colour=look.cap, finish=look.cap_finish),
        *_bottle(look, 0.06, 0.07, top),
        _cap(look, 0.435, top - 0.06, 0.565, top + 0.02),
    ]


def sprayer(look: Look) -> list[Part]:
    """A slim bottle with a spray head under a clear cap."""
    half, top = look.between(0.16, 0.11), look.between(0.33, 0.25, "tall")
    body = profile(0.5, [(top, half * 0.75), (top + 0.04, half), (0.94, half), (0.955, half * 0.9)])
    return [
        Part(outline=rect(0.455, top - 0.09, 0.545, top), colour=look.cap, finish="metal"),
        Part(outline=ellipse(0.47, top - 0.06, 0.012, 0.012), colour=_DARK),
        Part(outline=rect(0.5 - half * 0.75, top - 0.17, 0.5 + half * 0.75, top + 0.01, 0.03), colour=(0.9, 0.94, 0.97),
             finish="glass", alpha=0.45),
        Part(outline=body, colour=look.body, finish="cylinder"),
        look.label((0.5 - half * 0.95, top + 0.1, 0.5 + half * 0.95, 0.88), paper=look.style % 2 == 0),
    ]  # fmt: skip


def dropper(look: Look) -> list[Part]:
    """A small glass bottle with a rubber dropper."""
    half, top = look.between(0.19, 0.14), look.between(0.42, 0.34, "tall")
    body = profile(0.5, [(top, 0.06), (top + 0.05, half), (0.93, half), (0.95, half * 0.92)])
    return [
        Part(outline=profile(0.5, [(top - 0.22, 0.025), (top - 0.20, 0.045), (top - 0.10, 0.05)]), colour=_DARK,
             finish="cylinder"),
        _cap(look, 0.43, top - 0.11, 0.57, top + 0.01),
        Part(outline=body, colour=look.body, finish="glass"),
        look.label((0.5 - half * 0.95, top + 0.12, 0.5 + half * 0.95, 0.89)),
    ]  # fmt: skip


def tube(look: Look) -> list[Part]:
    """A tube that stands on its cap."""
    wide, foot = look.between(0.22, 0.15), look.between(0.17, 0.12)
    top = look.between(0.16, 0.06, "tall")
    body = profile(0.5, [(top, wide), (top + 0.03, wide), (0.80, foot), (0.82, foot * 0.9)])
    inner = foot * 0.93
    return [
        Part(outline=body, colour=look.body, finish="cylinder"),
        Part(outline=rect(0.5 - wide, top, 0.5 + wide, top + 0.035), colour=scaled(look.body, 0.85)),
        look.label((0.5 - inner, top + 0.1, 0.5 + inner, 0.76), paper=False),
        _cap(look, 0.5 - foot * 0.8, 0.815, 0.5 + foot * 0.8, 0.94),
    ]


def tube_box(look: Look) -> list[Part]:
    """A toothpaste tube lying before its carton."""
    lying = np.array([[0.12, 0.66], [0.14, 0.64], [0.74, 0.68], [0.80, 0.72], [0.80, 0.84], [0.74, 0.88], [0.14, 0.92],
                      [0.12, 0.90]], np.float32)  # fmt: skip
    return [
        Part(outline=rect(0.06, 0.32, 0.94, 0.58), colour=look.paper, texture=look.label((0, 0, 0.88, 0.26)).texture),
        Part(outline=np.array([[0.06, 0.32], [0.10, 0.27], [0.98, 0.27], [0.94, 0.32]], np.float32),
             colour=scaled(look.accent, 0.8)),
        Part(outline=lying, colour=look.body, finish="flat"),
        Part(outline=rect(0.24, 0.70, 0.70, 0.86), colour=look.body, texture=look.label((0, 0, 0.46, 0.16), paper=False).texture),
        Part(outline=rect(0.79, 0.725, 0.90, 0.835, 0.01), colour=look.cap, finish=look.cap_finish),
    ]  # fmt: skip


def jar(look: Look) -> list[Part]:
    """A wide jar with a lid."""
    half, top = look.between(0.38, 0.27), look.between(0.52, 0.42, "tall")
    body = profile(0.5, [(top, half * 0.97), (top + 0.03, half), (0.84, half), (0.88, half * 0.93)])
    finish: Finish = "glass" if look.style % 2 else "cylinder"
    return [
        Part(outline=body, colour=look.body, finish=finish),
        look.label((0.5 - half * 0.97, top + 0.06, 0.5 + half * 0.97, 0.83), paper=look.style % 3 == 0),
        _cap(look, 0.5 - half * 1.02, top - 0.16, 0.5 + half * 1.02, top + 0.01),
        Part(outline=ellipse(0.5, top - 0.155, half, 0.025), colour=scaled(look.cap, 1.12)),
    ]


def lipstick(look: Look) -> list[Part]:
    """An open lipstick, its cap beside it."""
    high = look.between(0.16, 0.10, "tall")
    bullet = np.array([[0.32, 0.46], [0.32, high + 0.09], [0.36, high], [0.42, high + 0.02], [0.45, high + 0.12],
                       [0.45, 0.46]], np.float32)  # fmt: skip
    return [
        Part(outline=bullet, colour=look.shade, finish="cylinder"),
        Part(outline=rect(0.305, 0.38, 0.465, 0.55, 0.008), colour=_GOLD if look.style % 2 else _STEEL, finish="metal"),
        Part(outline=rect(0.285, 0.54, 0.485, 0.93, 0.015), colour=look.cap, finish=look.cap_finish),
        look.label((0.295, 0.62, 0.475, 0.86), paper=False),
        Part(outline=rect(0.56, 0.50, 0.76, 0.93, 0.02), colour=look.cap, finish=look.cap_finish),
        Part(outline=rect(0.56, 0.87, 0.76, 0.895), colour=look.accent, finish="metal"),
    ]


def wand(look: Look) -> list[Part]:
    """A tube of mascara or gloss, closed, its wand beside it."""
    half = look.between(0.085, 0.06)
    bristles = [(0.15 + 0.028 * i, 0.034 if i % 2 else 0.020) for i in range(10)]
    return [
        Part(outline=rect(0.36 - half, 0.40, 0.36 + half, 0.94, 0.015), colour=look.body, finish="cylinder"),
        look.label((0.36 - half * 0.96, 0.50, 0.36 + half * 0.96, 0.88), paper=False),
        _cap(look, 0.36 - half, 0.08, 0.36 + half, 0.395),
        Part(outline=rect(0.69, 0.42, 0.71, 0.62), colour=_DARK, finish="metal"),
        Part(outline=profile(0.70, [(y + 0.0, w) for y, w in bristles]), colour=look.shade, finish="cylinder"),
        Part(outline=rect(0.70 - half, 0.60, 0.70 + half, 0.92, 0.015), colour=look.cap, finish=look.cap_finish),
    ]


def stick(look: Look) -> list[Part]:
    """A lip balm stick with its cap off."""
    half = look.between(0.11, 0.08)
    return [
        Part(
            outline=rect(0.38 - half * 0.8, 0.22, 0.38 + half * 0.8, 0.42, 0.05), colour=look.shade, finish="cylinder"
        ),
        Part(outline=rect(0.38 - half, 0.38, 0.38 + half, 0.90, 0.01), colour=look.body, finish="cylinder"),
        look.label((0.38 - half * 0.97, 0.44, 0.38 + half * 0.97, 0.86), paper=look.style % 2 == 0),
        _cap(look, 0.68 - half, 0.58, 0.68 + half, 0.90),
    ]


def pencil(look: Look) -> list[Part]:
    """A pencil with its point, and its cap."""
    half = look.between(0.045, 0.03)
    tip = np.array(
        [[0.42 - half, 0.30], [0.42 - half * 0.25, 0.16], [0.42 + half * 0.25, 0.16], [0.42 + half, 0.30]], np.float32
    )
    lead = np.array([[0.42 - half * 0.3, 0.17], [0.42, 0.10], [0.42 + half * 0.3, 0.17]], np.float32)
    texture = _upright(look.label((0, 0, 0.5, half * 2), paper=False))
    return [
        Part(outline=tip, colour=_WOOD, finish="cylinder"),
        Part(outline=lead, colour=scaled(look.shade, 0.5)),
        Part(outline=rect(0.42 - half, 0.30, 0.42 + half, 0.95), colour=look.body, finish="cylinder", texture=texture),
        Part(outline=rect(0.42 - half, 0.90, 0.42 + half, 0.95), colour=look.accent, finish="metal"),
        _cap(look, 0.58 - half * 1.1, 0.55, 0.58 + half * 1.1, 0.95),
    ]


def compact(look: Look) -> list[Part]:
    """A round compact, open: mirror above, powder below."""
    r = look.between(0.25, 0.20)
    return [
        Part(outline=ellipse(0.5, 0.28, r, r), colour=look.cap, finish=look.cap_finish),
        Part(outline=ellipse(0.5, 0.28, r * 0.86, r * 0.86), colour=(0.80, 0.86, 0.90), finish="sphere"),
        Part(outline=ellipse(0.5, 0.72, r * 1.02, r * 0.98), colour=look.cap, finish=look.cap_finish),
        Part(outline=ellipse(0.5, 0.72, r * 0.82, r * 0.78), colour=look.shade, finish="sphere"),
        look.label((0.5 - r * 0.42, 0.72 - r * 0.4, 0.5 + r * 0.42, 0.72 + r * 0.4), "flat", on=look.shade),
    ]


def square_compact(look: Look) -> list[Part]:
    """A square compact, open."""
    h = look.between(0.24, 0.19)
    return [
        Part(outline=rect(0.5 - h, 0.06, 0.5 + h, 0.48, 0.03), colour=look.cap, finish=look.cap_finish),
        Part(
            outline=rect(0.5 - h * 0.88, 0.09, 0.5 + h * 0.88, 0.45, 0.02), colour=(0.80, 0.86, 0.90), finish="sphere"
        ),
        Part(outline=rect(0.5 - h, 0.50, 0.5 + h, 0.93, 0.03), colour=look.cap, finish=look.cap_finish),
        Part(outline=rect(0.5 - h * 0.86, 0.53, 0.5 + h * 0.86, 0.80, 0.015), colour=look.shade, finish="sphere"),
        look.label((0.5 - h * 0.7, 0.81, 0.5 + h * 0.7, 0.915), "flat", on=look.cap),
    ]


def palette(look: Look) -> list[Part]:
    """An eye shadow palette with pans of related shades."""
    columns, rows = 3 + look.style % 3, 2 + look.style % 2
    parts = [
        Part(outline=rect(0.10, 0.10, 0.90, 0.45, 0.02), colour=look.cap, finish="flat",
             texture=look.label((0, 0, 0.8, 0.35), paper=False).texture),
        Part(outline=rect(0.10, 0.46, 0.90, 0.92, 0.02), colour=look.cap, finish=look.cap_finish),
    ]  # fmt: skip
    for i in range(columns * rows):
        c, r = i % columns, i // columns
        left, top = 0.14 + 0.72 * c / columns, 0.49 + 0.40 * r / rows
        tone = 0.55 + 0.6 * ((i * 7 + look.style) % 11) / 10
        pan = rect(left + 0.01, top + 0.01, left + 0.72 / columns - 0.015, top + 0.40 / rows - 0.015, 0.015)
        parts.append(Part(outline=pan, colour=scaled(look.shade, tone), finish="sphere"))
    return parts


def polish(look: Look) -> list[Part]:
    """A nail polish: a squat glass bottle under a tall cap."""
    half, top = look.between(0.17, 0.12), look.between(0.56, 0.50, "tall")
    glass = profile(0.5, [(top, 0.06), (top + 0.05, half), (0.90, half), (0.94, half * 0.85)])
    cap = profile(0.5, [(0.10, 0.045), (0.12, 0.055), (top + 0.01, 0.075)])
    return [
        Part(outline=glass, colour=look.shade, finish="glass"),
        look.label((0.5 - half * 0.7, top + 0.1, 0.5 + half * 0.7, 0.86), "flat", on=look.shade),
        Part(outline=cap, colour=look.cap, finish=look.cap_finish),
    ]


def flacon(look: Look) -> list[Part]:
    """A perfume flacon of thick glass."""
    half, top = look.between(0.30, 0.20), look.between(0.42, 0.34, "tall")
    radius = (0.01, 0.05, 0.14)[look.style % 3]
    return [
        Part(outline=rect(0.45, top - 0.08, 0.55, top + 0.02), colour=_GOLD, finish="metal"),
        _cap(look, 0.5 - 0.09, top - 0.24, 0.5 + 0.09, top - 0.05),
        Part(outline=rect(0.5 - half, top, 0.5 + half, 0.92, radius), colour=(0.93, 0.94, 0.95), finish="glass"),
        Part(outline=rect(0.5 - half * 0.86, top + 0.06, 0.5 + half * 0.86, 0.88, radius), colour=look.shade, finish="glass",
             alpha=0.75),
        look.label((0.5 - half * 0.55, top + 0.14, 0.5 + half * 0.55, 0.80), "flat"),
    ]  # fmt: skip


def can(look: Look) -> list[Part]:
    """An aerosol can with its cap."""
    half, top = look.between(0.14, 0.10), look.between(0.26, 0.2, "tall")
    body = profile(0.5, [(top, half * 0.8), (top + 0.05, half), (0.94, half), (0.955, half * 0.93)])
    return [
        Part(outline=body, colour=look.body, finish="metal"),
        look.label((0.5 - half, top + 0.08, 0.5 + half, 0.92), paper=False),
        Part(outline=profile(0.5, [(0.07, half * 0.7), (0.09, half * 0.8), (top + 0.02, half * 0.85)]), colour=look.cap,
             finish=look.cap_finish),
    ]  # fmt: skip


def rollon(look: Look) -> list[Part]:
    """A deodorant: an oval body under a round cap."""
    half = look.between(0.17, 0.13)
    body = profile(0.5, [(0.42, half * 0.9), (0.48, half), (0.88, half * 0.96), (0.93, half * 0.8)])
    return [
        Part(outline=body, colour=look.body, finish="cylinder"),
        look.label((0.5 - half * 0.94, 0.50, 0.5 + half * 0.94, 0.86), paper=look.style % 2 == 0),
        Part(outline=profile(0.5, [(0.12, half * 0.55), (0.16, half * 0.85), (0.24, half * 0.95), (0.425, half * 0.95)]),
             colour=look.cap, finish=look.cap_finish),
    ]  # fmt: skip


def pouch(look: Look) -> list[Part]:
    """A sheet mask's pouch with a face on it."""
    half = look.between(0.33, 0.26)
    face = [
        Part(outline=ellipse(0.5, 0.52, 0.15, 0.20), colour=_CREAM, finish="sphere"),
        Part(outline=ellipse(0.44, 0.48, 0.03, 0.016), colour=look.body),
        Part(outline=ellipse(0.56, 0.48, 0.03, 0.016), colour=look.body),
        Part(outline=ellipse(0.5, 0.62, 0.04, 0.016), colour=look.body),
    ]
    crimp = scaled(look.body, 0.82)
    return [
        Part(outline=rect(0.5 - half, 0.06, 0.5 + half, 0.95), colour=look.body, finish="flat"),
        look.label((0.5 - half * 0.94, 0.13, 0.5 + half * 0.94, 0.88), "flat", paper=False),
        Part(outline=rect(0.5 - half, 0.06, 0.5 + half, 0.11), colour=crimp),
        Part(outline=rect(0.5 - half, 0.90, 0.5 + half, 0.95), colour=crimp),
        *(face if look.style % 3 else []),
    ]


def box(look: Look) -> list[Part]:
    """A carton seen from its corner."""
    half, top = look.between(0.24, 0.18), look.between(0.16, 0.1, "tall")
    left, right = 0.46 - half, 0.46 + half
    side = np.array([[right, top], [right + 0.12, top - 0.04], [right + 0.12, 0.90], [right, 0.94]], np.float32)
    lid = np.array([[left, top], [left + 0.12, top - 0.04], [right + 0.12, top - 0.04], [right, top]], np.float32)
    return [
        Part(outline=side, colour=scaled(look.accent, 0.75)),
        Part(outline=lid, colour=scaled(look.paper, 0.92)),
        Part(
            outline=rect(left, top, right, 0.94),
            colour=look.paper,
            texture=look.label((0, 0, 2 * half, 0.94 - top)).texture,
        ),
        Part(
            outline=ellipse(0.46, top + 0.62 * (0.94 - top), half * 0.55, 0.035, 0, 360),
            colour=look.shade,
            finish="sphere",
        ),
    ]


def razor(look: Look) -> list[Part]:
    """A cartridge razor."""
    handle = profile(0.5, [(0.30, 0.03), (0.42, 0.045), (0.65, 0.032), (0.88, 0.05), (0.95, 0.035)])
    half = look.between(0.20, 0.15)
    blades = [
        Part(
            outline=rect(0.5 - half * 0.9, 0.14 + 0.03 * i, 0.5 + half * 0.9, 0.152 + 0.03 * i),
            colour=_STEEL,
            finish="metal",
        )
        for i in range(2 + look.style % 3)
    ]
    grip = [
        Part(outline=ellipse(0.5, 0.50 + 0.05 * i, 0.022, 0.012), colour=look.accent) for i in range(4 + look.style % 3)
    ]
    return [
        Part(outline=handle, colour=look.body, finish="cylinder"),
        *grip,
        Part(outline=rect(0.5 - half, 0.10, 0.5 + half, 0.29, 0.03), colour=look.cap, finish="flat"),
        Part(outline=rect(0.5 - half * 0.9, 0.255, 0.5 + half * 0.9, 0.28), colour=look.shade),
        *blades,
    ]


def brush(look: Look) -> list[Part]:
    """A makeup brush."""
    wide = look.between(0.15, 0.07)
    hair = profile(0.5, [(0.08, wide * 0.5), (0.12, wide * 0.9), (0.22, wide), (0.38, 0.05)])
    handle = profile(0.5, [(0.52, 0.042), (0.66, 0.05), (0.93, 0.018), (0.95, 0.01)])
    return [
        Part(outline=hair, colour=scaled(_WOOD, 0.5 + look.tall), finish="cylinder"),
        Part(outline=profile(0.5, [(0.10, wide * 0.7), (0.16, wide * 0.8)]), colour=look.shade, alpha=0.5),
        Part(outline=profile(0.5, [(0.36, 0.052), (0.53, 0.044)]), colour=_GOLD if look.style % 2 else _STEEL, finish="metal"),
        Part(outline=handle, colour=look.body, finish="cylinder"),
        Part(outline=rect(0.47, 0.58, 0.53, 0.74), colour=look.body, finish="cylinder",
             texture=_upright(look.label((0, 0, 0.16, 0.06), paper=False))),
    ]  # fmt: skip


def hairbrush(look: Look) -> list[Part]:
    """A paddle brush with its pins."""
    rx, ry = look.between(0.22, 0.16), look.between(0.26, 0.30, "tall")
    pins = [
        Part(outline=ellipse(0.5 + rx * 0.66 * x, 0.32 + ry * 0.7 * y, 0.009, 0.009), colour=_DARK)
        for x in np.linspace(-1, 1, 6)
        for y in np.linspace(-1, 1, 8)
        if x * x + y * y < 1.15
    ]
    return [
        Part(
            outline=profile(0.5, [(0.52, 0.05), (0.62, 0.034), (0.85, 0.045), (0.95, 0.03)]),
            colour=look.body,
            finish="cylinder",
        ),
        Part(outline=ellipse(0.5, 0.32, rx, ry), colour=look.body, finish="sphere"),
        Part(outline=ellipse(0.5, 0.32, rx * 0.82, ry * 0.84), colour=look.accent, finish="sphere"),
        *pins,
    ]


def comb(look: Look) -> list[Part]:
    """A comb lying across."""
    count = 14 + look.style % 12
    width = 0.8 / count
    teeth = [
        Part(outline=rect(0.1 + i * width, 0.5, 0.1 + (i + 0.55) * width, 0.5 + look.between(0.16, 0.28, "tall"), 0.01),
             colour=look.body, finish="flat")
        for i in range(count)
    ]  # fmt: skip
    return [
        *teeth,
        Part(outline=rect(0.09, 0.38, 0.91, 0.52, look.between(0.01, 0.06)), colour=look.body, finish="flat"),
        Part(
            outline=rect(0.28, 0.40, 0.72, 0.50),
            colour=look.body,
            texture=look.label((0, 0, 0.44, 0.1), paper=False).texture,
        ),
    ]


def dryer(look: Look) -> list[Part]:
    """A hair dryer."""
    handle = np.array([[0.50, 0.48], [0.66, 0.46], [0.72, 0.92], [0.58, 0.94]], np.float32)
    body = np.array(
        [[0.22, 0.22], [0.70, 0.14], [0.82, 0.20], [0.86, 0.33], [0.82, 0.46], [0.70, 0.52], [0.22, 0.44]], np.float32
    )
    return [
        Part(outline=handle, colour=look.cap, finish="cylinder"),
        Part(outline=rect(0.58, 0.60, 0.64, 0.70, 0.01), colour=look.accent),
        Part(outline=body, colour=look.body, finish="sphere"),
        Part(
            outline=np.array([[0.08, 0.19], [0.23, 0.23], [0.23, 0.43], [0.08, 0.47]], np.float32),
            colour=_DARK,
            finish="flat",
        ),
        Part(outline=ellipse(0.81, 0.33, 0.045, 0.12), colour=look.accent, finish="metal"),
        Part(
            outline=rect(0.32, 0.25, 0.62, 0.42),
            colour=look.body,
            texture=look.label((0, 0, 0.30, 0.17), paper=False).texture,
        ),
    ]


def bar(look: Look) -> list[Part]:
    """A bar of soap in a paper band."""
    half, high = look.between(0.38, 0.30), look.between(0.30, 0.24, "tall")
    top = 0.5 - high / 2
    return [
        Part(
            outline=rect(0.5 - half, top, 0.5 + half, top + high + 0.08, 0.09),
            colour=scaled(look.shade, 0.8),
            finish="flat",
        ),
        Part(outline=rect(0.5 - half, top, 0.5 + half, top + high, 0.08), colour=look.shade, finish="sphere"),
        look.label((0.5 - half * 0.5, top, 0.5 + half * 0.5, top + high), "flat"),
    ]


def sponge(look: Look) -> list[Part]:
    """A drop-shaped makeup sponge."""
    half = look.between(0.26, 0.20)
    drop = profile(0.5, [(0.10, 0.01), (0.18, half * 0.28), (0.34, half * 0.62), (0.55, half * 0.95), (0.68, half),
                         (0.80, half * 0.9), (0.88, half * 0.6), (0.92, half * 0.2)])  # fmt: skip
    cut = np.array(
        [[0.5 + half * 0.1, 0.92], [0.5 + half, 0.66], [0.5 + half * 0.95, 0.80], [0.5 + half * 0.6, 0.90]], np.float32
    )
    band = rect(0.5 - half * 0.55, 0.52, 0.5 + half * 0.55, 0.70)
    return [
        Part(outline=drop, colour=look.shade, finish="sphere"),
        *([Part(outline=cut, colour=scaled(look.shade, 0.7))] if look.style % 2 else []),
        Part(outline=band, colour=look.shade, texture=look.label((0, 0, 1.1, 0.6), on=look.shade).texture, alpha=0.7),
    ]


def cotton(look: Look) -> list[Part]:
    """A see-through bag of cotton pads."""
    half = look.between(0.24, 0.18)
    pads = [
        Part(outline=ellipse(0.5, 0.28 + 0.035 * i, half * 0.9, 0.05), colour=scaled((0.98, 0.97, 0.95), 1 - 0.012 * (i % 3)),
             finish="sphere")
        for i in range(16)
    ]  # fmt: skip
    return [
        Part(
            outline=profile(0.5, [(0.08, 0.05), (0.12, 0.09), (0.2, half), (0.92, half)]),
            colour=(0.88, 0.92, 0.95),
            finish="glass",
        ),
        *pads,
        Part(outline=rect(0.5 - half, 0.10, 0.5 + half, 0.17), colour=look.accent, alpha=0.9),
        look.label((0.5 - half * 0.85, 0.45, 0.5 + half * 0.85, 0.82), "flat"),
    ]


def tweezers(look: Look) -> list[Part]:
    """Tweezers, points up."""
    spread = look.between(0.10, 0.05)
    arm = [
        np.array([[0.5 + side * 0.012, 0.95], [0.5 + side * (0.03 + spread), 0.55], [0.5 + side * (0.02 + spread * 0.6), 0.12],
                  [0.5 + side * (0.005 + spread * 0.6), 0.12], [0.5 + side * (spread - 0.02), 0.55], [0.5, 0.88]], np.float32)
        for side in (-1, 1)
    ]  # fmt: skip
    tint = look.body if look.style % 2 else _STEEL
    return [
        *(Part(outline=each, colour=tint, finish="metal") for each in arm),
        Part(outline=profile(0.5, [(0.78, 0.04), (0.95, 0.025)]), colour=look.accent, finish="metal"),
    ]


def lashes(look: Look) -> list[Part]:
    """A tray of false eyelashes."""
    parts = [
        Part(
            outline=rect(0.08, 0.22, 0.92, 0.84, 0.03),
            colour=look.paper,
            texture=look.label((0, 0, 0.84, 0.62)).texture,
        ),
        Part(outline=rect(0.13, 0.42, 0.87, 0.79, 0.02), colour=(0.95, 0.95, 0.96), finish="glass", alpha=0.92),
    ]
    count = 9 + look.style % 7
    for centre in (0.31, 0.69):
        for i in range(count):
            t = (i / (count - 1) - 0.5) * 2
            x, y = centre + 0.14 * t, 0.66 - 0.06 * (1 - t * t)
            end = (x + 0.05 * t, y - look.between(0.08, 0.15, "tall") * (1.1 - 0.4 * abs(t)))
            hair = np.array([[x - 0.006, y], [x + 0.006, y], end], np.float32)
            parts.append(Part(outline=hair, colour=_DARK))
        parts.append(Part(outline=ellipse(centre, 0.665, 0.15, 0.012), colour=_DARK))
    return parts


def curler(look: Look) -> list[Part]:
    """An eyelash curler."""
    handles = [
        np.array(
            [[0.5, 0.46], [0.5 + side * 0.05, 0.50], [0.5 + side * 0.15, 0.80], [0.5 + side * 0.10, 0.81]], np.float32
        )
        for side in (-1, 1)
    ]
    half = look.between(0.17, 0.12)
    return [
        *(Part(outline=each, colour=look.body if look.style % 2 else _STEEL, finish="metal") for each in handles),
        *(
            Part(outline=ellipse(0.5 + side * 0.15, 0.87, 0.07, 0.075), colour=look.body, finish="metal")
            for side in (-1, 1)
        ),
        *(Part(outline=ellipse(0.5 + side * 0.15, 0.87, 0.04, 0.045), colour=(1.0, 1.0, 1.0)) for side in (-1, 1)),
        Part(outline=rect(0.485, 0.25, 0.515, 0.5), colour=_STEEL, finish="metal"),
        Part(outline=rect(0.5 - half, 0.12, 0.5 + half, 0.17, 0.02), colour=_STEEL, finish="metal"),
        Part(outline=rect(0.5 - half, 0.24, 0.5 + half, 0.29, 0.02), colour=look.accent, finish="flat"),
        Part(outline=rect(0.5 - half, 0.12, 0.5 - half + 0.03, 0.29, 0.01), colour=_STEEL, finish="metal"),
        Part(outline=rect(0.5 + half - 0.03, 0.12, 0.5 + half, 0.29, 0.01), colour=_STEEL, finish="metal"),
    ]


def _upright(part: Part) -> Array | None:
    """A label's texture turned to run along a standing body."""
    return None if part.texture is None else np.rot90(part.texture)


def scaled(colour: Colour, factor: float) -> Colour:
    """A colour made darker or lighter."""
    red, green, blue = (min(1.0, value * factor) for value in colour)
    return red, green, blue


FORMS: dict[str, Callable[[Look], list[Part]]] = {
    form.__name__: form
    for form in (
        bar, bottle, box, brush, can, comb, compact, cotton, curler, dropper, dryer, flacon, flip_bottle, hairbrush, jar,
        lashes, lipstick, palette, pencil, polish, pouch, pump, razor, rollon, sponge, sprayer, square_compact, stick, tube,
        tube_box, tweezers, wand,
    )
}  # fmt: skip
