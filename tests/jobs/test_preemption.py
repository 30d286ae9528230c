"""The whole pipeline on a cluster that loses a worker process or a whole node every ten seconds."""

import random
import subprocess
import time
from collections import Counter

import psutil
import pytest

from cluster.storage import open_store
from cluster.telemetry import say
from tests.clusters import RealCluster
from tests.conftest import ROOT
from tests.jobs.helpers import Done, checksums, summary_of
from tests.jobs.test_submit import KINDS, SMALL, command_line, submit

KILLS = 25
EVERY_S = 10.0
MOST = 8  # kills while one stage runs: training that is killed before its first checkpoint would never end
ROUNDS = 4  # runs of the pipeline at most
SENT = 10  # submissions of one run at most
SOON = 1e-7  # hours
ORPHANS = 3  # of one kill, at most: a part, its rejects, an upload that was not finished


class Killer:
    """Kills something of the cluster that works, but for its head."""

    def __init__(self, made: RealCluster) -> None:
        self.cluster, self.kills, self.stages = made, Counter[str](), Counter[str]()
        self._random = random.Random(7)

    def strike(self, stage: str) -> None:
        """A random worker process, or one time in four a node, which is started anew; not too often in one stage."""
        if self.stages[stage] == MOST:
            return
        if self._random.random() < 0.25:
            raylet = self._random.choice(self.cluster.raylets)
            self.cluster.kill(raylet)
            self.cluster.raylets.remove(raylet)
            self.cluster.add_raylet(1)
            self._count("node", stage)
            return
        workers = [each for raylet in self.cluster.raylets for each in _workers(raylet.pid)]
        if workers:
            self._random.choice(workers).kill()
            self._count("worker", stage)

    def _count(self, what: str, stage: str) -> None:
        self.kills[what] += 1
        self.stages[stage] += 1


def _workers(raylet: int) -> list[psutil.Process]:
    """Processes of a node that run tasks or actors now."""
    found = []
    for each in psutil.Process(raylet).children(recursive=True) if psutil.pid_exists(raylet) else []:
        try:
            line = each.cmdline()
        except psutil.NoSuchProcess:
            continue
        if line and line[0].startswith("ray::") and "IDLE" not in line[0]:
            found.append(each)
    return found


def _stage(out: str) -> str:
    """The first artifact of a run that is not committed."""
    done = {each.name.split("/")[0] for each in open_store(out).list() if each.name.endswith("/manifest.json")}
    order = ("fewshot", "pretrained", "model", "descriptors", "index", "evaluation", "comparison", "report")
    return next((name for name in order if name not in done), "end")


def _hunted(killer: Killer, *flags: object, out: str) -> tuple[Done, int]:
    """A run that is killed at until it ends or there were enough; sent again when it failed. How often it was sent."""
    said = ""
    for sent in range(1, SENT + 1):
        client = subprocess.Popen(
            command_line(killer.cluster, *flags, "--out", out), cwd=ROOT, env=killer.cluster.environ, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        try:
            while killer.kills.total() < KILLS:
                try:
                    client.wait(EVERY_S)
                    break
                except subprocess.TimeoutExpired:
                    killer.strike(_stage(out))
            printed, said = client.communicate(timeout=900)
        finally:
            client.kill()
        if client.returncode == 0:
            return subprocess.CompletedProcess("submit", 0, printed, said), sent
        say(f"sent again: {said.splitlines()[-1]}")
    raise AssertionError(f"sent {SENT} times in vain: {said[-2000:]}")


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_pipeline_that_is_hunted_ends_in_the_same_bytes(s3_root: str) -> None:
    """Every artifact and MAP@7 are those of a calm run; `gc` finds what the dead left, and removes it."""
    began, shop = time.monotonic(), f"{s3_root}/shop"
    with RealCluster() as made:
        for count in (2, 3):
            made.add_raylet(1)
            made.wait_for_nodes(count)
        summary_of(submit(made, "render", "--products", 160, "--queries", 40, "--size", 96, "--out", shop))
        flags = ("pipeline", "--catalog", f"{shop}/catalog", "--queries", f"{shop}/queries", *SMALL)
        calm = summary_of(submit(made, *flags, "--out", f"{s3_root}/calm", timeout=900))
        say(f"calm: {time.monotonic() - began:.0f} s, {calm['stage_seconds']}")
        killer, sent, rounds = Killer(made), 0, 0
        while killer.kills.total() < KILLS:
            rounds += 1
            assert rounds <= ROUNDS
            out = f"{s3_root}/wild/{rounds}"
            done, times = _hunted(killer, *flags, out=out)
            sent += times
            say(f"round {rounds}: {dict(killer.kills)}, {dict(killer.stages)}, {time.monotonic() - began:.0f} s")
            killer.stages.clear()
            assert summary_of(done)["map@7"] == calm["map@7"]
            for name, kind in {**KINDS, "model": "model", "pretrained": "model"}.items():
                ours, theirs = (checksums(f"{run}/{name}", kind) for run in (f"{s3_root}/calm", out))
                for found in (ours, theirs):
                    found.pop("query.json", None)  # of an index: it names the model's address
                assert theirs == ours, name
        gc = ("gc", f"{s3_root}/wild", "--grace-hours", SOON)
        found = summary_of(submit(made, *gc))["orphans"]
        say(
            f"\n{dict(killer.kills)} in {rounds} run(s) of the pipeline, {sent} submission(s); {found} orphans, "
            f"MAP@7 {calm['map@7']}, {time.monotonic() - began:.0f} s in all"
        )
        assert found <= ORPHANS * killer.kills.total()
        assert summary_of(submit(made, *gc, "--delete"))["orphans"] == found
        assert summary_of(submit(made, *gc))["orphans"] == 0
    for number in range(1, rounds + 1):
        assert checksums(f"{s3_root}/wild/{number}/descriptors") == checksums(f"{s3_root}/calm/descriptors")
