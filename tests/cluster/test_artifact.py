import json
from pathlib import Path

import pytest

from cluster.artifact import ArtifactWriter, Blob, Input, finished_unit, open_artifact, put_unit
from cluster.errors import (
    ArtifactMissingError,
    BadInputError,
    ClaimMismatchError,
    IntegrityError,
    JobFailedError,
    WrongKindError,
)
from cluster.storage import Entry, LocalStore, Store, open_store


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
    put_unit(writer.store, unit, {f"part-{unit}.bin": Blob(data=data, rows=3)}, {"rows": 3})


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
        with pytest.raises(ClaimMismatchError, match="input catalog was 'aa', now 'bb'"):
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
        put_unit(store, "0", {"part-0.bin": Blob(data=b"old")}, claim=old.claim_sha256)
        assert finished_unit(store, "0", claim=new.claim_sha256) is None
        assert finished_unit(store, "0", claim=old.claim_sha256) == finished_unit(store, "0") is not None
        with pytest.raises(JobFailedError, match="another command took this folder"):
            old.commit(["0"], {}, {})
        put_unit(store, "0", {"part-0.bin": Blob(data=b"new")}, claim=new.claim_sha256)
        assert finished_unit(store, "0", claim=new.claim_sha256) is not None
        assert new.commit(["0"], {}, {}).parts[0].bytes == 3

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


def test_what_a_console_makes_of_an_empty_folder_is_not_in_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S3's console puts an empty object of the folder's own name; the local server of the tests keeps none of these."""
    store = open_store(tmp_path)
    listed = [Entry("", 0, 0.0), Entry("more/", 0, 0.0)]
    monkeypatch.setattr(
        LocalStore, "list", lambda _, prefix="", **__: (entry for entry in listed if entry.name.startswith(prefix))
    )
    _open(store)
    (tmp_path / "claim.json").unlink()
    listed.append(Entry("more/notes.txt", 0, 0.0))
    with pytest.raises(BadInputError, match=r"not empty .*it holds more/notes.txt"):
        _open(store)
