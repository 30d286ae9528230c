"""An index that changes: add, delete, compact, tune, versions, prune. Each change is one new manifest, put if absent.

A change reads the newest version, writes files under names that only it uses, and commits. If another writer was first
it starts again from the winner's version, and keeps the files that still fit. Killed anywhere, it leaves the index as it
was; the same command again ends in the same version as an undisturbed one.
"""

import contextlib
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from cluster.artifact import Artifact, Blob, Input, Part, Units, open_artifact
from cluster.errors import (
    BadInputError,
    IntegrityError,
    JobFailedError,
    LostRaceError,
    ObjectMissingError,
    StoreError,
)
from cluster.session import SessionConfig, ray_session
from cluster.tasks import run_tasks
from cluster.telemetry import say
from cluster.versions import Change, commit_version, drop_versions, list_versions
from jobs.config import how
from jobs.inputs import cache_folder
from jobs.make import code
from jobs.parquet import parquet_bytes, read_parquet
from jobs.postprocessing import processed
from jobs.querying import QuerySpec, dead_rows, open_index, query_dim, query_spec, read_descriptors, read_ids
from jobs.sharding import (
    DescriptorRows,
    ShardRows,
    Training,
    build_shards,
    cut_shards,
    quantizer_of,
    shard_limit,
    shard_summary,
    trained_quantizer,
)
from jobs.tuning import EXACT, MEASURED, TUNED, Tuning, TuningConfig, check_tuned, open_queries, tuning_files
from jobs.tuning import tune as measure

TOMBSTONES = pa.schema([("image_id", pa.string()), ("shard", pa.string()), ("row", pa.int64())])
_SLACK = 1.5  # rows by this factor more or less that a factory is kept for
_TRIES = 5  # versions that other writers may commit before ours gives up


class IndexConfig(SessionConfig):
    """What every change of an index is told."""

    index: str
    """Index artifact to change."""


class AddConfig(IndexConfig):
    """Flags of `manet index add`."""

    descriptors: str
    """Descriptors artifact with the new pictures."""
    replace: bool = False
    """A picture that the index has already is replaced; without this it is an error."""
    shard_rows: int = Field(default=0, ge=0)
    """Most rows of a new shard; 0: as `manet index`."""
    details: bool = True
    """Store uri, description and category of each picture."""
    catalog: str = ""
    """Where the catalogue that was described lies now, if it was moved."""


class DeleteConfig(IndexConfig):
    """Flags of `manet index delete`."""

    ids: str
    """File of the image ids to delete, one a line: a path or a URI."""
    missing_ok: bool = False
    """An id that the index has not, or no more since it was compacted, is passed over; without this it is an error."""


class CompactConfig(IndexConfig):
    """Flags of `manet index compact`."""

    shard_rows: int = Field(default=0, ge=0)
    """Most rows of a rewritten shard; 0: as `manet index`."""
    max_deleted: float = Field(default=0.1, ge=0, le=1)
    """Share of deleted rows above which a shard is rewritten."""
    small_shard: float = Field(default=0.5, ge=0, le=1)
    """Shards with fewer than this share of the most rows are merged, when there are two of them."""
    max_drift: float = Field(default=1.25, ge=1)
    """Quantization error of a shard, over that of the rows the quantizer was trained for, above which all is retrained."""
    seed: int = Field(default=0, ge=0)
    """Seed of a retraining."""
    train_cpus: float = how(1.0, gt=0)
    """CPUs (threads) that retrain the quantizer."""
    train_gpus: int = how(0, ge=0)
    """GPUs that retrain the quantizer."""


class TuneConfig(IndexConfig, TuningConfig):
    """Flags of `manet index tune`."""

    seed: int = Field(default=0, ge=0)
    """Seed of the choice of queries."""


class PruneConfig(IndexConfig):
    """Flags of `manet index prune`."""

    keep: int = Field(default=2, ge=1)
    """Newest versions to keep; the files that only older ones name are removed."""


def add(config: AddConfig) -> dict[str, Any]:
    """New descriptors as new shards of the same quantizer."""
    new = open_artifact(config.descriptors, "descriptors")
    source = DescriptorRows.of(new, details=config.details, catalog=config.catalog)
    parts = [part for part in new.parts("part-") if part.rows]
    if not parts:
        raise BadInputError(f"--descriptors {new.uri}: no descriptor to add")
    ids = pa.concat_tables([source(part)[0].select(["image_id"]) for part in parts])["image_id"].combine_chunks()
    if len(pc.unique(ids)) != len(ids):
        raise BadInputError(f"--descriptors {new.uri}: an image_id stands in two rows")
    dim = read_descriptors(new, parts[0])[1].shape[1]
    spec = QuerySpec.of(new) if "model" in new.manifest.inputs else None
    _check_described(open_index(config.index), f"--descriptors {new.uri}", dim, spec)  # before any Ray work
    details = [source.catalog.source.uri, source.catalog.source.sha256] if source.catalog else []
    made: dict[str, str] = {}  # trained quantizer (and base) -> prefix of the shards that were filled for it

    def change(base: Artifact) -> Change | None:
        _check_described(base, f"--descriptors {new.uri}", dim, spec)
        added = {
            name: given
            for name, given in base.manifest.inputs.items()
            if name.split("-")[0] in ("descriptors", "added")
        }
        present = _rows_of_ids(base, ids)
        known = [name for name, given in added.items() if given.sha256 == new.sha256]
        last = max(added, key=lambda name: (name.startswith("added"), name), default="")
        newest = max(known, key=lambda name: (name.startswith("added"), name), default="")
        replaced = newest not in {"", last} and _replaced(base, newest, ids)
        if known and len(present) == len(ids) and (last in known or not (config.replace or replaced)):
            return None  # these descriptors, all of them live; --replace may go back to them from later ones
        if known and len(present) and not config.replace:
            lost = (
                f"{len(ids) - len(present)} of their {len(ids)} rows deleted"
                if len(present) < len(ids)
                else "some replaced"
            )
            raise BadInputError(
                f"--descriptors {new.uri}: they were added before, and {lost} since; --replace adds all of them anew"
            )
        if len(present) and not config.replace:
            raise BadInputError(
                f"--descriptors {new.uri}: {len(present)} ids are in the index already, e.g. "
                f"{present['image_id'][0].as_py()!r}; --replace puts the new pictures in their place"
            )
        trained = quantizer_of(base)
        kind = trained.sha256 + (base.sha256 if base.manifest.summary.get("augment") else "")  # what shards depend on
        prefix = made.setdefault(kind, _prefix("shard", base, new.sha256, trained.sha256, config.shard_rows, details))
        limit = shard_limit(config.shard_rows, base.manifest.summary["factory"])
        shards = cut_shards(parts, limit, prefix)
        rows_of = processed(base, source, present["image_id"].to_pylist())
        receipts = build_shards(Units(base.store), trained, base.manifest.summary["dim"], rows_of, shards, "index add")
        filled = [part for receipt in receipts for part in receipt.parts]
        stones = base.parts("tombstones")
        if len(present):
            stones = _with_tombstones(base, present, _prefix("tombstones", base, new.sha256))
        others = [part for part in base.manifest.parts if not part.name.startswith("tombstones")]
        errors = _errors(base) | {receipt.unit: receipt.counts["quantization_error"] for receipt in receipts}
        summary = {
            "rows": base.manifest.summary["rows"] + len(ids) - len(present),
            "shards": base.manifest.summary["shards"] + len(shards),
            "deleted": sum(part.rows for part in stones),
            "errors": errors,
            "action": f"add {len(ids)}",
        }
        given = {f"added-{base.manifest.number + 1:05d}": new.as_input()}
        return _change(base, [*others, *filled, *stones], config, summary, given)

    return _apply(config, change)


def delete(config: DeleteConfig) -> dict[str, Any]:
    """Mark rows as deleted: searches pass them over from the next version on."""
    ids = pa.array(read_ids(config.ids, "--ids"), pa.string())

    def change(base: Artifact) -> Change | None:
        found = _rows_of_ids(base, ids)
        gone = [
            name for part in base.parts("tombstones") for name in read_parquet(base.read(part))["image_id"].to_pylist()
        ]
        known = {*found["image_id"].to_pylist(), *gone}
        unknown = [name for name in ids.to_pylist() if name not in known]
        if unknown and not config.missing_ok:
            raise BadInputError(
                f"--ids {config.ids}: the index has no {unknown[0]!r} ({len(unknown)} such ids); --missing-ok passes them over"
            )
        if not len(found):
            return None
        digest = hashlib.sha256("\n".join(ids.to_pylist()).encode()).hexdigest()
        stones = _with_tombstones(base, found, _prefix("tombstones", base, digest))
        parts = [*(part for part in base.manifest.parts if not part.name.startswith("tombstones")), *stones]
        rows = base.manifest.summary["rows"] - len(found)
        summary = {"rows": rows, "deleted": sum(part.rows for part in stones), "action": f"delete {len(found)}"}
        return _change(base, parts, config, summary)

    return _apply(config, change)


def compact(config: CompactConfig) -> dict[str, Any]:
    """Rewrite shards that are small or have many deleted rows; retrain a quantizer that no longer fits."""

    def change(base: Artifact) -> Change | None:
        dead = dead_rows(base)
        every = base.parts("shard-", ".faiss")
        live = {part.name: part.rows - len(dead.get(_stem(part), ())) for part in every}
        errors = _errors(base)
        baseline = base.manifest.summary["quantization_error"]
        drift = max(errors.values(), default=0.0) / baseline if baseline else 1.0
        factory, reason = _factory(base, sum(live.values()))
        other = factory != base.manifest.summary["factory"]
        retrain = other or drift > config.max_drift
        limit = shard_limit(config.shard_rows, factory)
        chosen = every if retrain else _worn(every, live, config, limit)
        if not chosen or not any(live.values()):  # an index whose rows are all deleted keeps its shards, to be one
            return None
        rows_of = ShardRows(base, dead)
        trained, others = quantizer_of(base), list(base.manifest.parts)
        training = Training(factory=factory, seed=config.seed, cpus=config.train_cpus, gpus=config.train_gpus)
        made_of = json.dumps([part.sha256 for part in chosen])
        prefix = _prefix("shard", base, made_of, config.shard_rows, training if retrain else "")
        if retrain:
            unit = f"trained-{prefix.partition('-')[2]}"
            left = [part.model_copy(update={"rows": live[part.name]}) for part in chosen]
            trained = trained_quantizer(Units(base.store), unit, rows_of, left, training).parts[0]
            others = [part for part in others if part.name != quantizer_of(base).name] + [trained]
        shards = cut_shards([part for part in chosen if live[part.name]], limit, prefix, live)
        receipts = build_shards(
            Units(base.store), trained, base.manifest.summary["dim"], rows_of, shards, "index compact"
        )
        dropped = {_stem(part) for part in chosen}
        kept = [part for part in others if part.name.split(".")[0] not in dropped]
        stones = _without(base, dropped, prefix)
        parts = [part for part in kept if not part.name.startswith("tombstones")]
        parts += [*(part for receipt in receipts for part in receipt.parts), *stones]
        fresh = {receipt.unit: receipt.counts["quantization_error"] for receipt in receipts}
        summary: dict[str, Any] = {
            "shards": len(every) - len(chosen) + len(shards),
            "deleted": sum(part.rows for part in stones),
            "errors": {} if retrain else {name: e for name, e in (errors | fresh).items() if name not in dropped},
            "action": f"compact {len(chosen)} shards" + (f", retrained (drift {drift:.2f})" if retrain else ""),
        }
        if retrain:
            summary["quantization_error"] = shard_summary(receipts)["quantization_error"]
        if other:
            summary |= {"factory": factory, "reason": reason, "action": f"compact {len(chosen)} shards into {factory}"}
        tuning, same = _tuned_again(base, parts, summary, config.seed, retrained=retrain)
        return _change(base, parts, config, summary, tuning=tuning, inputs=None if same else {"queries": None})

    said = _apply(config, change)
    check_tuned(said)
    return said


def tune(config: TuneConfig) -> dict[str, Any]:
    """Measure recall against exact search, and make the cheapest setting that reaches a target the index's own."""
    queries = open_queries(config)

    def change(base: Artifact) -> Change | None:
        tuning = measure(base, config, queries, seed=config.seed)
        given = {"queries": queries.source if queries else None}
        if tuning is None or (_known(base, tuning) and base.manifest.inputs.get("queries") == given["queries"]):
            return None
        summary = {"action": f"tune to {config.recall_target:g}"}
        return _change(base, list(base.manifest.parts), config, summary, given, tuning)

    said = _apply(config, change)
    check_tuned(said)
    return said


def versions(config: IndexConfig) -> dict[str, Any]:
    """What versions there are; each can be read by its number."""
    rows = []
    for artifact in list_versions(config.index, "index"):
        manifest = artifact.manifest
        fields = {name: manifest.summary.get(name) for name in ("rows", "shards", "deleted", "action")}
        rows.append({"version": manifest.number, "created": manifest.created, **fields})
        say(f"version {manifest.number}, {manifest.created}: {fields['rows']} rows, {fields['action'] or 'build'}")
    return {"kind": "versions", "index": config.index, "versions": rows}


def prune(config: PruneConfig) -> dict[str, Any]:
    """Remove all but the newest versions, and the files that only they name."""
    found = list_versions(config.index, "index")
    doomed, kept = found[: -config.keep], found[-config.keep :]
    names = drop_versions(kept[-1].store, doomed, kept)
    return {
        "kind": "index",
        "out": kept[-1].uri,
        "pruned": [artifact.manifest.number for artifact in doomed],
        "files_removed": len(names),
    }


def _apply(config: IndexConfig, change: Callable[[Artifact], Change | None]) -> dict[str, Any]:
    """Make a change on top of the newest version, again when another writer was first.

    Raises:
        JobFailedError: others were first every time.
    """
    with ray_session(config):
        for _ in range(_TRIES):
            base = open_index(config.index)
            try:
                wanted = change(base)
                if wanted is None:
                    say(f"index: version {base.manifest.number} stands; nothing to do")
                    return _said(base)
                return _said(commit_version(base, wanted))
            except LostRaceError as error:
                say(f"{error}; starting again from the newest")
            except (ObjectMissingError, IntegrityError):
                if open_index(config.index).manifest.number == base.manifest.number:
                    raise  # not a version that was pruned under us
    raise JobFailedError(f"{config.index}: other writers were first {_TRIES} times; run the same command again")


def _said(index: Artifact) -> dict[str, Any]:
    summary = {name: value for name, value in index.manifest.summary.items() if name != "errors"}
    return {"kind": "index", "out": index.uri, "version": index.manifest.number, **summary}


def _change(
    base: Artifact,
    parts: list[Part],
    config: IndexConfig,
    summary: Mapping[str, Any],
    inputs: Mapping[str, Input | None] | None = None,
    tuning: Tuning | None = None,
) -> Change:
    """The next version, with a report of its own; its summary leaves out what was measured of the last one.

    Args:
        base: the version before.
        parts: files of the next one; report and plot of the last are left out.
        config: the command.
        summary: what is other than in `base`.
        inputs: what the command read; None: what the last version read under that name is dropped.
        tuning: what was measured of the next version.
    """
    fields: dict[str, Any] = json.loads(config.model_dump_json())
    kept = {name: value for name, value in base.manifest.summary.items() if name not in MEASURED}
    now = {**kept, **summary}
    if now["factory"] == "Flat":
        now = {name: value for name, value in now.items() if name not in ("nprobe", "refine")} | EXACT
    read = {**base.manifest.inputs, **(inputs or {})}
    return Change(
        parts=tuple(_retold(base, parts, now, tuning)),
        config=fields,
        inputs={name: given for name, given in read.items() if given is not None},
        summary=now | (tuning.summary() if tuning else {}),
        code=code(),
    )


def _prefix(kind: str, base: Artifact, *content: object) -> str:
    """A name that no other change uses: it holds the version it starts from and a hash of what it is made of."""
    digest = hashlib.sha256(json.dumps([base.sha256, *map(str, content)]).encode()).hexdigest()
    return f"{kind}-v{base.manifest.number + 1:05d}-{digest[:8]}"


def _errors(base: Artifact) -> dict[str, float]:
    found: dict[str, float] = dict(base.manifest.summary.get("errors", {}))
    return found


def _stem(part: Part) -> str:
    return part.name.removesuffix(".faiss")


def _rows_of_ids(base: Artifact, ids: pa.Array) -> pa.Table:
    """Where live rows have one of these ids: image_id, shard, row; one Ray task a shard."""
    dead = dead_rows(base)
    look = partial(_find, base, ids)
    found = list(
        run_tasks(
            look, [(part, dead.get(part.name.split(".")[0], ())) for part in base.parts("shard-", ".ids.parquet")]
        )
    )
    return pa.concat_tables([TOMBSTONES.empty_table(), *found]).sort_by("image_id")


def _find(base: Artifact, ids: pa.Array, item: tuple[Part, tuple[int, ...]]) -> pa.Table:
    part, dead = item
    stored = read_parquet(base.local(part, cache_folder()), ["image_id"])["image_id"]
    there = pc.is_in(stored, value_set=ids).to_numpy(zero_copy_only=False).astype(bool)
    there[list(dead)] = False
    rows = pa.array(there.nonzero()[0], pa.int64())
    shard = pa.array([part.name.split(".")[0]] * len(rows), pa.string())
    return pa.table([stored.take(rows).combine_chunks(), shard, rows], schema=TOMBSTONES)


def _stones(base: Artifact) -> pa.Table:
    tables = [read_parquet(base.read(part)) for part in base.parts("tombstones")]
    return pa.concat_tables([TOMBSTONES.empty_table(), *tables])


def _replaced(base: Artifact, added: str, ids: pa.Array) -> bool:
    """Whether rows of these ids that came with an input ("descriptors", "added-00002") were replaced since, as far as tombstones
    of its own shards tell: a compaction drops both.
    """
    stones = _stones(base)
    version = added.partition("-")[2]
    built = pc.invert(pc.starts_with(stones["shard"], "shard-v"))  # those of the first build name no version
    own = pc.starts_with(stones["shard"], f"shard-v{version}-") if version else built
    return bool(pc.any(pc.and_(own, pc.is_in(stones["image_id"], value_set=ids))).as_py())


def _put_stones(base: Artifact, table: pa.Table, prefix: str) -> list[Part]:
    if not len(table):
        return []
    unit = f"tombstones-{prefix.partition('-')[2]}"
    ordered = table.sort_by([("shard", "ascending"), ("row", "ascending")])
    blob = Blob(data=parquet_bytes(ordered), rows=len(ordered))
    return list(Units(base.store).put(unit, {f"{unit}.parquet": blob}).parts)


def _with_tombstones(base: Artifact, found: pa.Table, prefix: str) -> list[Part]:
    return _put_stones(base, pa.concat_tables([_stones(base), found]), prefix)


def _without(base: Artifact, dropped: set[str], prefix: str) -> list[Part]:
    """The tombstones of shards that stay."""
    table = _stones(base)
    gone = pc.is_in(table["shard"], value_set=pa.array(sorted(dropped), pa.string()))
    return _put_stones(base, table.filter(pc.invert(gone)), prefix)


def _worn(every: list[Part], live: Mapping[str, int], config: CompactConfig, limit: int) -> list[Part]:
    """Shards to rewrite: too many deleted rows, or small and not alone."""
    worn = [part for part in every if part.rows - live[part.name] > config.max_deleted * part.rows]
    small = [part for part in every if live[part.name] < config.small_shard * limit]
    if len(cut_shards([part for part in small if live[part.name]], limit, "", live)) == len(small):
        small = []  # they would be cut into as many again
    chosen = {part.name for part in worn} | ({part.name for part in small} if len(small) > 1 else set())
    return [part for part in every if part.name in chosen]


def _check_described(base: Artifact, where: str, dim: int, spec: QuerySpec | None) -> None:
    """Refuse new descriptors that no query of this index is like.

    Raises:
        BadInputError: other dimensions, or described otherwise than the index's `query.json` says.
    """
    if dim != (wanted := query_dim(base)):
        raise BadInputError(f"{where}: {dim} dimensions, the index has {wanted}")
    if not base.parts("query.json"):
        return
    if spec is None:
        raise BadInputError(f"{where}: vectors of no model, those of the index were described by one")
    spec.refuse_other(query_spec(base), where)


def _factory(base: Artifact, rows: int) -> tuple[str, str]:
    """Factory string of the live rows, and the reason: chosen again where it was chosen automatically, unless about as many rows
    would be given the standing one: a few rows more or less rebuild nothing.
    """
    from manet.errors import InputError
    from manet.index import choose_factory

    known = base.manifest.summary
    stays = known["factory"], known.get("reason", "")
    if not rows or "memory_per_vector" not in known:  # it was asked for, or chosen by an earlier program
        return stays
    with contextlib.suppress(InputError):  # so few rows are left that no code fits the budget
        near = (rows, max(1, int(rows / _SLACK)), int(rows * _SLACK))
        chosen = [choose_factory(each, known["dim"], known["memory_per_vector"]) for each in near]
        return stays if stays[0] in {factory for factory, _ in chosen} else chosen[0]
    return stays


def _tuned_again(
    base: Artifact, parts: list[Part], summary: Mapping[str, Any], seed: int, *, retrained: bool
) -> tuple[Tuning | None, bool]:
    """How the rewritten index is to be searched: to the target and the budget that it was tuned to, measured with queries of the
    same file; and whether that was found. Where it is not, an index of the same quantizer is searched as before, one that was
    trained again is measured with made-up queries. None: not measured.
    """
    known = base.manifest.summary
    if "recall_target" not in known:
        return None, True
    given = base.manifest.inputs.get("queries")
    config = TuningConfig(
        recall_target=known["recall_target"], latency_ms=known["latency_ms"], queries=given.uri if given else ""
    )
    queries, gone = None, ""
    if given is not None:
        try:
            queries = open_queries(config)
        except (BadInputError, StoreError) as error:
            gone = str(error)
        if queries is not None and queries.source.sha256 != given.sha256:
            queries, gone = None, f"{given.uri} holds other queries now"
    if gone:
        instead = "measured with made-up queries" if retrained else "searched as before, not measured"
        say(f"index compact: {gone}; {instead}: `manet index tune` measures with others")
    if gone and not retrained:
        return None, True
    manifest = base.manifest.model_copy(update={"parts": tuple(parts), "summary": {**known, **summary}})
    index = replace(base, manifest=manifest, sha256="")
    return measure(index, config, queries, seed=seed, label="index compact"), not gone


def _retold(base: Artifact, parts: list[Part], summary: Mapping[str, Any], tuning: Tuning | None) -> list[Part]:
    """The parts with a new version's own report in the place of the earlier one, and what was measured: of this version, else of
    the last one that was, where the quantizer is still the same.
    """
    skipped = ("errors", "action", "seconds")  # the way to it
    built = {name: value for name, value in summary.items() if name not in skipped}
    told = {name: value for name, value in built.items() if name not in TUNED}
    earlier = None if tuning else _measured(base, parts)
    unit = _prefix("report", base, json.dumps(tuning.report() if tuning else earlier), json.dumps(told))
    blobs = tuning_files(tuning, built, f"-{unit.partition('-')[2]}", earlier)
    replaced = {"report"} if earlier else {"report", "recall"}
    others = [part for part in parts if part.name.split(".")[0].split("-")[0] not in replaced]
    return [*others, *Units(base.store).put(unit, blobs).parts]


def _measured(base: Artifact, parts: list[Part]) -> dict[str, Any] | None:
    """What a version's report says of its tuning, and of which version that is; None where nothing was measured, or where it
    is no more of the quantizer among `parts`.
    """
    reports = base.parts("report", ".json")
    if not reports or quantizer_of(base).sha256 not in {part.sha256 for part in parts}:
        return None
    tuning = json.loads(base.read(reports[-1])).get("tuning")
    return {"of_version": base.manifest.number, **tuning} if tuning else None


def _known(base: Artifact, tuning: Tuning) -> bool:
    """Whether the version says all of this already."""
    return all(
        base.manifest.summary.get(name) == value for name, value in tuning.summary().items() if name != "query_ms"
    )


COMMANDS: dict[str, Any] = {
    "add": (AddConfig, add),
    "delete": (DeleteConfig, delete),
    "compact": (CompactConfig, compact),
    "tune": (TuneConfig, tune),
    "versions": (IndexConfig, versions),
    "prune": (PruneConfig, prune),
}
