"""`manet bench extract`: a ratio that is one."""

from pathlib import Path

import pytest

from tests.conftest import Run
from tests.jobs.helpers import summary_of


@pytest.mark.slow
def test_the_ratio_of_the_job_to_the_bare_model(manet: Run, model: Path, shop: Path) -> None:
    done = manet("bench", "extract", "--catalog", shop / "catalog", "--model", model, "--part-rows", 16, timeout=280)
    summary = summary_of(done)
    assert summary["ratio_bare_model"] == pytest.approx(
        summary["job_pictures_per_s"] / summary["bare_model_pictures_per_s"], abs=0.01
    )
    assert 0.05 < summary["ratio_bare_model"] < 2
    assert min(summary[f"{name}_pictures_per_s"] for name in ("dataloader_loop", "decode_alone", "reads_alone")) > 0
