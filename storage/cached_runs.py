"""Reading planned runs of rows from the blocks of a cache: each block by the compiled reader, as a file of its own.

A run that goes on into the next block is put together in memory first. Pages that are not what they should be
are asked of the cache once more, because its copy may be at fault and the file itself whole.
"""

import numpy as np
from numpy.typing import NDArray

from storage.block_cache import BlockCache
from storage.block_reads import OK, Staging
from storage.cached_file import CachedFile
from storage.pages import PAGE_BYTES
from storage.row_runs import Runs, read_unit


def read_cached_runs(
    cache: BlockCache,
    file: CachedFile,
    *,
    runs: Runs,
    which: slice,
    staging: Staging,
    out: NDArray[np.uint8],
    sums: NDArray[np.uint32] | None,
) -> int:
    """Read, check and copy out runs `which` (start and stop given) of `file`; returns a status of `block_reads`.

    `sums` are the page sums of the whole file; None takes those that the cached blocks carry. Raises CacheFull.
    """
    per_block = cache.block_bytes // PAGE_BYTES
    first = runs.first_page[which] // per_block
    last = (runs.first_page[which] + runs.num_pages[which] - 1) // per_block
    needed = np.unique(np.concatenate([first, last]))
    run = 0
    while run < first.shape[0]:
        number = int(first[run])
        stop = int(np.searchsorted(first, number, side="right"))
        if stop - 1 > run and last[stop - 1] > number:
            stop -= 1  # runs are sorted: only the last of a block can go on into the next
        taken = slice(which.start + run, which.start + stop)
        blocks = range(number, int(last[run]) + 1)
        status = _read_blocks(cache, file, blocks, _follows(needed, number), runs, taken, staging, out, sums)
        if status != OK:
            cache.distrust(file, blocks)
            status = _read_blocks(cache, file, blocks, blocks[-1], runs, taken, staging, out, sums)
        if status != OK:
            return status
        run = stop
    return OK


def _follows(needed: NDArray[np.int64], number: int) -> int:
    """The last of the needed blocks (sorted) that follow `number` without a hole."""
    later = needed[np.searchsorted(needed, number) :]
    gaps = np.flatnonzero(np.diff(later) > 1)
    return int(later[gaps[0]] if gaps.size else later[-1])


def _read_blocks(
    cache: BlockCache,
    file: CachedFile,
    blocks: range,
    ahead: int,
    runs: Runs,
    which: slice,
    staging: Staging,
    out: NDArray[np.uint8],
    sums: NDArray[np.uint32] | None,
) -> int:
    """Runs that lie in one block, or one run that lies in several."""
    if len(blocks) == 1:
        base_page = blocks[0] * (cache.block_bytes // PAGE_BYTES)
        with cache.block(file, blocks[0], last=ahead) as block:
            page_sums = block.sums if sums is None else sums[base_page:]
            return _read(block.descriptor, file, runs, which, staging, out, page_sums, base_page)
    base_page = int(runs.first_page[which.start])
    start = base_page * PAGE_BYTES
    num_bytes = min(int(runs.num_pages[which.start]) * PAGE_BYTES, file.num_bytes - start)
    carried = cache.copy(file, staging.data[:num_bytes], start=start)
    page_sums = carried if sums is None else sums[base_page:]
    return _read(-1, file, runs, which, staging, out, page_sums, base_page)


def _read(
    descriptor: int,
    file: CachedFile,
    runs: Runs,
    which: slice,
    staging: Staging,
    out: NDArray[np.uint8],
    sums: NDArray[np.uint32],
    base_page: int,
) -> int:
    return read_unit(
        descriptor,
        staging.data,
        staging.words,
        sums,
        file.num_bytes,
        runs.first_page[which],
        runs.num_pages[which],
        runs.first_row[which.start : which.stop + 1],
        runs.rows,
        runs.order,
        out,
        base_page,
    )
