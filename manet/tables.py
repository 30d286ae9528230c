"""The tables that jobs exchange: their columns, and checks whose messages name the file and what to do."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from manet.errors import InputError

Vectors = np.ndarray[Any, np.dtype[np.float16]]

CATALOG = pa.schema(
    [
        ("image_id", pa.string()),
        ("uri", pa.string()),
        ("description", pa.string()),
        ("category", pa.string()),
        ("product_id", pa.string()),
    ]
)
QUERIES = pa.schema([("query_id", pa.string()), ("uri", pa.string()), ("relevant", pa.list_(pa.string()))])
FEWSHOT = pa.schema([*CATALOG, ("label", pa.int32())])
REJECTS = pa.schema(
    [
        ("image_id", pa.string()),
        ("uri", pa.string()),
        ("stage", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)


def check_catalog(table: pa.Table, where: str) -> pa.Table:
    """A catalog with exactly the columns of `CATALOG` (optional ones filled with nulls).

    Args:
        table: image_id and uri at least.
        where: the flag and file, for messages.

    Raises:
        InputError: a column is missing or of another type, an id is empty or doubled, a uri is empty.
    """
    return _checked(table, CATALOG, where, key="image_id", required=("image_id", "uri"))


def check_queries(table: pa.Table, where: str, *, relevant: bool = True) -> pa.Table:
    """A queries table with exactly the columns of `QUERIES`.

    Args:
        table: what was read.
        where: what to call it.
        relevant: each query must say which gallery pictures answer it; else that column may be absent.

    Raises:
        InputError: as `check_catalog`; also a query without any relevant id.
    """
    if not relevant:
        return _checked(table, QUERIES, where, key="query_id", required=("query_id", "uri"))
    checked = _checked(table, QUERIES, where, key="query_id", required=("query_id", "uri", "relevant"))
    empty = pc.less(pc.fill_null(pc.list_value_length(checked["relevant"]), 0), 1)
    if pc.any(empty).as_py():
        name = checked["query_id"].filter(empty)[0].as_py()
        raise InputError(f"{where}: query {name!r} has no relevant id; drop it or name its gallery pictures")
    for name, ids in zip(checked["query_id"].to_pylist(), checked["relevant"].to_pylist(), strict=True):
        if set(ids) <= {name}:
            raise InputError(
                f"{where}: query {name!r} has no relevant id but its own; drop it or name its gallery pictures"
            )
    return checked


def _checked(table: pa.Table, schema: pa.Schema, where: str, *, key: str, required: Sequence[str]) -> pa.Table:
    for name in required:
        if name not in table.column_names:
            columns = ", ".join(table.column_names)
            raise InputError(f"{where}: no column {name!r}; it has {columns}, and needs {', '.join(required)}")
    checked = pa.table([_cast(table, field, where) for field in schema], schema=schema)
    for column in (key, "uri"):
        bad = pc.fill_null(pc.equal(checked[column], ""), True)
        if pc.any(bad).as_py():
            row = pc.index(bad.combine_chunks() if isinstance(bad, pa.ChunkedArray) else bad, True).as_py()
            raise InputError(f"{where}: row {row} has no {column}; every row needs one")
    counts = pc.value_counts(checked[key])
    doubled = counts.filter(pc.greater(counts.field("counts"), 1))
    if len(doubled):
        first = doubled[0].as_py()
        raise InputError(
            f"{where}: {key} {first['values']!r} stands in {first['counts']} rows ({len(doubled)} ids are doubled); "
            "ids must be unique"
        )
    return checked


def typed(table: pa.Table, schema: pa.Schema, where: str) -> pa.Table:
    """A table whose columns have the types that a schema gives them; columns that it does not name stay.

    Raises:
        InputError: a column is of another type that cannot be cast.
    """
    for place, name in enumerate(table.column_names):
        if name in schema.names and table[name].type != schema.field(name).type:
            table = table.set_column(place, name, _cast(table, schema.field(name), where))
    return table


def _cast(table: pa.Table, field: pa.Field, where: str) -> pa.ChunkedArray | pa.Array:
    if field.name not in table.column_names:
        return pa.nulls(table.num_rows, field.type)
    try:
        return table[field.name].cast(field.type)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        kind = table[field.name].type
        raise InputError(f"{where}: column {field.name!r} is {kind}, and must be {field.type}") from None


def descriptor_column(vectors: Vectors) -> pa.FixedSizeListArray:
    """Descriptors, float16 [n, D], as a column that any Parquet reader opens."""
    flat = pa.array(np.ascontiguousarray(vectors, np.float16).reshape(-1), pa.float16())
    return pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])


def descriptors_to_numpy(table: pa.Table, column: str = "descriptor") -> tuple[list[str], Vectors]:
    """Ids and descriptors, float16 [n, D], of a descriptors table.

    Raises:
        InputError: the column is missing.
    """
    if column not in table.column_names:
        raise InputError(f"no column {column!r} among {', '.join(table.column_names)}: not a descriptors table")
    lists = table[column].combine_chunks()
    flat = lists.flatten().to_numpy(zero_copy_only=False).astype(np.float16, copy=False)
    return table["image_id"].to_pylist(), flat.reshape(len(lists), lists.type.list_size)
