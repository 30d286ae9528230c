import cv2
import numpy as np
import pytest

from manet.rendered.catalogue import Catalogue, encode_jpeg
from manet.rendered.kinds import KINDS


def test_there_are_kinds_enough_and_every_one_is_drawn() -> None:
    assert len(KINDS) >= 44
    shop = Catalogue(seed=0, products=len(KINDS))
    for index, kind in enumerate(KINDS):
        product = shop.product(index)
        assert product.kind == kind.name
        assert any(word.split()[-1] in product.title.lower() for word in kind.words), product.title
        picture = shop.studio(index, 0, 96)
        assert max(picture.rgb.shape[:2]) == 96
        share = (picture.mask > 127).mean()
        assert 0.02 < share < 0.95, kind.name


def test_the_same_seed_draws_the_same_shop() -> None:
    one, two, other = Catalogue(seed=5, products=50), Catalogue(seed=5, products=50), Catalogue(seed=6, products=50)
    for index in (0, 17, 49):
        assert one.product(index) == two.product(index)
        np.testing.assert_array_equal(one.studio(index, 1, 64).rgb, two.studio(index, 1, 64).rgb)
        np.testing.assert_array_equal(one.photo(index, 0, 64).rgb, two.photo(index, 0, 64).rgb)
    assert one.product(17) != other.product(17)


def test_a_product_does_not_depend_on_those_before_it() -> None:
    """Product i of a shop of any size, made in any order, looks the same."""
    assert Catalogue(seed=5, products=500_000).product(17) == Catalogue(seed=5, products=50).product(17)
    with pytest.raises(IndexError):
        Catalogue(seed=5, products=50).product(50)


def test_photos_show_the_product_elsewhere() -> None:
    shop = Catalogue(seed=0, products=20)
    for index in range(0, 20, 5):
        photo = shop.photo(index, 0, 128)
        share = (photo.mask > 127).mean()
        assert 0.03 < share < 0.9
        border = np.concatenate([photo.rgb[0], photo.rgb[-1]])
        assert not (border > 245).all()  # no white studio
        data = encode_jpeg(photo.rgb)
        decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        assert decoded is not None
        assert decoded.shape == photo.rgb.shape


def test_ids_are_unique() -> None:
    shop = Catalogue(seed=0, products=300)
    assert len({shop.product(index).product_id for index in range(300)}) == 300
