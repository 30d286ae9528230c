"""Files that nothing claims: what killed workers, lost races and replaced commands left in a folder.

  manet gc s3://shop/run
  manet gc s3://shop/descriptors --delete

Looks at every artifact in the folder or below it. A file is claimed by a version's manifest, by the table of a catalogue (its
pictures), or, while nothing is committed, by a receipt of the folder's own command. The others are orphans: files without a
receipt, temporary files and unfinished uploads, checkpoints of a model that is done, units of a change that never became a
version. They are listed; --delete removes them. A folder that was written to within --grace-hours is refused: a run may be
at work there, and its files are not claimed yet.
"""

import time
from collections.abc import Iterator
from typing import Any

import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field

from cluster.artifact import CLAIM, RECEIPTS, VERSIONS, Claim, Manifest, manifests, read_receipt, version_name
from cluster.errors import BadInputError
from cluster.storage import Entry, Store, open_store, resolve_uri
from cluster.telemetry import say
from jobs.streaming import PARTS

NAMED = 10  # orphans that are named
_TABLES = ("catalog", "queries")  # kinds whose tables say where their pictures lie


class Config(BaseModel):
    """Flags of `manet gc`."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    out: str = Field(json_schema_extra={"argument": True})
    """Folder of an artifact, or one that holds artifacts, as a pipeline's."""
    delete: bool = False
    """Remove what is found; without this it is only counted and named."""
    grace_hours: float = Field(default=24.0, gt=0)
    """Hours without a write after which no run can be at work in a folder."""


def run(config: Config) -> dict[str, Any]:
    """Look, and remove with --delete; returns what there is."""
    store = open_store(config.out)
    names = [entry.name for entry in store.list(links=False)]  # what lies behind a link is not this folder's to remove
    roots = sorted(name.removesuffix(CLAIM) for name in names if name == CLAIM or name.endswith(f"/{CLAIM}"))
    if not roots:
        raise BadInputError(f"{store.uri('')}: no job has claimed this folder or one below it")
    found: list[tuple[Store, Entry]] = []
    for root in roots:
        inner = tuple(other for other in roots if other != root and other.startswith(root))
        at = store.child(root.removesuffix("/"))
        found += [(at, entry) for entry in _orphans(at, tuple(name.removeprefix(root) for name in inner), config)]
    size = sum(entry.size for _, entry in found)
    for at, entry in found[:NAMED]:
        what = f"unfinished upload {entry.upload[:12]}" if entry.upload else f"{entry.size} bytes"
        say(f"orphan: {at.uri(entry.name)} ({what})")
    if len(found) > NAMED:
        say(f"... and {len(found) - NAMED} more")
    if config.delete:
        for at, entry in sorted(found, key=lambda item: not item[1].name.startswith(f"{RECEIPTS}/")):
            at.discard(entry)
    done = "removed" if config.delete else "to remove with --delete"
    say(f"gc: {len(roots)} artifact(s), {len(found)} orphans of {size} bytes, {done}")
    return {
        "kind": "gc",
        "out": store.uri(""),
        "artifacts": len(roots),
        "orphans": len(found),
        "bytes": size,
        "removed": config.delete,
    }


def _orphans(store: Store, inner: tuple[str, ...], config: Config) -> list[Entry]:
    """What nothing claims in one artifact, whose folders `inner` are artifacts of their own.

    Raises:
        BadInputError: it was written to a moment ago.
    """
    claim, versions = manifests(store)
    there = [entry for entry in store.list(links=False) if not entry.name.startswith(inner)]
    left = [entry for entry in store.unfinished() if not entry.name.startswith(inner)]
    newest = max((entry.modified for entry in (*there, *left)), default=0.0)
    hours = (time.time() - newest) / 3600
    if hours < config.grace_hours:
        raise BadInputError(
            f"{store.uri('')} was written to {hours * 60:.0f} min ago, a run may be at work there; wait, or give a shorter "
            f"--grace-hours (now {config.grace_hours:g}) if you know of none"
        )
    claimed = {CLAIM, PARTS, *_claimed(store, claim, versions, there)}
    kept = () if versions else ("checkpoints/",)
    return left + [entry for entry in there if entry.name not in claimed and not entry.name.startswith(kept)]


def _claimed(store: Store, claim: Claim | None, versions: list[Manifest], there: list[Entry]) -> Iterator[str]:
    """Names of files that a reader or a run that is taken up again needs."""
    parts = {part.name for manifest in versions for part in manifest.parts}
    for entry in there:
        if entry.name.startswith(f"{VERSIONS}/"):
            yield entry.name
        elif entry.name.startswith(f"{RECEIPTS}/"):
            receipt = read_receipt(store, entry.name)
            if receipt is None:  # or none that can be read: its unit is made again
                continue
            names = {part.name for part in receipt.parts}
            if versions and (not names or names & parts):
                yield entry.name
            elif not versions and claim is not None and receipt.claim in {"", claim.sha256}:
                parts |= names
                yield entry.name
    yield from (version_name(manifest.number) for manifest in versions)
    yield from parts
    if claim is not None and claim.kind in _TABLES:
        here = store.uri("x").removesuffix("x")
        for name in sorted(parts):
            if name.endswith(".parquet") and store.exists(name):
                for uri in _uris(store, name):
                    yield resolve_uri(uri, f"{here}{name}").removeprefix(here)


def _uris(store: Store, name: str) -> list[str]:
    """URIs in a table, read alone: packed pictures beside them may be any size."""
    file = pq.ParquetFile(store.open(name))
    return file.read(columns=["uri"])["uri"].to_pylist() if "uri" in file.schema_arrow.names else []
