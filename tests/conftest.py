"""Fixtures: a real S3 server, stores on both backends, a small shop and a model."""

import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cluster.artifact import ArtifactWriter, Blob
from cluster.local_s3 import LocalS3
from cluster.storage import Store, open_store

ROOT = Path(__file__).parents[1]
os.environ.setdefault("OMP_NUM_THREADS", "1")
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def s3() -> Iterator[LocalS3]:
    """One real S3 server for all tests; its keys stand in this process's environment."""
    with LocalS3() as server:
        before = dict(os.environ)
        os.environ.update(server.environ)
        yield server
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture
def s3_root(s3: LocalS3) -> str:
    """A fresh prefix on the S3 server."""
    return f"s3://{s3.bucket}/{uuid.uuid4().hex}"


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """A fresh store on each backend."""
    return open_store(tmp_path / "store" if request.param == "local" else request.getfixturevalue("s3_root"))


@pytest.fixture(scope="session")
def manet() -> Run:
    """Run one command as a user does; its output as text."""

    def run(*arguments: object, timeout: float = 240, **environ: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "jobs", *map(str, arguments)]
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=timeout,
            cwd=ROOT,
            env={**os.environ, **environ},
            check=False,
        )

    return run


@pytest.fixture(scope="session")
def shop(manet: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A rendered shop: OUT/catalog and OUT/queries."""
    folder = tmp_path_factory.mktemp("shop")
    done = manet("render", "--products", 48, "--queries", 12, "--size", 96, "--out", folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A committed model with ImageNet weights, untrained, for pictures of 96 px; weights of levels as if learned."""
    import torch

    from manet.checkpoint import save_model
    from manet.config import NetworkConfig
    from manet.images import PictureConfig
    from manet.network import InitialWeights, initial

    folder = tmp_path_factory.mktemp("model")
    config = NetworkConfig(pictures=PictureConfig(size=96), saliency_size=64, region_weights="learned")
    weights = InitialWeights(backbone="pip:efficientnet-lite0", saliency="pip:efficientnet-lite0")
    network = initial(config, weights)
    torch.nn.init.constant_(network.get_parameter("log_level_weights_L")[0], 2.0)
    save_model(folder / "files", network)
    return commit(folder / "model", "model", {path.name: path for path in (folder / "files").iterdir()})


def commit(folder: Path, kind: str, files: dict[str, Path]) -> Path:
    """A committed artifact of some files."""
    writer = ArtifactWriter.open(str(folder), kind, config={}, claimed=(), inputs={})
    writer.units.put("all", {name: Blob(data=path) for name, path in files.items()})
    writer.commit(["all"], {}, {})
    return folder
