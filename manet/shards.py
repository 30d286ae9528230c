"""The files of one shard, opened for search: codes and vectors memory-mapped, quantizer shared between shards.

Shape letters: Q queries, D dimensions.
"""

import ctypes
import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from manet.errors import InputError, NoRoomError
from manet.index import inverted_file

Matrix = np.ndarray[Any, np.dtype[Any]]
DETAILS = ("uri", "description", "category", "group")  # columns of a shard's ids beside image_id; all may be absent
swig = cast(Any, faiss)  # faiss's stubs know no keyword of a constructor
_NOTHING = np.empty(0, np.int64)
_QUERY_BY_QUERY, _FEW = 10, 32  # faiss's number for it, and queries up to which it is the faster way
_ALIGNED = 64  # bytes that a mapped list starts at a multiple of


@dataclass(frozen=True, kw_only=True)
class ShardFiles:
    """The three files of a shard, and its rows that were deleted since."""

    index: Path
    ids: Path
    refine: Path
    dead: Matrix = field(default_factory=lambda: _NOTHING)


class Shard:
    """One shard.

    Raises:
        InputError: files that do not belong together.
        NoRoomError: the temporary folder does not hold the codes.
    """

    def __init__(self, files: ShardFiles) -> None:
        self.name = files.index.name
        self.index = faiss.read_index(str(files.index), faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY)
        self.ivf = inverted_file(self.index)
        if isinstance(self.ivf, faiss.IndexIVFPQFastScan):
            try:
                _map_lists(self.ivf)
            except OSError as error:
                raise NoRoomError(
                    f"{self.name}: its codes could not be written to {tempfile.gettempdir()}, from where they are mapped: "
                    f"{error.strerror}; make room, or set TMPDIR"
                ) from None
        self.rows = _mapped_table(files.ids)
        self._columns = {name: _whole(self.rows[name]) for name in self.rows.column_names}
        self.vectors = np.load(files.refine, mmap_mode="r")
        counts = {"faiss": self.index.ntotal, "ids": len(self.rows), "refine": len(self.vectors)}
        if len(set(counts.values())) != 1:
            listed = ", ".join(f"{name} {count}" for name, count in counts.items())
            raise InputError(f"{self.name}: its files do not belong together: {listed} rows; build the index again")
        self.live = np.ones(len(self.rows), bool)
        self.live[files.dead] = False
        self.all_live = not len(files.dead)

    def __len__(self) -> int:
        return len(self.rows)

    def share_quantizer(self, other: "Shard") -> None:
        """Drop this shard's own copy of the coarse quantizer and the rotation, and use the other's.

        Raises:
            InputError: the two were not built from one trained quantizer.
        """
        alike = type(self.index) is type(other.index) and self.index.d == other.index.d
        alike &= type(self.ivf) is type(other.ivf)
        if alike and self.ivf is not None:
            alike = self.ivf.nlist == other.ivf.nlist and self.ivf.code_size == other.ivf.code_size
        if not alike:
            raise InputError(f"{self.name} and {other.name} were not built with the same quantizer")
        if isinstance(self.ivf, faiss.IndexIVFPQ | faiss.IndexIVFPQFastScan):
            self.index = self.ivf = _with_quantizer(self.ivf, other.ivf.quantizer)

    def candidates(
        self, turned_QD: Matrix, cells: Matrix | None, closeness: Matrix | None, count: int, allowed: Matrix | None
    ) -> tuple[Matrix, Matrix]:
        """The `count` rows of largest quantized inner product: (products, rows), [Q, count], -1 where there are no more.

        Args:
            turned_QD: queries after the rotation, or as they are where there is no inverted file.
            cells: the cells to visit [Q, nprobe], with their inner products `closeness`; None without an inverted file.
            count: rows wanted.
            allowed: bool [rows] of this shard; None: all.
        """
        selector = None if allowed is None else _selector(allowed)
        if cells is None or closeness is None:
            options = swig.SearchParameters(sel=selector[0]) if selector else None
            found: tuple[Matrix, Matrix] = self.index.search(turned_QD, count, params=options)
            return found
        if isinstance(
            self.ivf, faiss.IndexIVFPQFastScan
        ):  # the same products either way, one query after the other or list by list
            self.ivf.implem = _QUERY_BY_QUERY if len(turned_QD) <= _FEW else 0
        options = swig.SearchParametersIVF(nprobe=cells.shape[1], **({"sel": selector[0]} if selector else {}))
        products = np.empty((len(turned_QD), count), np.float32)
        rows = np.empty((len(turned_QD), count), np.int64)
        pointers = map(faiss.swig_ptr, (cells, closeness, products, rows))
        self.ivf.search_preassigned_c(len(turned_QD), faiss.swig_ptr(turned_QD), count, *pointers, False, options)
        return products, rows

    def id_of(self, row: int) -> str:
        """The image_id of a row."""
        name: str = self._columns["image_id"][row].as_py()
        return name

    def details(self, rows: Matrix) -> dict[str, list[Any]]:
        """Columns of some rows, image_id always among them."""
        if len(rows) <= _FEW:  # a tenth of the time that `take` needs to start
            places = rows.tolist()
            return {name: [column[row].as_py() for row in places] for name, column in self._columns.items()}
        places = pa.array(rows)
        return {name: column.take(places).to_pylist() for name, column in self._columns.items()}

    def matching(self, column: str, values: pa.Array) -> Matrix:
        """bool [rows]: whether the column holds one of `values`.

        Raises:
            InputError: the index has no such column.
        """
        if column not in self.rows.column_names:
            raise InputError(f"{self.name} has no {column}: the index was built without the catalogue's columns")
        found: Matrix = pc.is_in(self.rows[column], value_set=values).to_numpy(zero_copy_only=False).astype(bool)
        return found


def _with_quantizer(own: Any, quantizer: Any) -> Any:  # noqa: ANN401 - faiss.IndexIVFPQ or its fast scan, faiss.Index
    """The inverted lists and codes of `own` under another coarse quantizer, so that its own one can be freed."""
    shape = (quantizer, own.d, own.nlist, own.pq.M, own.pq.nbits, own.metric_type)
    if isinstance(own, faiss.IndexIVFPQFastScan):
        slim = swig.IndexIVFPQFastScan(*shape, own.bbs, False)
    else:
        slim = swig.IndexIVFPQ(*shape, False)
    slim.pq = own.pq
    slim.by_residual, slim.is_trained, slim.ntotal = own.by_residual, True, own.ntotal
    own.own_invlists = False
    slim.replace_invlists(own.invlists, True)
    return slim


def _map_lists(ivf: Any) -> None:  # noqa: ANN401 - faiss.IndexIVFPQFastScan
    """Replace inverted lists in memory, all that faiss can read of fast-scan codes, by the same ones in a mapped file without a
    name: in memory each list takes up to twice its size, and no page of it can be dropped.
    """
    lists: Any = faiss.downcast_InvertedLists(ivf.invlists)
    row_bytes = lists.block_size // lists.n_per_block
    with tempfile.NamedTemporaryFile(suffix=".ivf") as file:
        mapped: Any = swig.OnDiskInvertedLists(ivf.nlist, row_bytes, file.name)
        mapped.lists.clear()
        for cell in range(ivf.nlist):
            rows, here = lists.list_size(cell), swig.OnDiskOneList()
            here.size, here.capacity = rows, -(-rows // lists.n_per_block) * lists.n_per_block
            here.offset = file.seek(-(-file.tell() // _ALIGNED) * _ALIGNED)
            if rows:
                file.write(swig.rev_swig_ptr(lists.get_codes(cell), here.capacity * row_bytes))
                file.write(swig.rev_swig_ptr(lists.get_ids(cell), rows))
            mapped.lists.push_back(here)
        file.truncate(file.seek(0, os.SEEK_END) or _ALIGNED)
        file.flush()
        mapped.totsize, mapped.read_only = os.fstat(file.fileno()).st_size, True
        mapped.do_mmap()
    ivf.replace_invlists(mapped, True)
    mapped.this.disown()


def give_back() -> None:
    """Return freed memory to the system, where the C library keeps it (glibc)."""
    pa.default_memory_pool().release_unused()
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)


def _whole(column: pa.ChunkedArray) -> pa.Array:
    """A column as one array: the mapped one itself where it has one chunk."""
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _selector(allowed: Matrix) -> tuple[Any, Matrix]:
    """A faiss selector of rows, and the bits that it points into (which must outlive it)."""
    bits = np.packbits(allowed, bitorder="little")
    return swig.IDSelectorBitmap(bits), bits


def _mapped_table(path: Path) -> pa.Table:
    """A Parquet table as an Arrow file without a name, memory-mapped: it costs no memory of its own."""
    with tempfile.NamedTemporaryFile(suffix=".arrow") as file:
        with pq.ParquetFile(path) as source, pa.OSFile(file.name, "wb") as sink:
            schema = source.schema_arrow
            with pa.ipc.new_file(sink, schema) as writer:
                writer.write_table(source.read().combine_chunks())
        return pa.ipc.open_file(pa.memory_map(file.name)).read_all()
