"""Packed catalogs: Parquet parts that hold the pictures' own bytes, read in order and in few requests by `extract`.

A part is a range of the table's rows, or one tar shard, so the same command gives the same files and resumes like any other
job. The bytes stay as they came, uncompressed in the file, in small row groups: who reads some rows fetches little more.
"""

import io
import json
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.artifact import Blob, put_unit
from cluster.errors import BadInputError, PermanentStoreError
from cluster.storage import Store, open_store, read_uri, split_uri
from jobs.inputs import BYTES
from manet.tables import CATALOG

PACK_ROWS = 2048  # rows of one part
GROUP_ROWS = 64  # rows of one row group
FETCHES = 16  # requests in flight of one task
PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
PACKED = pa.schema([*CATALOG, (BYTES, pa.binary())])


def pack_rows(store: Store, unit: str, rows: pa.Table) -> dict[str, int]:
    """Write one part of a catalog's rows with the bytes of their pictures; null where one cannot be read (it is counted)."""

    def groups() -> Iterator[pa.Table]:
        with ThreadPoolExecutor(FETCHES) as pool:
            for start in range(0, rows.num_rows, GROUP_ROWS):
                group = rows.slice(start, GROUP_ROWS)
                data = pa.array(list(pool.map(_bytes_or_none, group["uri"].to_pylist())), pa.binary())
                yield group.append_column(BYTES, data)

    return _put(store, unit, groups())


def pack_tar(store: Store, unit: str, uri: str) -> dict[str, int]:
    """Write one part with the pictures of a tar shard, in the shard's order.

    Members KEY.jpg (or any other picture) are the rows; KEY.txt, or `caption` or `title` in KEY.json, are their descriptions.

    Raises:
        BadInputError: not a tar file.
    """
    texts: dict[str, str] = {}
    pictures: list[tuple[str, str, bytes]] = []
    try:
        with tarfile.open(fileobj=io.BytesIO(read_uri(uri))) as tar:
            for member in tar:
                file = tar.extractfile(member) if member.isfile() else None
                if file is not None:
                    _take(member.name, file.read(), pictures, texts)
    except tarfile.TarError as error:
        raise BadInputError(f"--source {uri}: not a whole tar file: {error}") from None

    def groups() -> Iterator[pa.Table]:
        for start in range(0, len(pictures), GROUP_ROWS):
            yield pa.Table.from_pylist(
                [
                    {"image_id": key, "uri": f"{uri}#{name}", "description": texts.get(key), BYTES: data}
                    for key, name, data in pictures[start : start + GROUP_ROWS]
                ],
                schema=PACKED,
            )

    return _put(store, unit, groups())


def _take(name: str, data: bytes, pictures: list[tuple[str, str, bytes]], texts: dict[str, str]) -> None:
    path = PurePosixPath(name)
    key = str(path.with_suffix(""))
    ending = path.suffix.lower()
    if ending == ".txt":
        texts[key] = data.decode("utf-8", "replace").strip()
    elif ending == ".json":
        said: Any = json.loads(data) if data else {}
        caption = said.get("caption") or said.get("title") if isinstance(said, dict) else None
        if caption:
            texts.setdefault(key, str(caption))
    elif ending in PICTURES:
        pictures.append((key, name, data))


def _bytes_or_none(uri: str) -> bytes | None:
    try:
        return read_uri(uri)
    except PermanentStoreError:
        return None


def _put(store: Store, unit: str, groups: Iterator[pa.Table]) -> dict[str, int]:
    rows = unread = 0
    with tempfile.TemporaryDirectory(prefix="manet-pack-") as scratch:
        path = Path(scratch, "part.parquet")
        codecs = {name: "none" if name == BYTES else "zstd" for name in PACKED.names}
        plain = [name for name in PACKED.names if name != BYTES]
        with pq.ParquetWriter(path, PACKED, compression=codecs, use_dictionary=plain, write_statistics=plain) as writer:
            for group in groups:
                writer.write_table(group.cast(PACKED), row_group_size=GROUP_ROWS)
                rows, unread = rows + group.num_rows, unread + group[BYTES].null_count
        counts = {"rows": rows, "unread": unread}
        put_unit(store, unit, {f"catalog-{unit}.parquet": Blob(data=path, rows=rows)}, counts)
    return counts


def tar_shards(source: str) -> list[str]:
    """URIs of the shards: one .tar file, or all below a folder, by name."""
    if source.lower().endswith(".tar"):
        store, name = split_uri(source)
        return [store.uri(name)] if store.exists(name) else []
    store = open_store(source)
    return [store.uri(entry.name) for entry in store.list() if entry.name.lower().endswith(".tar")]


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
