"""The host tier: the hottest rows of a feature table in memory, everything else from the tier below.

Ids run hottest first inside a store, so the cached rows are the prefix [0, num_cached) and a look-up is one
comparison: no hash table, no bookkeeping, no lock.
"""

import time
from collections.abc import Sequence
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.features import Features, TierCounters
from storage.jit import kernel, memcpy

LOAD_BYTES = 32 << 20
"""the prefix is read in parts of this size"""


@kernel
def split_rows(rows: NDArray[np.int64], num_cached: int, hits: NDArray[np.int64], misses: NDArray[np.int64]) -> int:
    """Write the places of rows inside the prefix into `hits`, the others into `misses`; returns the hits."""
    num_hits = 0
    num_misses = 0
    for place in range(rows.shape[0]):
        if rows[place] < num_cached:
            hits[num_hits] = place
            num_hits += 1
        else:
            misses[num_misses] = place
            num_misses += 1
    return num_hits


@kernel
def copy_rows(table: NDArray[Any], rows: NDArray[np.int64], places: NDArray[np.int64], out: NDArray[Any]) -> None:
    """`out[places] = table[rows[places]]`, byte rows."""
    row_bytes = out.shape[1] * out.itemsize
    source, target = table.ctypes.data, out.ctypes.data
    for number in range(places.shape[0]):
        place = places[number]
        memcpy(target + np.uintp(place * row_bytes), source + np.uintp(rows[place] * row_bytes), row_bytes)


@kernel
def scatter_rows(table: NDArray[Any], places: NDArray[np.int64], out: NDArray[Any]) -> None:
    """`out[places] = table`, byte rows."""
    row_bytes = out.shape[1] * out.itemsize
    source, target = table.ctypes.data, out.ctypes.data
    for number in range(places.shape[0]):
        memcpy(target + np.uintp(places[number] * row_bytes), source + np.uintp(number * row_bytes), row_bytes)


def as_words(table: NDArray[Any]) -> NDArray[Any]:
    """View rows as the widest words that divide them: one compiled kernel serves every dtype, copying fast."""
    row_bytes = table.shape[1] * table.itemsize
    word = next(size for size in (8, 4, 2, 1) if row_bytes % size == 0)
    return table.view(np.dtype(f"u{word}"))


def load_prefix(below: Features, out: NDArray[Any]) -> None:
    """Read the first rows of a table into `out` [n, dim], a part at a time."""
    rows_per_load = max(1, LOAD_BYTES // max(1, below.dim * below.dtype.itemsize))
    for first in range(0, out.shape[0], rows_per_load):
        last = min(first + rows_per_load, out.shape[0])
        below.gather(np.arange(first, last, dtype=np.int64), out[first:last])


class HostTier:
    """A feature table with its rows [0, cache_bytes / row bytes) held in memory; implements `Features`.

    Args:
        below: the table that misses are read from.
        cache_bytes: memory for the prefix; whole rows are taken, at most the whole table.
    """

    def __init__(self, below: Features, *, cache_bytes: int) -> None:
        self.num_rows = below.num_rows
        self.dim = below.dim
        self.dtype = below.dtype
        self._counters = TierCounters()
        self._lock = Lock()
        self._below = below
        row_bytes = max(1, self.dim * self.dtype.itemsize)
        num_cached = min(self.num_rows, cache_bytes // row_bytes)
        self._cached = np.empty((num_cached, self.dim), dtype=self.dtype)
        load_prefix(below, self._cached)

    @property
    def num_cached(self) -> int:
        """Rows held in memory."""
        return int(self._cached.shape[0])

    @property
    def counters(self) -> TierCounters:
        """What this tier has served so far; `bytes` are those copied from memory."""
        with self._lock:
            return self._counters + TierCounters()

    def gather(self, rows: NDArray[np.int64], out: NDArray[Any]) -> None:
        """Copy `rows` (int64 [n], any order, repeats allowed) into `out` [n, dim]."""
        began = time.perf_counter()
        hits = np.empty(rows.shape[0], dtype=np.int64)
        misses = np.empty(rows.shape[0], dtype=np.int64)
        num_hits = split_rows(rows, self.num_cached, hits, misses)
        copy_rows(as_words(self._cached), rows, hits[:num_hits], as_words(out))
        seconds = time.perf_counter() - began
        missed = misses[: rows.shape[0] - num_hits]
        if missed.size:
            read = np.empty((missed.size, self.dim), dtype=self.dtype)
            self._below.gather(rows[missed], read)
            began = time.perf_counter()
            scatter_rows(as_words(read), missed, as_words(out))
            seconds += time.perf_counter() - began
        moved = num_hits * self.dim * self.dtype.itemsize
        with self._lock:
            self._counters += TierCounters(requests=rows.shape[0], hits=num_hits, bytes=moved, seconds=seconds)


def share_cache_bytes(tables: Sequence[Features | None], *, cache_bytes: int) -> list[int]:
    """Divide one budget over tables in proportion to their sizes; 0 where there is no table."""
    sizes = [0 if table is None else table.num_rows * table.dim * table.dtype.itemsize for table in tables]
    total = sum(sizes)
    return [0 if total == 0 else min(size, cache_bytes * size // total) for size in sizes]
