"""The kinds of product that are rendered: what a shop calls them, and the form that they are drawn in."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """One kind of product.

    Args:
        name: its category.
        words: how titles name it; the first is the plain name, the others plurals and synonyms.
        form: name of a function of `shapes.FORMS`.
        sizes: sizes as titles print them.
        benefits: words that go with it in titles.
    """

    name: str
    words: tuple[str, ...]
    form: str
    sizes: tuple[str, ...]
    benefits: tuple[str, ...] = ()


_ML, _G, _PCS = ("30ml", "50ml", "100ml", "150ml", "200ml"), ("3.5g", "5g", "8g", "12g"), ("2 pcs", "5 pcs", "10 pcs")


def _kind(name: str, form: str, sizes: tuple[str, ...], benefits: str, *more: str) -> Kind:
    return Kind(name, (name, *more), form, sizes, tuple(benefits.split()))


KINDS: tuple[Kind, ...] = (
    _kind("lipstick", "lipstick", _G, "matte velvet satin creamy", "lipsticks", "lip colour"),
    _kind("lip gloss", "wand", _ML[:1], "shiny plumping glossy", "lip glosses"),
    _kind("lip balm", "stick", _G, "soothing tinted nourishing", "lip balms"),
    _kind("sunscreen", "tube", _ML, "spf50 spf30 mineral", "sunscreens", "sun screen"),
    _kind("razor", "razor", _PCS, "sensitive smooth precision", "razors", "shaver"),
    _kind("sheet mask", "pouch", _PCS, "hydrating brightening collagen", "sheet masks", "facial mask"),
    _kind("clay mask", "jar", _ML, "purifying pore detox", "clay masks", "mud mask"),
    _kind("nail polish", "polish", _ML[:1], "gel quick-dry glossy", "nail polishes", "nail lacquer"),
    _kind("mascara", "wand", _ML[:1], "volume waterproof lengthening", "mascaras"),
    _kind("eyeliner", "pencil", _G, "waterproof liquid precise", "eyeliners", "eye liner"),
    _kind("eyebrow pencil", "pencil", _G, "micro defining natural", "eyebrow pencils", "brow pencil"),
    _kind("eye shadow", "palette", _G, "shimmer matte nude smoky", "eye shadows", "eyeshadow palette"),
    _kind("blush", "compact", _G, "powder radiant rosy", "blushes", "blusher"),
    _kind("bronzer", "square_compact", _G, "sunkissed matte glow", "bronzers"),
    _kind("face powder", "compact", _G, "translucent setting mattifying", "face powders", "pressed powder"),
    _kind("foundation", "pump", _ML[:2], "liquid long-wear full-coverage", "foundations"),
    _kind("concealer", "wand", _ML[:1], "full-coverage brightening", "concealers"),
    _kind("primer", "tube", _ML[:2], "smoothing pore-blurring", "primers", "face primer"),
    _kind("setting spray", "sprayer", _ML, "long-lasting matte dewy", "setting sprays", "makeup fixer"),
    _kind("perfume", "flacon", _ML, "floral woody intense", "perfumes", "eau de parfum"),
    _kind("body mist", "sprayer", _ML, "fresh floral fruity", "body mists", "body spray"),
    _kind("shampoo", "flip_bottle", _ML, "repair volumising anti-dandruff", "shampoos"),
    _kind("conditioner", "flip_bottle", _ML, "smoothing repair moisture", "conditioners", "hair conditioner"),
    _kind("hair mask", "jar", _ML, "keratin repair nourishing", "hair masks", "hair treatment"),
    _kind("hair oil", "dropper", _ML[:3], "argan smoothing shine", "hair oils"),
    _kind("hair spray", "can", _ML, "strong-hold flexible volume", "hair sprays", "hairspray"),
    _kind("hair dye", "box", _PCS, "permanent ammonia-free", "hair dyes", "hair color"),
    _kind("hair dryer", "dryer", ("1600W", "2000W", "2200W"), "ionic foldable ceramic", "hair dryers", "blow dryer"),
    _kind("hair brush", "hairbrush", _PCS, "detangling paddle boar", "hair brushes", "hairbrush"),
    _kind("comb", "comb", _PCS, "wide-tooth wooden antistatic", "combs"),
    _kind("body lotion", "pump", _ML, "moisturising nourishing soft", "body lotions", "body milk"),
    _kind("hand cream", "tube", _ML, "shea repairing rich", "hand creams"),
    _kind("face cream", "jar", _ML, "anti-aging day night", "face creams", "moisturizer"),
    _kind("eye cream", "jar", _ML[:1], "firming lifting smoothing", "eye creams"),
    _kind("serum", "dropper", _ML[:2], "vitamin-c hyaluronic retinol", "serums", "face serum"),
    _kind("toner", "bottle", _ML, "balancing rose hydrating", "toners", "face toner"),
    _kind("cleansing foam", "tube", _ML, "gentle deep pore", "cleansing foams", "face wash"),
    _kind("micellar water", "bottle", _ML, "gentle cleansing sensitive", "micellar waters"),
    _kind("shower gel", "flip_bottle", _ML, "fresh fruity relaxing", "shower gels", "body wash"),
    _kind("soap", "bar", _G, "handmade olive natural", "soaps", "soap bar"),
    _kind("deodorant", "rollon", _ML[:2], "48h invisible fresh", "deodorants", "antiperspirant"),
    _kind("toothpaste", "tube_box", _ML, "whitening mint sensitive", "toothpastes"),
    _kind("makeup brush", "brush", _PCS, "soft angled kabuki", "makeup brushes", "powder brush"),
    _kind("makeup sponge", "sponge", _PCS, "latex-free soft blending", "makeup sponges", "beauty blender"),
    _kind("cotton pads", "cotton", _PCS, "organic soft round", "cotton pad", "cotton rounds"),
    _kind("tweezers", "tweezers", _PCS, "slant steel precision", "tweezer"),
    _kind("false eyelashes", "lashes", _PCS, "natural wispy 3d", "false lashes"),
    _kind("eyelash curler", "curler", _PCS, "steel gentle", "eyelash curlers", "lash curler"),
)
