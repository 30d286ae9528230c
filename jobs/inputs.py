"""How jobs open what they read: catalog and queries tables, and models. Tables are read by row ranges, in any worker."""

import hashlib
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import BinaryIO, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.artifact import Artifact, Input, open_artifact, sha256_of
from cluster.errors import BadInputError, MisplacedError, ObjectMissingError
from cluster.storage import read_uri, resolve_uri, split_uri
from jobs.parquet import reading
from manet.config import CONFIG, NetworkConfig, read_config
from manet.tables import CATALOG, QUERIES, check_catalog, check_queries, typed

Kind = Literal["catalog", "queries"]
BYTES = "bytes"  # column of a packed table: a picture's file, null where it could not be fetched
_ID_COLUMN: dict[str, str] = {"catalog": "image_id", "queries": "query_id"}
_SCHEMA: dict[str, pa.Schema] = {"catalog": CATALOG, "queries": QUERIES}


@dataclass(frozen=True, kw_only=True)
class TableFile:
    """One Parquet file of a table: absolute URI and rows."""

    uri: str
    rows: int


@dataclass(frozen=True, kw_only=True)
class Table:
    """A catalog or queries table in a store, as rows 0..n-1 over its files in order. Picklable: workers read ranges."""

    kind: Kind
    source: Input
    files: tuple[TableFile, ...]

    @property
    def rows(self) -> int:
        """Rows in all files."""
        return sum(file.rows for file in self.files)

    def read(self, start: int = 0, stop: int | None = None, columns: list[str] | None = None) -> pa.Table:
        """Rows start..stop and columns (all by default, but pictures packed in the table); `uri` made absolute.

        Raises:
            InputError: a column is of a type that cannot be made the kind's.
        """
        stop = self.rows if stop is None else stop
        pieces, first = [], 0
        for file in self.files:
            low, high = max(start, first), min(stop, first + file.rows)
            if low < high:
                pieces.append(self._typed(file, _read_rows(file.uri, low - first, high - first, columns)))
            first += file.rows
        table = (
            pa.concat_tables(pieces)
            if pieces
            else self._typed(self.files[0], _read_rows(self.files[0].uri, 0, 0, columns))
        )
        return _absolute_uris(table, self.files[0].uri)

    def _typed(self, file: TableFile, rows: pa.Table) -> pa.Table:
        """Rows of a file with the types of the kind's columns: its files are checked at opening, but not made alike."""
        return typed(rows, _SCHEMA[self.kind], file.uri)

    def sources(self, start: int, stop: int) -> list[tuple[str, str, bytes | None]]:
        """(id, absolute uri, bytes) of the pictures in rows start..stop; bytes where the table holds them, else None."""
        if not self.packed:
            return [(name, uri, None) for name, uri in self.pictures(start, stop)]
        key = _ID_COLUMN[self.kind]
        table = self.read(start, stop, [key, "uri", BYTES])
        return list(zip(*(table[name].to_pylist() for name in (key, "uri", BYTES)), strict=True))

    @property
    def packed(self) -> bool:
        """Whether the table holds the pictures' bytes themselves (`ingest --pack`)."""
        return holds_bytes(_parquet(self.files[0].uri).schema_arrow)

    def pictures(self, start: int, stop: int) -> list[tuple[str, str]]:
        """(id, absolute uri) of the pictures in rows start..stop."""
        table = self.read(start, stop, [_ID_COLUMN[self.kind], "uri"])
        return list(zip(table[_ID_COLUMN[self.kind]].to_pylist(), table["uri"].to_pylist(), strict=True))


def open_table(uri: str, kind: Kind, flag: str, *, relevant: bool = True) -> Table:
    """Open and check a table: an artifact's folder, or a bare Parquet file; `relevant`: each query must have its answers.

    Of a committed catalog the first file is read, not all of them, so that opening it takes as long for any number of pictures.

    Raises:
        BadInputError: nothing there, or not a Parquet file.
        InputError: a column is missing, an id is doubled, ... (the file and the row are named).
    """
    if uri.endswith(".parquet"):
        store, name = split_uri(uri)
        data = read_named(uri, flag)
        source = Input(uri=store.uri(name), sha256=hashlib.sha256(data).hexdigest())
        files: tuple[TableFile, ...] = (TableFile(uri=source.uri, rows=_footer_rows(source.uri, f"{flag} {uri}")),)
    else:
        artifact = open_artifact(uri, kind)
        source = artifact.as_input()
        files = tuple(
            TableFile(uri=artifact.store.uri(part.name), rows=part.rows) for part in artifact.parts(kind, ".parquet")
        )
    table = Table(kind=kind, source=source, files=files)
    check = check_catalog if kind == "catalog" else partial(check_queries, relevant=relevant)
    if table.rows == 0:
        raise BadInputError(f"{flag} {uri}: the table has no rows")
    # a committed catalog was checked when it was made: reading all of it again would keep a large gallery waiting
    read = files[:1] if kind == "catalog" and not uri.endswith(".parquet") else files
    where = f"{flag} {uri}"
    with reading(where):
        whole = [typed(_whole(file.uri), _SCHEMA[kind], where) for file in read]
    checked = check(pa.concat_tables(whole, promote_options="permissive"), where)
    if uri.endswith(".parquet"):
        check_lines(checked[checked.column_names[0]].to_pylist(), where)
    return table


def read_named(uri: str, flag: str, wanted: str = "file") -> bytes:
    """All bytes of the file that a flag names.

    Raises:
        BadInputError: there is no such file as is wanted, or a folder is in its place, or a file in its folder's.
    """
    try:
        return read_uri(uri)
    except ObjectMissingError:
        raise BadInputError(f"{flag} {uri}: no such {wanted}") from None
    except MisplacedError as error:
        raise BadInputError(f"{flag} {error}") from None


def check_lines(ids: Sequence[str], where: str) -> None:
    """Every id is of one line, as in the files that list ids, and may stand in a web address.

    Raises:
        BadInputError: one is not.
    """
    for name in ids:
        if "\n" in name or "\r" in name:
            raise BadInputError(
                f"{where}: the id {name!r} holds a line break; lists have one id a line: give it another"
            )
        if name in {".", ".."}:
            raise BadInputError(
                f"{where}: the id {name!r} means a folder, in paths and in web addresses: give it another"
            )


def holds_bytes(schema: pa.Schema) -> bool:
    """Whether a table of this schema holds the pictures' own bytes; a column of that name may be anything else, as a size."""
    kind = schema.field(BYTES).type if BYTES in schema.names else pa.null()
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _footer_rows(uri: str, where: str) -> int:
    with reading(where):
        return int(_parquet(uri).metadata.num_rows)


@lru_cache(maxsize=64)
def _parquet(uri: str) -> pq.ParquetFile:
    return pq.ParquetFile(_opened(uri))


def _opened(uri: str) -> BinaryIO:
    store, name = split_uri(uri)
    return store.open(name)


def _whole(uri: str) -> pa.Table:
    """A file's rows without the pictures themselves."""
    file = _parquet(uri)
    return file.read(columns=_without_pictures(file))


def _without_pictures(file: pq.ParquetFile) -> list[str]:
    return [name for name in file.schema_arrow.names if name != BYTES]


def _read_rows(uri: str, start: int, stop: int, columns: list[str] | None) -> pa.Table:
    """Rows of one file, reading only the row groups that hold them."""
    file = pq.ParquetFile(_opened(uri), metadata=_parquet(uri).metadata)  # one of its own: readers share no state
    columns = columns or _without_pictures(file)
    groups: list[int] = []
    first = skip = 0
    for group in range(file.metadata.num_row_groups):
        rows = file.metadata.row_group(group).num_rows
        if first < stop and start < first + rows:
            if not groups:
                skip = start - first
            groups.append(group)
        first += rows
    with reading(uri):
        return file.read_row_groups(groups, columns=columns).slice(skip, stop - start)


def _absolute_uris(table: pa.Table, base: str) -> pa.Table:
    if "uri" not in table.column_names:
        return table
    uris = pa.array([resolve_uri(uri, base) for uri in table["uri"].to_pylist()], pa.string())
    return table.set_column(table.schema.get_field_index("uri"), "uri", uris)


def open_model(uri: str) -> Artifact:
    """Open a committed model.

    Raises:
        ClusterError: see `open_artifact`.
    """
    return open_artifact(uri, "model")


def cache_folder() -> Path:
    """Where this machine keeps what it brought from a store: $MANET_CACHE, else this user's under the temporary folder.

    Raises:
        MisplacedError: it, or what it stands under, is a file.
    """
    folder = Path(os.environ.get("MANET_CACHE") or f"{tempfile.gettempdir()}/manet-cache-{os.getuid()}")
    above = (folder, *folder.absolute().parents)
    standing = next(path for path in above if os.path.exists(path))  # noqa: PTH110 - Path's own raises where it may not look
    if not standing.is_dir():
        raise MisplacedError(
            f"{standing} is a file and no folder: $MANET_CACHE {folder} cannot be kept there; name another"
        )
    return folder


def network_of(model: Artifact) -> NetworkConfig:
    """The network of a model, without its weights."""
    return read_config(local_copy(model, CONFIG)).network


def local_copy(artifact: Artifact, prefix: str = "") -> Path:
    """A folder of the cache with the artifact's parts (those that start with `prefix`), checked; kept by checksum."""
    folder = cache_folder() / artifact.sha256[:32]
    for part in artifact.parts(prefix):
        artifact.download(part, folder)
    return folder


def fetch_weights(uri: str, sha256: str = "") -> Path:
    """A weights file of a store on this machine, for `manet.weights`; kept in the cache by its checksum.

    Where the checksum is known and the file is there already, nothing is brought.
    """
    store, name = split_uri(uri)
    kept, file = cache_folder() / "weights", Path(name).name
    if sha256 and (path := kept / sha256[:32] / file).is_file() and sha256_of(path) == sha256:
        return path
    kept.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept) as scratch:
        brought = Path(scratch) / file
        store.download(name, brought)
        path = kept / sha256_of(brought)[:32] / file
        path.parent.mkdir(exist_ok=True)
        brought.replace(path)
    return path
