"""Which pages to read for a set of rows, and reading them: runs merged across gaps, units for threads.

Costs are counted in pages: a run costs its pages and RUN_COST_PAGES for being a read of its own.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from storage.block_reads import OK, Staging, load_run
from storage.jit import kernel, memcpy
from storage.npy import HEADER_BYTES
from storage.pages import PAGE_BYTES

UNITS_PER_THREAD = 4
"""more than one, so that a thread with slow reads does not keep the others waiting"""
MAX_GAP_BYTES = 16384
"""gaps up to this size are read through: about bandwidth / (reads a second)"""
RUN_COST_PAGES = 8
"""what starting a read costs, in pages that could have been read instead"""
LEAST_UNIT_PAGES = 64
"""below this, handing a unit to a thread costs more than it saves"""


@dataclass(frozen=True)
class Runs:
    """R runs of pages that hold sorted rows; unit u covers runs [cuts[u], cuts[u + 1])."""

    rows: NDArray[np.int64]
    """[n] sorted"""
    order: NDArray[np.int64]
    """[n]: sorted row i belongs into row order[i] of the output"""
    first_page: NDArray[np.int64]
    """[R]"""
    num_pages: NDArray[np.int64]
    """[R]"""
    first_row: NDArray[np.int64]
    """[R + 1]: run r serves sorted rows [first_row[r], first_row[r + 1])"""
    cuts: NDArray[np.int64]
    """[units + 1]"""


@kernel
def plan_runs(
    rows: NDArray[np.int64],
    row_bytes: int,
    max_gap_bytes: int,
    max_run_pages: int,
    first_page: NDArray[np.int64],
    num_pages: NDArray[np.int64],
    first_row: NDArray[np.int64],
) -> int:
    """Fill the runs that cover sorted `rows`; returns their number. A run takes rows while they fit in it."""
    run = -1
    end = 0
    for index in range(rows.shape[0]):
        byte = HEADER_BYTES + rows[index] * row_bytes
        first = byte // PAGE_BYTES
        last = (byte + row_bytes - 1) // PAGE_BYTES + 1
        fits = run >= 0 and last - first_page[run] <= max_run_pages
        if fits and (first - end) * PAGE_BYTES <= max_gap_bytes:
            end = max(end, last)
        else:
            run += 1
            first_page[run] = first
            first_row[run] = index
            end = last
        num_pages[run] = end - first_page[run]
    first_row[run + 1] = rows.shape[0]
    return run + 1


@kernel
def cut_units(num_pages: NDArray[np.int64], cost: int, cuts: NDArray[np.int64]) -> int:
    """Fill `cuts` so that units cost about `cost` pages each; returns their number."""
    unit = 0
    spent = 0
    cuts[0] = 0
    for run in range(num_pages.shape[0]):
        if spent >= cost:
            unit += 1
            cuts[unit] = run
            spent = 0
        spent += num_pages[run] + RUN_COST_PAGES
    cuts[unit + 1] = num_pages.shape[0]
    return unit + 1


@kernel
def copy_rows(
    data: NDArray[np.uint8],
    first_byte: int,
    rows: NDArray[np.int64],
    order: NDArray[np.int64],
    out: NDArray[np.uint8],
) -> None:
    """`out[order[i]] = row rows[i]`, where `data` holds the file from byte `first_byte` on."""
    row_bytes = out.shape[1]
    source = data.ctypes.data
    target = out.ctypes.data
    for index in range(rows.shape[0]):
        skip = HEADER_BYTES + rows[index] * row_bytes - first_byte
        memcpy(target + np.uintp(order[index] * row_bytes), source + np.uintp(skip), row_bytes)


@kernel
def read_unit(
    descriptor: int,
    data: NDArray[np.uint8],
    words: NDArray[np.uint64],
    sums: NDArray[np.uint32],
    file_bytes: int,
    first_page: NDArray[np.int64],
    num_pages: NDArray[np.int64],
    first_row: NDArray[np.int64],
    rows: NDArray[np.int64],
    order: NDArray[np.int64],
    out: NDArray[np.uint8],
    base_page: int,
) -> int:
    """Read, check and copy out the runs given; returns a status of `block_reads`. Descriptor and sums as there."""
    for run in range(first_page.shape[0]):
        start = first_page[run] * PAGE_BYTES
        num_bytes = min(num_pages[run] * PAGE_BYTES, file_bytes - start)
        status = load_run(descriptor, data, words, first_page[run], num_bytes, sums, base_page)
        if status != OK:
            return status
        served = slice(first_row[run], first_row[run + 1])
        copy_rows(data, start, rows[served], order[served], out)
    return OK


def read_planned(
    descriptor: int,
    staging: Staging,
    *,
    runs: Runs,
    which: slice,
    sums: NDArray[np.uint32],
    file_bytes: int,
    out: NDArray[np.uint8],
    base_page: int = 0,
) -> int:
    """`read_unit` of runs `which` (start and stop given) of a file of `file_bytes` bytes."""
    return read_unit(
        descriptor,
        staging.data,
        staging.words,
        sums,
        file_bytes,
        runs.first_page[which],
        runs.num_pages[which],
        runs.first_row[which.start : which.stop + 1],
        runs.rows,
        runs.order,
        out,
        base_page,
    )


def plan(rows: NDArray[np.int64], *, row_bytes: int, max_gap_bytes: int, max_run_pages: int, num_threads: int) -> Runs:
    """Runs and units for rows [n > 0] in any order, none longer than a run. Memory: 40 bytes a row."""
    order = np.argsort(rows)
    ordered = rows[order]
    first_page = np.empty(rows.shape[0], dtype=np.int64)
    num_pages = np.empty(rows.shape[0], dtype=np.int64)
    first_row = np.empty(rows.shape[0] + 1, dtype=np.int64)
    num_runs = plan_runs(ordered, row_bytes, max_gap_bytes, max_run_pages, first_page, num_pages, first_row)
    total = int(num_pages[:num_runs].sum()) + num_runs * RUN_COST_PAGES
    cost = max(LEAST_UNIT_PAGES, -(-total // (num_threads * UNITS_PER_THREAD)))
    cuts = np.empty(total // cost + 2, dtype=np.int64)
    num_units = cut_units(num_pages[:num_runs], cost, cuts)
    return Runs(
        rows=ordered,
        order=order,
        first_page=first_page[:num_runs],
        num_pages=num_pages[:num_runs],
        first_row=first_row[: num_runs + 1],
        cuts=cuts[: num_units + 1],
    )
