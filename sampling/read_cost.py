"""What reading a set of rows costs: the pages it takes and the reads they merge into, counted before anything is read.

One byte a page of the table is marked, then runs are counted across gaps that are cheaper to read than to skip: the
rule of `storage.row_runs`, without sorting the rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.block_reads import STAGING_BYTES
from storage.disk_speed import DiskSpeed
from storage.jit import kernel
from storage.npy import HEADER_BYTES
from storage.pages import PAGE_BYTES


@dataclass(frozen=True)
class ReadCost:
    """Reads of a table from its disk."""

    num_bytes: int = 0
    """whole pages, gaps included"""
    num_reads: int = 0

    def __add__(self, other: "ReadCost") -> "ReadCost":
        """Both, one after the other."""
        return ReadCost(self.num_bytes + other.num_bytes, self.num_reads + other.num_reads)

    def seconds(self, speed: DiskSpeed) -> float:
        """Expected seconds of these reads."""
        return speed.read_seconds(num_bytes=self.num_bytes, num_reads=self.num_reads)


@kernel
def _mark(rows: NDArray[Any], row_bytes: int, header_bytes: int, page_bytes: int, marked: NDArray[np.bool_]) -> None:
    for index in range(rows.shape[0]):
        byte = header_bytes + np.int64(rows[index]) * row_bytes
        for page in range(byte // page_bytes, (byte + row_bytes - 1) // page_bytes + 1):
            marked[page] = True


@kernel
def _count(marked: NDArray[np.bool_], max_gap_pages: int, max_run_pages: int) -> tuple[int, int]:
    """Pages and reads of runs over the marked pages."""
    pages = 0
    reads = 0
    start = -1
    end = -1  # behind the last marked page
    for page in range(marked.shape[0]):
        if marked[page]:
            if start < 0 or page - end > max_gap_pages or page + 1 - start > max_run_pages:
                reads += 1
                pages += end - start
                start = page
            end = page + 1
    return pages + end - start, reads


def read_cost(batches: Sequence[NDArray[Any]], *, num_rows: int, row_bytes: int, gap_bytes: int) -> ReadCost:
    """The cost of reading the rows of some batches at once from a table; takes a byte of memory a page of it."""
    marked = np.zeros(-(-(HEADER_BYTES + num_rows * row_bytes) // PAGE_BYTES), dtype=np.bool_)
    for rows in batches:
        _mark(rows, row_bytes, HEADER_BYTES, PAGE_BYTES, marked)
    max_run_pages = max(STAGING_BYTES, row_bytes + 2 * PAGE_BYTES) // PAGE_BYTES
    pages, reads = _count(marked, gap_bytes // PAGE_BYTES, max_run_pages)
    return ReadCost(pages * PAGE_BYTES, reads)
