"""Bring in pictures from outside: a folder, a table, a URL list or the challenge's CSVs -> catalog or queries.

  manet ingest --source s3://shop/pictures --out s3://shop/catalog
  manet ingest --source training_public.csv --images s3://perfect-500k/train --out catalog
  manet ingest --source val.csv --images s3://perfect-500k/val --kind queries --out queries

  manet ingest --source s3://shop/shards --format tar --out s3://shop/catalog
  manet ingest --source s3://shop/pictures --pack --out s3://shop/catalog
  manet ingest --source s3://shop/catalog --pack --out s3://shop/packed

Only the table is written; pictures stay where they are and are read by their URIs. With --pack, and from tar shards, the
pictures' bytes are written into the table's parts, which `extract` reads in few requests (Ray tasks; resumable). What is
wrong with a row (no id, a doubled id, no answers) is said with its file and row, and nothing is written.
"""

import csv
import hashlib
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
from pydantic import field_validator

from cluster.artifact import MANIFEST, ArtifactWriter, Blob, Input
from cluster.errors import BadInputError, IntegrityError, JobFailedError
from cluster.session import ray_session
from cluster.storage import open_store, resolve_uri, split_uri
from cluster.tasks import run_tasks
from cluster.telemetry import Meter, say
from jobs.config import JobConfig
from jobs.inputs import Kind, check_lines, holds_bytes, open_table, read_named
from jobs.make import make
from jobs.packing import PACK_ROWS, PICTURES, check_ids, pack_rows, pack_tar, tar_shards
from jobs.parquet import parquet_bytes, read_parquet, reading
from manet.errors import InputError
from manet.tables import CATALOG, QUERIES, check_catalog, check_queries, typed

PART_ROWS = 100_000
_Given = TypeVar("_Given")
_HEADERS = {"id", "image id", "training image id"}  # first cell of a CSV that has a header
Format = Literal["auto", "artifact", "folder", "tar", "table", "urls", "training-csv", "validation-csv"]


class Config(JobConfig):
    """Flags of `manet ingest`."""

    source: str
    """Folder of pictures, or another catalog's, a .parquet or .csv table, a .txt list of URIs, or one of the challenge's CSVs."""
    kind: Kind = "catalog"
    """What to write."""
    format: Format = "auto"
    """What the source is; auto: by its name and its header."""
    pack: bool = False
    """Write the pictures' bytes into the catalog; tar shards are always packed. A picture that was replaced under its old name
    goes unnoticed when the command is sent again."""
    images: str = ""
    """Where the challenge's pictures lie: IMAGES/ID.jpg."""

    @field_validator("images")
    @classmethod
    def _no_slash(cls, given: str) -> str:
        return given.rstrip("/")


def run(config: Config) -> dict[str, Any]:
    """Run the job; returns its summary."""
    form = _guess(config) if config.format == "auto" else config.format
    if config.kind == "queries" and (config.pack or form == "tar"):
        raise BadInputError("--kind queries: only catalogs are packed; drop --pack")
    if form == "tar":
        return _run_tar(config)
    if form == "artifact":
        standing = open_table(config.source, config.kind, "--source")
        if standing.packed:
            raise _packed_source(config)
        table, digest = standing.read(), standing.source.sha256
    elif form == "folder":
        table, digest = _folder(config), ""
    else:
        data = read_named(config.source, "--source")
        table, digest = _PARSERS[form](config, data), hashlib.sha256(data).hexdigest()
    check = check_catalog if config.kind == "catalog" else check_queries
    checked = check(table, f"--source {config.source}")
    if not checked.num_rows:
        raise BadInputError(f"--source {config.source}: no pictures found ({', '.join(PICTURES)})")
    check_lines(checked[checked.column_names[0]].to_pylist(), f"--source {config.source}")
    _check_uris(config, checked["uri"].to_pylist())
    digest = digest or hashlib.sha256(parquet_bytes(checked)).hexdigest()
    inputs = {"source": Input(uri=config.source, sha256=digest)}
    if config.pack:
        return make(config, "catalog", inputs, partial(_pack, config, checked))
    return make(config, config.kind, inputs, partial(_write, config.kind, checked))


def _packed_source(config: Config) -> BadInputError:
    return BadInputError(
        f"--source {config.source}: it holds its pictures' bytes already, extract reads it as it is; "
        "to write another catalog, give what it was made of"
    )


def _check_uris(config: Config, uris: list[str]) -> None:
    """Every URI is of a store that there is.

    Raises:
        BadInputError: the first that is not.
    """
    for row, uri in enumerate(uris):
        try:
            split_uri(uri)
        except BadInputError as error:
            raise BadInputError(f"--source {config.source}: row {row} ({uri}): {error}") from None


def _pack(config: Config, table: pa.Table, writer: ArtifactWriter) -> tuple[list[str], dict[str, Any]]:
    starts = {f"{index:05d}": start for index, start in enumerate(range(0, table.num_rows, PACK_ROWS))}
    into = writer.units

    def work(given: tuple[str, bytes]) -> int:
        return pack_rows(into, given[0], read_parquet(given[1]))["rows"]

    def given_to(
        unit: str,
    ) -> tuple[str, bytes]:  # a task gets its rows alone: a slice would bring the whole table along
        return unit, parquet_bytes(table.slice(starts[unit], PACK_ROWS))

    names, summary = _packed(config, writer, list(starts), given_to, work)
    for unit, receipt in zip(names, writer.receipts(names), strict=True):
        wanted = min(PACK_ROWS, table.num_rows - starts[unit])
        if receipt.counts["rows"] != wanted:
            raise IntegrityError(
                f"{into.store.uri('')}: part {unit} holds {receipt.counts['rows']:g} rows for {wanted} pictures; "
                f"delete receipts/{unit}.json and run the same command again"
            )
    return names, summary


def _run_tar(config: Config) -> dict[str, Any]:
    """Every shard becomes a part."""
    shards = tar_shards(config.source)
    if not shards:
        raise BadInputError(f"--source {config.source}: no .tar file there")
    told = "\n".join(f"{uri} {version}" for uri, version in shards.items())
    inputs = {"source": Input(uri=config.source, sha256=hashlib.sha256(told.encode()).hexdigest())}

    def build(writer: ArtifactWriter) -> tuple[list[str], dict[str, Any]]:
        units = {f"{index:05d}": uri for index, uri in enumerate(shards)}
        into = writer.units
        names, summary = _packed(
            config,
            writer,
            list(units),
            lambda unit: (unit, units[unit]),
            lambda given: pack_tar(into, *given)["rows"],
        )
        files = [pq.ParquetFile(into.store.open(f"catalog-{unit}.parquet")) for unit in names]
        ids = [name for file in files for name in file.read(columns=["image_id"])["image_id"].to_pylist()]
        if len(ids) != summary["rows"]:
            raise IntegrityError(
                f"{into.store.uri('')}: the parts hold {len(ids)} rows for {summary['rows']} pictures; run again with --overwrite"
            )
        check_ids(ids, f"--source {config.source}")
        if not ids:
            raise BadInputError(f"--source {config.source}: the shards hold no pictures ({', '.join(PICTURES)})")
        return names, summary

    return make(config, "catalog", inputs, build)


def _packed(
    config: Config,
    writer: ArtifactWriter,
    units: list[str],
    given_to: Callable[[str], tuple[str, _Given]],
    work: Callable[[tuple[str, _Given]], int],
) -> tuple[list[str], dict[str, Any]]:
    """Parts that are not there yet, one task each; `given_to` makes what the task of a unit is given.

    Raises:
        JobFailedError: none of the pictures can be read.
    """
    done = writer.finished()
    todo = [unit for unit in units if unit not in done]
    if todo:
        with ray_session(config), Meter("pack", len(todo), "parts") as meter:
            for _ in run_tasks(work, map(given_to, todo)):
                meter.advance(1)
    receipts = writer.receipts(units)
    keys = ("rows", "unread", "passed_over")
    counts = {key: int(sum(receipt.counts.get(key, 0) for receipt in receipts)) for key in keys}
    if counts["passed_over"]:
        say(f"ingest: {counts['passed_over']} members of the shards are neither pictures nor descriptions: passed over")
    if counts["rows"] and counts["unread"] == counts["rows"]:
        raise JobFailedError(
            f"--source {config.source}: none of its {counts['rows']} pictures can be read; mend their URIs or the rights to "
            "read them, and run with --overwrite"
        )
    return units, {**counts, "packed": True}


def _write(kind: Kind, table: pa.Table, writer: ArtifactWriter) -> tuple[list[str], dict[str, Any]]:
    units = []
    for index, start in enumerate(range(0, table.num_rows, PART_ROWS)):
        part, unit = table.slice(start, PART_ROWS), f"{index:05d}"
        blob = Blob(data=parquet_bytes(part), rows=part.num_rows)
        writer.units.put(unit, {f"{kind}-{unit}.parquet": blob})
        units.append(unit)
    return units, {"rows": table.num_rows}


def _guess(config: Config) -> Format:
    name = config.source.lower()
    if name.endswith(".parquet"):
        return "table"
    if name.endswith(".txt"):
        return "urls"
    if name.endswith(".tar"):
        return "tar"
    if not name.endswith(".csv"):
        return "artifact" if open_store(config.source).exists(MANIFEST) else "folder"
    cells = [cell.strip().lower() for cell in _header(read_named(config.source, "--source"))]
    if not cells:
        raise BadInputError(f"--source {config.source}: the file is empty")
    if cells[0] == "validation image id":
        return "validation-csv"
    ours = re.split(r"[;\t]", cells[0])[0] in {"image_id", "query_id"} and cells[1:] != ["title"]
    return "table" if "uri" in cells or (ours and not config.images) else "training-csv"  # ours: its uri is what lacks


def _header(data: bytes) -> list[str]:
    """The cells of the first line that is not empty, as they are but for their quotes."""
    return next(csv.reader(line for _, line in _filled(data[:4096])), [])


def _folder(config: Config) -> pa.Table:
    """Every picture below a folder; its id is its path without the ending."""
    if config.kind == "queries":
        raise BadInputError("--kind queries: a folder does not say what is relevant; give a table with that column")
    store = open_store(config.source)
    every = [entry.name for entry in store.list()]
    if not every:
        if Path(config.source).is_file():
            raise BadInputError(
                f"--source {config.source}: a file, and no folder; tables end in .csv, .parquet or .txt"
            )
        raise BadInputError(f"--source {config.source}: no such folder, or nothing is in it")
    names = [name for name in every if name.lower().endswith(PICTURES)]
    if len(names) < len(every):
        other = next(name for name in every if not name.lower().endswith(PICTURES))
        say(f"ingest: {len(every) - len(names)} files have no picture's ending and are passed over, e.g. {other}")
    ids = [name.rpartition(".")[0] for name in names]
    _check_names(config, names, ids)
    return pa.table(
        {"image_id": pa.array(ids, pa.string()), "uri": pa.array([store.uri(name) for name in names], pa.string())}
    )


def _check_names(config: Config, names: list[str], ids: list[str]) -> None:
    """Every picture of a folder has an id of its own.

    Raises:
        BadInputError: a name that no table holds, or two of one id.
    """
    seen: dict[str, str] = {}
    for name, image_id in zip(names, ids, strict=True):
        if any("\ud800" <= letter <= "\udfff" for letter in name):
            raise BadInputError(f"--source {config.source}: the file name {name!r} is not UTF-8; rename it")
        if image_id in seen:
            raise BadInputError(
                f"--source {config.source}: {seen[image_id]} and {name} would both have the id {image_id!r}, "
                "a file's path without its ending; rename one"
            )
        seen[image_id] = name


def _table(config: Config, data: bytes) -> pa.Table:
    where, schema = f"--source {config.source}", CATALOG if config.kind == "catalog" else QUERIES
    if config.source.lower().endswith(".csv"):
        table = _csv(data, where)
    else:
        with reading(where):
            table = read_parquet(data)
    if holds_bytes(table.schema):
        raise _packed_source(config)
    if "uri" not in table.column_names:
        raise InputError(f"{where}: no column 'uri'; it has {', '.join(table.column_names)}")
    table = typed(table, schema, where)
    uris = [_absolute(config, uri) if uri else uri for uri in table["uri"].to_pylist()]
    return table.set_column(table.column_names.index("uri"), "uri", pa.array(uris, pa.string()))


def _csv(data: bytes, where: str) -> pa.Table:
    """A CSV with a header; the columns of our tables as text, without the space that stands behind each comma of some files."""
    text = {field.name for field in (*CATALOG, *QUERIES) if pa.types.is_string(field.type)}
    kinds = {name: pa.string() for name in _header(data) if name.strip() in text}
    options = pyarrow.csv.ConvertOptions(column_types=kinds, strings_can_be_null=True, null_values=[""])
    try:
        table = pyarrow.csv.read_csv(pa.BufferReader(data), convert_options=options)
    except pa.ArrowInvalid as error:
        raise BadInputError(f"{where}: not a table: {str(error).splitlines()[0]}") from None
    for place, name in enumerate(table.column_names):
        if name != name.strip() and pa.types.is_string(table[name].type):
            trimmed = pc.utf8_trim_whitespace(table[name])
            table = table.set_column(place, name, pc.if_else(pc.equal(trimmed, ""), None, trimmed))
    return table.rename_columns([name.strip() for name in table.column_names])


def _absolute(config: Config, uri: str) -> str:
    """A URI of the source, which may be relative to it."""
    return resolve_uri(uri, split_uri(config.source)[0].uri("x"))


def _urls(config: Config, data: bytes) -> pa.Table:
    """One URI a line; the id is its last piece without the ending."""
    uris = [_absolute(config, line) for _, line in _lines(data) if line]
    ids = [uri.rstrip("/").rpartition("/")[2].rpartition(".")[0] or uri for uri in uris]
    return pa.table({"image_id": pa.array(ids, pa.string()), "uri": pa.array(uris, pa.string())})


def _training_csv(config: Config, data: bytes) -> pa.Table:
    """The challenge's `training_public.csv`: image id, title (which may hold commas)."""
    rows = []
    for place, (number, line) in enumerate(_filled(data)):
        name, comma, title = line.partition(",")
        name = name.strip().strip('"')
        if place == 0 and name.lower().replace("_", " ") in _HEADERS:
            continue
        if not comma or not name:
            raise InputError(f"--source {config.source}: line {number} is not 'image id,title'")
        rows.append({"image_id": name, "uri": _image(config, name), "description": title.strip().strip('"')})
    return pa.Table.from_pylist(
        rows, pa.schema([("image_id", pa.string()), ("uri", pa.string()), ("description", pa.string())])
    )


def _validation_csv(config: Config, data: bytes) -> pa.Table:
    """The challenge's validation CSV: a query, then its answers, as many as there are."""
    rows = []
    for number, line in list(_filled(data))[1:]:
        cells = [cell.strip().strip('"') for cell in line.split(",")]
        if not any(cells):
            continue
        relevant = [cell for cell in cells[1:] if cell]
        if not cells[0] or not relevant:
            raise InputError(f"--source {config.source}: line {number} has no query or no answer")
        rows.append({"query_id": cells[0], "uri": _image(config, cells[0]), "relevant": relevant})
    schema = pa.schema([("query_id", pa.string()), ("uri", pa.string()), ("relevant", pa.list_(pa.string()))])
    return pa.Table.from_pylist(rows, schema)


def _image(config: Config, name: str) -> str:
    if not config.images:
        raise BadInputError("--images is required: the challenge's CSVs name pictures by id only")
    name = name.strip()
    return open_store(config.images).uri(name if name.lower().endswith(PICTURES) else f"{name}.jpg")


def _lines(data: bytes) -> Iterator[tuple[int, str]]:
    """Numbered lines of a text file, without its byte-order mark; line feed and carriage return end one, no mark of Unicode."""
    yield from enumerate(re.split(r"\r\n|\n|\r", data.decode("utf-8-sig", "replace")), 1)


def _filled(data: bytes) -> Iterator[tuple[int, str]]:
    """The numbered lines that are not empty."""
    return ((number, line) for number, line in _lines(data) if line.strip())


_PARSERS: dict[str, Callable[[Config, bytes], pa.Table]] = {
    "table": _table,
    "urls": _urls,
    "training-csv": _training_csv,
    "validation-csv": _validation_csv,
}
