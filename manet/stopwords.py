"""Words of product descriptions that name no kind of product."""

_GRAMMAR = "the a an and or of for with without in on to by from at as is it its this that your our you all any no not"
_UNITS = (
    "ml g gr gram kg oz fl floz lb cm mm inch l litre liter pcs pc piece pack set count ct size spf pa x pair w dl st"
)
_COLOURS = """black white red blue green pink purple violet orange yellow brown grey gray beige nude gold golden silver ivory
rose rosewood rosy coral peach plum berry cherry ruby wine burgundy mocha chocolate coffee honey caramel sand tan taupe bronze
copper natural clear transparent dark light medium deep warm cool pale bright neutral olive navy teal turquoise mint lavender
shade tone undertone fair porcelain"""
_MARKETING = """new original best seller gift limited edition professional pro vegan travel women men woman man ladies unisex
kids baby official authentic genuine exclusive free sale offer hot special premium luxury deluxe classic mini maxi jumbo large
small big long short full double triple ultra super extra total daily everyday quick easy fast instant perfect beautiful beauty
organic bio eco pure fresh soft smooth gentle sensitive intense intensive active advanced complete essential ideal magic
lasting wear coverage proof resistant made quality high low
type all-in-one japan korea korean france usa italy germany imported series line collection version kit"""
_PROSE = """taste tasty flavor flavour aroma texture smell content source variety product package different suitable rich popular
fine sized usual usually common well known real slightly good great nice lovely ready make use used using like contain look come
fit called example"""

_PLACES = "skin hair face body hand eye lip foot nail color colour care treatment"

GENERIC = frozenset(_PLACES.split())
"""Parts of the body and the like: alone they name no kind ("hair"), in a pair of words they may ("hair color")."""
NOT_KINDS = frozenset(f"{_GRAMMAR} {_UNITS} {_COLOURS} {_MARKETING} {_PROSE}".split()) - GENERIC
"""Dropped before terms are formed: grammar, units, colours, marketing, and what prose says of any product."""
