"""How far a run is: a folder -> what is done, missing and rejected, read from storage alone.

  manet status s3://shop/descriptors

Reads the claim, the receipts and the manifest; needs no session, no input and no model, and may be asked while the job runs.
It compares the sizes of files only; `manet verify` reads every byte.
"""

import json
from collections import Counter
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from cluster.artifact import RECEIPTS, Claim, Manifest, Receipt, peek
from cluster.errors import BadInputError, ObjectMissingError
from cluster.storage import Store, open_store
from cluster.telemetry import say
from jobs.parquet import read_parquet
from jobs.streaming import PARTS

NAMED = 10  # missing and damaged units that are named


class Config(BaseModel):
    """Flags of `manet status`."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    out: str = Field(json_schema_extra={"argument": True})
    """Folder of an artifact, finished or not."""


def run(config: Config) -> dict[str, Any]:
    """Look; returns what there is."""
    store = open_store(config.out)
    claim = peek(store, Claim)
    if claim is None:
        raise BadInputError(f"{store.uri('')}: no job has claimed this folder")
    manifest = peek(store, Manifest)
    sizes = {entry.name: entry.size for entry in store.list()}
    receipts = _receipts(store, claim, sizes)
    damaged = sorted(
        receipt.unit for receipt in receipts if any(sizes.get(part.name) != part.bytes for part in receipt.parts)
    )
    units = {receipt.unit for receipt in receipts}
    wanted = _wanted(store)
    missing = [unit for unit in (f"{index:05d}" for index in range(wanted or 0)) if unit not in units]
    reasons = _reasons(store, receipts, sizes)
    state = "damaged" if damaged else "committed" if manifest is not None else "unfinished"
    found = {
        "kind": claim.kind,
        "out": store.uri(""),
        "state": state,
        "done": len(units),
        "missing": len(missing) if wanted is not None else None,
        "damaged": len(damaged),
        "rows": int(sum(receipt.counts.get("rows", 0) for receipt in receipts)),
        "rejects": reasons.total(),
        "reasons": dict(sorted(reasons.items())),
    }
    say(f"{claim.kind}: {state}; {_words(found)}")
    for word, names in (("missing", missing), ("damaged", damaged)):
        if names:
            say(f"{word}: {', '.join(names[:NAMED])}{' ...' if len(names) > NAMED else ''}")
    return {**found, "missing_units": missing[:NAMED], "damaged_units": damaged[:NAMED]}


def _receipts(store: Store, claim: Claim, sizes: dict[str, int]) -> list[Receipt]:
    names = sorted(name for name in sizes if name.startswith(f"{RECEIPTS}/"))
    found = [Receipt.model_validate_json(store.read(name)) for name in names]
    return [receipt for receipt in found if receipt.claim in {"", claim.sha256}]


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
