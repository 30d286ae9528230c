"""Jobs on a real cluster of three nodes with a token: `ray job submit` by hand, and `manet submit`."""

import contextlib
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import pytest

from cluster.errors import BadInputError
from cluster.local_s3 import LocalS3, free_ports
from cluster.storage import open_store
from jobs.cli import JOBS, _Jobs, _run, parse
from jobs.submit import PATHS, checked_words, stage
from tests.clusters import RAY, RealCluster
from tests.conftest import ROOT, Run
from tests.jobs.helpers import Done, assert_refused, checksums, summary_of

pytestmark = pytest.mark.timeout(600)
URI = "s3://bucket/x"


@pytest.fixture(scope="module")
def ray_cluster(s3: LocalS3) -> Iterator[RealCluster]:
    """A head that runs no work and two nodes that do."""
    with RealCluster() as made:
        for count in (2, 3):
            made.add_raylet(1)
            made.wait_for_nodes(count)
        yield made


def submit(made: RealCluster, *arguments: object, timeout: float = 500, **environ: str) -> Done:
    """`manet submit`, as a user types it."""
    return subprocess.run(
        command_line(made, *arguments), capture_output=True, text=True, timeout=timeout, cwd=ROOT,
        env={**made.environ, **environ}, check=False,
    )  # fmt: skip


def command_line(made: RealCluster, *arguments: object, address: str = "") -> list[str]:
    own = ("--address", address or made.address, "--python", sys.executable)
    return [sys.executable, "-m", "jobs", "submit", *own, *map(str, arguments)]


def by_hand(made: RealCluster, *arguments: object) -> Done:
    """`ray job submit` of the same command."""
    command = [RAY, "job", "submit", "--address", made.address, "--working-dir", str(ROOT), "--"]
    command += [sys.executable, "-m", "jobs", *map(str, arguments)]
    environ = {**made.environ, "RAY_RUNTIME_ENV_IGNORE_GITIGNORE": "0"}
    return subprocess.run(command, capture_output=True, text=True, timeout=500, env=environ, check=False)


def jobs_of(made: RealCluster) -> str:
    """All that the cluster tells of its jobs: entrypoints, metadata, runtime environments, messages."""
    code = "import dataclasses, json; from ray.job_submission import JobSubmissionClient as C; " \
           f"print([job.dict() for job in C('{made.address}').list_jobs()])"  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=made.environ, check=True)
    return done.stdout


# --- refused on this machine, before anything is sent


@pytest.mark.parametrize(
    "line",
    [
        "index add --index s3://b/i --descriptors s3://b/d --replace --no-details --shard-rows 50",
        "extract --catalog s3://b/c --model s3://b/m --out s3://b/d --stall-timeout 7.5 --precision bfloat16",
        "pipeline --catalog s3://b/c --queries s3://b/q --out s3://b/o --set train.epochs=5 --set index.factory=Flat",
        "index --descriptors s3://b/d --out s3://b/i",
        "status s3://b/d",
        "bench decode --catalog s3://b/c --pictures 10",
    ],
)
def test_a_spelled_out_command_means_the_same(line: str) -> None:
    names, config = parse(line.split())
    assert parse(checked_words(line.split())) == (names, config)


def test_what_the_readme_submits_parses() -> None:
    lines = re.findall(r"(?m)^manet submit (.*)$", (ROOT / "README.md").read_text())
    assert len(lines) >= 3
    for line in lines:
        names, config = parse(["submit", *line.split()])
        assert names == ["submit"]
        assert checked_words(config.model_dump()["command"]) or "--attach" in line


@pytest.mark.parametrize(
    ("line", "flag"),
    [
        ("pipeline --catalog shop/catalog --queries s3://b/q --out s3://b/o", "--catalog shop/catalog"),
        (
            "pipeline --catalog s3://b/c --queries s3://b/q --out s3://b/o --set train.saliency-weights=w.st",
            "--saliency-weights w.st",
        ),
        ("index add --index run/index --descriptors s3://b/d", "--index run/index"),
        ("index delete --index s3://b/i --ids gone.txt", "--ids gone.txt"),
        ("serve --index run/index", "--index run/index"),
        ("search --index s3://b/i --picture s3://b/a.jpg --picture b.jpg", "--picture b.jpg"),
        (
            "train --fewshot s3://b/f --out s3://b/m --backbone-weights w.safetensors",
            "--backbone-weights w.safetensors",
        ),
        ("bench extract --catalog s3://b/c --model s3://b/m --rates rates.json", "--rates rates.json"),
        ("status run", "--out run"),
    ],
)
def test_relative_paths_are_refused(line: str, flag: str) -> None:
    with pytest.raises(BadInputError, match=f"^{flag}: a relative path"):
        checked_words(line.split())


def test_weights_by_name_are_no_paths() -> None:
    line = "train --fewshot s3://b/f --out /shared/m --backbone-weights random --saliency-weights own:saliency-lite0 " \
           "--pseudo-masks classical --text-weights none"  # fmt: skip
    assert checked_words(line.split())


def test_every_text_of_a_job_is_a_path_or_is_none() -> None:
    """What PATHS does not name; a new flag is to be put there, or here."""
    others = {"attach", "address", "code", "python", "env", "driver_label", "driver_resource", "ca", "command"}
    others |= {"ray_address", "host", "cors_origin", "category", "set", "nodes", "descriptor", "decode_resource"}
    others |= {"backbone", "text", "factory", "stock_factory", "autofaiss_memory", "autofaiss_python", "usearch_python"}
    group, found = _Jobs("manet"), set[str]()
    with click.Context(group) as context:
        commands = [group.get_command(context, name) for name in JOBS]
    for command in commands:
        below = getattr(command, "others", None) or getattr(command, "commands", {})
        for each in [command, *below.values()]:
            fields = each.config.model_fields if hasattr(each, "config") else {}
            found |= {name for name, field in fields.items() if field.annotation in (str, tuple[str, ...])}
    assert found - others == PATHS


def test_a_config_file_travels_as_flags(tmp_path: Path) -> None:
    path = tmp_path / "extract.yaml"
    path.write_text("catalog: s3://b/c\nmodel: s3://b/m\nout: s3://b/d\npart-rows: 32\ncompile: true\n")
    words = checked_words(["extract", "--config", str(path), "--part-rows", "64"])
    assert str(path) not in words
    assert words[0] == "extract"
    assert set(words[1:]) == {
        "--catalog", "s3://b/c", "--model", "s3://b/m", "--out", "s3://b/d", "--part-rows", "64", "--compile",
    }  # fmt: skip


def test_what_cannot_work_is_refused_before_anything_is_sent(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (port,) = free_ports(1)
    nobody = f"http://127.0.0.1:{port}"
    good = ("render", "--products", 1, "--out", URI)
    for words, said in (
        (("--address", nobody, *good), "no cluster answers there"),
        (("--address", nobody, "render", "--products", 0, "--out", URI), "--products"),
        (("--address", nobody, "render", "--nosuch", 1), "--nosuch"),
        (("--address", nobody, "nosuch"), "nosuch"),
        (("--address", nobody, "render", "--out", "shop"), "relative path"),
        (("--address", nobody, "--env", "AWS_SECRET_ACCESS_KEY=x", *good), "looks like a secret"),
        (("--address", "http://me:word@127.0.0.1", *good), "no user and password"),
        (("--address", "127.0.0.1:8265", *good), "http://HOST:8265"),
        (("--address", nobody, "--attach", "x", *good), "--attach"),
        (("--address", nobody, "ingest", "--source", "https://h/x?X-Amz-Signature=1", "--out", URI), "credential"),
    ):
        _assert_refused_here(capsys, words, said)
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    _assert_refused_here(capsys, good, "--address is required")


def _assert_refused_here(capsys: pytest.CaptureFixture[str], words: Sequence[object], said: str) -> None:
    code = _run(["submit", *map(str, words)], debug=False)
    out, err = capsys.readouterr()
    assert_refused(subprocess.CompletedProcess("submit", code, out, err), 2, said)


def test_the_working_directory_holds_the_program_alone(tmp_path: Path) -> None:
    files, size = stage(tmp_path)
    names = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert len(names) == files
    assert size < 16 << 20  # 12.1 MiB of it are the weights in manet/trained
    assert {"jobs/cli.py", "jobs/report.html.j2", "manet/network.py", "cluster/storage.py"} <= names
    assert {name.split("/")[0] for name in names} == {"jobs", "manet", "cluster"}
    assert not [name for name in names if "__pycache__" in name or "/." in name]


# --- on the cluster


def test_a_job_runs_on_the_cluster(ray_cluster: RealCluster, shop: Path, model: Path, tmp_path: Path) -> None:
    """By hand and by `manet submit` the parts are the same; the summary is the last line on stdout."""
    flags = ("--catalog", shop / "catalog", "--model", model, "--part-rows", 32)
    hand = by_hand(ray_cluster, "extract", *flags, "--out", tmp_path / "hand")
    assert hand.returncode == 0, hand.stdout + hand.stderr
    assert '"rejects": 0' in hand.stdout
    done = submit(ray_cluster, "extract", *flags, "--out", tmp_path / "sent")
    assert summary_of(done)["rejects"] == 0
    assert len(done.stdout.splitlines()) == 1
    assert "MiB as working directory" in done.stderr
    assert checksums(tmp_path / "sent") == checksums(tmp_path / "hand")
    manifest = json.loads((tmp_path / "sent" / "manifest.json").read_text())
    assert manifest["code"]["version"] != "unknown"


def test_a_failing_job_fails_the_submission(ray_cluster: RealCluster, model: Path, tmp_path: Path) -> None:
    """Its exit code and its reason are the submission's, which adds no traceback."""
    hand = by_hand(ray_cluster, "extract", "--catalog", "/nowhere", "--model", "/nowhere", "--out", tmp_path / "x")
    assert hand.returncode == 1
    done = submit(ray_cluster, "extract", "--catalog", "/nowhere", "--model", "/nowhere", "--out", tmp_path / "x")
    assert done.returncode == 2
    assert done.stdout == ""
    assert "exit code 2: /nowhere is not a catalog" in done.stderr.splitlines()[-1]
    (tmp_path / "spoilt").mkdir()
    (tmp_path / "spoilt" / "a.jpg").write_bytes(b"no picture")
    summary_of(submit(ray_cluster, "ingest", "--source", tmp_path / "spoilt", "--out", tmp_path / "catalog"))
    flags = ("--catalog", tmp_path / "catalog", "--model", model, "--out", tmp_path / "y")
    done = submit(ray_cluster, "extract", *flags)
    assert (done.returncode, done.stdout) == (1, "")
    assert "failed with exit code 1: " in done.stderr.splitlines()[-1]
    assert "--max-rejects" in done.stderr.splitlines()[-1]


def test_without_the_token_nothing_runs(ray_cluster: RealCluster, tmp_path: Path) -> None:
    for token in ("0" * 64, ""):
        done = submit(ray_cluster, "render", "--products", 1, "--out", tmp_path / "x", RAY_AUTH_TOKEN=token)
        assert_refused(done, 2, "the token is wrong or missing")
    assert not (tmp_path / "x").exists()


def test_no_credential_is_shown(ray_cluster: RealCluster, s3: LocalS3, s3_root: str) -> None:
    """Neither in what the cluster tells of jobs, nor in any log of it, nor in manifests."""
    flags = ("--products", 2, "--queries", 1, "--size", 48, "--out", f"{s3_root}/shop")
    done = submit(ray_cluster, "--env", "SHOP=rendered", "render", *flags)
    assert summary_of(done)["products"] == 2
    told = jobs_of(ray_cluster)
    assert "manet-render" in told
    assert "SHOP" in told
    logs = [path for path in (ray_cluster.scratch / "head").rglob("*") if path.is_file() and "logs" in path.parts]
    assert len(logs) > 10
    store = open_store(s3_root)
    texts = [told, done.stdout, done.stderr, *(path.read_text(errors="replace") for path in logs)]
    texts += [store.read(entry.name).decode() for entry in store.list() if entry.name.endswith(".json")]
    for secret in (ray_cluster.token, s3.environ["AWS_SECRET_ACCESS_KEY"], s3.environ["AWS_ACCESS_KEY_ID"]):
        assert not [text[:200] for text in texts if secret in text]


PRODUCTS = 1200  # rendered in about a minute on two cores


class Wire:
    """A relay between a client and the job server that can be cut: open connections break, new ones are refused."""

    def __init__(self, port: int) -> None:
        self._port = port
        (self.port,) = free_ports(1)
        self._open = list[socket.socket]()
        self._door: socket.socket | None = None
        self.mend()

    def mend(self) -> None:
        self._door = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, args=(self._door,), daemon=True).start()

    def cut(self) -> None:
        assert self._door is not None
        for each in (self._door, *self._open):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        self._open.clear()

    def _accept(self, door: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = door.accept()
                server = socket.create_connection(("127.0.0.1", self._port))
                self._open += [client, server]
                for pair in ((client, server), (server, client)):
                    threading.Thread(target=self._pump, args=pair, daemon=True).start()

    @staticmethod
    def _pump(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_RDWR)


@pytest.mark.slow
def test_a_dropped_connection_is_made_again(ray_cluster: RealCluster, tmp_path: Path) -> None:
    """Cut twice, then left by Ctrl-C, then attached to: every line of the log once, and the summary."""
    wire = Wire(ray_cluster.dashboard)
    address = f"http://127.0.0.1:{wire.port}"
    flags = ("render", "--products", PRODUCTS, "--queries", 0, "--size", 480, "--out", tmp_path / "shop")
    command = command_line(ray_cluster, *flags, address=address)
    log = tmp_path / "log"
    with log.open("w") as file:
        client = subprocess.Popen(command, cwd=ROOT, env=ray_cluster.environ, stdout=file, stderr=file)
    _wait_for(lambda: "render catalog:" in log.read_text(), client)
    for _ in range(2):
        wire.cut()
        time.sleep(3)
        wire.mend()
        time.sleep(6)
    assert client.poll() is None, log.read_text()
    client.send_signal(signal.SIGINT)
    assert client.wait(60) == 1
    said = log.read_text()
    assert "does not answer" in said
    assert said.count("Running entrypoint") == 1
    assert "--attach manet-render-" in said.splitlines()[-1]
    name = next(line for line in said.splitlines() if line.startswith("submitted ")).split()[1]
    done = submit(ray_cluster, "--attach", name)
    assert summary_of(done)["products"] == PRODUCTS
    progress = [line for line in done.stderr.splitlines() if line.startswith("render catalog:")]
    assert len(progress) == len(set(progress)) >= 3
    assert [line for line in progress if line in said]


def _wait_for(true: Callable[[], bool], process: "subprocess.Popen[Any]", seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.3)


SMALL = (
    "--size", 96, "--set", "train.pseudo_masks=classical", "--set", "train.train_size=64", "--set", "train.epochs=1",
    "--set", "train.saliency_epochs=1", "--set", "train.worker_cpus=0.75", "--set", "report.shown=4",
)  # fmt: skip
KINDS = {"fewshot": "fewshot", "descriptors": "descriptors", "index": "index"}


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_whole_pipeline_on_the_cluster(ray_cluster: RealCluster, manet: Run, s3_root: str) -> None:
    """From and to S3: the artifacts are those of a run on this machine alone, file by file."""
    shop = f"{s3_root}/shop"
    summary_of(submit(ray_cluster, "render", "--products", 40, "--queries", 12, "--size", 96, "--out", shop))
    flags = ("--catalog", f"{shop}/catalog", "--queries", f"{shop}/queries", *SMALL)
    sent = submit(ray_cluster, "pipeline", *flags, "--out", f"{s3_root}/sent", timeout=900)
    here = manet("pipeline", *flags, "--out", f"{s3_root}/here", "--ray-cpus", 2, timeout=900)
    assert summary_of(sent)["map@7"] == summary_of(here)["map@7"]
    for name, kind in {**KINDS, "model": "model", "pretrained": "model"}.items():
        theirs, ours = (checksums(f"{s3_root}/{run}/{name}", kind) for run in ("sent", "here"))
        for found in (theirs, ours):
            found.pop("query.json", None)  # of an index: it names the model's address
        assert theirs == ours, name


@pytest.mark.slow
def test_after_a_crash_of_the_head_the_same_command_goes_on(shop: Path, model: Path, tmp_path: Path) -> None:
    """The client says what happened; the next submission keeps the finished parts, and ends in the same bytes."""
    flags = ("extract", "--catalog", shop / "catalog", "--model", model, "--part-rows", 4, "--size", 320)
    out = tmp_path / "descriptors"
    with RealCluster(head_cpus=2) as made:
        command = command_line(made, "--reconnect-seconds", 120, *flags, "--out", out)
        client = subprocess.Popen(command, cwd=ROOT, env=made.environ, stderr=subprocess.PIPE, text=True)
        try:
            receipts = out / "receipts"
            _wait_for(lambda: receipts.is_dir() and len(list(receipts.iterdir())) >= 4, client)
            assert made.head is not None
            made.kill(made.head)
            made.start_head()
            said = client.communicate(timeout=150)[1]
        finally:
            client.kill()
        assert client.returncode == 1
        assert "submit the same command again, it goes on where it was" in said.splitlines()[-1]
        assert not (out / "manifest.json").exists()
        again = submit(made, *flags, "--out", out)
        summary_of(again)
        assert "resuming: " in again.stderr
        summary_of(submit(made, *flags, "--out", tmp_path / "calm"))
    assert checksums(out) == checksums(tmp_path / "calm")
