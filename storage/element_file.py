"""One-axis arrays of a store, looked up at very many places at once; their first part in memory.

How n places are looked up:

    1. serve    those inside the cached prefix, from memory
    2. count    the others, by block of 1 MiB of the file
    3. place    as many as the scratch holds: each one's entry (element of its block, where the answer goes) behind the
                others of its block
    4. read     block by block, in parallel: pages wanted -> runs merged across gaps -> read, check, hand out
    5. repeat from 3 with the next part of the file

So pages are read in order of the file and at most once (a block whose entries fill the scratch alone: once a filling),
however the places are ordered, and nothing is sorted by comparison.
"""

import math
from threading import Lock
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.block_reads import OK, STAGING_BYTES, PageFile, Staging
from storage.element_blocks import (
    BLOCK_PAGES,
    HEADER_PAGES,
    STAGING_PAGES,
    count_entries,
    load_block,
    place_entries,
    plan_block,
)
from storage.element_requests import Request, Spans, Values
from storage.features import TierCounters
from storage.npy import HEADER_BYTES, damaged, parse_header
from storage.own_memory import own_array
from storage.pages import PAGE_BYTES
from storage.place import Place
from storage.read_pool import NUM_THREADS, ReadPool
from storage.row_runs import MAX_GAP_BYTES, UNITS_PER_THREAD
from storage.schema import FileInfo

SCRATCH_BYTES = 32 << 20
ENTRY_BYTES = 8
NUM_CHUNKS = 4
"""places are counted and placed in so many parts, side by side"""
LEAST_CHUNK = 1 << 16
LEAST_ENTRIES = 64


class ElementPool(ReadPool):
    """Threads that read elements, with memory for a block each; files share one."""

    def __init__(self, *, num_threads: int = NUM_THREADS) -> None:
        super().__init__(num_threads=num_threads, staging_bytes=STAGING_PAGES * PAGE_BYTES)


class ElementFile:
    """A stored array [length] of elements of 4 or 8 bytes; every page that is read is checked.

    Args:
        place, info: the file.
        pool: whose threads read.
        scratch_bytes: memory of one look-up: 8 bytes a place that is not cached, or parts of the file follow each
            other.
        max_gap_bytes: read through gaps up to this size; about bandwidth / (reads a second).
        direct: bypass the page cache where the file system allows.

    Memory: the scratch, the cached prefix, 4 bytes a page for sums, 100 bytes a block of 1 MiB. Raises DamagedStore
    when the file is missing, short, no such array or changed, or else a look-up does. Look-ups are safe from several
    threads.
    """

    def __init__(
        self,
        place: Place,
        info: FileInfo,
        *,
        pool: ElementPool,
        scratch_bytes: int = SCRATCH_BYTES,
        max_gap_bytes: int = MAX_GAP_BYTES,
        direct: bool = True,
    ) -> None:
        self._pool = pool
        self._capacity = max(LEAST_ENTRIES, scratch_bytes // ENTRY_BYTES)
        self._max_gap_pages = max_gap_bytes // PAGE_BYTES
        self._counters = TierCounters()
        self._lock = Lock()
        self._file = PageFile(place, info, direct=direct)
        try:
            self.length, self.dtype = self._read_header()
        except BaseException:
            self._file.close()
            raise
        # elements are moved, never computed with, so integers of their size do for every type
        self._words = np.dtype(f"i{self.dtype.itemsize}")
        self._cached = np.empty(0, dtype=self._words)
        self._shift = (BLOCK_PAGES * PAGE_BYTES // self.dtype.itemsize).bit_length() - 1

    def _read_header(self) -> tuple[int, np.dtype[Any]]:
        place, info = self._file.place, self._file.info
        with self._pool.staging() as staging:
            self._file.read(staging.data, staging.words, first_page=0, num_pages=min(1, info.num_pages))
            header = staging.data[:HEADER_BYTES].tobytes()
        try:
            shape, dtype = parse_header(header)
            fits = HEADER_BYTES + math.prod(shape) * dtype.itemsize == info.num_bytes
            if len(shape) != 1 or dtype.itemsize not in (4, 8) or not fits:
                raise ValueError(f"shape {shape} of {dtype} in {info.num_bytes} bytes")
        except ValueError as error:
            raise damaged(place, info.name, f"not an array of this store: {error}") from error
        return int(shape[0]), dtype

    @property
    def num_bytes(self) -> int:
        """Bytes of all elements."""
        return self.length * self.dtype.itemsize

    @property
    def num_cached(self) -> int:
        """Elements in memory."""
        return int(self._cached.shape[0])

    @property
    def in_memory(self) -> bool:
        """Whether that is all of them."""
        return self.num_cached == self.length

    @property
    def counters(self) -> TierCounters:
        """Places asked for, those served from memory, bytes read for the others, seconds callers waited."""
        with self._lock:
            return self._counters + TierCounters()

    def cache(self, num_bytes: int) -> None:
        """Hold a prefix of at most `num_bytes` bytes in memory from now on: whole pages, or the whole array.

        Not while a look-up runs.
        """
        whole = num_bytes >= self.num_bytes
        count = self.length if whole else num_bytes // PAGE_BYTES * PAGE_BYTES // self.dtype.itemsize
        cached = own_array(count, self._words)
        part = STAGING_BYTES // self.dtype.itemsize

        def load(unit: int) -> None:
            taken = cached[unit * part : (unit + 1) * part]
            page = HEADER_PAGES + unit * (STAGING_BYTES // PAGE_BYTES)
            with self._pool.staging() as staging:
                self._file.read(staging.data, staging.words, first_page=page, num_pages=-(-taken.nbytes // PAGE_BYTES))
                taken[:] = staging.data[: taken.nbytes].view(self._words)

        self._pool.run(load, -(-count // part))
        self._cached = cached

    def close(self) -> None:
        """Close the file; no look-up may follow."""
        self._file.close()

    def gather(self, at: NDArray[Any], out: NDArray[Any]) -> None:
        """`out[i] = element[at[i]]` wherever at[i] >= 0; `out` [n] has the dtype of the array.

        Raises IndexError for a place outside the array, DamagedStore for a changed page; `out` is then partly written.
        """
        assert out.dtype == self.dtype
        self._look_up(Values(at=at, out=out.view(self._words)))

    def replace(self, at: NDArray[Any]) -> None:
        """`at[i] = ~element[at[i]]` wherever at[i] >= 0, for integers that fit in `at`; raises as `gather` does.

        It takes no memory for the answers: a complement is negative, which tells what has been replaced from what not.
        """
        self._look_up(Values(at=at, out=at, flip=-1))

    def spans(self, at: NDArray[Any], begin: NDArray[Any], degree: NDArray[np.int32]) -> None:
        """Where list at[i] >= 0 begins and how long it is, in an array of pointers; raises as `gather` does.

        `begin` is [n] of the array's dtype, or empty when only degrees are wanted.
        """
        self._look_up(Spans(at=at, begin=begin, degree=degree))

    def _look_up(self, request: Request) -> None:
        began = perf_counter()
        num_places = request.at.shape[0]
        chunk = min(self._capacity, max(LEAST_CHUNK, -(-num_places // NUM_CHUNKS)))
        chunks = [slice(first, min(first + chunk, num_places)) for first in range(0, num_places, chunk)]
        first, end = max(0, self.num_cached - request.reach), max(0, self.length - request.reach)
        counts = np.zeros((len(chunks), (end >> self._shift) + 1), dtype=np.int64)
        served = np.zeros(len(chunks), dtype=np.int64)
        beyond = np.full(len(chunks), -1, dtype=np.int64)

        def count(number: int) -> None:
            part = chunks[number]
            served[number] = request.serve(part, self._cached, limit=first)
            beyond[number] = count_entries(request.at[part], first, end, self._shift, counts[number])

        self._pool.run(count, len(chunks))
        if (beyond >= 0).any():
            raise IndexError(f"{self._file.info.name}: place {beyond.max()} of {end}")
        num_pages = self._read(request, chunks, counts, first) if counts.any() else 0
        num_served = int(served.sum())
        spent = TierCounters(int(counts.sum()) + num_served, num_served, num_pages * PAGE_BYTES, perf_counter() - began)
        with self._lock:
            self._counters += spent

    def _read(self, request: Request, chunks: list[slice], counts: NDArray[np.int64], first: int) -> int:
        """Steps 3 to 5; returns the pages read. `counts` [chunks, blocks], none larger than the scratch."""
        ends = np.cumsum(counts.T)  # block by block, and inside a block chunk by chunk
        capacity = min(self._capacity, int(ends[-1]))
        entries = own_array(capacity, np.int64)
        num_pages = 0
        begin = 0
        while begin < ends.shape[0]:
            done = int(ends[begin - 1]) if begin else 0
            stop = int(np.searchsorted(ends, done + capacity, side="right"))
            starts = np.ascontiguousarray(ends.reshape(counts.shape[::-1]).T - counts - done)
            first_block = self._place(request, chunks, starts, begin, stop, entries, first)
            # where the entries of each block end, of those there are now
            last = np.minimum(np.arange(first_block + 1, stop // len(chunks) + 2) * len(chunks), stop) - 1
            num_pages += self._read_blocks(request, entries, first_block, ends[last] - done)
            begin = stop
        return num_pages

    def _place(
        self,
        request: Request,
        chunks: list[slice],
        starts: NDArray[np.int64],
        begin: int,
        stop: int,
        entries: NDArray[np.int64],
        first: int,
    ) -> int:
        """Write the entries of cells [begin, stop), those of cell block * chunks + chunk from `starts[chunk, block]`.

        Returns the first block.
        """
        begin_block, begin_chunk = divmod(begin, len(chunks))
        stop_block, stop_chunk = divmod(stop, len(chunks))

        def place(chunk: int) -> None:
            blocks = begin_block + (chunk < begin_chunk), stop_block + (chunk < stop_chunk)
            part = chunks[chunk]
            place_entries(request.at[part], part.start, first, *blocks, self._shift, starts[chunk], entries)

        self._pool.run(place, len(chunks))
        return begin_block

    def _read_blocks(
        self, request: Request, entries: NDArray[np.int64], first_block: int, ends: NDArray[np.int64]
    ) -> int:
        """Step 4 for consecutive blocks, whose entries end at `ends`; returns the pages read."""
        begins = np.concatenate([[0], ends[:-1]])
        wanted = np.flatnonzero(ends > begins)
        per_unit = -(-wanted.shape[0] // (self._pool.num_threads * UNITS_PER_THREAD))
        units = [wanted[start : start + per_unit] for start in range(0, wanted.shape[0], per_unit)]
        pages = np.zeros(len(units), dtype=np.int64)

        def read(unit: int) -> None:
            with self._pool.staging() as staging:
                for number in units[unit].tolist():
                    own = entries[begins[number] : ends[number]]
                    pages[unit] += self._load(staging, first_block + number, own, request.reach)
                    request.hand_out(own, staging.data.view(self._words))

        self._pool.run(read, len(units))
        return int(pages.sum())

    def _load(self, staging: Staging, block: int, entries: NDArray[np.int64], reach: int) -> int:
        """Read the pages of a block that entries need, each to its place in the staging; returns their number."""
        file = self._file
        first_page = np.empty(STAGING_PAGES, dtype=np.int64)
        num_pages = np.empty(STAGING_PAGES, dtype=np.int64)
        num_runs = plan_block(entries, self.dtype.itemsize, reach, self._max_gap_pages, first_page, num_pages)
        first_page, num_pages = first_page[:num_runs], num_pages[:num_runs]
        block_page = HEADER_PAGES + block * BLOCK_PAGES
        if file.descriptor < 0:
            for first, count in zip(first_page.tolist(), num_pages.tolist(), strict=True):
                where = slice(first * PAGE_BYTES, (first + count) * PAGE_BYTES)
                inside = slice(where.start // 8, where.stop // 8)
                file.read(staging.data[where], staging.words[inside], first_page=block_page + first, num_pages=count)
        else:
            while (
                status := load_block(
                    file.descriptor, staging.data, staging.words, file.sums, file.info.num_bytes, block_page,
                    first_page, num_pages,
                )
            ) != OK:  # fmt: skip
                file.explain(status)
        return int(num_pages.sum())
