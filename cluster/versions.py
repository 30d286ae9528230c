"""Versions of an artifact: each change writes the next manifest, if absent, and leaves the files of the others alone.

`manifest.json` is version 1, `versions/manifest-00002.json` the next, and so on; each names all files of its version. A
reader opens the newest and sees the old or the new version, never a mix. Of two writers of the same number one wins; the
other starts again from the winner's version.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from cluster.artifact import (
    FORMAT_VERSION,
    RECEIPTS,
    Artifact,
    Input,
    Manifest,
    Part,
    manifest_bytes,
    open_artifact,
    read_receipt,
    read_version,
    version_name,
    version_numbers,
)
from cluster.errors import AlreadyExistsError, BadInputError, LostRaceError, ObjectMissingError
from cluster.storage import Store

PARENT = "parent"  # among the inputs of a version: the one that it was made from


@dataclass(frozen=True, kw_only=True)
class Change:
    """What the next version is made of, beside the version before it."""

    parts: tuple[Part, ...]
    config: Mapping[str, Any]
    inputs: Mapping[str, Input]
    summary: Mapping[str, Any]
    code: Mapping[str, str]


def commit_version(base: Artifact, change: Change) -> Artifact:
    """Write the version after `base`, if no other writer has; its inputs name `base` as its parent.

    Raises:
        LostRaceError: another writer was first, or `base` is no more what the folder holds.
    """
    number = base.manifest.number + 1
    manifest = Manifest(
        kind=base.manifest.kind,
        version=FORMAT_VERSION,
        number=number,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        config=dict(change.config),
        code=dict(change.code),
        inputs={**change.inputs, PARENT: base.as_input()},
        parts=change.parts,
        summary=dict(change.summary),
    )
    raw = manifest_bytes(manifest)
    name = version_name(number)
    lost = f"{base.store.uri(name)}: another writer was first"
    if not _stands(base):
        raise LostRaceError(f"{lost}, version {base.manifest.number} is gone")
    try:
        base.store.write_if_absent(name, raw)
    except AlreadyExistsError:
        raise LostRaceError(f"{lost} with version {number}") from None
    made = Artifact(store=base.store, manifest=manifest, sha256=hashlib.sha256(raw).hexdigest())
    if not _is_newest(made):
        base.store.delete(name)
        raise LostRaceError(f"{lost} with later versions")
    return made


def _stands(artifact: Artifact) -> bool:
    try:
        return read_version(artifact.store, artifact.manifest.number)[1] == artifact.sha256
    except ObjectMissingError:
        return False


def _is_newest(made: Artifact) -> bool:
    """Whether a version that was just put is the newest, or the parent of the next: the number of a version that was pruned
    meanwhile is free to take, but no reader would ever see what takes it.
    """
    number = made.manifest.number
    if max(version_numbers(made.store), default=0) == number:
        return True
    try:
        later = read_version(made.store, number + 1)[0]
    except ObjectMissingError:
        return False
    return PARENT in later.inputs and later.inputs[PARENT].sha256 == made.sha256


def list_versions(uri: str, kind: str) -> list[Artifact]:
    """All versions that can be opened, oldest first."""
    newest = open_artifact(uri, kind)
    numbers = version_numbers(newest.store)
    return [open_artifact(uri, kind, version=number) for number in numbers if number < newest.manifest.number] + [
        newest
    ]


def drop_versions(store: Store, doomed: Sequence[Artifact], kept: Sequence[Artifact]) -> list[str]:
    """Remove old versions: their manifests first, then the files that no kept version names. Returns those files' names.

    Raises:
        BadInputError: no version would be left.
    """
    if not kept:
        raise BadInputError("at least one version must be kept")
    needed = {part.name for artifact in kept for part in artifact.manifest.parts}
    names = {part.name for artifact in doomed for part in artifact.manifest.parts} - needed
    for artifact in doomed:
        store.delete(version_name(artifact.manifest.number))
    for entry in list(store.list(f"{RECEIPTS}/")):
        receipt = read_receipt(store, entry.name)
        if receipt is not None and any(part.name in names for part in receipt.parts):
            store.delete(entry.name)
    for name in sorted(names):
        store.delete(name)
    return sorted(names)
