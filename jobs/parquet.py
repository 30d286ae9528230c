"""Tables as the bytes of a Parquet file: the one way that jobs write them."""

import io

import pyarrow as pa
import pyarrow.parquet as pq

ROW_GROUP = 4096  # rows: a worker that reads a range fetches little more than the range


def parquet_bytes(table: pa.Table) -> bytes:
    """A table as Parquet; the same table gives the same bytes."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", row_group_size=ROW_GROUP)
    return sink.getvalue()


def read_parquet(data: bytes) -> pa.Table:
    """The table in the bytes of a Parquet file."""
    return pq.read_table(io.BytesIO(data))
