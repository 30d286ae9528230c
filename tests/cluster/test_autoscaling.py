"""Jobs on a cluster that starts empty: Ray's own autoscaler with fake nodes, which are real raylets on this machine."""

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.telemetry import say
from tests.clusters import RealCluster
from tests.conftest import ROOT
from tests.jobs.helpers import checksums, summary_of
from tests.jobs.test_submit import submit

IDLE_MINUTES = 0.25
FAKE = {"AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_FAKE_CLUSTER": "1", "PYTHONPATH": str(ROOT)}
IMAGE = ("--code", "image")  # fake nodes share one folder, and with it a working directory that the first to go deletes


def _group(most: int, **resources: float) -> dict[str, Any]:
    resources["object_store_memory"] = 200_000_000
    return {"resources": resources, "node_config": {}, "min_workers": 0, "max_workers": most}


def _config(gcs_port: int) -> dict[str, Any]:
    """A cluster file as `ray up` takes it, for Ray's provider of fake nodes."""
    empty_lists = ("initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands",
                   "head_start_ray_commands", "worker_start_ray_commands", "cluster_synced_files", "rsync_exclude",
                   "rsync_filter")  # fmt: skip
    return {
        "cluster_name": "fake",
        "max_workers": 5,
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": IDLE_MINUTES,
        "provider": {
            "type": "fake_multinode",
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
            "gcs_address": f"127.0.0.1:{gcs_port}",
        },
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "decode": _group(2, CPU=1),
            "gpu": _group(3, CPU=1, GPU=1),
        },
        "head_node_type": "ray.head.default",
        "auth": {},
        "file_mounts": {},
        "file_mounts_sync_continuously": False,
        **{name: list[str]() for name in empty_lists},
    }


class Timeline(threading.Thread):
    """Decode and GPU nodes that are up, noted whenever they change, and what the test does meanwhile."""

    def __init__(self, made: RealCluster) -> None:
        super().__init__(daemon=True)
        self._cluster, self._began = made, time.monotonic()
        self.stop = threading.Event()
        self.stage = "empty"
        self.seen = list[tuple[str, int, int]]()

    def run(self) -> None:
        before: tuple[str, int, int] | None = None
        while not self.stop.wait(1):
            try:
                nodes = self._cluster.nodes()
            except OSError:
                continue
            gpus = sum("GPU" in node for node in nodes)
            now = (self.stage, sum("CPU" in node for node in nodes) - gpus, gpus)
            if now != before:
                self.note(f"{now[0]}: {now[1]} decode node(s), {now[2]} GPU node(s)")
                self.seen.append(now)
                before = now

    def note(self, line: str) -> None:
        say(f"{time.monotonic() - self._began:6.1f} s  {line}")

    def note_end(self, summary: dict[str, Any]) -> None:
        self.note(
            f"{self.stage}: first part {summary['first_part_s']} s after its stream began, {summary['seconds']} s in all"
        )

    def most(self, stage: str) -> tuple[int, int]:
        """Most decode and GPU nodes during a stage."""
        rows = [row for row in self.seen if row[0] == stage]
        return max(row[1] for row in rows), max(row[2] for row in rows)

    def wait_for_none(self) -> None:
        self.stage = "idle"
        deadline = time.monotonic() + 180
        while not self.seen or self.seen[-1][1:] != (0, 0):
            assert time.monotonic() < deadline, self.seen
            time.sleep(1)


@pytest.fixture(scope="module")
def scaling(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealCluster]:
    """A head that runs no work, and an autoscaler that may add 2 decode nodes and 3 GPU nodes."""
    file = tmp_path_factory.mktemp("autoscaler") / "cluster.yaml"
    made = RealCluster(autoscaler=str(file), environ=FAKE)
    file.write_text(json.dumps(_config(made.gcs_port)))
    with made:
        yield made


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_nodes_come_for_the_work_and_go_with_it(scaling: RealCluster, shop: Path, model: Path, tmp_path: Path) -> None:
    """GPUs are what a node says it has: the model computes on its CPU (`--device cpu`), all else is as on real nodes."""
    line = Timeline(scaling)
    line.start()
    catalog = tmp_path / "catalog"
    extract = ("extract", "--catalog", catalog, "--model", model, "--part-rows", 4)
    try:
        line.stage = "ingest"
        summary_of(submit(scaling, *IMAGE, "ingest", "--source", shop / "catalog" / "images", "--out", catalog))
        line.stage = "fewshot"
        summary_of(submit(scaling, *IMAGE, "fewshot", "--catalog", shop / "catalog", "--out", tmp_path / "fewshot"))
        line.stage = "extract"
        actors = ("--model-actors", 2, "--model-actors-min", 2, "--out", tmp_path / "descriptors")
        done = submit(scaling, *IMAGE, *extract, *actors, timeout=400)
        line.note_end(summary_of(done))
        assert "waiting for 2 worker(s) of 0.75 CPUs and 0 GPUs: the cluster has 0 CPUs" in done.stderr
        assert "there after" in done.stderr
        line.wait_for_none()
        line.stage = "extract on GPUs"
        gpus = ("--model-gpus", 1, "--model-actors", 3)
        done = submit(scaling, *IMAGE, *extract, *gpus, "--model-actors-min", 3, "--device", "cpu",
                      "--out", tmp_path / "by-gpu", timeout=400)  # fmt: skip
        line.note_end(summary_of(done))
        assert "there after" in done.stderr
        line.wait_for_none()
        line.stage = "no CUDA"
        done = submit(scaling, *IMAGE, *extract, "--model-gpus", 1, "--out", tmp_path / "no-cuda", timeout=400)
        assert done.returncode == 1
        assert "torch finds no CUDA device on this node" in done.stderr.splitlines()[-1]
        line.wait_for_none()
        line.stage = "too much"
        done = submit(scaling, *IMAGE, *extract, "--model-gpus", 2, "--wait-for-resources", 15, "--out", tmp_path / "x")
        assert done.returncode == 1
        last = done.stderr.splitlines()[-1]
        assert "1 worker(s) of 0.75 CPUs and 2 GPUs did not come within 15 s" in last
        assert "--wait-for-resources" in last
    finally:
        line.stop.set()
        line.join(60)
    assert line.most("ingest") == line.most("fewshot") == (0, 0)
    assert line.most("extract") == (2, 0)
    assert line.most("extract on GPUs") == (0, 3)
    assert line.most("no CUDA") == (0, 1)
    assert line.most("too much") == (0, 0)
    assert checksums(tmp_path / "descriptors") == checksums(tmp_path / "by-gpu")
