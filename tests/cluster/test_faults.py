"""S3 through a proxy that goes wrong: every call still ends right, and is counted."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cluster import s3 as s3_module
from cluster.errors import AlreadyExistsError, RetryableStoreError
from cluster.faults import Faults, FaultyProxy
from cluster.local_s3 import LocalS3
from cluster.storage import open_store


@pytest.fixture
def _own_client(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients of this test alone, for another endpoint."""
    monkeypatch.setattr(s3_module, "_clients", {})
    monkeypatch.setattr(s3_module, "BACKOFF_S", 0.01)
    monkeypatch.setattr(s3_module, "READ_TIMEOUT_S", 2)


@pytest.mark.usefixtures("_own_client")
def test_every_call_ends_right(s3: LocalS3, s3_root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    faults = Faults(busy=0.1, denied=0.05, reset=0.05, lost=0.05, stall=0.03, truncated=0.08, stall_s=3.0)
    bodies = {f"{number:03d}": bytes([number % 251]) * (number * 97 + 1) for number in range(150)}
    with FaultyProxy(s3.environ["AWS_ENDPOINT_URL"], faults) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        store, before = open_store(s3_root), s3_module.retries_seen()
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda item: store.write(*item), bodies.items()))
            read = dict(zip(bodies, pool.map(store.read, bodies), strict=True))
        assert read == bodies
        assert {entry.name: entry.size for entry in store.list()} == {name: len(data) for name, data in bodies.items()}
        assert all(proxy.counts[name] > 0 for name in ("busy", "denied", "reset", "lost", "stall", "truncated"))
        broken = sum(count for name, count in proxy.counts.items() if name != "whole")
        assert s3_module.retries_seen() - before >= broken - proxy.counts["truncated"]  # a PUT has none


class _BusyParts(FaultyProxy):
    """Busy for three requests, but for the first: each of them is one part of a file."""

    def _draw(self, faults: Faults) -> str:
        with self._lock:
            fault = "busy" if 0 < self.counts.total() <= 3 else ""
            self.counts[fault or "whole"] += 1
            return fault


@pytest.mark.usefixtures("_own_client")
def test_a_busy_part_does_not_begin_a_file_anew(
    s3: LocalS3, s3_root: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "big").write_bytes(bytes(33_000_000))  # five parts of 8 MiB at most
    with _BusyParts(s3.environ["AWS_ENDPOINT_URL"], Faults()) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        store = open_store(s3_root)
        store.write_file("x", tmp_path / "big")
        assert proxy.counts == {"whole": 1 + 4 + 1, "busy": 3}  # the upload is begun, its parts, its end
        proxy.counts.clear()
        store.download("x", tmp_path / "copy")
        assert proxy.counts == {"whole": 1 + 4, "busy": 3}  # its size, its parts
    assert (tmp_path / "copy").stat().st_size == 33_000_000


@pytest.mark.usefixtures("_own_client")
def test_a_store_that_never_answers_is_an_error_in_bounded_time(
    s3: LocalS3, s3_root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FaultyProxy(s3.environ["AWS_ENDPOINT_URL"], Faults(busy=1.0)) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        with pytest.raises(RetryableStoreError, match="the store is busy"):
            open_store(s3_root).read("x")
        assert proxy.counts["busy"] == s3_module.ATTEMPTS


@pytest.mark.usefixtures("_own_client")
def test_what_was_written_when_the_reply_was_lost_is_ours(
    s3: LocalS3, s3_root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FaultyProxy(s3.environ["AWS_ENDPOINT_URL"], Faults(lost=0.5)) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        store = open_store(s3_root)
        for number in range(20):
            store.write_if_absent(f"{number}", b"one")
            with pytest.raises(AlreadyExistsError):
                store.write_if_absent(f"{number}", b"other")
            assert store.read(f"{number}") == b"one"
        assert proxy.counts["lost"] > 10
