import io

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from manet.errors import PictureError, Reason
from manet.images import PictureConfig, decode

SIZE = PictureConfig(size=64)
RED, BLUE = (200, 30, 30), (30, 30, 200)


def _encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _two_colours(width: int = 120, height: int = 60) -> Image.Image:
    """Left half red, right half blue."""
    image = Image.new("RGB", (width, height), RED)
    image.paste(BLUE, (width // 2, 0, width, height))
    return image


def _near(pixel: np.ndarray, colour: tuple[int, int, int], tolerance: int = 12) -> bool:
    return bool(np.abs(pixel.astype(int) - colour).max() <= tolerance)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF"])
def test_longer_side_is_scaled_and_the_rest_is_white(kind: str) -> None:
    square = decode(_encoded(_two_colours(), kind), SIZE)
    assert square.shape == (64, 64, 3)
    assert square.dtype == np.uint8
    assert _near(square[32, 8], RED)
    assert _near(square[32, 56], BLUE)
    assert (square[:15] == 255).all()
    assert (square[-15:] == 255).all()


def test_a_smaller_picture_is_enlarged() -> None:
    assert _near(decode(_encoded(_two_colours(12, 6), "PNG"), SIZE)[32, 8], RED)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("kind", "alpha"), [("JPEG", False), ("PNG", False), ("WEBP", False), ("PNG", True), ("WEBP", True)]
)
def test_exif_orientation(orientation: int, kind: str, alpha: bool) -> None:
    """Each of the eight ways against Pillow's own."""
    image = _two_colours().convert("RGBA" if alpha else "RGB")
    image.paste((20, 200, 20), (0, 0, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = _encoded(image, kind, exif=exif, **({} if kind == "PNG" else {"quality": 95}))
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    wanted = decode(_encoded(upright, "PNG"), SIZE)
    assert np.abs(decode(data, SIZE).astype(int) - wanted).mean() < 3


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "LA", "RGBA", "I;16", "I", "YCbCr"])
def test_every_mode_comes_out_as_rgb(mode: str) -> None:
    grey = mode in {"L", "1", "LA", "I;16", "I"}
    if mode in {"I;16", "I"}:
        sixteen = np.full((60, 120), 40 * 257, np.uint16)
        sixteen[:, 60:] = 200 * 257
        data = cv2.imencode(".png", sixteen)[1].tobytes()
    else:
        source = Image.new("L", (120, 60), 40) if grey and mode != "1" else _two_colours()
        if grey and mode != "1":
            source.paste(200, (60, 0, 120, 60))
        kind = {"CMYK": "JPEG", "YCbCr": "JPEG"}.get(mode, "PNG")
        data = _encoded(source.convert(mode), kind)
    square = decode(data, SIZE)
    assert square.shape == (64, 64, 3)
    if mode == "1":  # dithered: dark red and blue both come out mostly black
        assert square[30:34, 4:60].mean() < 128
        assert np.ptp(square[30:34, 4:60], axis=2).max() == 0
    elif grey:
        assert _near(square[32, 8], (40, 40, 40))
        assert _near(square[32, 56], (200, 200, 200))
    else:
        assert _near(square[32, 8], RED, 25)
        assert _near(square[32, 56], BLUE, 25)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_parts_are_white(mode: str) -> None:
    image = Image.new("RGBA", (64, 64), (200, 30, 30, 255))
    image.paste((0, 0, 0, 0), (0, 0, 32, 64))
    if mode == "P":
        palette = Image.new("P", (64, 64), 1)
        palette.putpalette([0, 0, 0, 200, 30, 30])
        palette.paste(0, (0, 0, 32, 64))
        data = _encoded(palette, "PNG", transparency=0)
    else:
        data = _encoded(image.convert(mode), "PNG")
    square = decode(data, SIZE)
    assert (square[:, :30] == 255).all()
    assert square[:, 34:].mean() < 200


def test_reduced_decoding_is_close_to_the_full_one() -> None:
    rng = np.random.default_rng(0)
    smooth = cv2.resize(rng.integers(0, 255, (12, 16, 3), np.uint8), (1600, 1200), interpolation=cv2.INTER_CUBIC)
    data = _encoded(Image.fromarray(smooth), "JPEG", quality=95)
    direct = cv2.resize(smooth, (64, 48), interpolation=cv2.INTER_AREA)
    assert np.abs(decode(data, SIZE)[8:56].astype(int) - direct).mean() < 3


def _png_header(width: int, height: int) -> bytes:
    import struct
    import zlib

    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))


JPEG = _encoded(_two_colours(), "JPEG")
PNG = _encoded(_two_colours(), "PNG")
WEBP = _encoded(_two_colours(), "WEBP")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", Reason.EMPTY),
        (b"<html>not found</html>", Reason.NOT_A_PICTURE),
        (b"just text in a file named .jpg", Reason.NOT_A_PICTURE),
        (b"%PDF-1.7 ...", Reason.UNSUPPORTED),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", Reason.UNSUPPORTED),
        (JPEG[: len(JPEG) // 2], Reason.TRUNCATED),
        (PNG[: len(PNG) // 2], Reason.TRUNCATED),
        (WEBP[: len(WEBP) // 2], Reason.TRUNCATED),
        (JPEG[:3], Reason.TRUNCATED),
        (_png_header(60_000, 60_000), Reason.TOO_LARGE),
        (_png_header(60_000, 60_000) + b"\0\0\1\0IDAT", Reason.TOO_LARGE),
        (_png_header(60, 60), Reason.TRUNCATED),
        (_png_header(0, 0), Reason.CORRUPT),
        (JPEG[:-40] + b"\xff\xe1\xff\xff" + JPEG[-40:], Reason.CORRUPT),  # it has its end
        (_encoded(_two_colours(), "GIF", save_all=True, append_images=[Image.new("RGB", (120, 60))]), Reason.ANIMATED),
        (_encoded(_two_colours(), "WEBP", save_all=True, append_images=[Image.new("RGB", (120, 60))]), Reason.ANIMATED),
        (_encoded(_two_colours(), "PPM"), Reason.UNSUPPORTED),
        (PNG[:60] + bytes(40) + PNG[100:], Reason.CORRUPT),
    ],
)  # fmt: skip
def test_what_is_wrong_with_the_bytes(data: bytes, reason: Reason) -> None:
    with pytest.raises(PictureError) as error:
        decode(data, SIZE)
    assert error.value.reason is reason
    assert "\n" not in error.value.detail


FILM = b"\0\0\0\x18ftypmp42" + bytes(range(256)) * 4 + b"\xff\xda\xff\xd8 and so on"


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"exif": b"Exif\0\0" + JPEG}])
def test_a_film_behind_a_picture_is_not_looked_at(options: dict[str, object]) -> None:
    """As phones write it. A start of a scan in it says nothing; nor does the end of a thumbnail before the picture."""
    data = _encoded(_two_colours(), "JPEG", **options)
    assert (decode(data + FILM, SIZE) == decode(data, SIZE)).all()
    for cut in (len(data) // 2, len(data) - 2):
        with pytest.raises(PictureError) as error:
            decode(data[:cut], SIZE)
        assert error.value.reason is Reason.TRUNCATED


def test_a_header_behind_the_first_that_cannot_be_read() -> None:
    data = bytearray(_encoded(_two_colours(), "TIFF", save_all=True, append_images=[_two_colours()]))
    second = data.rindex(b"\x06\x01\x03\x00\x01\x00\x00\x00")  # its photometric interpretation
    data[second + 8] = 77
    with pytest.raises(PictureError) as error:
        decode(bytes(data), SIZE)
    assert error.value.reason is Reason.CORRUPT


def test_the_size_guard_looks_at_the_product_of_the_sides() -> None:
    config = PictureConfig(size=64, max_pixels=100 * 100)
    decode(_encoded(Image.new("RGB", (100, 100)), "PNG"), config)
    with pytest.raises(PictureError, match="101 x 100"):
        decode(_encoded(Image.new("RGB", (101, 100)), "PNG"), config)


def test_no_bytes_make_it_raise_anything_else() -> None:
    rng = np.random.default_rng(1)
    for number in range(400):
        data = bytearray([JPEG, PNG, WEBP][number % 3])
        for place in rng.integers(0, len(data), 8):
            data[place] = rng.integers(256)
        try:
            assert decode(bytes(data[: rng.integers(1, len(data) + 1)]), SIZE).shape == (64, 64, 3)
        except PictureError as error:
            assert error.reason in Reason
