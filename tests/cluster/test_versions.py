"""The next version of an artifact: put by one writer, never under a number that was pruned meanwhile."""

import pytest

from cluster.artifact import Artifact, ArtifactWriter, open_artifact, version_numbers
from cluster.errors import LostRaceError
from cluster.storage import Store
from cluster.versions import PARENT, Change, _is_newest, commit_version, drop_versions


def _first(store: Store, *, size: int = 1, overwrite: bool = False) -> Artifact:
    writer = ArtifactWriter.open(
        store.uri(), "index", config={"size": size}, claimed=("size",), inputs={}, overwrite=overwrite
    )
    writer.commit([], {}, {})
    return open_artifact(store.uri(), "index")


def _next(base: Artifact, who: str) -> Artifact:
    return commit_version(base, Change(parts=(), config={}, inputs={}, summary={"who": who}, code={}))


def test_each_version_names_its_parent(store: Store) -> None:
    one = _first(store)
    two = _next(one, "two")
    assert open_artifact(store.uri(), "index").sha256 == two.sha256
    assert two.manifest.inputs[PARENT] == one.as_input()
    with pytest.raises(LostRaceError, match="was first with version 2"):
        _next(one, "another two")


@pytest.mark.parametrize("doomed", [[0, 1], [1]])
def test_a_number_that_was_pruned_is_not_taken(store: Store, doomed: list[int]) -> None:
    """Whether the version that the late writer started from is gone too, or only the next one."""
    one = _first(store)
    made = [one, _next(one, "two")]
    made.append(_next(made[-1], "three"))
    drop_versions(store, [made[place] for place in doomed], made[2:])
    before = version_numbers(store)
    with pytest.raises(LostRaceError, match="another writer was first"):
        _next(one, "late")
    assert version_numbers(store) == before
    assert open_artifact(store.uri(), "index").manifest.summary == {"who": "three"}


def test_a_receipt_that_cannot_be_read_is_not_in_the_way_of_a_removal(store: Store) -> None:
    one = _first(store)
    store.write("receipts/0.json", b"")
    drop_versions(store, [one], [_next(one, "two")])
    assert version_numbers(store) == [2]


def test_a_version_that_another_was_made_from_at_once_stands(store: Store) -> None:
    two = _next(_first(store), "two")
    three = _next(two, "three")
    assert _is_newest(two)
    _next(three, "four")
    assert _is_newest(two)


def test_a_folder_that_was_overwritten_takes_no_version_of_before(store: Store) -> None:
    one = _first(store)
    _first(store, size=2, overwrite=True)
    with pytest.raises(LostRaceError, match="version 1 is gone"):
        _next(one, "late")
    assert version_numbers(store) == [1]
