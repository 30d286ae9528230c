import numpy as np
import pytest

from manet.errors import InputError
from manet.metrics import (
    average_precision,
    average_precision_standard,
    bootstrap_interval,
    drop_self,
    paired_interval,
    pairs_average_precision,
    retrieval_metrics,
)


def test_the_challenges_average_precision_by_hand() -> None:
    ranked = list("axbxxcx")
    assert average_precision(ranked, set("abc")) == pytest.approx((1 / 1 + 2 / 3 + 3 / 6) / 3)
    assert average_precision_standard(ranked, set("abc")) == pytest.approx((1 / 1 + 2 / 3 + 3 / 6) / 3)
    assert average_precision(ranked, set("ab") | {"elsewhere"}) == pytest.approx((1 + 2 / 3) / 2)
    assert average_precision_standard(ranked, set("ab") | {"elsewhere"}) == pytest.approx((1 + 2 / 3) / 3)


def test_boundaries() -> None:
    assert average_precision(list("abc"), {"z"}) == 0
    assert average_precision([], {"z"}) == 0
    assert average_precision(list("xxxxxxz"), {"z"}) == pytest.approx(1 / 7)
    assert average_precision(list("xxxxxxxz"), {"z"}) == 0  # the eighth answer
    many = {str(i) for i in range(20)}
    assert average_precision_standard([str(i) for i in range(7)], many) == 1  # min(7, 20)


def test_a_query_does_not_find_itself() -> None:
    assert drop_self(["q", "a", "b"], "q", 2) == ["a", "b"]
    assert drop_self(["a", "b", "c"], "q", 2) == ["a", "b"]


def test_all_figures() -> None:
    found = retrieval_metrics({"1": list("ab"), "2": list("xb")}, {"1": {"a"}, "2": {"b"}, "3": {"c"}})
    assert found["map@7"] == pytest.approx((1 + 0.5 + 0) / 3, abs=1e-6)
    assert found["recall@1"] == pytest.approx(1 / 3, abs=1e-6)
    assert found["recall@7"] == pytest.approx(2 / 3, abs=1e-6)
    assert found["queries"] == 3
    assert found["map@7_low"] <= found["map@7"] <= found["map@7_high"]
    with pytest.raises(InputError, match="no queries"):
        retrieval_metrics({}, {})
    with pytest.raises(InputError, match="'1' has no relevant"):
        retrieval_metrics({}, {"1": set()})


def test_a_query_is_no_answer_to_itself() -> None:
    """A gallery picture as the query, its product's pictures as relevant: itself among them."""
    found = retrieval_metrics({"a": ["b"]}, {"a": ["a", "b"]})
    assert found["map@7"] == found["map@7_standard"] == found["recall@7"] == 1
    with pytest.raises(InputError, match="'a' has no relevant id but its own"):
        retrieval_metrics({"a": ["b"]}, {"a": ["a"]})


def test_the_interval_covers_the_mean_of_most_samples() -> None:
    rng = np.random.default_rng(0)
    inside = 0
    for seed in range(100):
        low, high = bootstrap_interval(rng.random(60), seed=seed)
        inside += low <= 0.5 <= high
    assert 85 <= inside <= 100


def test_the_paired_interval_knows_which_is_better() -> None:
    relevant = {str(i): {"hit"} for i in range(200)}
    good = {query: ["hit"] for query in relevant}
    half = {query: ["hit" if int(query) % 2 else "miss"] for query in relevant}
    mean, low, high = paired_interval(good, half, relevant)
    assert mean == 0.5
    assert 0.4 < low < 0.5 < high < 0.6
    assert paired_interval(half, half, relevant) == (0, 0, 0)
    assert paired_interval({}, good, relevant) == (-1, -1, -1)


def test_resampled_products_keep_their_queries_together() -> None:
    """Ten photos of a product that are all found or all missed say no more than one of them."""
    relevant = {f"{product}-{photo}": {f"{product}"} for product in range(20) for photo in range(10)}
    found = {query: [query.split("-")[0]] for query in relevant}
    half = {query: answers if int(answers[0]) % 2 else [] for query, answers in found.items()}
    by_query = paired_interval(found, half, relevant)
    by_product = paired_interval(found, half, relevant, by_product=True)
    once = {query: ids for query, ids in relevant.items() if query.endswith("-0")}
    assert by_product == pytest.approx(paired_interval(found, half, once))
    assert by_query[0] == by_product[0] == 0.5
    assert by_product[2] - by_product[1] > 2.5 * (by_query[2] - by_query[1])


def test_pairs_are_ranked_like_lists() -> None:
    rng = np.random.default_rng(0)
    gallery = rng.normal(size=(40, 8)).astype(np.float32)
    queries = (gallery + rng.normal(scale=1.2, size=gallery.shape)).astype(np.float32)
    ranked = {str(i): [str(j) for j in np.argsort(-(gallery @ query))] for i, query in enumerate(queries)}
    scores = [average_precision(ranks, {query}) for query, ranks in ranked.items()]
    assert 0 < np.mean(scores) < 1
    assert pairs_average_precision(queries, gallery) == pytest.approx(np.mean(scores), abs=1e-6)
    assert (
        pairs_average_precision(np.ones((9, 2), np.float32), np.ones((9, 2), np.float32)) == 0
    )  # all alike: nothing is found
    assert pairs_average_precision(queries[:0], gallery[:0]) == 0
    queries[:] = np.nan
    assert pairs_average_precision(queries, gallery) == 0  # a network that has diverged
