"""Words of shop titles that name no kind of product."""

_GRAMMAR = "the a an and or of for with without in on to by from at as is it its this that your our you all any no not"
_UNITS = (
    "ml g gr gram kg oz fl floz lb cm mm inch l litre liter pcs pc piece pack set count ct size spf pa x pair w dl st"
)
_COLOURS = """black white red blue green pink purple violet orange yellow brown grey gray beige nude gold golden silver ivory
rose rosewood rosy coral peach plum berry cherry ruby wine burgundy mocha chocolate coffee honey caramel sand tan taupe bronze
copper natural clear transparent dark light medium deep warm cool pale bright neutral olive navy teal turquoise mint lavender
shade colour color tone"""
_MARKETING = """new original best seller gift limited edition professional pro vegan travel women men woman man ladies unisex
kids baby official authentic genuine exclusive free sale offer hot special premium luxury deluxe classic mini maxi jumbo large
small big long short full double triple ultra super extra total daily everyday quick easy fast instant perfect beautiful beauty
organic bio eco pure fresh soft smooth gentle sensitive intense intensive active advanced complete essential ideal magic
lasting wear coverage proof resistant made quality high low natural care skin hair face body hand eye lip foot nail
type types all-in-one japan korea korean france usa italy germany imported series line collection version kit"""

BODY = frozenset(["skin", "hair", "face", "body", "hand", "eye", "lip", "foot", "nail"])
"""Parts of the body: alone they name no kind, in a pair of words they may."""
NOT_KINDS = frozenset(f"{_GRAMMAR} {_UNITS} {_COLOURS} {_MARKETING}".split()) - BODY
"""Dropped before terms are formed."""
