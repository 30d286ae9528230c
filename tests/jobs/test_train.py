"""`manet fewshot` and `manet train`: the split, the masks, and a run that is killed."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file

from cluster.artifact import open_artifact, sha256_of
from cluster.errors import MisplacedError
from jobs.inputs import cache_folder, fetch_weights
from jobs.masks import mapper
from jobs.pictures import load_picture
from manet.images import PictureConfig
from manet.weights import read_tensors, resolve
from tests.conftest import ROOT, Run
from tests.jobs.helpers import assert_refused, checksums, summary_of
from tests.manet.graphs import frozen_graph

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def fewshot(manet: Run, shop: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shop's few-shot set."""
    out = tmp_path_factory.mktemp("few") / "fewshot"
    summary_of(manet("fewshot", "--catalog", shop / "catalog", "--out", out))
    return out


def test_the_split(fewshot: Path, manet: Run, shop: Path, tmp_path: Path) -> None:
    train, val = pq.read_table(fewshot / "train-00000.parquet"), pq.read_table(fewshot / "val-00000.parquet")
    assert not set(train["image_id"].to_pylist()) & set(val["image_id"].to_pylist())
    assert 0.1 < val.num_rows / (train.num_rows + val.num_rows) < 0.35
    categories = json.loads((fewshot / "categories.json").read_text())["categories"]
    assert set(train["label"].to_pylist()) <= set(range(len(categories)))
    counts = [row["pictures"] for row in categories]
    assert sum(counts) == train.num_rows + val.num_rows
    assert all(Path(uri).is_file() for uri in val["uri"].to_pylist())  # absolute
    summary_of(manet("fewshot", "--catalog", shop / "catalog", "--out", tmp_path / "again"))
    assert checksums(tmp_path / "again", "fewshot") == checksums(fewshot, "fewshot")
    few = manet("fewshot", "--catalog", shop / "catalog", "--per-category", 2, "--out", tmp_path / "two")
    assert summary_of(few)["train"] + summary_of(few)["val"] <= 2 * len(categories)


def test_missing_weights_are_an_error(manet: Run, fewshot: Path, tmp_path: Path) -> None:
    train = ("train", "--fewshot", fewshot, "--out", tmp_path / "model", "--pseudo-masks", "classical", "--epochs", 1)
    done = manet(*train, "--size", 64, "--train-size", 64, "--backbone-weights", "/no/weights.safetensors")
    assert_refused(done, 2, "weights /no/weights.safetensors", "no such file")
    done = manet("train", "--fewshot", fewshot, "--out", tmp_path / "other", "--backbone", "resnet5000")
    assert_refused(done, 2, "'resnet5000' is unknown")
    done = manet("train", "--fewshot", fewshot, "--out", tmp_path / "other", "--backbone", "resnet18")
    assert_refused(done, 2, "--backbone resnet18: give its --backbone-weights")
    assert not (tmp_path / "model").exists()  # a mistake claims nothing
    assert not (tmp_path / "other").exists()


def test_a_split_without_pictures_is_refused(manet: Run, shop: Path, tmp_path: Path) -> None:
    """One picture is in one split alone; the other one would be empty."""
    row = pq.read_table(next((shop / "catalog").glob("catalog-*.parquet"))).to_pylist()[0]
    one = {**row, "uri": str(shop / "catalog" / row["uri"])}
    pq.write_table(pa.Table.from_pylist([one]), tmp_path / "one.parquet")
    summary = summary_of(manet("fewshot", "--catalog", tmp_path / "one.parquet", "--out", tmp_path / "few"))
    assert (summary["train"], summary["val"]) == (1, 0)
    train = ("train", "--fewshot", tmp_path / "few", "--out", tmp_path / "model", "--pseudo-masks", "classical")
    assert_refused(manet(*train), 2, "0 usable pictures to validate with, 1 workers")


def test_a_rendered_catalogue_has_exact_masks(manet: Run, fewshot: Path, shop: Path, tmp_path: Path) -> None:
    """Drawn again from its seed, prepared as the picture is; another catalogue has none."""
    mask_of = mapper("saliency", "rendered", open_artifact(str(fewshot), "fewshot"))
    rows = pq.read_table(fewshot / "train-00000.parquet").to_pylist()[:12]
    for row in rows:
        picture = load_picture(row["uri"], PictureConfig(size=96))
        assert isinstance(picture, np.ndarray)
        mask = mask_of(row["image_id"], picture)
        assert mask.shape == picture.shape[:2]
        far = (
            np.abs(picture.astype(int) - np.median(picture[mask < 128], axis=0)).max(2) > 90
        )  # nothing like the ground
        assert mask[far].mean() > 230, row["image_id"]
        assert 0.01 < (mask > 128).mean() < 0.9
    bare = pq.read_table(shop / "catalog" / "catalog-00000.parquet").to_pylist()
    bare = [{**row, "uri": str(shop / "catalog" / row["uri"])} for row in bare]
    pq.write_table(pa.Table.from_pylist(bare), tmp_path / "bare.parquet")
    summary_of(manet("fewshot", "--catalog", tmp_path / "bare.parquet", "--out", tmp_path / "few"))
    done = manet("train", "--fewshot", tmp_path / "few", "--pseudo-masks", "rendered", "--out", tmp_path / "model")
    assert_refused(done, 2, "--pseudo-masks rendered", "bare.parquet is none that `manet render` made")
    assert not (tmp_path / "model").exists()


def test_the_network_of_init_is_kept(manet: Run, fewshot: Path, model: Path, tmp_path: Path) -> None:
    command = ["train", "--fewshot", fewshot, "--init", model, "--out", tmp_path / "model", "--size", 64]
    command += ["--saliency-epochs", 0, "--pseudo-masks", "classical"]
    assert_refused(manet(*command, "--epochs", 0), 2, "nothing would be trained")
    assert_refused(manet(*command, "--backbone", "resnet18"), 2, "--backbone resnet18", "has efficientnet-lite0")
    weights = ("--saliency-weights", "own:saliency-lite0")
    assert_refused(manet(*command, *weights), 2, "--saliency-weights own:saliency-lite0: --init brings the weights")
    assert_refused(manet(*command, "--workers", 40), 2, "--workers 40: --batch-size 32")
    assert_refused(manet(*command, "--workers", 2, "--worker-gpus", 0.5), 2, "--worker-gpus 0.5: several workers")
    learned = (*command, "--region-weights", "learned")
    assert_refused(manet(*learned, "--attention", "none"), 2, "--region-weights learned: needs saliency attention")
    assert_refused(manet(*learned, "--instance-loss", 0), 2, "--region-weights learned: the instance loss", "none")
    assert_refused(manet(*learned, "--branch", "saliency"), 2, "--region-weights learned: the instance loss", "none")
    assert not (tmp_path / "model").exists()


def test_initial_weights_are_a_model_where_all_of_the_saliency_branch_is_given(
    manet: Run, fewshot: Path, tmp_path: Path
) -> None:
    """The untrained model that others are compared with, of which nothing is random but the head."""
    command = ["train", "--fewshot", fewshot, "--size", 64, "--epochs", 0, "--pseudo-masks", "classical"]
    command += ["--frozen-saliency", "--out"]
    assert_refused(manet(*command, tmp_path / "half"), 2, "efficientnet-lite0: not of a whole saliency branch")
    chance = manet(*command, tmp_path / "chance", "--saliency-weights", "random")
    assert_refused(chance, 2, "weights random: a saliency branch that nothing teaches")
    alone = ("--branch", "saliency")
    assert_refused(manet(*command, tmp_path / "alone", *alone), 2, "--frozen-saliency: --branch saliency trains one")
    done = manet(*command, tmp_path / "first", "--saliency-weights", "own:saliency-lite0")
    assert summary_of(done)["epochs"] == 0
    tensors = load_file(tmp_path / "first" / "model.safetensors")
    for name, value in read_tensors(resolve("own:saliency-lite0")).items():
        assert tensors[f"saliency.{name}"].equal(value.to(tensors[f"saliency.{name}"].dtype)), name
    assert_refused(
        manet(*command, tmp_path / "no", "--init", tmp_path / "first"), 2, "of --init nothing would be trained"
    )
    given = ("--init", tmp_path / "first", "--frozen-saliency", "--pseudo-masks", "classical", "--train-size", 64)
    done = manet(
        "train", "--fewshot", fewshot, "--masks", tmp_path / "first" / "masks", "--out", tmp_path / "second", *given,
        "--epochs", 1,
    )  # fmt: skip
    assert summary_of(done)["epochs"] == 1
    trained = load_file(tmp_path / "second" / "model.safetensors")
    changed = {name.partition(".")[0] for name, value in trained.items() if not value.equal(tensors[name])}
    assert changed == {"backbone", "head"}


def test_overwrite_reaches_masks_of_other_pictures(manet: Run, shop: Path, tmp_path: Path) -> None:
    """Its own, where they are not of the pictures that are trained on; never those at --masks."""
    few, out = tmp_path / "few", tmp_path / "model"
    make = ("fewshot", "--catalog", shop / "catalog", "--out", few, "--overwrite", "--per-category")
    train = ["train", "--fewshot", few, "--pseudo-masks", "classical", "--size", 64, "--train-size", 64, "--epochs", 0]
    train += ["--saliency-epochs", 1, "--out", out]
    summary_of(manet(*make, 4))
    summary_of(manet(*train, timeout=280))
    before = json.loads((out / "masks" / "manifest.json").read_text())
    summary_of(manet(*make, 6))
    assert_refused(manet(*train), 2, "another command", "--overwrite")
    assert_refused(manet(*train, "--overwrite", "--masks", out / "masks"), 2, "of another few-shot set")
    assert (out / "manifest.json").exists()  # nothing is lost
    summary_of(manet(*train, "--overwrite", timeout=280))
    after = json.loads((out / "masks" / "manifest.json").read_text())
    assert after["summary"]["rows"] > before["summary"]["rows"]
    summary_of(manet(*train, "--overwrite", "--seed", 1, timeout=280))
    assert json.loads((out / "masks" / "manifest.json").read_text()) == after  # whole, and of these pictures


@pytest.mark.parametrize("patience", [0, 2])
def test_a_run_that_diverges_says_so_and_makes_no_model(
    manet: Run, fewshot: Path, model: Path, tmp_path: Path, patience: int
) -> None:
    train = ["train", "--fewshot", fewshot, "--init", model, "--saliency-epochs", 0, "--pseudo-masks", "classical"]
    train += ["--size", 64, "--train-size", 64, "--lr", 1e30, "--epochs", 3, "--patience", patience]
    done = manet(*train, "--out", tmp_path / "model", timeout=280)
    assert_refused(done, 1, "training diverged in epoch 0", "lower --lr")
    assert not (tmp_path / "model" / "manifest.json").exists()


def test_weights_files_are_kept_by_their_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MANET_CACHE", str(tmp_path / "cache"))
    there = tmp_path / "there.safetensors"
    there.write_bytes(b"one")
    first = fetch_weights(f"file://{there}")
    assert fetch_weights(f"file://{there}", sha256_of(there)) == first
    there.write_bytes(b"two")
    second = fetch_weights(f"file://{there}")
    assert (first.read_bytes(), second.read_bytes()) == (b"one", b"two")
    assert fetch_weights("file:///gone/there.safetensors", sha256_of(second)) == second  # nothing is brought
    second.write_bytes(b"spoilt")
    assert fetch_weights(f"file://{there}", sha256_of(there)).read_bytes() == b"two"
    assert {path.name for path in (tmp_path / "cache" / "weights").iterdir()} == {
        path.parent.name for path in (first, second)
    }


@pytest.mark.parametrize("under", ["", "kept/here"])
def test_a_cache_that_cannot_be_is_named(under: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("MANET_CACHE", str(tmp_path / "file" / under))
    with pytest.raises(MisplacedError, match=rf"{tmp_path}/file is a file and no folder: \$MANET_CACHE"):
        cache_folder()


def test_the_text_branch_is_trained_alone_measured_and_taken_in(
    manet: Run, fewshot: Path, model: Path, shop: Path, tmp_path: Path
) -> None:
    """A detector that calls bright things text teaches it; its weights go into a model without a text branch."""
    (tmp_path / "bright.pb").write_bytes(frozen_graph())
    flags = ["--fewshot", fewshot, "--text", "efficientnet-lite0", "--pseudo-text", tmp_path / "bright.pb"]
    small = ["--size", 96, "--train-size", 64, "--epochs", 1, "--batch-size", 16]
    assert_refused(
        manet("train", "--branch", "text", "--fewshot", fewshot, "--out", tmp_path / "no"), 2, "--text names"
    )
    out = tmp_path / "text"
    done = manet("train", "--branch", "text", *flags, *small, "--out", out, timeout=280)
    assert summary_of(done)["val_text_loss"] > 0
    artifact = open_artifact(str(out), "text")
    assert {part.name for part in artifact.manifest.parts} == {"text.safetensors", "metrics.json"}
    assert (out / "text.safetensors").stat().st_size < 10e6
    bench = ["bench", "maps", "--queries", shop / "queries", "--pictures", 6, "--pseudo-masks", "classical"]
    bench += ["--pseudo-text", tmp_path / "bright.pb", "--model", model, "--text", "efficientnet-lite0"]
    assert_refused(manet(*bench), 2, "the text branch has no weights")
    found = summary_of(manet(*bench, "--text-weights", out / "text.safetensors", "--out", tmp_path / "maps"))
    assert 0.5 < found["text_auc"] <= 1  # it learned something of brightness
    assert 0 <= found["saliency_iou"] <= 1
    assert json.loads((tmp_path / "maps" / "maps.json").read_text())["text_auc"] == found["text_auc"]
    assert (tmp_path / "maps" / "sheet.jpg").read_bytes().startswith(b"\xff\xd8")
    into = ["train", "--fewshot", fewshot, "--init", model, "--text", "efficientnet-lite0", "--out", tmp_path / "joint"]
    assert_refused(manet(*into), 2, "the text branch has no weights")
    assert not (tmp_path / "joint").exists()


@pytest.mark.slow
def test_the_saliency_branch_is_trained_alone_and_taken_in(
    manet: Run, fewshot: Path, shop: Path, tmp_path: Path
) -> None:
    flags = ["--fewshot", fewshot, "--pseudo-masks", "classical", "--size", 64, "--train-size", 64, "--batch-size", 16]
    flags += ["--masks", tmp_path / "masks", "--saliency-epochs", 1]
    branch = tmp_path / "branch"
    assert summary_of(manet("train", "--branch", "saliency", *flags, "--out", branch, timeout=280))["epochs"] == 1
    weights = ("--saliency-weights", branch / "saliency.safetensors")
    done = manet("train", *flags, *weights, "--epochs", 0, "--out", tmp_path / "model", timeout=280)
    first, again = (
        json.loads((folder / "metrics.json").read_text())["history"][0] for folder in (branch, tmp_path / "model")
    )
    assert summary_of(done)["val_dice_loss"] == again["val_dice_loss"]
    assert again["dice_loss"] < first["dice_loss"]  # it went on from what was learned
    bench = ["bench", "maps", "--model", tmp_path / "model", "--queries", shop / "queries"]
    bench += ["--pictures", 6, "--pseudo-masks", "classical"]
    own, other = (summary_of(manet(*bench, *more)) for more in ((), ("--saliency-weights", "own:saliency-lite0")))
    assert (
        own["saliency_mirrored_iou"] == other["saliency_mirrored_iou"] > 0.6
        and own["saliency_iou"] != other["saliency_iou"]
    )


@pytest.mark.slow
def test_a_killed_training_goes_on_from_its_checkpoint(manet: Run, fewshot: Path, tmp_path: Path) -> None:
    """kill -9 of the driver within the first stage: the model has the bits of one that nobody killed."""
    out = tmp_path / "model"
    flags = ["--pseudo-masks", "classical", "--size", 64, "--train-size", 64, "--saliency-epochs", 3, "--epochs", 1]
    command = ["train", "--fewshot", fewshot, *flags, "--batch-size", 16, "--masks", tmp_path / "masks", "--out"]
    arguments = [sys.executable, "-m", "jobs", *map(str, [*command, out])]
    silent = subprocess.DEVNULL
    driver = subprocess.Popen(arguments, cwd=ROOT, stdout=silent, stderr=silent, env={**os.environ})
    deadline = time.monotonic() + 240
    while not list((out / "checkpoints").glob("*/run/checkpoint_manager_snapshot.json")):
        assert driver.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    time.sleep(3)
    done = manet(*command, out, timeout=400)
    assert summary_of(done)["epochs"] == 4
    assert "epoch 0" not in done.stderr
    assert "epoch 2, stage saliency" in done.stderr  # it went on within the stage
    history = json.loads((out / "metrics.json").read_text())["history"]
    assert [(row["epoch"], row["stage"]) for row in history] == [
        (0, "saliency"),
        (1, "saliency"),
        (2, "saliency"),
        (3, "joint"),
    ]
    model = open_artifact(str(out), "model")
    assert {part.name for part in model.manifest.parts} == {"model.safetensors", "config.json", "metrics.json"}
    model.verify()
    summary_of(manet(*command, tmp_path / "calm", timeout=400))
    assert checksums(out, "model") == checksums(tmp_path / "calm", "model")


@pytest.mark.slow
def test_a_killed_worker_is_told_of_and_replaced(manet: Run, fewshot: Path, tmp_path: Path) -> None:
    """kill -9 of the training worker within each stage: the run says so, and ends with the bits of a calm one."""
    out = tmp_path / "model"
    flags = ["--pseudo-masks", "classical", "--size", 64, "--train-size", 64, "--saliency-epochs", 2, "--epochs", 3]
    command = ["train", "--fewshot", fewshot, *flags, "--batch-size", 16, "--masks", tmp_path / "masks", "--out"]
    stderr = tmp_path / "stderr"
    with stderr.open("wb") as file:
        arguments = [sys.executable, "-m", "jobs", *map(str, [*command, out])]
        driver = subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=file, env={**os.environ})
    try:
        for epoch in ("epoch 0, stage saliency", "epoch 2, stage joint"):
            deadline = time.monotonic() + 240
            while epoch not in stderr.read_text():
                assert driver.poll() is None, "the run ended before its worker could be killed"
                assert time.monotonic() < deadline
                time.sleep(0.05)
            _training_worker(driver).kill()
        assert driver.wait(400) == 0
    finally:
        driver.kill()
    said = stderr.read_text()
    assert said.count("train: failed worker 0: ") == 2
    assert said.count("starting again, from the newest checkpoint if there is one") == 2
    assert said.count("epoch 0, stage saliency") < 3  # at least the second time there was one
    summary_of(manet(*command, tmp_path / "calm", timeout=400))
    assert checksums(out, "model") == checksums(tmp_path / "calm", "model")


def _training_worker(driver: "subprocess.Popen[bytes]") -> psutil.Process:
    """The one process of a driver's session that trains."""
    found = []
    for child in psutil.Process(driver.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it ended meanwhile
            found += [child] if "RayTrainWorker" in "".join(child.cmdline()) else []
    (worker,) = found
    return worker


@pytest.mark.slow
def test_the_same_command_trains_the_same_model(manet: Run, fewshot: Path, tmp_path: Path) -> None:
    command = ["train", "--fewshot", fewshot, "--pseudo-masks", "classical", "--size", 64, "--train-size", 64]
    command += ["--saliency-epochs", 1, "--epochs", 2, "--batch-size", 16, "--masks", tmp_path / "masks", "--out"]
    command[1:1] = ["--region-weights", "learned"]
    for name in ("one", "two"):
        summary_of(manet(*command, tmp_path / name, timeout=280))
    assert checksums(tmp_path / "one", "model") == checksums(tmp_path / "two", "model")
    other = summary_of(manet(*command, tmp_path / "three", "--seed", 1, timeout=280))
    assert other["epochs"] == 3
    assert checksums(tmp_path / "one", "model") != checksums(tmp_path / "three", "model")


@pytest.mark.slow
def test_training_that_gets_worse_ends_and_keeps_its_best_epoch(manet: Run, fewshot: Path, tmp_path: Path) -> None:
    """At a rate that spoils the network; in bfloat16, with balanced categories."""
    out = tmp_path / "model"
    flags = ["--pseudo-masks", "classical", "--size", 64, "--train-size", 64, "--batch-size", 16, "--lr", 0.3]
    flags += ["--saliency-epochs", 1, "--epochs", 9, "--patience", 1, "--precision", "bfloat16", "--balance", 1]
    done = manet("train", "--fewshot", fewshot, *flags, "--out", out, timeout=400)
    summary_of(done)
    history = json.loads((out / "metrics.json").read_text())["history"]
    scores = [row["val_map@7"] for row in history[1:]]
    assert len(scores) < 9
    assert scores[-1] <= max(scores[:-1]) <= 1
    best = [
        folder
        for folder in (out / "checkpoints").glob("*/run/checkpoint_2*")  # by date
        if len(json.loads((folder / "position.json").read_text())["history"]) == 2 + scores.index(max(scores))
    ]
    assert (best[0] / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()
    assert checksums(out, "model")  # committed
