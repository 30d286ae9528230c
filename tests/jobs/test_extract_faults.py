"""An extraction whose pictures, catalogue, parts and manifest all go through a store that goes wrong."""

from pathlib import Path

import pytest

from cluster.faults import Faults, FaultyProxy
from cluster.local_s3 import LocalS3
from tests.conftest import Run
from tests.jobs.helpers import checksums, summary_of

FAULTS = Faults(busy=0.05, reset=0.01, lost=0.01, stall=0.02, truncated=0.01, stall_s=3.0)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_bytes_are_those_of_a_sound_store(
    manet: Run, model: Path, s3: LocalS3, s3_root: str, tmp_path: Path
) -> None:
    """5% 503, 2% resets (half of them after the store has done what it was asked), 2% stalls, 1% truncated bodies."""
    shop = f"{s3_root}/shop"
    rendered = summary_of(manet("render", "--products", 200, "--queries", 0, "--size", 96, "--out", shop))
    command = ("extract", "--catalog", f"{shop}/catalog", "--model", model, "--part-rows", 16, "--out")
    sound = summary_of(manet(*command, f"{s3_root}/sound"))
    with FaultyProxy(s3.environ["AWS_ENDPOINT_URL"], FAULTS) as proxy:
        done = summary_of(manet(*command, f"{s3_root}/faulty", AWS_ENDPOINT_URL=proxy.endpoint, timeout=600))
    assert (done["rows"], done["rejects"]) == (rendered["catalog_rows"], 0)
    assert done["reasons"] == {}
    assert checksums(f"{s3_root}/faulty") == checksums(f"{s3_root}/sound")
    assert all(proxy.counts[name] > 0 for name in ("busy", "reset", "lost", "stall", "truncated")), proxy.counts
    assert sound["retries"] == 0
    broken = sum(proxy.counts[name] for name in ("busy", "reset", "lost"))
    assert 0.8 * broken <= done["retries"] <= broken + proxy.counts["truncated"]  # few come before the counting starts
