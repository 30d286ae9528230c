"""Flags, exit codes and one-line errors, as a user meets them."""

import os
import stat
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.local_s3 import LocalS3, free_ports
from jobs.cli import JOBS
from tests.conftest import Run
from tests.jobs.helpers import assert_refused, summary_of


def _catalog(path: Path, **columns: list[str]) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def test_help_lists_every_job(manet: Run) -> None:
    done = manet("--help")
    assert done.returncode == 0
    for job in JOBS:
        assert f"  {job} " in done.stdout


@pytest.mark.parametrize("job", JOBS)
def test_every_flag_has_a_text_and_its_default(job: str, manet: Run) -> None:
    done = manet(job, "extract", "--help") if job == "bench" else manet(job, "--help")
    assert done.returncode == 0, done.stderr
    options = done.stdout.split("Options:")[1]
    flags = [line.split()[0] for line in options.splitlines() if line.strip().startswith("--")]
    assert {"--config", "--debug", "--help"} <= set(flags)
    flat = " ".join(options.split())
    for flag, following in zip(flags, [*flags[1:], ""], strict=True):
        text = flat.partition(f"{flag} ")[2].partition(f" {following} " if following else "\0")[0]
        assert len(text) > 15, flag
        assert flag in {"--config", "--debug", "--help"} or "[default:" in text or "[required]" in text, flag


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["extracts"], ["extracts"]),
        (["extract", "--bogus", "1"], ["--bogus"]),
        (["extract", "--catalog", "x"], ["--out is required"]),
        (["extract", "--part-rows", "many"], ["--part-rows", "'many'"]),
        (["render", "--out", "x", "--products", "0"], ["--products", "greater than or equal to 1"]),
        (["train", "--attention", "loud"], ["--attention", "loud"]),
        (
            ["evaluate", "--index", "x", "--queries", "y", "--out", "z", "--size", "96"],
            ["--size: queries are described as"],
        ),
        (["pipeline", "--catalog", "x", "--queries", "y", "--out", "z", "--set", "train.speed=3"], ["--set", "speed"]),
        (["pipeline", "--catalog", "x", "--queries", "y", "--out", "z", "--set", "epochs"], ["JOB.FLAG=VALUE"]),
    ],
)
def test_bad_usage(arguments: list[str], words: list[str], manet: Run) -> None:
    assert_refused(manet(*arguments), 2, *words)


def test_bad_catalogues(manet: Run, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    extract = ("extract", "--model", model, "--out", out, "--catalog")
    assert_refused(manet(*extract, "nowhere.parquet"), 2, "--catalog nowhere.parquet", "no such file")
    assert_refused(manet(*extract, tmp_path / "nothing"), 2, "nothing committed")
    path = _catalog(tmp_path / "a.parquet", image_id=["1"], url=["x.jpg"])
    assert_refused(manet(*extract, path), 2, "a.parquet", "no column 'uri'")
    path = _catalog(tmp_path / "b.parquet", image_id=["1", "2", "1"], uri=["x", "y", "z"])
    assert_refused(manet(*extract, path), 2, "b.parquet", "image_id '1' stands in 2 rows")
    path = _catalog(tmp_path / "c.parquet", image_id=[], uri=[])
    assert manet(*extract, path).returncode == 2
    (tmp_path / "d.parquet").write_text("image_id,uri\n1,x.jpg\n")
    assert_refused(manet(*extract, tmp_path / "d.parquet"), 2, "d.parquet", "not a Parquet file")
    assert not out.exists()


def test_an_artifact_of_another_kind(manet: Run, shop: Path, model: Path, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "out")
    done = manet("extract", "--catalog", shop / "catalog", "--model", shop / "queries", *out)
    assert_refused(done, 2, "holds a queries, but a model")
    assert_refused(manet("extract", "--catalog", model, "--model", model, *out), 2, "holds a model, but a catalog")


def test_a_store_that_fails(manet: Run, shop: Path, model: Path, s3: LocalS3) -> None:
    extract = ("extract", "--catalog", shop / "catalog", "--model", model, "--out", f"s3://{s3.bucket}/never")
    gone = f"http://127.0.0.1:{free_ports(1)[0]}"
    assert_refused(manet(*extract, AWS_ENDPOINT_URL=gone), 1, "127.0.0.1", "Could not connect")
    wrong = "not-the-secret-of-this-server"
    done = manet(*extract, AWS_SECRET_ACCESS_KEY=wrong)
    assert_refused(done, 1, "wrong secret", "AWS_SECRET_ACCESS_KEY")
    assert wrong not in done.stderr
    done = manet(*extract[:-1], "s3://no-such-bucket/x")
    assert done.returncode in {1, 2}
    assert "no-such-bucket" in done.stderr.splitlines()[-1]


def test_an_out_folder_that_cannot_be_written(manet: Run, shop: Path, model: Path, tmp_path: Path) -> None:
    extract = ("extract", "--catalog", shop / "catalog", "--model", model, "--out")
    (tmp_path / "file").write_text("in the way")
    assert_refused(manet(*extract, tmp_path / "file" / "out"), 2, str(tmp_path / "file"), "is a file and no folder")
    if os.getuid():  # root may write anywhere
        locked = tmp_path / "locked"
        locked.mkdir()
        locked.chmod(stat.S_IRUSR | stat.S_IXUSR)
        assert_refused(manet(*extract, locked / "out"), 1, str(locked))
    assert_refused(manet(*extract, "/proc/manet"), 1, "/proc/manet")


def test_config_file_and_flags(manet: Run, tmp_path: Path) -> None:
    config = tmp_path / "render.yaml"
    config.write_text("products: 3\nqueries: 1\nsize: 64\n")
    done = manet("render", "--config", config, "--products", 2, "--out", tmp_path / "shop")
    assert summary_of(done)["products"] == 2
    assert summary_of(done)["queries_rows"] == 1
    config.write_text("product: 3\n")
    assert_refused(manet("render", "--config", config, "--out", tmp_path / "x"), 2, "unknown key product")
    config.write_text("products: [")
    assert_refused(manet("render", "--config", config, "--out", tmp_path / "x"), 2, "not YAML: line 1, column 12: ")
    config.write_text("part-rows: 3\nsize: 64\npart_rows: 4\n")
    assert_refused(
        manet("render", "--config", config, "--out", tmp_path / "x"), 2, "line 3, column 1: part_rows stands"
    )
    assert_refused(manet("render", "--out", ""), 2, "--out is empty")
    config.write_text("<<: {products: 2, size: 64}\nqueries: 1\n")
    assert summary_of(manet("render", "--config", config, "--out", tmp_path / "merged"))["products"] == 2
    for value in ("!!int many", '!!float ""', "!!bool many"):
        config.write_text(f"size: {value}\n")
        assert_refused(manet("render", "--config", config, "--out", tmp_path / "x"), 2, "not YAML")
    config.write_text("size: yes\n")
    assert_refused(manet("render", "--config", config, "--out", tmp_path / "x"), 2, "size is a number, not true")
    assert_refused(manet("render", "--config", tmp_path / "none.yaml", "--out", "x"), 2, "none.yaml")


def test_debug_shows_the_traceback(manet: Run) -> None:
    done = manet("fewshot", "--catalog", "nowhere.parquet", "--out", "x", "--debug")
    assert done.returncode == 2
    assert "Traceback" in done.stderr
