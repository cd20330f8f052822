"""Stored arrays and node columns in parts, in order: bounded memory however large the graph, every page checked."""

import math
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from storage.checked import CheckedReader
from storage.errors import DamagedStore
from storage.node_columns import open_ids
from storage.npy import HEADER_BYTES, damaged, parse_header
from storage.place import Place
from storage.schema import FileInfo, NodeType

BATCH_ROWS = 1 << 16


class ArrayStream:
    """One stored array of one axis, read from the front; use as a context manager.

    Memory: 1 MiB, what `take` returns, and the page sums. Raises DamagedStore as reading pages does, and for a
    file that holds no such array.
    """

    def __init__(self, place: Place, info: FileInfo) -> None:
        self._file = CheckedReader(place, info)
        try:
            shape, self.dtype = parse_header(self._file.read(HEADER_BYTES) or b"")
            if len(shape) != 1 or HEADER_BYTES + math.prod(shape) * self.dtype.itemsize != info.num_bytes:
                raise ValueError(f"shape {shape} of {self.dtype} in {info.num_bytes} bytes")
        except DamagedStore:
            self._file.close()
            raise
        except ValueError as error:
            self._file.close()
            raise damaged(place, info.name, f"not an array of this store: {error}") from error
        self._length = self.left = int(shape[0])
        """elements not yet taken"""

    def __enter__(self) -> Self:
        """Open already."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file."""
        self._file.close()

    def skip_to(self, element: int) -> None:
        """Go on from this element."""
        self._file.seek(HEADER_BYTES + element * self.dtype.itemsize)
        self.left = self._length - element

    def take(self, count: int) -> NDArray[Any]:
        """The next `count` elements, fewer at the end."""
        out = np.empty(min(count, self.left), dtype=self.dtype)
        self._file.readinto(out.view(np.uint8))
        self.left -= out.shape[0]
        return out


def column_batches(place: Place, node_type: NodeType, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Columns of a node type's ids files in dense order, at most 65,536 rows at a time."""
    for segment in node_type.segments:
        with open_ids(place, segment) as parquet:
            yield from parquet.iter_batches(batch_size=BATCH_ROWS, columns=list(columns))
