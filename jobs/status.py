"""How far a run is: a folder -> what is done, missing and rejected, read from storage alone.

  manet status s3://shop/descriptors

Reads the claim, the receipts and the newest manifest; needs no session, no input and no model, and may be asked while the
job runs. Of a committed folder it says what its newest version names: files of older or unfinished versions do not count.
It compares the sizes of files only; `manet verify` reads every byte.
"""

import json
from collections import Counter
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from cluster.artifact import RECEIPTS, Claim, Manifest, Receipt, peek, read_receipt
from cluster.errors import BadInputError, ObjectMissingError
from cluster.storage import Store, open_store
from cluster.telemetry import say
from jobs.parquet import read_parquet
from jobs.streaming import PARTS

RESUMED = "the same command again makes them anew"
MENDED = "bring them back from a copy, or give --overwrite to the command that made them"
NAMED = 10  # missing and damaged units that are named


class Config(BaseModel):
    """Flags of `manet status`."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    out: str = Field(json_schema_extra={"argument": True})
    """Folder of an artifact, finished or not."""


def run(config: Config) -> dict[str, Any]:
    """Look; returns what there is."""
    store = open_store(config.out)
    claim, manifest = peek(store)
    if claim is None:
        raise BadInputError(f"{store.uri('')}: no job has claimed this folder")
    sizes = {entry.name: entry.size for entry in store.list()}
    receipts = _receipts(store, claim, sizes)
    if manifest is not None:
        receipts, damaged = _of_version(manifest, receipts, sizes)
        newest = peek(store)[1]
        if damaged and newest is not None and newest.number != manifest.number:
            return run(config)  # another version since, and this one's files may have been pruned
    else:
        damaged = [one.unit for one in receipts if any(sizes.get(part.name) != part.bytes for part in one.parts)]
    units = {receipt.unit for receipt in receipts}
    wanted = _wanted(store)
    missing = [unit for unit in (f"{index:05d}" for index in range(wanted or 0)) if unit not in units]
    reasons = _reasons(store, receipts, sizes)
    state = "damaged" if damaged else "committed" if manifest is not None else "unfinished"
    found = {
        "kind": claim.kind,
        "out": store.uri(""),
        "state": state,
        "version": manifest.number if manifest is not None else None,
        "done": len(units),
        "missing": len(missing) if wanted is not None else None,
        "damaged": len(damaged),
        "rows": _rows(manifest, receipts),
        "rejects": reasons.total(),
        "reasons": dict(sorted(reasons.items())),
    }
    say(f"{claim.kind}: {state}; {_words(found)}")
    for word, names in (("missing", missing), ("damaged", damaged)):
        if names:
            say(f"{word}: {', '.join(names[:NAMED])}{' ...' if len(names) > NAMED else ''}")
    if damaged:
        say(f"damaged files are missing or of another size: {MENDED if manifest is not None else RESUMED}")
    return {**found, "missing_units": missing[:NAMED], "damaged_units": damaged[:NAMED]}


def _receipts(store: Store, claim: Claim, sizes: dict[str, int]) -> list[Receipt]:
    names = sorted(name for name in sizes if name.startswith(f"{RECEIPTS}/"))
    found = {name: read_receipt(store, name) for name in names}
    unread = [name for name, receipt in found.items() if receipt is None and store.exists(name)]  # else pruned since
    if unread:
        say(f"receipts that cannot be read, and count as absent: {', '.join(unread[:NAMED])}")
    return [receipt for receipt in found.values() if receipt is not None and receipt.claim in {"", claim.sha256}]


def _of_version(manifest: Manifest, receipts: list[Receipt], sizes: dict[str, int]) -> tuple[list[Receipt], list[str]]:
    """Receipts of the units that a version names a file of, and which of those units are damaged.

    A unit may have files that the version does not name (a quantizer that was trained anew): they may be gone. A file
    that no receipt names is held against the manifest alone, and named itself.
    """
    named = {part.name: part for part in manifest.parts}
    bad = {name for name, part in named.items() if sizes.get(name) != part.bytes}
    units = [one for one in receipts if not one.parts or any(part.name in named for part in one.parts)]
    owner = {part.name: one.unit for one in units for part in one.parts}
    return units, sorted({owner.get(name, name) for name in bad})


def _rows(manifest: Manifest | None, receipts: list[Receipt]) -> int:
    """Live rows, as a version's summary has them; of an unfinished run the sum over its units."""
    if manifest is not None and "rows" in manifest.summary:
        return int(manifest.summary["rows"])
    return int(sum(receipt.counts.get("rows", 0) for receipt in receipts))


def _wanted(store: Store) -> int | None:
    """Units that there will be; None where the job does not say."""
    try:
        return int(json.loads(store.read(PARTS))["parts"])
    except ObjectMissingError:
        return None


def _reasons(store: Store, receipts: list[Receipt], sizes: dict[str, int]) -> Counter[str]:
    reasons: Counter[str] = Counter()
    for receipt in receipts:
        for part in receipt.parts:
            if part.name.startswith("rejects-") and sizes.get(part.name) == part.bytes:
                reasons.update(read_parquet(store.read(part.name))["reason"].to_pylist())
    return reasons


def _words(found: dict[str, Any]) -> str:
    of = f" of {found['done'] + found['missing']}" if found["missing"] is not None else ""
    return f"{found['done']}{of} units done, {found['rows']} rows, {found['rejects']} rejects"
