"""A cluster without nodes for the work: a job waits for them, says so, and gives up in time."""

import subprocess
from collections.abc import Iterator
from functools import partial
from itertools import chain, repeat
from pathlib import Path

import numpy as np
import pytest

import cluster.tasks
from cluster.errors import BadInputError
from cluster.session import SessionConfig, _room, fits, ray_session
from cluster.tasks import run_tasks
from tests.clusters import RealCluster
from tests.conftest import ROOT
from tests.jobs.helpers import summary_of
from tests.jobs.test_submit import command_line, submit


def test_what_this_machine_can_never_run_is_refused_at_once() -> None:
    with ray_session(SessionConfig(ray_cpus=1, object_store_mib=128)):
        with pytest.raises(BadInputError, match=r"1 worker.* of 64 CPUs .* this machine has 1 CPUs"):
            next(iter(run_tasks(abs, [-1], cpus=64)))
        assert list(run_tasks(abs, [-1, -2])) == [1, 2]


def test_work_may_carry_more_than_a_function_may() -> None:
    """Ray takes no function of 100 MB: ids of a few million pictures."""
    with ray_session(SessionConfig(ray_cpus=1, object_store_mib=256)):
        assert sorted(run_tasks(partial(np.take, np.arange(15_000_000)), [-1, -2])) == [14_999_998, 14_999_999]


def test_a_job_server_is_no_cluster_to_join(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://localhost:8265")
    said = r"http://localhost:8265: a job server.*manet submit.*unset RAY_ADDRESS"
    with pytest.raises(BadInputError, match=said), ray_session(SessionConfig()):
        pass


def test_tasks_in_flight_follow_the_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    found = chain([4], repeat(100))
    monkeypatch.setattr(cluster.tasks, "cluster_cpus", lambda: next(found))
    taken = list[int]()

    def units() -> Iterator[int]:
        for unit in range(299):
            taken.append(unit)
            yield unit

    with ray_session(SessionConfig(ray_cpus=1, object_store_mib=128)):
        results = run_tasks(abs, units())
        next(results)
        assert len(taken) == cluster.tasks.LEAST
        next(results)
        assert len(taken) == 200 + 1  # the one that is done makes room
        assert len(list(results)) == 299 - 2


def test_tenths_of_a_cpu_add_up() -> None:
    assert fits({"CPU": 0.3}, {"CPU": 0.1}) == 3
    for cpus, workers in ((31, 7), (53, 11), (7, 13)):  # what `train` gives each of its workers by itself
        assert _room([{"CPU": cpus}], {"CPU": (cpus - 0.25) / workers}, {"CPU": 0.25}) == workers


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_job_waits_for_a_node(tmp_path: Path) -> None:
    render = ("render", "--products", 2, "--queries", 0, "--size", 48, "--out", tmp_path / "shop")
    with RealCluster() as made:
        done = submit(made, *render, "--wait-for-resources", 6)
        assert done.returncode == 1
        assert (
            "waiting for 1 worker(s) of 1 CPUs and 0 GPUs: the cluster has 0 CPUs and 0 GPUs on 1 node(s)"
            in done.stderr
        )
        assert "did not come within 6 s" in done.stderr.splitlines()[-1]
        assert "raise --wait-for-resources" in done.stderr.splitlines()[-1]
        client = subprocess.Popen(
            command_line(made, *render),
            cwd=ROOT,
            env=made.environ,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        made.add_raylet(1)
        out, said = client.communicate(timeout=300)
        assert summary_of(subprocess.CompletedProcess("submit", client.returncode, out, said))["products"] == 2
