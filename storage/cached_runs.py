"""Reading planned runs of rows from the blocks of a cache: each block by the compiled reader, as a file of its own.

A run that goes on into the next block is put together in memory first. Pages that are not what they should be
are asked of the cache once more, because its copy may be at fault and the file itself whole; it checks what it
fetches, so what is wrong then is the disk that the cache is on.
"""

import numpy as np
from numpy.typing import NDArray

from storage.block_cache import BlockCache
from storage.block_reads import OK, Staging
from storage.cached_file import CachedFile
from storage.errors import BadInput
from storage.pages import PAGE_BYTES
from storage.row_runs import Runs, read_planned


def read_cached_runs(
    cache: BlockCache,
    file: CachedFile,
    *,
    runs: Runs,
    which: slice,
    staging: Staging,
    out: NDArray[np.uint8],
    sums: NDArray[np.uint32] | None,
) -> None:
    """Read, check and copy out runs `which` (start and stop given) of `file`.

    `sums` are the page sums of the whole file; None takes those that the cached blocks carry.

    Raises:
        CacheFull: there is no room. Also whatever reading the file raises.
        BadInput: the disk of the cache does not give back what was written to it.
    """
    per_block = cache.block_bytes // PAGE_BYTES
    first = runs.first_page[which] // per_block
    last = (runs.first_page[which] + runs.num_pages[which] - 1) // per_block
    needed = {*first.tolist(), *last.tolist()}
    run = 0
    while run < first.shape[0]:
        number = int(first[run])
        stop = int(np.searchsorted(first, number, side="right"))
        if stop - 1 > run and last[stop - 1] > number:
            stop -= 1  # runs are sorted: only the last of a block can go on into the next
        taken = slice(which.start + run, which.start + stop)
        blocks = range(number, int(last[run]) + 1)
        ahead = number + (number + 1 in needed)
        if _read_blocks(cache, file, blocks, ahead, runs, taken, staging, out, sums) != OK:
            cache.distrust(file, blocks)
            if _read_blocks(cache, file, blocks, blocks[-1], runs, taken, staging, out, sums) != OK:
                raise BadInput(
                    f"block cache {cache.folder}",
                    "a block that was just written has changed, or cannot be read",
                    rule="the disk gives back what it was given",
                    remedy="check the disk, or name another folder with tiers.disk_cache_folder",
                )
        run = stop


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
    """Runs that lie in one block, or one run that lies in several; returns a status of `block_reads`."""

    def read(descriptor: int, page_sums: NDArray[np.uint32], base_page: int) -> int:
        return read_planned(
            descriptor,
            staging,
            runs=runs,
            which=which,
            sums=page_sums if sums is None else sums[base_page:],
            file_bytes=file.num_bytes,
            out=out,
            base_page=base_page,
        )

    if len(blocks) == 1:
        with cache.block(file, blocks[0], last=ahead) as block:
            return read(block.descriptor, block.sums, blocks[0] * (cache.block_bytes // PAGE_BYTES))
    base_page = int(runs.first_page[which.start])
    start = base_page * PAGE_BYTES
    num_bytes = min(int(runs.num_pages[which.start]) * PAGE_BYTES, file.num_bytes - start)
    return read(-1, cache.copy(file, staging.data[:num_bytes], start=start), base_page)
