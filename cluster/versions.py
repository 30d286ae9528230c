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
    Receipt,
    manifest_bytes,
    open_artifact,
    version_name,
    version_numbers,
)
from cluster.errors import AlreadyExistsError, BadInputError, LostRaceError, ObjectMissingError
from cluster.storage import Store


@dataclass(frozen=True, kw_only=True)
class Change:
    """What the next version is made of, beside the version before it."""

    parts: tuple[Part, ...]
    config: Mapping[str, Any]
    inputs: Mapping[str, Input]
    summary: Mapping[str, Any]
    code: Mapping[str, str]


def commit_version(base: Artifact, change: Change) -> Artifact:
    """Write the version after `base`, if no other writer has.

    Raises:
        LostRaceError: another writer was first; its version stands.
    """
    number = base.manifest.number + 1
    manifest = Manifest(
        kind=base.manifest.kind,
        version=FORMAT_VERSION,
        number=number,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        config=dict(change.config),
        code=dict(change.code),
        inputs=dict(change.inputs),
        parts=change.parts,
        summary=dict(change.summary),
    )
    raw = manifest_bytes(manifest)
    name = version_name(number)
    try:
        base.store.write_if_absent(name, raw)
    except AlreadyExistsError:
        raise LostRaceError(f"{base.store.uri(name)}: another writer made version {number} first") from None
    return Artifact(store=base.store, manifest=manifest, sha256=hashlib.sha256(raw).hexdigest())


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
        try:
            receipt = Receipt.model_validate_json(store.read(entry.name))
        except ObjectMissingError:
            continue
        if any(part.name in names for part in receipt.parts):
            store.delete(entry.name)
    for name in sorted(names):
        store.delete(name)
    return sorted(names)
