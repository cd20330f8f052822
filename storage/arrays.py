"""Arrays of the store: `.npy` files with a one-page header, page sums beside them, checked whenever read."""

import math
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

from storage.block_reads import PageFile
from storage.checked import CheckedWriter
from storage.npy import HEADER_BYTES, damaged, npy_header, parse_header
from storage.pages import PAGE_BYTES, as_words
from storage.place import Place
from storage.read_pool import ReadPool
from storage.schema import FileInfo

_PART_BYTES = 4 << 20
_NUM_THREADS = 4


class ArrayWriter:
    """Writes one array row by row; it appears, with its sums, when the block ends without an exception.

    Args:
        place, name: where.
        dtype: element type; stored little-endian.
        shape: of the whole array; rows are along the first axis.

    Memory: 1 MiB and 4 bytes a page. Leaving the block with rows missing raises ValueError; nothing is kept.
    """

    def __init__(self, place: Place, name: str, *, dtype: DTypeLike, shape: tuple[int, ...]) -> None:
        self.dtype = np.dtype(dtype).newbyteorder("<")
        self.shape = shape
        self._name = name
        self._rows = 0
        self._file = CheckedWriter(place, name)

    def __enter__(self) -> Self:
        """Open the file under a temporary name."""
        self._file.__enter__()
        self._file.write(npy_header(self.dtype, self.shape))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Commit, or drop everything after an exception or when rows are missing."""
        if error is None and self._rows != self.shape[0]:
            missing = ValueError(f"{self._name}: {self._rows} rows written of {self.shape[0]}")
            self._file.__exit__(ValueError, missing, None)
            raise missing
        self._file.__exit__(kind, error, trace)

    def write(self, rows: NDArray[Any]) -> None:
        """Append the next rows, [num_rows, *shape[1:]] in the writer's dtype; ValueError otherwise."""
        if rows.dtype.newbyteorder("<") != self.dtype or rows.shape[1:] != self.shape[1:]:
            raise ValueError(
                f"{self._name}: rows {rows.dtype} {rows.shape[1:]} where {self.dtype} {self.shape[1:]} belong"
            )
        if self._rows + rows.shape[0] > self.shape[0]:
            raise ValueError(f"{self._name}: more than {self.shape[0]} rows")
        if rows.size:
            whole = np.ascontiguousarray(rows, dtype=self.dtype)
            self._file.write(whole.reshape(-1).view(np.uint8))
        self._rows += rows.shape[0]

    @property
    def info(self) -> FileInfo:
        """What the generation records of the file; there once the block has ended."""
        assert self._file.info is not None, "the writer is still open"
        return self._file.info


def write_array(place: Place, name: str, array: NDArray[Any]) -> FileInfo:
    """Write a whole array (at least one axis) and its sums."""
    with ArrayWriter(place, name, dtype=array.dtype, shape=array.shape) as writer:
        writer.write(array)
    return writer.info


def read_array(place: Place, info: FileInfo) -> NDArray[Any]:
    """The whole array, every page checked; it owns one buffer of the file's size.

    Raises DamagedStore naming file and page for a missing, short or changed file.
    """
    spare = np.empty((info.num_pages + 1) * PAGE_BYTES, dtype=np.uint8)
    start = -spare.ctypes.data % PAGE_BYTES
    data = spare[start : start + info.num_pages * PAGE_BYTES]
    words = as_words(data)
    part_pages = _PART_BYTES // PAGE_BYTES
    with PageFile(place, info) as file:

        def read_part(part: int) -> None:
            first = part * part_pages
            last = min(first + part_pages, info.num_pages)
            where = slice(first * PAGE_BYTES, last * PAGE_BYTES)
            inside = slice(where.start // 8, where.stop // 8)
            file.read(data[where], words[inside], first_page=first, num_pages=last - first)

        pool = ReadPool(num_threads=_NUM_THREADS)
        try:
            pool.run(read_part, -(-info.num_pages // part_pages))
        finally:
            pool.close()
    return _as_array(place, info, data[: info.num_bytes])


def _as_array(place: Place, info: FileInfo, data: NDArray[np.uint8]) -> NDArray[Any]:
    try:
        shape, dtype = parse_header(data[:HEADER_BYTES].tobytes())
        if HEADER_BYTES + math.prod(shape) * dtype.itemsize != info.num_bytes:
            raise ValueError(f"shape {shape} of {dtype} in {info.num_bytes} bytes")
    except ValueError as error:
        # its checksums hold, so it was written as it is, by other means than ArrayWriter
        raise damaged(place, info.name, f"not an array of this store: {error}") from error
    return data[HEADER_BYTES:].view(dtype).reshape(shape)
