"""The walk over search settings, against trying every one of them."""

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from manet.tuning import DEPTHS, Scale, Setting, choose, found_share, mixed, walk

SCALE = Scale(rows=100_000, cells=256, code_bytes=64, vector_bytes=2560)


@given(
    scan=st.floats(0.3, 1.0),
    half=st.floats(0.5, 40),
    codes=st.floats(0.5, 1.0),
    depth=st.floats(1, 200),
    target=st.floats(0.5, 1),
)
def test_finds_the_cheapest_that_reaches_the_target(
    scan: float, half: float, codes: float, depth: float, target: float
) -> None:
    def recall(nprobe: int, refine: int) -> float:  # rises with both, levels off below 1 where the codes are poor
        cells = 1 - (1 - scan) / nprobe - np.exp(-nprobe / half) / 2
        return float(cells * (codes + (1 - codes) * (1 - np.exp(-refine / depth))))

    seen = list(walk(lambda nprobe, refine: (recall(nprobe, refine), 1.0), SCALE, target))
    probes = [2**power for power in range(9)]
    every = [(SCALE.bytes(*pair), pair) for pair in itertools.product(probes, DEPTHS) if recall(*pair) >= target]
    chosen = choose(seen, target)
    if any(each.recall >= target for each in seen):
        assert chosen.recall >= target
        assert chosen.bytes <= min(every)[0]
        fewer = chosen.nprobe - max(1, chosen.nprobe // 8)
        assert fewer == 0 or recall(fewer, chosen.refine) < target
    else:  # it gave up because more cells found no more
        deepest = [recall(nprobe, DEPTHS[-1]) for nprobe in probes]
        assert not every or max(deepest) - chosen.recall < 0.01
    assert len({(each.nprobe, each.refine) for each in seen}) == len(seen) <= len(probes) + len(DEPTHS) + 4


def test_a_budget_of_time_is_kept_before_the_target() -> None:
    slow = Setting(nprobe=8, refine=100, recall=0.99, bytes=10, ms=5.0)
    quick = Setting(nprobe=4, refine=50, recall=0.90, bytes=20, ms=1.0)
    assert choose([slow, quick], 0.95) == slow
    assert choose([slow, quick], 0.95, latency_ms=2) == quick
    assert choose([slow, quick], 0.95, latency_ms=0.5) == quick


def test_equally_close_neighbours_count_alike() -> None:
    shares = found_share([[0.9, 0.8, 0.8], [0.9, 0.7]], np.array([0.8, 0.75], np.float32), 3)
    assert shares.tolist() == [1.0, 1 / 3]


def test_made_up_queries_lie_near_their_row() -> None:
    rows = np.eye(4, dtype=np.float16)
    queries = mixed(rows[:2], rows[2:])
    np.testing.assert_allclose(np.linalg.norm(queries, axis=1), 1, rtol=1e-6)
    assert (queries.argmax(1) == [0, 1]).all()
    np.testing.assert_allclose(queries[0, 0] / queries[0, 2], 0.85 / 0.15, rtol=1e-6)
