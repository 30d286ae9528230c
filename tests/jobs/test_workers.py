"""The stream's actors called directly, as Ray would: the same bits by every way that a picture can go."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cluster.artifact import Artifact, ArtifactWriter, Units, open_artifact
from cluster.errors import IntegrityError
from cluster.storage import open_store
from jobs.inputs import Table, local_copy, open_table
from jobs.packing import pack_rows
from jobs.pictures import load_picture
from jobs.planning import cut
from jobs.streaming import DescribeConfig, picture_config
from jobs.workers import Describe, Fetch
from manet.names import DescriptorName
from manet.tables import CATALOG, descriptors_to_numpy

COUNT, PART = 11, 6
NAMES: tuple[DescriptorName, ...] = ("sr-mac",)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Table:
    """Pictures of several shapes, the fourth of them none."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for number in range(COUNT):
        small = rng.integers(0, 255, (5, 4 + number % 3, 3), np.uint8)
        Image.fromarray(small).resize((200 + 10 * number, 150), Image.Resampling.BICUBIC).save(folder / f"{number}.jpg")
    (folder / "3.jpg").write_bytes(b"none")
    rows = [{"image_id": f"i{number}", "uri": f"{number}.jpg"} for number in range(COUNT)]
    pq.write_table(pa.Table.from_pylist(rows, schema=CATALOG), folder / "c.parquet")
    return open_table(str(folder / "c.parquet"), "catalog", "--catalog")


@pytest.fixture(scope="module")
def network(model: Path) -> Artifact:
    """A committed model."""
    return open_artifact(str(model), "model")


def _described(table: Table, network: Artifact, out: Path, **fields: int) -> dict[str, bytes]:
    """Every part of a table by actors made with this config; name -> bytes."""
    config = DescribeConfig.model_validate({"part_rows": PART, **fields})
    pictures = picture_config(network, config.size)
    writer = ArtifactWriter.open(str(out), "descriptors", config={}, claimed=(), inputs={})
    fetch = Fetch(table, pictures, config) if config.decode_actors else None
    describe = Describe(table, pictures, network, writer.units, NAMES, config)
    for unit in reversed(cut(table.rows, PART)):
        row: dict[str, Any] = {"index": unit.index, "start": unit.start, "stop": unit.stop}
        counts = describe(fetch(row) if fetch else row)
        assert not counts["failure"]
        assert counts["rows"] + counts["rejects"] == unit.stop - unit.start
        assert counts["model_s"] > 0
    assert sorted(writer.finished()) == ["00000", "00001"]
    return {path.name: path.read_bytes() for path in sorted(out.glob("*-*.parquet"))}


@pytest.fixture(scope="module")
def wanted(table: Table, network: Artifact, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The parts as one actor writes them."""
    return _described(table, network, tmp_path_factory.mktemp("wanted"))


def test_decode_actors_and_more_processes_change_nothing(
    table: Table, network: Artifact, wanted: dict[str, bytes], tmp_path: Path
) -> None:
    assert list(wanted) == ["part-00000.parquet", "part-00001.parquet", "rejects-00000.parquet"]
    assert _described(table, network, tmp_path / "a", decode_actors=1) == wanted
    assert _described(table, network, tmp_path / "b", decoders=3) == wanted


def test_packed_pictures_change_nothing(
    table: Table, network: Artifact, wanted: dict[str, bytes], tmp_path: Path
) -> None:
    writer = ArtifactWriter.open(str(tmp_path / "packed"), "catalog", config={}, claimed=(), inputs={})
    pack_rows(writer.units, "00000", table.read())
    writer.commit(["00000"], {}, {})
    packed = open_table(str(tmp_path / "packed"), "catalog", "--catalog")
    assert packed.packed
    assert _described(packed, network, tmp_path / "out") == wanted


def test_one_picture_alone_has_the_same_bits(table: Table, network: Artifact, wanted: dict[str, bytes]) -> None:
    """The library call, as `search` makes it: one picture at a time."""
    from manet.checkpoint import load_model
    from manet.describe import Describer

    describer = Describer(load_model(local_copy(network)), names=NAMES)
    parts = [pq.read_table(pa.BufferReader(wanted[f"part-0000{index}.parquet"])) for index in (0, 1)]
    ids, vectors = descriptors_to_numpy(pa.concat_tables(parts))
    assert ids == [f"i{number}" for number in range(COUNT) if number != 3]
    uris = dict(table.pictures(0, COUNT))
    for name, vector in zip(ids, vectors, strict=True):
        picture = load_picture(uris[name], picture_config(network, 0))
        assert isinstance(picture, np.ndarray)
        assert (describer.describe(picture[None]).vectors["sr-mac"][0] == vector).all(), name


def test_a_receipt_of_another_claim_does_not_count(table: Table, network: Artifact, tmp_path: Path) -> None:
    """A worker of a run that was overwritten goes on and writes its receipt into what is now another run's folder."""
    config = DescribeConfig(part_rows=PART)
    late = ArtifactWriter.open(str(tmp_path), "descriptors", config={"size": 1}, claimed=("size",), inputs={})
    describe = Describe(table, picture_config(network, 0), network, late.units, NAMES, config)
    now = ArtifactWriter.open(
        str(tmp_path), "descriptors", config={"size": 2}, claimed=("size",), inputs={}, overwrite=True
    )
    assert not describe({"index": 0, "start": 0, "stop": PART})["failure"]
    assert (tmp_path / "receipts" / "00000.json").exists()
    assert now.finished() == {}
    with pytest.raises(IntegrityError, match="not finished"):
        now.receipts(["00000"])


def test_an_actor_that_cannot_load_says_so_instead_of_dying(table: Table, network: Artifact, tmp_path: Path) -> None:
    config = DescribeConfig(part_rows=PART, compile=True)  # on a CPU: refused
    describe = Describe(table, picture_config(network, 0), network, Units(open_store(tmp_path)), NAMES, config)
    assert "--compile" in describe({"index": 0, "start": 0, "stop": 1})["failure"]
