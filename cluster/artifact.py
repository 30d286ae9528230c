"""An artifact: a folder in a store whose `manifest.json` is written last, once, atomically.

Life of a folder: `claim.json` first (a hash over inputs and config), then the units of work in any order, each a few files
and then its receipt, then `manifest.json` if absent. A folder without a manifest does not exist for a reader.

A *unit* is one piece of work that was cut before the start. Its files are put first and `receipts/<unit>.json` last, so a
unit is done when its receipt stands, however many files it has, and is not written again: it may be committed. A killed run
leaves files without a receipt: they are made again.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from cluster.errors import (
    AlreadyExistsError,
    ArtifactMissingError,
    BadInputError,
    ClaimMismatchError,
    IntegrityError,
    JobFailedError,
    ObjectMissingError,
    WrongKindError,
)
from cluster.storage import LocalStore, Store, open_store

FORMAT_VERSION = 1
MANIFEST, CLAIM, RECEIPTS, VERSIONS = "manifest.json", "claim.json", "receipts", "versions"
_OPENINGS = 5  # tries to open the newest version while others are being pruned
_Model = TypeVar("_Model", bound=BaseModel)
CHECK_THREADS = 8  # files that are hashed side by side when a run is resumed or verified


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Part(_Record):
    """One file of an artifact: name in the folder, rows (0 where it has none), size in bytes, sha256 in hex."""

    name: str
    rows: int
    bytes: int
    sha256: str


class Input(_Record):
    """What a job read: where it lay, and the sha256 of its manifest (of the file itself for a bare table)."""

    uri: str
    sha256: str


class Receipt(_Record):
    """Proof that a unit is done: its files, and the counts that the commit adds up."""

    unit: str
    parts: tuple[Part, ...]
    counts: dict[str, float] = {}
    claim: str = ""  # hash of the claim it was made under, where the worker knew it


class Claim(_Record):
    """What a folder is for. Two runs with equal claims make the same artifact."""

    kind: str
    version: int
    config: dict[str, Any]
    inputs: dict[str, str]

    @property
    def sha256(self) -> str:
        """Hash of the claim: what receipts carry."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()

    def difference(self, other: "Claim") -> str:
        """Name what differs from `other` (the claim that stands in the folder), in one line."""
        if self.kind != other.kind:
            return f"it holds {_a(other.kind)}, not {_a(self.kind)}"
        if self.version != other.version:
            return f"it is of format {other.version}, this program writes {self.version}"
        pairs = [
            (f"--{key.replace('_', '-')}", other.config.get(key), self.config.get(key))
            for key in sorted({*self.config, *other.config})
        ]
        pairs += [
            (f"input {key}", other.inputs.get(key, "")[:12], self.inputs.get(key, "")[:12])
            for key in sorted({*self.inputs, *other.inputs})
        ]
        said = dict.fromkeys((f"input {name}" for name in self.inputs), " (sha256 of what it holds)")
        return ", ".join(
            f"{name}{said.get(name, '')} was {was!r}, now {now!r}" for name, was, now in pairs if was != now
        )


class Manifest(_Record):
    """`manifest.json`: the whole of what a reader may rely on.

    `version` is the format's, `number` that of the content: 1 as made, one more with each change (`cluster.versions`).
    `checksum` is the sha256 of the file with an empty checksum; a manifest without one is of an earlier program.
    """

    kind: str
    version: int
    number: int = 1
    created: str
    config: dict[str, Any]
    code: dict[str, str]
    inputs: dict[str, Input]
    parts: tuple[Part, ...]
    summary: dict[str, Any]
    checksum: str = ""


def manifest_bytes(manifest: Manifest) -> bytes:
    """A manifest as its file, with its checksum."""
    bare = manifest.model_copy(update={"checksum": ""}).model_dump_json(indent=1).encode()
    head, empty, tail = bare.rpartition(b'"checksum": ""')
    digest = hashlib.sha256(bare).hexdigest().encode()
    return head + empty[:-1] + digest + b'"' + tail


def version_name(number: int) -> str:
    """Name of the manifest of a version."""
    return MANIFEST if number == 1 else f"{VERSIONS}/manifest-{number:05d}.json"


def version_numbers(store: Store) -> list[int]:
    """Numbers of the versions whose manifests stand, ascending."""
    later = [int(entry.name[-10:-5]) for entry in store.list(f"{VERSIONS}/manifest-")]
    return ([1] if store.exists(MANIFEST) else []) + sorted(later)


@dataclass(frozen=True, kw_only=True)
class Blob:
    """A file about to be put into an artifact: its bytes, or the path of a large one, and its rows."""

    data: bytes | Path
    rows: int = 0


def parts_of(receipts: Iterable[Receipt]) -> list[Part]:
    """All files of some units, in order."""
    return [part for receipt in receipts for part in receipt.parts]


@dataclass(frozen=True)
class Units:
    """Where the units of a run go, for its workers: a store, and the hash of the claim that they are made under.

    Without a claim any receipt counts: for a change of an index, whose units have names that hold what they are made of.
    """

    store: Store
    claim: str = ""

    def put(self, unit: str, blobs: Mapping[str, Blob], counts: Mapping[str, float] | None = None) -> Receipt:
        """Write the files of one unit, then its receipt. A unit that stands and is whole is left as it is: another run of the
        same command made it, and may have committed it.

        Raises:
            JobFailedError: another command made it, and has the folder now.
        """
        standing = read_receipt(self.store, _receipt_name(unit))
        if standing is not None and not self._counts(standing):
            self.check_claim()
        elif standing is not None and _is_whole(self.store, standing):
            return standing
        parts = tuple(_put(self.store, name, blob) for name, blob in blobs.items())
        receipt = Receipt(unit=unit, parts=parts, counts=dict(counts or {}), claim=self.claim)
        self.store.write(_receipt_name(unit), receipt.model_dump_json(indent=1).encode())
        return receipt

    def receipt(self, unit: str) -> Receipt | None:
        """A unit's receipt, unless there is none or it was written under another claim."""
        found = read_receipt(self.store, _receipt_name(unit))
        return found if found is not None and self._counts(found) else None

    def finished(self, unit: str) -> Receipt | None:
        """A unit's receipt, as `receipt`, when its files have the size and sha256 that it states."""
        found = self.receipt(unit)
        return found if found is not None and _is_whole(self.store, found) else None

    def drop(self, units: Iterable[str]) -> None:
        """Remove units that were only steps on the way: files first, then receipts, so that a kill leaves no orphan."""
        for unit in units:
            if receipt := read_receipt(self.store, _receipt_name(unit)):
                for part in receipt.parts:
                    self.store.delete(part.name)
                self.store.delete(_receipt_name(unit))

    def check_claim(self) -> None:
        """See that the folder is still this command's.

        Raises:
            JobFailedError: another command took it.
        """
        standing = _read_json(self.store, CLAIM, Claim)
        if standing is None or standing.sha256 != self.claim:
            raise JobFailedError(
                f"{self.store.uri('')}: another command took this folder meanwhile; nothing of this run is committed"
            )

    def _counts(self, receipt: Receipt) -> bool:
        return not self.claim or receipt.claim in {"", self.claim}


class ArtifactWriter:
    """The folder that a job writes. `manifest` is set when the same command has been committed there before."""

    def __init__(self, store: Store, claim: Claim, config: Mapping[str, Any], inputs: Mapping[str, Input]) -> None:
        self.store = store
        self.claim = claim
        self.units = Units(store, claim.sha256)
        self._config = dict(config)
        self._inputs = dict(inputs)
        self.manifest: Manifest | None = None

    @classmethod
    def open(
        cls,
        uri: str,
        kind: str,
        *,
        config: Mapping[str, Any],
        claimed: Iterable[str],
        inputs: Mapping[str, Input],
        overwrite: bool = False,
    ) -> "ArtifactWriter":
        """Claim the folder `uri`, or take up an earlier run of the same claim.

        Args:
            uri: folder of the artifact.
            kind: kind of artifact.
            config: all of the job's configuration, as JSON values.
            claimed: the keys of `config` that decide what is in the artifact (not the workers, the addresses, ...).
            inputs: what the job reads.
            overwrite: drop what another command left here.

        Raises:
            ClaimMismatchError: another command's folder; the difference is named.
            BadInputError: the folder holds files that no job has written.
        """
        store = open_store(uri)
        claim = Claim(
            kind=kind,
            version=FORMAT_VERSION,
            config={key: config[key] for key in sorted(claimed)},
            inputs={name: given.sha256 for name, given in sorted(inputs.items())},
        )
        writer = cls(store, claim, config, inputs)
        if overwrite and store.exists(CLAIM):
            writer._start_over()
        elif (standing := _read_json(store, CLAIM, Claim)) is None:
            _refuse_foreign(store)
            writer._claim()
        elif standing != claim:
            raise ClaimMismatchError(
                f"{store.uri('')} belongs to another command: {claim.difference(standing)}; "
                "choose another --out or give --overwrite"
            )
        numbers = version_numbers(store)
        writer.manifest = read_version(store, numbers[-1])[0] if numbers else None
        return writer

    def _claim(self) -> None:
        try:
            self.store.write_if_absent(CLAIM, self.claim.model_dump_json(indent=1).encode())
        except AlreadyExistsError:
            standing = _read_json(self.store, CLAIM, Claim)
            if standing != self.claim:
                raise ClaimMismatchError(
                    f"{self.store.uri('')} was claimed by another command a moment ago; choose another --out"
                ) from None

    def _start_over(self) -> None:
        """Drop what stands in the folder. The claim is replaced, never absent: a kill in between leaves a claimed folder."""
        _clear(self.store)
        self.store.write(CLAIM, self.claim.model_dump_json(indent=1).encode())

    def finished(self) -> dict[str, Receipt]:
        """Units whose receipt stands and whose files still have the size and sha256 it states.

        Files of a damaged unit are left in place: making the unit again replaces them.
        """
        names = [entry.name.removeprefix(f"{RECEIPTS}/") for entry in self.store.list(f"{RECEIPTS}/")]
        with ThreadPoolExecutor(CHECK_THREADS) as pool:
            found = list(pool.map(self.units.finished, (name.removesuffix(".json") for name in names)))
        return {receipt.unit: receipt for receipt in found if receipt is not None}

    def receipts(self, units: Sequence[str]) -> list[Receipt]:
        """Receipts of `units`, read from the store, in that order.

        Raises:
            IntegrityError: a unit has none.
        """
        with ThreadPoolExecutor(CHECK_THREADS) as pool:
            found = list(pool.map(self.units.receipt, units))
        missing = [unit for unit, receipt in zip(units, found, strict=True) if receipt is None]
        if missing:
            raise IntegrityError(
                f"{self.store.uri('')}: {len(missing)} of {len(units)} units are not finished, the first is {missing[0]}; "
                "run the same command again"
            )
        return [receipt for receipt in found if receipt is not None]

    def commit(self, units: Sequence[str], summary: Mapping[str, Any], code: Mapping[str, str]) -> Manifest:
        """Write the manifest over the receipts of `units`, if no other run has.

        Raises:
            IntegrityError: a unit has no receipt, or a file of another size than its receipt says.
            JobFailedError: another run committed this folder first, or another command overwrote it.
        """
        parts = parts_of(self.receipts(units))
        with ThreadPoolExecutor(CHECK_THREADS) as pool:
            faults = list(pool.map(partial(_size_fault, self.store), parts))
        if fault := next(filter(None, faults), ""):
            raise IntegrityError(f"{fault}; run the same command again")
        manifest = self._manifest(parts, summary, code)
        self.units.check_claim()
        try:
            self.store.write_if_absent(MANIFEST, manifest_bytes(manifest))
        except AlreadyExistsError:
            raise JobFailedError(
                f"{self.store.uri(MANIFEST)}: another run committed this artifact first; its result stands"
            ) from None
        self.manifest = manifest
        return manifest

    def draft(self, parts: Sequence[Part], summary: Mapping[str, Any]) -> "Artifact":
        """What is about to be committed, for readers that measure it first; nothing is written."""
        return Artifact(store=self.store, manifest=self._manifest(parts, summary, {}), sha256="")

    def _manifest(self, parts: Sequence[Part], summary: Mapping[str, Any], code: Mapping[str, str]) -> Manifest:
        return Manifest(
            kind=self.claim.kind,
            version=FORMAT_VERSION,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            config=self._config,
            code=dict(code),
            inputs=self._inputs,
            parts=tuple(parts),
            summary=dict(summary),
        )


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """A committed artifact, for readers."""

    store: Store
    manifest: Manifest
    sha256: str

    @property
    def uri(self) -> str:
        """Absolute URI of the folder."""
        return self.store.uri("")

    def as_input(self) -> Input:
        """How a job's manifest names this artifact."""
        return Input(uri=self.uri, sha256=self.sha256)

    def parts(self, prefix: str, suffix: str = "") -> list[Part]:
        """The parts whose names start and end so, in the manifest's order."""
        return [part for part in self.manifest.parts if part.name.startswith(prefix) and part.name.endswith(suffix)]

    def read(self, part: Part) -> bytes:
        """A part's bytes, checked against the manifest.

        Raises:
            IntegrityError: size or sha256 differ.
        """
        return self.checked(self.store, part)

    @staticmethod
    def checked(store: Store, part: Part) -> bytes:
        """As `read`, of a part that no manifest may name yet."""
        data = store.read(part.name)
        _check(store, part, len(data), hashlib.sha256(data).hexdigest())
        return data

    def download(self, part: Part, folder: Path) -> Path:
        """Bring a part into `folder`, checked against the manifest; a file that is there and right is kept.

        Raises:
            IntegrityError: size or sha256 differ.
            BadInputError: its name leads out of `folder`.
        """
        path = LocalStore(folder).local_path(part.name)
        if not (path.is_file() and path.stat().st_size == part.bytes and sha256_of(path) == part.sha256):
            self.store.download(part.name, path)
            _check(self.store, part, path.stat().st_size, sha256_of(path))
        return path

    def local(self, part: Part, cache: Path) -> Path:
        """A part as a file of this machine, checked: where it lies, or brought into `cache` under its sha256.

        Raises:
            IntegrityError: size or sha256 differ.
            ObjectMissingError: it is gone (its version was pruned).
        """
        path = self.store.local_path(part.name)
        if path is None:
            folder = cache / part.sha256
            path = folder / Path(part.name).name
            if not path.is_file():
                self.store.download(part.name, path)
        elif not path.is_file():
            raise ObjectMissingError(f"{path}: no such file")
        try:
            _check(self.store, part, path.stat().st_size, sha256_of(path))
        except IntegrityError:
            if self.store.local_path(part.name) is None:
                path.unlink(missing_ok=True)  # the next opening fetches it again
            raise
        return path

    def verify(self) -> None:
        """Re-read every part.

        Raises:
            IntegrityError: the first part that is missing or differs.
        """
        with ThreadPoolExecutor(CHECK_THREADS) as pool:
            for fault in pool.map(lambda part: _fault(self.store, part), self.manifest.parts):
                if fault:
                    raise IntegrityError(fault)


def peek(store: Store) -> tuple[Claim | None, Manifest | None]:
    """Claim and newest manifest of a folder, finished or not; None where there is none.

    Raises:
        IntegrityError: a manifest that differs from its own checksum.
    """
    claim = _read_json(store, CLAIM, Claim)
    for _ in range(_OPENINGS):
        numbers = version_numbers(store)
        if not numbers:
            return claim, None
        with contextlib.suppress(ObjectMissingError):  # pruned meanwhile: there is a newer one
            return claim, read_version(store, numbers[-1])[0]
    return claim, None


def manifests(store: Store) -> tuple[Claim | None, list[Manifest]]:
    """Claim of a folder, None where there is none, and the manifests of all its versions, oldest first.

    Raises:
        IntegrityError: a manifest that differs from its own checksum.
        ObjectMissingError: a version was pruned meanwhile.
    """
    claim = _read_json(store, CLAIM, Claim)
    return claim, [read_version(store, number)[0] for number in version_numbers(store)]


def open_artifact(uri: str, kind: str, version: int = 0) -> Artifact:
    """Open a committed artifact of one kind, its newest version or the one of a number.

    Raises:
        ArtifactMissingError: no manifest there.
        WrongKindError: an artifact of another kind.
        IntegrityError: a manifest that differs from its own checksum.
        BadInputError: a manifest that cannot be read.
    """
    store = open_store(uri)
    for _ in range(_OPENINGS):
        later = [int(entry.name[-10:-5]) for entry in store.list(f"{VERSIONS}/manifest-")]
        number = version or max(later, default=1)
        try:
            manifest, sha256 = read_version(store, number)
            break
        except ObjectMissingError:
            if version or number == 1:
                continue
    else:
        state = "an unfinished run: run its command again" if store.exists(CLAIM) else "nothing committed"
        if version and (numbers := version_numbers(store)):
            has = ", ".join(map(str, numbers[-9:]))
            raise ArtifactMissingError(f"{store.uri('')} has no version {version}; the newest that it has: {has}")
        raise ArtifactMissingError(f"{store.uri('')} is not {_a(kind)} artifact: {state} (no {version_name(number)})")
    if manifest.kind != kind:
        raise WrongKindError(f"{store.uri('')} holds {_a(manifest.kind)}, but {_a(kind)} is needed here")
    if manifest.version > FORMAT_VERSION:
        raise BadInputError(
            f"{store.uri(version_name(number))} is of format {manifest.version}; this program reads {FORMAT_VERSION}"
        )
    return Artifact(store=store, manifest=manifest, sha256=sha256)


def read_version(store: Store, number: int) -> tuple[Manifest, str]:
    """A version's manifest, held against its own checksum, and the sha256 of its file.

    Raises:
        ObjectMissingError: there is no such version.
        IntegrityError: it differs from its own checksum.
    """
    name = version_name(number)
    raw = store.read(name)
    manifest = _parse(raw, Manifest, store.uri(name))
    digest = f'"checksum": "{manifest.checksum}"'.encode()
    head, found, tail = raw.rpartition(digest)
    bare = head + b'"checksum": ""' + tail
    if manifest.checksum and not (found and hashlib.sha256(bare).hexdigest() == manifest.checksum):
        raise IntegrityError(f"{store.uri(name)} is damaged: it differs from its own checksum")
    return manifest, hashlib.sha256(raw).hexdigest()


def _receipt_name(unit: str) -> str:
    return f"{RECEIPTS}/{unit}.json"


def read_receipt(store: Store, name: str) -> Receipt | None:
    """The receipt in a file; None where there is none, or none that can be read: its unit is made again."""
    return _read_json(store, name, Receipt, strict=False)


def _put(store: Store, name: str, blob: Blob) -> Part:
    if isinstance(blob.data, Path):
        part = Part(name=name, rows=blob.rows, bytes=blob.data.stat().st_size, sha256=sha256_of(blob.data))
        store.write_file(name, blob.data)
        return part
    store.write(name, blob.data)
    return Part(name=name, rows=blob.rows, bytes=len(blob.data), sha256=hashlib.sha256(blob.data).hexdigest())


def sha256_of(path: Path) -> str:
    """Checksum of a local file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sha256_stored(store: Store, name: str) -> str:
    with store.open(name) as file:
        digest = hashlib.sha256()
        while block := file.read(8 << 20):
            digest.update(block)
    return digest.hexdigest()


def _size_fault(store: Store, part: Part) -> str:
    """Why a stored part cannot be whole, by its size alone, in one line; empty when it may be."""
    size = store.size(part.name)
    if size is None:
        return f"{store.uri(part.name)} is missing"
    return f"{store.uri(part.name)} has {size} bytes, not {part.bytes}" if size != part.bytes else ""


def _fault(store: Store, part: Part) -> str:
    """What is wrong with a stored part, in one line; empty when nothing is."""
    if fault := _size_fault(store, part):
        return fault
    differs = _sha256_stored(store, part.name) != part.sha256
    return f"{store.uri(part.name)} differs from the manifest's sha256" if differs else ""


def _is_whole(store: Store, receipt: Receipt) -> bool:
    return not any(_fault(store, part) for part in receipt.parts)


def _check(store: Store, part: Part, size: int, sha256: str) -> None:
    if size != part.bytes or sha256 != part.sha256:
        raise IntegrityError(
            f"{store.uri(part.name)} is damaged: {size} bytes, sha256 {sha256[:12]}; "
            f"the manifest says {part.bytes} bytes, {part.sha256[:12]}"
        )


def _read_json(store: Store, name: str, model: type[_Model], *, strict: bool = True) -> _Model | None:
    """A record; None where there is none, or, unless `strict`, none that can be read."""
    try:
        return _parse(store.read(name), model, store.uri(name))
    except ObjectMissingError:
        return None
    except BadInputError:
        if strict:
            raise
        return None


def _parse(raw: bytes, model: type[_Model], where: str) -> _Model:
    try:
        return model.model_validate_json(raw)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the whole"
        raise BadInputError(
            f"{where} is not a valid {model.__name__.lower()}: {place}: {first['msg']}; bring it back from a copy, or give "
            "--overwrite to the command that made it"
        ) from None


def _refuse_foreign(store: Store) -> None:
    if entry := next(store.list(), None):
        raise BadInputError(
            f"{store.uri('')} is not empty and no job has claimed it (it holds {entry.name}); choose an empty --out"
        )


def _clear(store: Store) -> None:
    """Drop what jobs wrote: the manifests first, so that no reader sees half of it."""
    manifests = [version_name(number) for number in version_numbers(store)]
    receipts = [entry.name for entry in store.list(f"{RECEIPTS}/")]
    found = [_read_json(store, name, Manifest, strict=False) for name in manifests]
    units = [read_receipt(store, name) for name in receipts]  # a record that cannot be read names no file
    names = {part.name for record in (*found, *units) if record is not None for part in record.parts}
    for name in (*manifests, *sorted(names), *receipts):
        if store.exists(name):
            store.delete(name)


def _a(kind: str) -> str:
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"


def canonical(value: BaseModel) -> dict[str, Any]:
    """A model's fields as plain JSON values, the form that claims compare."""
    parsed: dict[str, Any] = json.loads(value.model_dump_json())
    return parsed
