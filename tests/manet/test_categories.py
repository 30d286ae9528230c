from collections import Counter

import numpy as np
import pytest

from manet.categories import Category, assign, find_categories, select, split, terms_of
from manet.errors import InputError
from manet.rendered.catalogue import Catalogue


@pytest.fixture(scope="module")
def titles() -> tuple[list[str], list[str]]:
    """3,000 rendered titles and the kinds that they are of."""
    shop = Catalogue(seed=1, products=3000)
    products = [shop.product(index) for index in range(3000)]
    return [product.title for product in products], [product.kind for product in products]


def test_terms() -> None:
    terms = terms_of("ROSÉ Beauty's 2 Eye Shadow Brushes, 12g")
    assert {"eye", "shadow", "brush", "eye shadow", "shadow brush"} <= set(terms)
    assert not {"12g", "2", "brushes", "beauty", "brush 12g"} & set(terms)


def test_categories_are_kinds(titles: tuple[list[str], list[str]]) -> None:
    texts, kinds = titles
    categories = find_categories(texts, 44)
    assert len(categories) == 44
    labels = assign(texts, categories)
    assert (labels >= 0).mean() > 0.9
    in_category = [Counter(np.array(kinds)[labels == label]) for label in range(44)]
    assert sum(max(counts.values()) for counts in in_category) / (labels >= 0).sum() > 0.8
    brands = {Catalogue(seed=1, products=3000).product(index).brand.lower() for index in range(200)}
    assert not brands & {word for category in categories for word, _ in category.keywords}


def test_the_order_of_the_catalogue_does_not_matter(titles: tuple[list[str], list[str]]) -> None:
    texts, _ = titles
    shuffled = list(np.random.default_rng(0).permutation(texts))
    assert find_categories(texts[:500], 10) == find_categories(texts[:500], 10)
    assert find_categories(shuffled, 20) == find_categories(texts, 20)


def test_small_and_empty_catalogues() -> None:
    assert [category.name for category in find_categories(["red lipstick", "blue lipstick"], 44)] == ["lipstick"]
    with pytest.raises(InputError, match="no description holds a word"):
        find_categories(["", "12 50ml"], 44)
    with pytest.raises(InputError, match="no description holds a word"):  # each is a word that no other has
        find_categories([f"{chr(0x4E00 + i)}{chr(0x5E00 + i)}" for i in range(300)], 44)


def test_many_titles_without_a_shared_word_are_refused() -> None:
    """A hundred of one word each: none has company."""
    with pytest.raises(InputError, match="no description holds a word"):
        find_categories([f"name{'abcdefghij'[i % 10]}{'klmnopqrst'[i // 10 % 10]}" for i in range(100)] * 12, 4)


def test_the_highest_sum_wins() -> None:
    categories = [
        Category(name="razor", keywords=(("razor", 2.0), ("blade", 1.0))),
        Category(name="eye shadow", keywords=(("eye shadow", 2.5),)),
    ]
    texts = ["Two Razors", "eye shadow, razor", "eye shadow with razor blades", "eyes in shadow", ""]
    assert assign(texts, categories).tolist() == [0, 1, 0, -1, -1]
    tied = [Category(name=name, keywords=((name, 1.0),)) for name in ("serum", "toner")]
    assert assign(["toner serum", "toner toner serum"], tied).tolist() == [0, 1]


def test_select_is_bounded_seeded_and_in_order() -> None:
    labels = np.array([0] * 50 + [-1] * 5 + [1] * 3)
    rows = select(labels, 10, seed=0)
    assert Counter(labels[rows].tolist()) == {0: 10, 1: 3}
    assert (np.diff(rows) > 0).all()
    np.testing.assert_array_equal(rows, select(labels, 10, seed=0))
    assert not np.array_equal(rows, select(labels, 10, seed=1))


def test_split_is_stratified_and_keeps_products_together() -> None:
    labels = np.repeat(np.arange(6), 50)
    groups = [f"{row // 3}" for row in range(300)]
    held = split(labels, groups, seed=0)
    for label in range(6):
        assert 0.14 <= held[labels == label].mean() <= 0.2
    sides: dict[tuple[str, int], set[bool]] = {}
    for group, label, side in zip(groups, labels.tolist(), held.tolist(), strict=True):
        sides.setdefault((group, label), set()).add(side)
    assert all(len(found) == 1 for found in sides.values())
    np.testing.assert_array_equal(held, split(labels, groups, seed=0))
    shared = [f"{row % 50 // 2}" for row in range(100)]  # every product has two titles, of two labels
    held = split(np.repeat([0, 1], 50), shared, seed=0)
    assert {shared[row] for row in np.flatnonzero(held)}.isdisjoint(shared[row] for row in np.flatnonzero(~held))
    assert 0.14 <= held[:50].mean() == held[50:].mean() <= 0.2
    two = split(np.zeros(2, int), ["a", "a"], seed=0)
    assert sorted(two.tolist()) == [False, True]
