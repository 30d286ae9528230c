"""`manet extract`: what it writes, resuming, rejects."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cluster.artifact import ArtifactWriter, Blob, open_artifact
from cluster.errors import ClusterError, IntegrityError
from jobs import status, verify
from jobs.inputs import open_table
from jobs.parquet import parquet_bytes
from manet.tables import CATALOG, descriptor_column
from tests.conftest import ROOT, Run
from tests.jobs.helpers import assert_refused, checksums, summary_of
from tests.manet.test_images import PNG, _png_header

STOCK = """
import json, sys
import numpy as np, pyarrow.parquet as pq
table = pq.read_table(sys.argv[1])
norms = [float(np.linalg.norm(np.array(row, dtype=np.float64))) for row in table["descriptor"].to_pylist()]
assert not {"ray", "manet", "jobs", "cluster", "torch"} & set(sys.modules)
print(json.dumps({"ids": table["image_id"].to_pylist(), "norms": norms, "type": str(table.schema.field("descriptor").type)}))
"""


@pytest.fixture(scope="module")
def extracted(manet: Run, shop: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Descriptors of the shop, in parts of 16."""
    out = tmp_path_factory.mktemp("extracted") / "descriptors"
    done = manet("extract", "--catalog", shop / "catalog", "--model", model, "--out", out, "--part-rows", 16)
    assert summary_of(done)["rejects"] == 0
    return out


def test_any_parquet_reader_opens_the_parts(extracted: Path, shop: Path) -> None:
    ids = []
    for part in sorted(extracted.glob("part-*.parquet")):
        done = subprocess.run(
            [sys.executable, "-c", STOCK, str(part)], capture_output=True, text=True, check=True, timeout=60
        )
        found = json.loads(done.stdout)
        assert found["type"] == "fixed_size_list<element: halffloat>[1280]"
        np.testing.assert_allclose(found["norms"], 1, atol=1e-3)
        ids += found["ids"]
    tables = [pq.read_table(path) for path in sorted((shop / "catalog").glob("catalog-*.parquet"))]
    assert ids == pa.concat_tables(tables)["image_id"].to_pylist()


def test_the_same_command_has_nothing_to_do(manet: Run, extracted: Path, shop: Path, model: Path) -> None:
    before = checksums(extracted)
    command = ("extract", "--catalog", shop / "catalog", "--model", model, "--out", extracted, "--part-rows", 16)
    done = manet(*command, "--model-actors", 1)  # how, not what
    assert "nothing to do" in done.stderr
    assert summary_of(done)["rows"] > 0
    assert checksums(extracted) == before


def test_another_command_is_refused(manet: Run, extracted: Path, shop: Path, model: Path) -> None:
    command = ("extract", "--catalog", shop / "catalog", "--model", model, "--out", extracted, "--part-rows", 16)
    assert_refused(manet(*command, "--size", 64), 2, "--size was 0, now 64", "--overwrite")


def test_s3_gets_the_same_bytes(manet: Run, extracted: Path, shop: Path, model: Path, s3_root: str) -> None:
    out = f"{s3_root}/descriptors"
    command = ("extract", "--catalog", shop / "catalog", "--model", model, "--out", out, "--part-rows", 16)
    summary_of(manet(*command, "--decode-actors", 1, "--model-actors", 1))
    assert checksums(out) == checksums(extracted)


def test_a_killed_run_goes_on_where_it_was(
    extracted: Path, manet: Run, shop: Path, model: Path, tmp_path: Path
) -> None:
    """kill -9 of the driver as soon as a part is finished; finished parts are not redone, the end is the same."""
    out = tmp_path / "descriptors"
    command = ["extract", "--catalog", shop / "catalog", "--model", model, "--out", out, "--part-rows", 16]
    driver = subprocess.Popen(
        [sys.executable, "-m", "jobs", *map(str, command)],
        cwd=ROOT,
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        env={**os.environ},
    )
    deadline = time.monotonic() + 120
    while not list(out.glob("receipts/*.json")):
        assert driver.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    time.sleep(2)  # actors that were writing notice that their driver is gone
    assert not (out / "manifest.json").exists()
    finished = {path: path.stat().st_mtime_ns for path in out.glob("receipts/*.json")}
    assert 0 < len(finished) < len(checksums(extracted))
    done = manet(*command)
    assert f"resuming: {len(finished)} of" in done.stderr
    assert summary_of(done)["rejects"] == 0
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    assert checksums(out) == checksums(extracted)


def test_a_damaged_part_is_made_again(extracted: Path, manet: Run, shop: Path, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "descriptors"
    shutil.copytree(extracted, out)
    (out / "manifest.json").unlink()
    part = out / "part-00001.parquet"
    part.write_bytes(part.read_bytes()[:-50])
    done = manet("extract", "--catalog", shop / "catalog", "--model", model, "--out", out, "--part-rows", 16)
    assert summary_of(done)["rejects"] == 0
    assert checksums(out) == checksums(extracted)


def _spoiled(folder: Path) -> tuple[Path, dict[str, str]]:
    """A catalogue of 200 small pictures, 30 of them spoiled in six ways; and the reason for each of those."""
    rng = np.random.default_rng(0)
    reasons = {}
    ids = [f"picture-{number:03d}" for number in range(200)]
    animated = [Image.fromarray(rng.integers(0, 255, (20, 20, 3), np.uint8)) for _ in range(3)]
    for number, name in enumerate(ids):
        path = folder / f"{name}.jpg"
        Image.fromarray(rng.integers(0, 255, (40, 30, 3), np.uint8)).save(path)
        way = number // 6 % 6 if number % 6 == 0 and number < 180 else None
        if way == 0:
            path.write_bytes(b"")
        elif way == 1:
            path.write_bytes(path.read_bytes()[:200])
        elif way == 2:
            path.write_text("this is no picture")
        elif way == 3:
            path.write_bytes(_png_header(60_000, 60_000) + PNG[33:])
        elif way == 4:
            animated[0].save(path, "GIF", save_all=True, append_images=animated[1:])
        elif way == 5:
            path.unlink()
        if way is not None:
            reasons[name] = ["empty", "truncated", "not_a_picture", "too_large", "animated", "missing"][way]
    catalog = folder / "catalog.parquet"
    pq.write_table(pa.table({"image_id": ids, "uri": [f"{name}.jpg" for name in ids]}), catalog)
    assert len(reasons) == 30
    return catalog, reasons


def test_spoiled_pictures_are_rejects_with_their_reasons(manet: Run, model: Path, tmp_path: Path) -> None:
    catalog, reasons = _spoiled(tmp_path)
    strict = manet("extract", "--catalog", catalog, "--model", model, "--out", tmp_path / "strict", "--part-rows", 64)
    assert_refused(strict, 1, "30 of 200", "--max-rejects")
    assert len(list((tmp_path / "strict").glob("part-*.parquet"))) == 4  # everything else is saved
    assert not (tmp_path / "strict" / "manifest.json").exists()
    loose = ("extract", "--catalog", catalog, "--model", model, "--out", tmp_path / "strict", "--part-rows", 64)
    done = manet(*loose, "--max-rejects", 0.2)
    assert "resuming: 4 of 4" in done.stderr
    summary = summary_of(done)
    assert (summary["rows"], summary["rejects"]) == (170, 30)
    found = pa.concat_tables([pq.read_table(path) for path in (tmp_path / "strict").glob("rejects-*.parquet")])
    assert dict(zip(found["image_id"].to_pylist(), found["reason"].to_pylist(), strict=True)) == reasons
    assert set(found["stage"].to_pylist()) == {"decode"}
    described = pa.concat_tables([pq.read_table(path) for path in (tmp_path / "strict").glob("part-*.parquet")])
    assert not set(described["image_id"].to_pylist()) & set(reasons)


def test_packed_pictures_and_several_descriptors(
    manet: Run, extracted: Path, shop: Path, model: Path, tmp_path: Path
) -> None:
    """From the bytes inside a packed catalogue, beside another descriptor, the same bits; `status` and `verify` agree."""
    packed, out = tmp_path / "packed", tmp_path / "out"
    assert summary_of(manet("ingest", "--source", shop / "catalog", "--pack", "--out", packed))["unread"] == 0
    command: tuple[object, ...] = ("extract", "--catalog", packed, "--model", model, "--out", out)
    command += ("--part-rows", 16, "--descriptor", "sr-mac,gem")
    plan = manet(*command, "--dry-run")
    assert summary_of(plan)["parts_to_do"] == len(list(extracted.glob("part-*.parquet")))
    assert not out.exists()
    summary_of(manet(*command))
    for part in sorted(extracted.glob("part-*.parquet")):
        one, two = pq.read_table(part), pq.read_table(out / part.name)
        assert one["image_id"] == two["image_id"]
        assert one["descriptor"] == two["descriptor_sr-mac"]
        assert one["descriptor"] != two["descriptor_gem"]
    status = summary_of(manet("status", out))
    assert (status["state"], status["missing"], status["damaged"]) == ("committed", 0, 0)
    assert summary_of(manet("verify", out, "--sample", 4))["same_bits"] == 4
    without = (*command[: command.index("--out")], "--out", tmp_path / "none", "--descriptor", "sr-mac@no-text")
    assert_refused(manet(*without), 2, "descriptor sr-mac@no-text: the model has no text branch")
    assert not (tmp_path / "none").exists()
    refused = manet("index", "--descriptors", out, "--out", tmp_path / "index")
    assert_refused(refused, 2, "holds several descriptors (sr-mac,gem)")
    (out / "part-00001.parquet").write_bytes(b"PAR1")
    assert summary_of(manet("status", out))["state"] == "damaged"
    assert_refused(manet("verify", out), 1, "part-00001.parquet", "4 bytes")


def _status(out: Path) -> dict[str, object]:
    found = status.run(status.Config(out=str(out)))
    return {key: found[key] for key in ("state", "missing", "damaged", "missing_units", "damaged_units")}


def _whole(state: str) -> dict[str, object]:
    return {"state": state, "missing": 0, "damaged": 0, "missing_units": [], "damaged_units": []}


def _fault(out: Path) -> str:
    with pytest.raises(ClusterError) as caught:
        verify.run(verify.Config(out=str(out), sample=0))
    return str(caught.value)


@pytest.fixture
def copied(extracted: Path, tmp_path: Path) -> Path:
    """A copy of the descriptors, to be tampered with."""
    return shutil.copytree(extracted, tmp_path / "copied")


def test_status_and_verify_of_a_complete_output(copied: Path) -> None:
    assert _status(copied) == _whole("committed")
    found = verify.run(verify.Config(out=str(copied), sample=5))
    assert (found["sample"], found["same_bits"], found["worst_cosine"]) == (5, 5, 1.0)
    assert found["files"] == len(list(copied.glob("part-*.parquet")))


def test_status_and_verify_of_an_interrupted_output(copied: Path) -> None:
    for name in ("manifest.json", "receipts/00001.json", "receipts/00003.json", "part-00003.parquet"):
        (copied / name).unlink()  # a part was written, its receipt was not
    missing = ["00001", "00003"]
    assert _status(copied) == {**_whole("unfinished"), "missing": 2, "missing_units": missing}
    assert "an unfinished run" in _fault(copied)
    (copied / "part-00002.parquet").unlink()
    assert _status(copied)["damaged_units"] == ["00002"]


def test_status_and_verify_of_a_tampered_output(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    part, manifest = copied / "part-00001.parquet", copied / "manifest.json"
    whole, stated = part.read_bytes(), manifest.read_text()
    part.write_bytes(whole[:100] + bytes([whole[100] ^ 1]) + whole[101:])
    assert _status(copied) == _whole("committed")  # sizes only, as its help says
    assert "part-00001.parquet differs from the manifest's sha256" in _fault(copied)
    part.unlink()
    assert _status(copied) == {**_whole("damaged"), "damaged": 1, "damaged_units": ["00001"]}
    assert "--overwrite" in capsys.readouterr().err
    assert "part-00001.parquet is missing" in _fault(copied)
    part.write_bytes(whole)
    manifest.write_text(stated.replace('"rejects": 0', '"rejects": 1'))
    with pytest.raises(IntegrityError, match="differs from its own checksum"):
        _status(copied)
    assert "differs from its own checksum" in _fault(copied)
    manifest.write_text(stated)
    assert _status(copied) == _whole("committed")


def test_a_sample_finds_its_part_among_a_hundred_thousand(tmp_path: Path) -> None:
    writer = ArtifactWriter.open(str(tmp_path / "d"), "descriptors", config={"part_rows": 1}, claimed=(), inputs={})
    vector = np.array([1, 0], np.float16)
    for unit in ("10000", "100000"):
        table = pa.table({"image_id": [unit], "descriptor": descriptor_column(vector[None])})
        writer.units.put(unit, {f"part-{unit}.parquet": Blob(data=parquet_bytes(table), rows=1)})
    writer.commit(["10000", "100000"], {}, {})
    rows = [{"image_id": str(row), "uri": "x"} for row in range(10_001)]
    pq.write_table(pa.Table.from_pylist(rows, schema=CATALOG), tmp_path / "c.parquet")
    catalog = open_table(str(tmp_path / "c.parquet"), "catalog", "--catalog")
    artifact = open_artifact(str(tmp_path / "d"), "descriptors")
    assert verify._check(artifact, catalog, 10_000, lambda _: {"descriptor": vector}) == (1.0, True)
