"""What cluster/SECURITY.md claims, as far as one machine can show it."""

import ast
import json
import os
import re
import secrets
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.local_s3 import LocalS3
from cluster.storage import open_store
from cluster.telemetry import exported
from cluster.validate.dashboard import RAYS
from tests.cluster.heads import RAY, Head, started_head, status
from tests.conftest import ROOT, Run

PICKLES = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "_pickle"}
SOURCES = sorted(path for package in ("jobs", "manet", "cluster") for path in (ROOT / package).rglob("*.py"))


def unsafe_loads(text: str) -> list[str]:
    """Calls and imports of a source that would run code which a stored file brings."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.split(".")[0] in PICKLES]
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in PICKLES:
            found.append(node.module)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            called, given = ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
            if (
                (called == "torch.load" and given.get("weights_only") != "True")
                or (given.get("allow_pickle", "False") != "False")
                or called in {"yaml.load", "yaml.unsafe_load", "yaml.full_load", "pd.read_pickle", "pandas.read_pickle"}
            ):
                found.append(ast.unparse(node))
    return found


def test_no_stored_file_brings_code() -> None:
    assert len(SOURCES) > 50
    assert {str(path): found for path in SOURCES if (found := unsafe_loads(path.read_text()))} == {}


@pytest.mark.parametrize(
    "line",
    [
        "import pickle", "from cloudpickle import loads", "torch.load(path)", "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)", "yaml.load(text)",
    ],
)  # fmt: skip
def test_what_would_be_found(line: str) -> None:
    assert unsafe_loads(line)


def test_tables_that_are_read_hold_no_objects() -> None:
    """numpy refuses a pickle unless it is told to take one, which no source here does (above)."""
    import io

    import numpy as np

    file = io.BytesIO()
    np.save(file, np.array([{"run": "me"}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="allow_pickle=False"):
        np.load(io.BytesIO(file.getvalue()))


_SESSION = """
import os, subprocess, sys
from cluster.session import SessionConfig, ray_session
with ray_session(SessionConfig(ray_cpus=1, object_store_mib=128)):
    import ray
    join = [sys.executable, "-c", "import ray, sys; ray.init(address=sys.argv[1], log_to_driver=False)"]
    join.append(ray.get_runtime_context().gcs_address)
    for token in (os.environ["RAY_AUTH_TOKEN"], "0" * 64):
        given = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
        done = subprocess.run(join, env=given, capture_output=True, text=True, timeout=100)
        print(done.returncode, "InvalidAuthToken" in done.stderr or "Authentication" in done.stderr)
"""


def test_a_session_on_this_machine_has_a_token_that_no_file_holds(tmp_path: Path) -> None:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | {
        "HOME": str(tmp_path)
    }
    done = subprocess.run(
        [sys.executable, "-c", _SESSION],
        capture_output=True,
        text=True,
        timeout=250,
        cwd=ROOT,
        env=environ,
        check=False,
    )
    assert done.stdout.splitlines()[-2:] == ["0 False", "1 True"], done.stdout + done.stderr
    assert not (tmp_path / ".ray" / "auth_token").exists()


def _files_with(words: list[str], folder: Path) -> list[str]:
    return [str(path) for path in folder.rglob("*") if path.is_file() and _holds(path.read_bytes(), words)]


def _holds(data: bytes, words: list[str]) -> bool:
    return any(word.encode() in data for word in words)


def test_keys_are_nowhere(manet: Run, s3: LocalS3, s3_root: str, shop: Path, tmp_path: Path) -> None:
    """The store's keys and the token: in no byte that a job stores or says, nor in Ray's own logs."""
    token = secrets.token_hex(32)
    scratch = Path("/tmp", f"k{secrets.token_hex(3)}")  # noqa: S108 - short: Ray's sockets lie below it
    scratch.mkdir(mode=0o700)
    try:
        given = {"RAY_AUTH_TOKEN": token, "RAY_TMPDIR": str(scratch), "MANET_CACHE": str(tmp_path / "cache")}
        out = f"{s3_root}/catalog"
        done = manet("ingest", "--source", shop / "catalog" / "images", "--pack", "--out", out, "--debug", **given)
        assert done.returncode == 0, done.stderr
        words = [s3.environ["AWS_ACCESS_KEY_ID"], s3.environ["AWS_SECRET_ACCESS_KEY"], token]
        store = open_store(out)
        names = [item.name for item in store.list()]
        assert "manifest.json" in names
        assert [name for name in names if _holds(store.read(name), words)] == []
        assert not _holds((done.stdout + done.stderr).encode(), words)
        assert list(scratch.rglob("*.log"))
        assert _files_with(words, scratch) == []
    finally:
        subprocess.run(["rm", "-rf", str(scratch)], check=True)


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """A head that has keys in its environment, as a node outside AWS would."""
    with started_head(AWS_ACCESS_KEY_ID="AKIAFAKEFAKEFAKEFAKE", AWS_SECRET_ACCESS_KEY="not" + "a" * 37) as started:
        yield started


def test_what_a_cluster_tells_without_the_token(head: Head) -> None:
    agent = f"http://127.0.0.1:{head.agent}"
    shut = [f"{head.address}/api/jobs/", f"{head.address}/nodes?view=summary", f"{agent}/api/job_agent/jobs/"]
    shut += [f"{head.address}/api/v0/tasks", f"{head.address}/logical/actors"]
    assert {url: status(url) for url in shut} == dict.fromkeys(shut, 401)
    assert {url: status(url, "0" * 64) for url in shut} == dict.fromkeys(shut, 403)
    assert status(shut[0], head.environ["RAY_AUTH_TOKEN"]) == 200
    open_to_all = [f"{head.address}/", f"{head.address}/api/gcs_healthz", f"{agent}/api/local_raylet_healthz"]
    open_to_all += [f"http://127.0.0.1:{head.metrics}/metrics"]
    assert {url: status(url) for url in open_to_all} == dict.fromkeys(open_to_all, 200)


def test_the_dashboard_is_on_loopback_alone(head: Head) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("10.255.255.255", 1))
        outside = probe.getsockname()[0]
    assert not outside.startswith("127.")
    with pytest.raises(ConnectionRefusedError), socket.create_connection((outside, head.dashboard), timeout=10):
        pass


def test_a_submitted_job_holds_no_keys_and_its_metrics_are_the_dashboards(head: Head, tmp_path: Path) -> None:
    command = [RAY, "job", "submit", "--address", head.address, "--working-dir", str(ROOT), "--"]
    command += [sys.executable, "-m", "tests.cluster.metrics_job"]
    environ = {**head.environ, "AWS_SECRET_ACCESS_KEY": "also" + "b" * 36}
    job = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environ)
    try:
        wanted = {**exported(), **RAYS}
        seen = _metrics_until(head, job, set(wanted))
        assert {name: labels - {"instance"} - seen[name] for name, labels in wanted.items()} == {
            name: set() for name in wanted
        }
    finally:
        said = job.communicate(timeout=120)[0]
    assert job.returncode == 0, said
    request = urllib.request.Request(  # noqa: S310
        f"{head.address}/api/jobs/", headers={"Authorization": f"Bearer {head.environ['RAY_AUTH_TOKEN']}"}
    )
    with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
        told = answer.read().decode()
    assert json.loads(told)
    words = ["not" + "a" * 37, "also" + "b" * 36, head.environ["RAY_AUTH_TOKEN"]]
    assert not _holds((said + told).encode(), words)
    assert _files_with(words, head.folder) == []


def _metrics_until(head: Head, job: "subprocess.Popen[str]", wanted: set[str]) -> dict[str, set[str]]:
    """Metric -> its labels, as the node's metrics port shows them, once all that are wanted are there."""
    deadline, seen = time.monotonic() + 150, dict[str, set[str]]()
    while True:
        with urllib.request.urlopen(f"http://127.0.0.1:{head.metrics}/metrics", timeout=30) as answer:
            for line in answer.read().decode().splitlines():
                if found := re.match(r"(\w+)\{(.*)\} ", line):
                    seen.setdefault(found[1], set()).update(re.findall(r"(\w+)=\"", found[2]))
        if wanted <= set(seen):
            return seen
        assert job.poll() is None, job.communicate()[0]
        assert time.monotonic() < deadline, sorted(wanted - set(seen))
        time.sleep(1)
