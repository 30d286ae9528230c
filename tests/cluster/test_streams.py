"""`cluster.streams.watched`: items, errors, and streams that stop giving any."""

import os
import threading
import time
from collections.abc import Iterator
from typing import Any, cast

import pytest

from cluster.errors import IntegrityError, JobFailedError
from cluster.session import SessionConfig, ray_session
from cluster.streams import Board, configure_data, watched


def test_items_come_through_in_order() -> None:
    found = watched(iter(range(100)), 60, lambda: "", "--flag")
    assert [item for item in found if item is not None] == list(range(100))


def test_errors_come_through() -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise IntegrityError("x is damaged")

    found = watched(broken(), 60, lambda: "", "--flag")
    with pytest.raises(IntegrityError, match="x is damaged"):
        list(found)


def test_a_stall_is_said_with_what_it_waits_for_and_ends() -> None:
    release = threading.Event()

    def stalled() -> Iterator[int]:
        yield 1
        release.wait(120)

    try:
        with pytest.raises(
            JobFailedError, match=r"no progress for 0.5 s, waiting for: decoding \(2\).*--stall-timeout"
        ):
            list(watched(stalled(), 0.5, lambda: "decoding (2)", "--stall-timeout"))
    finally:
        release.set()


def test_every_item_is_progress() -> None:
    def slow() -> Iterator[int]:
        for item in range(4):
            time.sleep(0.6)
            yield item

    found = list(watched(slow(), 60, lambda: "", "--flag"))
    assert [item for item in found if item is not None] == [0, 1, 2, 3]


def test_the_board_adds_up_its_workers() -> None:
    board = Board()
    board.report("a", {"decoding": 1, "the model": 1})
    board.report("b", {"decoding": 2})
    board.report("a", {"decoding": 1})
    assert board.stages() == {"decoding": 3}


class _Slow:
    """A model actor that holds three units at once."""

    def __call__(self, row: dict[str, int]) -> dict[str, int]:
        time.sleep(0.3)
        return {"pid": os.getpid()}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Ray's own making
def test_a_pool_that_is_full_grows_where_there_is_room() -> None:
    """From the fewest actors to the most, as nodes come: by Ray's own bound an actor that never queues is never full."""
    import ray
    from ray.data import ActorPoolStrategy

    with ray_session(SessionConfig(ray_cpus=2, object_store_mib=128)):
        configure_data()
        pool = ActorPoolStrategy(
            min_size=1,
            max_size=50,
            max_tasks_in_flight_per_actor=3,
            max_concurrent_calls_per_actor=3,
            enable_true_multi_threading=True,
        )
        rows = ray.data.from_items([{"index": index} for index in range(120)], override_num_blocks=120)
        found = {row["pid"] for row in rows.map(cast(Any, _Slow), compute=pool, num_cpus=1).iter_rows()}
    assert len(found) == 2
