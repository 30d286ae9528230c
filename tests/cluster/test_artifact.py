import json
from pathlib import Path

import pytest

from cluster.artifact import ArtifactWriter, Blob, Input, Part, Units, open_artifact
from cluster.errors import (
    ArtifactMissingError,
    BadInputError,
    ClaimMismatchError,
    IntegrityError,
    JobFailedError,
    WrongKindError,
)
from cluster.storage import Store, open_store


def _open(
    store: Store,
    *,
    size: int = 480,
    sha: str = "aa",
    kind: str = "descriptors",
    workers: int = 1,
    overwrite: bool = False,
) -> ArtifactWriter:
    config = {"size": size, "workers": workers}
    inputs = {"catalog": Input(uri="/x", sha256=sha)}
    return ArtifactWriter.open(store.uri(), kind, config=config, claimed=("size",), inputs=inputs, overwrite=overwrite)


def _put(writer: ArtifactWriter, unit: str, data: bytes = b"data") -> None:
    writer.units.put(unit, {f"part-{unit}.bin": Blob(data=data, rows=3)}, {"rows": 3})


class TestLife:
    """On both backends."""

    def test_commit_and_read(self, store: Store) -> None:
        writer = _open(store)
        _put(writer, "0")
        _put(writer, "1", b"other")
        with pytest.raises(ArtifactMissingError, match="unfinished"):
            open_artifact(store.uri(), "descriptors")
        writer.commit(["0", "1"], {"rows": 6}, {"version": "1"})
        artifact = open_artifact(store.uri(), "descriptors")
        assert [part.name for part in artifact.parts("part-")] == ["part-0.bin", "part-1.bin"]
        assert artifact.read(artifact.manifest.parts[1]) == b"other"
        assert artifact.manifest.inputs["catalog"].sha256 == "aa"
        artifact.verify()

    def test_the_same_command_resumes(self, store: Store) -> None:
        _put(_open(store), "0")
        again = _open(store, workers=9)
        assert again.manifest is None
        assert set(again.finished()) == {"0"}
        again.commit(["0"], {"n": 1}, {})
        assert _open(store).manifest is not None

    def test_another_command_is_refused_with_the_difference(self, store: Store) -> None:
        _open(store)
        with pytest.raises(ClaimMismatchError, match="--size was 480, now 320"):
            _open(store, size=320)
        with pytest.raises(ClaimMismatchError, match=r"input catalog \(sha256 of what it holds\) was 'aa', now 'bb'"):
            _open(store, sha="bb")
        with pytest.raises(ClaimMismatchError, match="descriptors"):
            _open(store, kind="index")

    def test_overwrite_drops_what_was_there(self, store: Store) -> None:
        first = _open(store)
        _put(first, "0")
        first.commit(["0"], {}, {})
        second = _open(store, size=320, overwrite=True)
        assert second.manifest is None
        assert second.finished() == {}
        assert [entry.name for entry in store.list()] == ["claim.json"]

    def test_a_file_without_receipt_is_not_done_and_a_damaged_one_is_made_again(self, store: Store) -> None:
        writer = _open(store)
        _put(writer, "0")
        _put(writer, "1")
        store.write("part-2.bin", b"no receipt")
        store.write("part-1.bin", b"dama")
        assert set(writer.finished()) == {"0"}

    def test_commit_needs_every_unit(self, store: Store) -> None:
        writer = _open(store)
        _put(writer, "0")
        with pytest.raises(IntegrityError, match="1 of 2 units"):
            writer.commit(["0", "1"], {}, {})

    def test_two_racing_commits_have_one_winner(self, store: Store) -> None:
        one, two = _open(store), _open(store)
        _put(one, "0")
        one.commit(["0"], {"who": 1}, {})
        with pytest.raises(JobFailedError, match="first"):
            two.commit(["0"], {"who": 2}, {})
        assert open_artifact(store.uri(), "descriptors").manifest.summary == {"who": 1}

    def test_what_an_overwritten_run_leaves_late_is_not_the_new_runs(self, store: Store) -> None:
        old = _open(store)
        new = _open(store, size=320, overwrite=True)
        old.units.put("0", {"part-0.bin": Blob(data=b"old")})
        assert new.units.finished("0") is None
        assert old.units.finished("0") == Units(store).finished("0") is not None
        with pytest.raises(JobFailedError, match="another command took this folder"):
            old.commit(["0"], {}, {})
        new.units.put("0", {"part-0.bin": Blob(data=b"new")})
        assert new.units.finished("0") is not None
        assert new.commit(["0"], {}, {}).parts[0].bytes == 3

    def test_a_second_run_of_the_same_command_changes_nothing_that_stands(self, store: Store) -> None:
        """Its bits need not be the same: it ran on another machine."""
        one, two = _open(store), _open(store)
        _put(one, "0")
        one.commit(["0"], {}, {})
        receipt = two.units.put("0", {"part-0.bin": Blob(data=b"from another GPU")}, {"rows": 9})
        assert receipt == one.units.receipt("0")
        open_artifact(store.uri(), "descriptors").verify()

    def test_what_stands_and_is_damaged_is_replaced(self, store: Store) -> None:
        writer = _open(store)
        _put(writer, "0")
        store.write("part-0.bin", b"dama")
        _put(writer, "0")
        assert set(writer.finished()) == {"0"}

    def test_a_worker_that_outlives_its_run_leaves_the_next_commands_units_alone(self, store: Store) -> None:
        old = _open(store)
        new = _open(store, size=320, overwrite=True)
        _put(new, "0")
        new.commit(["0"], {}, {})
        with pytest.raises(JobFailedError, match="another command took this folder"):
            _put(old, "0", b"late")
        open_artifact(store.uri(), "descriptors").verify()

    def test_files_of_other_sizes_than_their_receipts_say_are_not_committed(self, store: Store) -> None:
        """Of two runs that wrote a unit at the same time, one left its file and the other its receipt."""
        writer = _open(store)
        _put(writer, "0")
        store.write("part-0.bin", b"of another size")
        with pytest.raises(IntegrityError, match=r"part-0\.bin has 15 bytes, not 4"):
            writer.commit(["0"], {}, {})
        store.delete("part-0.bin")
        with pytest.raises(IntegrityError, match=r"part-0\.bin is missing"):
            writer.commit(["0"], {}, {})

    @pytest.mark.parametrize("name", ["manifest.json", "receipts/0.json", "claim.json"])
    def test_records_that_cannot_be_read_are_in_the_way_of_no_overwrite(self, store: Store, name: str) -> None:
        writer = _open(store)
        _put(writer, "0")
        writer.commit(["0"], {}, {})
        store.write(name, b"")
        if name != "receipts/0.json":
            with pytest.raises(BadInputError, match=rf"{name} is not a valid .*--overwrite"):
                _open(store)
        assert _open(store, overwrite=True).manifest is None
        assert "manifest.json" not in {entry.name for entry in store.list()}

    def test_a_receipt_that_cannot_be_read_is_none(self, store: Store) -> None:
        writer = _open(store)
        _put(writer, "0")
        _put(writer, "1")
        store.write("receipts/0.json", b"{")
        assert set(writer.finished()) == {"1"}
        with pytest.raises(IntegrityError, match="1 of 2 units"):
            writer.receipts(["0", "1"])
        _put(writer, "0")
        assert set(writer.finished()) == {"0", "1"}

    def test_a_part_is_brought_into_the_folder_or_not_at_all(self, store: Store, tmp_path: Path) -> None:
        for name in (f"{tmp_path}/out", "../out"):
            part = Part(name=name, rows=0, bytes=1, sha256="")
            with pytest.raises(BadInputError, match="inside"):
                _open(store).draft([part], {}).download(part, tmp_path / "in")

    def test_tampering_is_found(self, store: Store) -> None:
        writer = _open(store)
        _put(writer, "0")
        writer.commit(["0"], {}, {})
        artifact = open_artifact(store.uri(), "descriptors")
        store.write("part-0.bin", b"dat4")
        with pytest.raises(IntegrityError, match=r"part-0\.bin"):
            artifact.read(artifact.manifest.parts[0])
        with pytest.raises(IntegrityError, match=r"part-0\.bin"):
            artifact.verify()
        store.delete("part-0.bin")
        with pytest.raises(IntegrityError, match="missing"):
            artifact.verify()


def test_kinds_and_broken_manifests(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    with pytest.raises(ArtifactMissingError, match="nothing committed"):
        open_artifact(str(tmp_path), "index")
    _open(store).commit([], {}, {})
    with pytest.raises(WrongKindError, match="holds a descriptors, but an index"):
        open_artifact(str(tmp_path), "index")
    manifest = json.loads(store.read("manifest.json"))
    del manifest["parts"]
    store.write("manifest.json", json.dumps(manifest).encode())
    with pytest.raises(BadInputError, match="parts"):
        open_artifact(str(tmp_path), "descriptors")


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").write_bytes(b"mine")
    with pytest.raises(BadInputError, match=r"holiday\.jpg"):
        _open(open_store(tmp_path), overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["holiday.jpg"]
