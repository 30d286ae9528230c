"""Training on nodes that are lost: with notice, without, and with no other to take their place."""

import json
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from threading import Timer

import pytest

from tests.cluster.market import SpotMarket
from tests.clusters import RealCluster
from tests.conftest import ROOT
from tests.jobs.helpers import checksums, summary_of
from tests.jobs.test_submit import command_line, submit

NOTICE_S = 15  # between the spot market's notice and the node's end: less than the run has left; EC2 gives 120
TRAIN = ("--pseudo-masks", "classical", "--size", 64, "--train-size", 96, "--saliency-epochs", 1, "--batch-size", 8,
         "--epochs", 4)  # fmt: skip


def _trained(made: RealCluster, out: Path, *flags: object, lose: Callable[[], None]) -> str:
    """Run `train` on the cluster; when its first epoch is kept, `lose` is called. What it said."""
    command = command_line(made, "train", *TRAIN, *flags, "--out", out)
    client = subprocess.Popen(
        command, cwd=ROOT, env=made.environ, text=True, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 300
        while not list((out / "checkpoints").glob("*/run/checkpoint_manager_snapshot.json")):
            assert client.poll() is None, client.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.1)
        lose()
        said = client.communicate(timeout=400)[1]
    finally:
        client.kill()
    assert client.returncode == 0, said
    return said


def _history(out: Path) -> list[dict[str, object]]:
    history: list[dict[str, object]] = json.loads((out / "metrics.json").read_text())["history"]
    return history


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_an_announced_loss_costs_a_few_steps_and_changes_no_bit(shop: Path, tmp_path: Path) -> None:
    """The spot market takes the node of the only worker, which `cluster.notices` watches; another one comes."""
    fewshot = tmp_path / "fewshot"
    flags = ("--fewshot", fewshot, "--masks", tmp_path / "masks", "--worker-cpus", 1)
    with RealCluster() as made:
        made.add_raylet(2, '--resources={"first": 1}')
        made.wait_for_nodes(2)
        summary_of(submit(made, "fewshot", "--catalog", shop / "catalog", "--out", fewshot))
        summary_of(submit(made, "train", *TRAIN, *flags, "--out", tmp_path / "calm", timeout=400))

        def replaced() -> None:
            market.take(NOTICE_S)
            Timer(NOTICE_S, made.kill, made.raylets[:1]).start()  # and then it is gone
            made.add_raylet(2, '--resources={"second": 1}')

        node = next(each for each, resources in made.nodes_by_id().items() if "first" in resources)
        with SpotMarket() as market:
            watcher = market.watched(made, node, tmp_path / "lock")
            try:
                said = _trained(made, tmp_path / "moved", *flags, lose=replaced)
                watched = watcher.communicate(timeout=60)[1]
            finally:
                watcher.kill()
            assert watcher.returncode == 0, watched
    found = re.search(r"going on in epoch (\d) after step (\d+)", said)
    assert found, said  # within an epoch, not at the beginning of one
    assert checksums(tmp_path / "moved", "model") == checksums(tmp_path / "calm", "model")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_those_that_are_left_go_on(shop: Path, tmp_path: Path) -> None:
    """Two nodes with room for one worker each; one is lost without a word, and nothing takes its place."""
    fewshot = tmp_path / "fewshot"
    flags = ("--fewshot", fewshot, "--workers", 2, "--workers-min", 1, "--worker-cpus", 1.25)
    with RealCluster() as made:
        for count in (2, 3):
            made.add_raylet(2)
            made.wait_for_nodes(count)
        summary_of(submit(made, "fewshot", "--catalog", shop / "catalog", "--out", fewshot))
        said = _trained(made, tmp_path / "fewer", *flags, lose=lambda: made.kill(made.raylets[-1]))
    assert "going on with the workers that are left" in said
    workers = [row["workers"] for row in _history(tmp_path / "fewer")]
    assert workers[0] == 2
    assert workers[-1] == 1
    assert len(workers) == 5
