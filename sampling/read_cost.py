"""What reading a set of rows costs: the pages it takes and the reads they merge into, counted before anything is read.

Runs are counted across gaps that are cheaper to read than to skip, the rule of `storage.row_runs`: over a byte for
every page of the table, in which the rows' pages are marked; or over sorted rows, where they are few for so many pages.
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

PAGES_A_ROW = 64
"""of a table, from which on sorting its rows takes less time than looking at all its pages"""


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
def _extend(
    page: int, start: int, end: int, pages: int, reads: int, max_gap_pages: int, max_run_pages: int
) -> tuple[int, int, int, int]:
    """(start, end, pages, reads) with one more page, behind all before it, in the run [start, end) or in the next."""
    if start < 0 or page - end > max_gap_pages or page + 1 - start > max_run_pages:
        reads += 1
        pages += end - start
        start = page
    return start, page + 1, pages, reads


@kernel
def _count(marked: NDArray[np.bool_], max_gap_pages: int, max_run_pages: int) -> tuple[int, int]:
    """Pages and reads of runs over the marked pages."""
    pages = 0
    reads = 0
    start = -1
    end = -1  # behind the last marked page
    for page in range(marked.shape[0]):
        if marked[page]:
            start, end, pages, reads = _extend(page, start, end, pages, reads, max_gap_pages, max_run_pages)
    return pages + end - start, reads


@kernel
def _count_sorted(
    rows: NDArray[Any], row_bytes: int, header_bytes: int, page_bytes: int, max_gap_pages: int, max_run_pages: int
) -> tuple[int, int]:
    """As `_count`, of the pages of ascending rows."""
    pages = 0
    reads = 0
    start = -1
    end = -1  # behind the last page
    for index in range(rows.shape[0]):
        byte = header_bytes + np.int64(rows[index]) * row_bytes
        first = int(byte // page_bytes)
        for page in range(max(end, first), int((byte + row_bytes - 1) // page_bytes) + 1):
            start, end, pages, reads = _extend(page, start, end, pages, reads, max_gap_pages, max_run_pages)
    return pages + end - start, reads


def read_cost(
    batches: Sequence[NDArray[Any]], *, num_rows: int, row_bytes: int, gap_bytes: int, pages_a_row: int = PAGES_A_ROW
) -> ReadCost:
    """The cost of reading the rows of some batches at once from a table; takes a byte of memory a page of it.

    Where the table has more than `pages_a_row` pages for each of the rows, they are sorted instead.
    """
    num_pages = -(-(HEADER_BYTES + num_rows * row_bytes) // PAGE_BYTES)
    max_run_pages = max(STAGING_BYTES, row_bytes + 2 * PAGE_BYTES) // PAGE_BYTES
    if sum(rows.shape[0] for rows in batches) * pages_a_row < num_pages:
        ordered = np.sort(np.concatenate([*batches, np.empty(0, dtype=np.int32)]))
        pages, reads = _count_sorted(
            ordered, row_bytes, HEADER_BYTES, PAGE_BYTES, gap_bytes // PAGE_BYTES, max_run_pages
        )
        return ReadCost(pages * PAGE_BYTES, reads)
    marked = np.zeros(num_pages, dtype=np.bool_)
    for rows in batches:
        _mark(rows, row_bytes, HEADER_BYTES, PAGE_BYTES, marked)
    pages, reads = _count(marked, gap_bytes // PAGE_BYTES, max_run_pages)
    return ReadCost(pages * PAGE_BYTES, reads)
