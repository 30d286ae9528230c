"""A spot market's notice reaches Ray."""

import time
from pathlib import Path

import pytest

from cluster.notices import Metadata, wait_for_notice
from tests.cluster.market import SpotMarket
from tests.clusters import RealCluster


def test_a_notice_is_read_when_it_comes(capsys: pytest.CaptureFixture[str]) -> None:
    with SpotMarket() as market:
        metadata = Metadata(market.address)
        assert metadata.notice() is None
        market.tokens.clear()  # as EC2's tokens run out
        assert metadata.notice() is None
        assert market.refused == 1
        market.told = "soon"
        with pytest.raises(ValueError, match="'soon'"):
            metadata.notice()
        market.take(100)
        found = wait_for_notice(metadata, 0.01)
    assert found.action == "terminate"
    assert 95 < found.seconds <= 100
    with pytest.raises(OSError, match="refused"):
        metadata.notice()
    assert capsys.readouterr().err == ""


def test_a_node_is_drained_before_it_goes(tmp_path: Path) -> None:
    """On a real cluster: nothing happens until the notice, then the node takes no work any more and leaves."""
    with RealCluster() as made, SpotMarket() as market:
        made.wait_for_nodes(1)
        (head,) = made.nodes_by_id()
        made.add_raylet(1)
        made.wait_for_nodes(2)
        (node,) = set(made.nodes_by_id()) - {head}
        watcher = market.watched(made, node, tmp_path / "lock")
        try:
            deadline = time.monotonic() + 60
            while not market.tokens:
                assert watcher.poll() is None, watcher.communicate()[1]
                assert time.monotonic() < deadline
                time.sleep(0.1)
            second = market.watched(made, node, tmp_path / "lock")
            assert "runs already" in second.communicate(timeout=60)[1]
            assert second.returncode == 0
            assert set(made.nodes_by_id()) == {head, node}
            market.take(30)
            said = watcher.communicate(timeout=60)[1]
            assert watcher.returncode == 0, said
            assert f"node {node} is being drained" in said
            while node in made.nodes_by_id():
                assert time.monotonic() < deadline + 60
                time.sleep(0.5)
            market.take(6)
            head_alone = market.watched(made, "", tmp_path / "other")
            said = head_alone.communicate(timeout=90)[1]
        finally:
            watcher.kill()
    if head_alone.returncode == 2:
        assert "name it with --node" in said, said  # another Ray runs on this machine
    else:
        assert head_alone.returncode == 1, said
        assert "is not accepted" in said  # Ray keeps its head
        assert "Ray was not told in time" in said
