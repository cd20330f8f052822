"""Kernels that read a few elements each of many pages: places sorted by block of the file, blocks read once.

An element file is cut into blocks of BLOCK_PAGES pages of elements (its header page lies before the first). An
entry says which element of its block is wanted and where it goes, in 64 bits. What is done with an element is one of
two things: its value is handed out, or, of a list of pointers, where a list begins and how long it is (a span, which
needs the element behind it too).
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.block_reads import OK, load_run
from storage.jit import kernel
from storage.npy import HEADER_BYTES
from storage.pages import PAGE_BYTES

BLOCK_PAGES = 256
HEADER_PAGES = HEADER_BYTES // PAGE_BYTES
STAGING_PAGES = BLOCK_PAGES + 1
"""a span may need the first element of the next block"""
ELEMENT_BITS = 18
"""enough to number the 4-byte elements of a block"""
ELEMENT_MASK = (1 << ELEMENT_BITS) - 1


@kernel
def serve_values(at: NDArray[Any], cached: NDArray[Any], limit: int, flip: int, out: NDArray[Any]) -> int:
    """`out[i] = cached[at[i]] ^ flip` for places in [0, limit); returns their number."""
    served = 0
    for number in range(at.shape[0]):
        place = np.int64(at[number])
        if 0 <= place < limit:
            out[number] = cached[place] ^ flip
            served += 1
    return served


@kernel
def serve_spans(
    at: NDArray[Any], cached: NDArray[Any], limit: int, begin: NDArray[Any], degree: NDArray[np.int32]
) -> int:
    """As `serve_values`: where the list begins (unless `begin` is empty) and how long it is."""
    served = 0
    for number in range(at.shape[0]):
        place = np.int64(at[number])
        if 0 <= place < limit:
            start = cached[place]
            degree[number] = np.int32(cached[place + 1] - start)
            if begin.shape[0]:
                begin[number] = start
            served += 1
    return served


@kernel
def count_entries(at: NDArray[Any], first: int, end: int, shift: int, counts: NDArray[np.int64]) -> int:
    """Count places in [first, end) by block; lower ones are not read. Returns the first place beyond, or -1."""
    for number in range(at.shape[0]):
        place = np.int64(at[number])
        if place >= first:
            if place >= end:
                return int(place)
            counts[place >> shift] += 1
    return -1


@kernel
def place_entries(
    at: NDArray[Any],
    base: int,
    first: int,
    first_block: int,
    last_block: int,
    shift: int,
    where: NDArray[np.int64],
    entries: NDArray[np.int64],
) -> None:
    """Write the entries of places >= `first` in blocks [first_block, last_block), block b's from `where[b]` on.

    Entry: what place number i of `at` wants goes to `base + i`.
    """
    mask = (np.int64(1) << shift) - 1
    for number in range(at.shape[0]):
        place = np.int64(at[number])
        if place >= first:
            block = place >> shift
            if first_block <= block < last_block:
                entries[where[block]] = ((base + number) << ELEMENT_BITS) | (place & mask)
                where[block] += 1


@kernel
def plan_block(
    entries: NDArray[np.int64],
    item_bytes: int,
    last_element: int,
    max_gap_pages: int,
    first_page: NDArray[np.int64],
    num_pages: NDArray[np.int64],
) -> int:
    """Runs of the pages of a block that hold the entries' elements, merged across gaps; returns their number.

    Pages count from the start of the block. Elements wanted are `element ... element + last_element`.
    """
    needed = np.zeros(STAGING_PAGES, dtype=np.bool_)
    for number in range(entries.shape[0]):
        element = entries[number] & ELEMENT_MASK
        needed[element * item_bytes // PAGE_BYTES] = True
        needed[(element + last_element) * item_bytes // PAGE_BYTES] = True
    run = -1
    end = -1
    for page in range(STAGING_PAGES):
        if needed[page]:
            if run >= 0 and page - end <= max_gap_pages:
                num_pages[run] = page + 1 - first_page[run]
            else:
                run += 1
                first_page[run] = page
                num_pages[run] = 1
            end = page + 1
    return run + 1


@kernel
def load_block(
    descriptor: int,
    data: NDArray[np.uint8],
    words: NDArray[np.uint64],
    sums: NDArray[np.uint32],
    file_bytes: int,
    block_page: int,
    first_page: NDArray[np.int64],
    num_pages: NDArray[np.int64],
) -> int:
    """Read and check runs of a block that begins at page `block_page`, each where it belongs in `data`.

    Returns a status of `block_reads`.
    """
    for run in range(first_page.shape[0]):
        begin = first_page[run] * PAGE_BYTES
        page = block_page + first_page[run]
        num_bytes = min(num_pages[run] * PAGE_BYTES, file_bytes - page * PAGE_BYTES)
        status = load_run(descriptor, data[begin:], words[begin // 8 :], page, num_bytes, sums, 0)
        if status != OK:
            return status
    return OK


@kernel
def hand_out_values(entries: NDArray[np.int64], block: NDArray[Any], flip: int, out: NDArray[Any]) -> None:
    """Serve entries from the elements of their block."""
    for number in range(entries.shape[0]):
        entry = entries[number]
        out[entry >> ELEMENT_BITS] = block[entry & ELEMENT_MASK] ^ flip


@kernel
def hand_out_spans(
    entries: NDArray[np.int64], block: NDArray[Any], begin: NDArray[Any], degree: NDArray[np.int32]
) -> None:
    """Serve entries from the pointers of their block."""
    for number in range(entries.shape[0]):
        entry = entries[number]
        where = entry >> ELEMENT_BITS
        element = entry & ELEMENT_MASK
        start = block[element]
        degree[where] = np.int32(block[element + 1] - start)
        if begin.shape[0]:
            begin[where] = start
