"""Brands, lines and titles as a shop writes them, from a seeded generator."""

import numpy as np

from manet.rendered.kinds import Kind

_ONSETS = (
    "Lu",
    "Ma",
    "Vel",
    "Ro",
    "No",
    "Sa",
    "Be",
    "Cla",
    "Di",
    "Fio",
    "Ka",
    "Or",
    "Pe",
    "Sil",
    "Ta",
    "Ver",
    "Zo",
    "El",
)
_MIDDLES = ("mea", "ri", "no", "la", "vi", "ra", "ssa", "to", "ni", "le", "do", "ma")
_CODAS = ("", "ne", "lle", "ra", "x", "va", "tte", "s", "nn", "ri")
_LINES = ("Velvet", "Pure", "Bloom", "Studio", "Aqua", "Botanica", "Noir", "Silk", "Aura", "Luxe", "Derma", "Fresh", "Gold",
          "Nordic", "Riviera", "Zen", "Atelier", "Solar", "Petal", "Ritual")  # fmt: skip
_SHADES = (
    "Rosewood",
    "Nude Beige",
    "Cherry",
    "Coral",
    "Mocha",
    "Ivory",
    "Plum",
    "Peach",
    "Ruby",
    "Sand",
    "Berry",
    "Honey",
)
_MARKETING = (
    "new",
    "original",
    "limited edition",
    "best seller",
    "gift",
    "professional",
    "vegan",
    "travel size",
    "for women",
)
_CYRILLIC = ("Ромашка", "Лаванда", "Снежана", "Ярило", "Берёзка", "Мелисса", "Лилия", "Заря")
_GREEK = ("Ελιά", "Θάλασσα", "Ροδιά", "Κρίνος", "Αφροδίτη", "Μέλισσα", "Ήλιος", "Νεφέλη")
BRANDS = 160  # in one catalogue


def brand(rng: np.random.Generator) -> str:
    """A brand's name; one in ten in Cyrillic, one in ten in Greek."""
    draw = rng.random()
    if draw < 0.1:
        return _pick(rng, _CYRILLIC)
    if draw < 0.2:
        return _pick(rng, _GREEK)
    return _pick(rng, _ONSETS) + _pick(rng, _MIDDLES) + _pick(rng, _CODAS)


def line(rng: np.random.Generator) -> str:
    """A product line of a brand."""
    return _pick(rng, _LINES)


def shade(rng: np.random.Generator) -> str:
    """A shade's name, with its number."""
    return f"{rng.integers(1, 40):02d} {_pick(rng, _SHADES)}"


def title(rng: np.random.Generator, kind: Kind, brand_name: str, line_name: str, shade_name: str, size: str) -> str:
    """A shop's title: brand, line, what it is, size, shade and marketing in varied order."""
    word = kind.words[0] if rng.random() < 0.6 else _pick(rng, kind.words)
    word = word.title() if rng.random() < 0.7 else word
    benefit = _pick(rng, kind.benefits).title() if kind.benefits and rng.random() < 0.8 else ""
    extra = _pick(rng, _MARKETING) if rng.random() < 0.35 else ""
    tail = [size if rng.random() < 0.8 else "", f"- {shade_name}" if rng.random() < 0.5 else ""]
    middle = [line_name, benefit, word] if rng.random() < 0.7 else [benefit, word, line_name]
    words = [brand_name, *middle, *tail] if rng.random() < 0.8 else [*middle, "by", brand_name, *tail]
    return " ".join(piece for piece in (*words, extra) if piece)


def _pick(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    return options[int(rng.integers(len(options)))]
