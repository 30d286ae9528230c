"""Tables as the bytes of a Parquet file: the one way that jobs write them."""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.errors import BadInputError

ROW_GROUP = 4096  # rows: a worker that reads a range fetches little more than the range


def parquet_bytes(table: pa.Table) -> bytes:
    """A table as Parquet; the same table gives the same bytes."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", row_group_size=ROW_GROUP)
    return sink.getvalue()


@contextmanager
def reading(where: str) -> Iterator[None]:
    """For a file that a user gave.

    Args:
        where: the file, and the flag that named it.

    Raises:
        BadInputError: what Arrow raises of a file that is none of its, or a damaged one.
    """
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise BadInputError(f"{where}: not a Parquet file, or a damaged one: {why}") from None


def read_parquet(source: bytes | Path, columns: Sequence[str] | None = None) -> pa.Table:
    """The table (or some of its columns) in the bytes of a Parquet file, or in a file of this machine.

    Not by `pq.read_table`: its threads may hold a Python file for longer than the interpreter lives, and abort at its end. By
    one thread, and unused memory given back: else each of Arrow's threads keeps what the largest table needed.
    """
    file = pq.ParquetFile(pa.BufferReader(source) if isinstance(source, bytes) else source)
    table = file.read(columns=list(columns) if columns is not None else None, use_threads=False)
    pa.default_memory_pool().release_unused()
    return table
