"""A spot market's notice reaches Ray."""

import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.error import HTTPError

import pytest

from cluster import notices
from cluster.notices import Metadata, Notice, wait_for_notice
from tests.cluster.market import SpotMarket
from tests.clusters import RealCluster


def test_a_notice_is_read_when_it_comes(capsys: pytest.CaptureFixture[str]) -> None:
    with SpotMarket() as market:
        metadata = Metadata(market.address)
        assert metadata.notice() is None
        market.tokens.clear()  # as EC2's tokens run out
        assert metadata.notice() is None
        assert market.refused == 1  # and asked again at once
        market.gives = False
        market.tokens.clear()
        with pytest.raises(HTTPError, match="401"):
            metadata.notice()
        market.gives = True
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


def test_whose_node_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for found, asked, node in (({"a"}, "", "a"), ({"a", "b"}, "b", "b")):
        monkeypatch.setattr(notices, "find_node_ids", lambda found=found: found)
        assert notices.own_node(asked) == node
    for found, asked, words in (
        (set(), "", "0 Ray nodes"),
        ({"a", "b"}, "", "2 Ray nodes"),
        ({"a"}, "c", "no Ray node c"),
    ):
        monkeypatch.setattr(notices, "find_node_ids", lambda found=found: found)
        with pytest.raises(Exception, match=words):
            notices.own_node(asked)


def test_a_node_that_comes_back_in_time_is_drained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ray restarts on it when the notice comes; `ray` itself is a program that fails once, then writes what it was asked."""
    ray = tmp_path / "ray"
    fail_once = f"[ -f {tmp_path}/once ] || {{ touch {tmp_path}/once; echo no GCS >&2; exit 1; }}"
    ray.write_text(f"#!/bin/sh\n{fail_once}\necho $@ > {tmp_path}/asked\n")
    ray.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    nodes = iter([set(), {"a"}, {"a"}])
    monkeypatch.setattr(notices, "find_node_ids", lambda: next(nodes))
    assert notices.announce(Notice(action="terminate", at=datetime.now(UTC) + timedelta(seconds=60)), "")
    said = capsys.readouterr().err
    assert said.index("0 Ray nodes") < said.index("no GCS; again") < said.index("node a is being drained")
    asked = (tmp_path / "asked").read_text().split()
    assert asked[asked.index("--node-id") + 1] == "a"
    assert 40 < int(asked[asked.index("--deadline-remaining-seconds") + 1]) <= 56


def test_a_notice_that_ray_does_not_take_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notices, "find_node_ids", set)
    assert not notices.announce(Notice(action="hibernate", at=datetime.now(UTC)), "")  # one try all the same


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
        finally:
            watcher.kill()
