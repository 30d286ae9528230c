"""Tables as the bytes of a Parquet file: the one way that jobs write them."""

import io
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

ROW_GROUP = 4096  # rows: a worker that reads a range fetches little more than the range


def parquet_bytes(table: pa.Table) -> bytes:
    """A table as Parquet; the same table gives the same bytes."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", row_group_size=ROW_GROUP)
    return sink.getvalue()


def read_parquet(source: bytes | Path, columns: Sequence[str] | None = None) -> pa.Table:
    """The table (or some of its columns) in the bytes of a Parquet file, or in a file of this machine.

    Not by `pq.read_table`: its threads may hold a Python file for longer than the interpreter lives, and abort at its end. By
    one thread, and unused memory given back: else each of Arrow's threads keeps what the largest table needed.
    """
    file = pq.ParquetFile(pa.BufferReader(source) if isinstance(source, bytes) else source)
    table = file.read(columns=list(columns) if columns is not None else None, use_threads=False)
    pa.default_memory_pool().release_unused()
    return table
