"""Packed catalogs: Parquet parts that hold the pictures' own bytes, read in order and in few requests by `extract`.

A part is a range of the table's rows, or one tar shard, so the same command gives the same files and resumes like any other
job. The bytes stay as they came, uncompressed in the file, in small row groups: who reads some rows fetches little more.
"""

import io
import json
import tarfile
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.artifact import Blob, Units
from cluster.errors import BadInputError
from cluster.storage import open_store, read_uri, split_uri
from jobs.inputs import BYTES, check_lines
from jobs.pictures import fetch_picture
from manet.tables import CATALOG

PACK_ROWS = 2048  # rows of one part
GROUP_ROWS = 64  # rows of one row group
FETCHES = 16  # requests in flight of one task
PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
PACKED = pa.schema([*CATALOG, (BYTES, pa.binary())])


def pack_rows(units: Units, unit: str, rows: pa.Table) -> dict[str, int]:
    """Write one part of a catalog's rows with the bytes of their pictures; null where one cannot be read (it is counted).

    Raises:
        StoreError: the store itself does not answer as it should.
    """

    def groups() -> Iterator[pa.Table]:
        with ThreadPoolExecutor(FETCHES) as pool:
            for start in range(0, rows.num_rows, GROUP_ROWS):
                group = rows.slice(start, GROUP_ROWS)
                data = pa.array(list(pool.map(_bytes_or_none, group["uri"].to_pylist())), pa.binary())
                yield group.append_column(BYTES, data)

    return _put(units, unit, groups())


def pack_tar(units: Units, unit: str, uri: str) -> dict[str, int]:
    """Write one part with the pictures of a tar shard, in the shard's order.

    Members KEY.jpg (or any other picture) are the rows; KEY.txt, or `caption` or `title` in KEY.json, are their descriptions.
    Other members are counted as passed over, but for folders.

    Raises:
        BadInputError: not a whole tar file, a description that cannot be read, or a member's name of two lines.
    """
    texts: dict[str, str] = {}
    pictures: list[tuple[str, str, bytes]] = []
    passed = 0
    try:
        with tarfile.open(fileobj=io.BytesIO(read_uri(uri))) as tar:
            for member in tar:
                file = tar.extractfile(member) if member.isfile() or member.islnk() else None
                if file is None:
                    passed += not member.isdir()
                else:
                    passed += not _take(member.name, file.read(), pictures, texts)
            archive, end = cast(IO[bytes], tar.fileobj), tar.offset
            archive.seek(end)
            rest = archive.read()  # a header that cannot be read ends the loop as the end of the archive does
    except (tarfile.TarError, KeyError, EOFError, OSError, zlib.error) as error:  # KeyError: a hard link to nothing
        raise BadInputError(f"--source {uri}: not a whole tar file: {_line(error)}") from None
    except ValueError as error:
        raise BadInputError(f"--source {uri}: {_line(error)}") from None
    if not rest or rest.strip(b"\0"):
        what = f"what stands at byte {end} is no header" if rest else "its end is missing"
        raise BadInputError(f"--source {uri}: not a whole tar file: {what}")

    check_lines([key for key, _, _ in pictures], f"--source {uri}")

    def groups() -> Iterator[pa.Table]:
        for start in range(0, len(pictures), GROUP_ROWS):
            yield pa.Table.from_pylist(
                [
                    {"image_id": key, "uri": f"{uri}#{name}", "description": texts.get(key), BYTES: data}
                    for key, name, data in pictures[start : start + GROUP_ROWS]
                ],
                schema=PACKED,
            )

    return _put(units, unit, groups(), passed)


def _take(name: str, data: bytes, pictures: list[tuple[str, str, bytes]], texts: dict[str, str]) -> bool:
    """Add a member to the pictures or to their descriptions; whether it is one of them.

    Raises:
        ValueError: JSON that cannot be read.
    """
    path = PurePosixPath(name)
    key = str(path.with_suffix(""))
    ending = path.suffix.lower()
    if ending == ".txt":
        texts[key] = data.decode("utf-8", "replace").strip()
    elif ending == ".json":
        try:
            said: Any = json.loads(data) if data else {}
        except (ValueError, RecursionError) as error:
            raise ValueError(f"member {name} is no JSON: {_line(error)}") from None
        caption = said.get("caption") or said.get("title") if isinstance(said, dict) else None
        if caption:
            texts.setdefault(key, str(caption))
    elif ending in PICTURES:
        pictures.append((key, name, data))
    else:
        return False
    return True


def _bytes_or_none(uri: str) -> bytes | None:
    found = fetch_picture(uri)
    return found if isinstance(found, bytes) else None


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def _put(units: Units, unit: str, groups: Iterator[pa.Table], passed: int = 0) -> dict[str, int]:
    rows = unread = 0
    with tempfile.TemporaryDirectory(prefix="manet-pack-") as scratch:
        path = Path(scratch, "part.parquet")
        codecs = {name: "none" if name == BYTES else "zstd" for name in PACKED.names}
        plain = [name for name in PACKED.names if name != BYTES]
        with pq.ParquetWriter(path, PACKED, compression=codecs, use_dictionary=plain, write_statistics=plain) as writer:
            for group in groups:
                writer.write_table(group.cast(PACKED), row_group_size=GROUP_ROWS)
                rows, unread = rows + group.num_rows, unread + group[BYTES].null_count
        counts = {"rows": rows, "unread": unread, "passed_over": passed}
        units.put(unit, {f"catalog-{unit}.parquet": Blob(data=path, rows=rows)}, counts)
    return counts


def tar_shards(source: str) -> dict[str, str]:
    """URIs of the shards, one .tar file or all below a folder, by name; each with its size and when it was written: tar files are
    padded, and one that was mended is often as long as it was.
    """
    if source.lower().endswith(".tar"):
        store, name = split_uri(source)
        if not store.exists(name):
            return {}
        found = [next(entry for entry in store.list(name) if entry.name == name)]  # and nothing of what lies beside it
    else:
        store = open_store(source)
        found = [entry for entry in store.list() if entry.name.lower().endswith(".tar")]
    return {store.uri(entry.name): f"{entry.size} {entry.modified}" for entry in found}


def check_ids(ids: Sequence[str], where: str) -> None:
    """Ids of all shards are unique.

    Raises:
        BadInputError: one stands twice.
    """
    seen: set[str] = set()
    for name in ids:
        if name in seen:
            raise BadInputError(f"{where}: the key {name!r} stands in two shards or twice in one; keys must be unique")
        seen.add(name)
