"""Tables of feature rows: what every tier serves, and the tier that reads files.

How `FeatureFile.gather` reads n rows:

    1. plan       rows [n] -> sorted, and where each goes; runs of pages merged across gaps; units of runs
    2. read_unit  each thread, one unit after another, each run: read into staging, check every page, copy its
                  rows to where they go; all without the GIL
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock
from time import perf_counter
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

from storage.block_files import CacheFull
from storage.block_reads import OK, STAGING_BYTES, PageFile, Staging
from storage.cached_runs import read_cached_runs
from storage.npy import HEADER_BYTES, damaged, npy_header
from storage.pages import PAGE_BYTES
from storage.place import Place
from storage.read_pool import NUM_THREADS, ReadPool
from storage.row_runs import MAX_GAP_BYTES, Runs, plan, read_planned
from storage.schema import FileInfo

_DETOUR_BYTES = 16 << 20


@dataclass
class TierCounters:
    """What one tier of a feature table has done since it was opened."""

    requests: int = 0
    """rows asked for"""
    hits: int = 0
    """rows served here"""
    bytes: int = 0
    """bytes moved from the tier's device"""
    seconds: float = 0.0
    """time callers spent waiting, summed over callers"""

    def __add__(self, other: "TierCounters") -> "TierCounters":
        """Sum of both."""
        return TierCounters(
            requests=self.requests + other.requests,
            hits=self.hits + other.hits,
            bytes=self.bytes + other.bytes,
            seconds=self.seconds + other.seconds,
        )


class Features(Protocol):
    """A table of feature rows [num_rows, dim], served from wherever it is."""

    @property
    def num_rows(self) -> int:
        """Rows of the table."""

    @property
    def dim(self) -> int:
        """Elements of a row."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Element type."""

    def gather(self, rows: NDArray[np.int64], out: NDArray[Any]) -> None:
        """Copy rows [n] (any order, repeats allowed) into `out` [n, dim]; safe from several threads."""


class StoredFeatures(Features, Protocol):
    """Features that hold files open and count what they read."""

    @property
    def counters(self) -> TierCounters:
        """What was read so far."""

    def close(self) -> None:
        """Give files and threads back; no gather may follow."""


class RowReader(ABC):
    """What the tiers that read files have in common: the size of a row and of a run, the check of `out`, counters."""

    def __init__(self, *, num_rows: int, dim: int, dtype: DTypeLike) -> None:
        self.num_rows = num_rows
        self.dim = dim
        self.dtype = np.dtype(dtype)
        self._row_bytes = dim * self.dtype.itemsize
        self._max_run_pages = max(STAGING_BYTES, self._row_bytes + 2 * PAGE_BYTES) // PAGE_BYTES
        self._counters = TierCounters()
        self._lock = Lock()

    @property
    def counters(self) -> TierCounters:
        """Rows asked for and served, bytes read, seconds callers waited."""
        with self._lock:
            return self._counters + TierCounters()

    def gather(self, rows: NDArray[np.int64], out: NDArray[Any]) -> None:
        """Copy rows (int64 [n], any order, repeats allowed) into `out` [n, dim], C-contiguous, of the dtype.

        Raises IndexError for a row outside the table, ValueError for an unfit `out`, DamagedStore for a
        changed page; `out` is then partly written.
        """
        started = perf_counter()
        if out.shape != (rows.shape[0], self.dim) or out.dtype != self.dtype or not out.flags.c_contiguous:
            raise ValueError(f"out is {out.dtype} {out.shape}, not {self.dtype} {(rows.shape[0], self.dim)}")
        num_bytes = 0
        if out.size:
            raw = out.view(np.uint8).reshape(rows.shape[0], self._row_bytes)
            num_bytes = self._read_rows(np.asarray(rows, dtype=np.int64), raw)
        spent = TierCounters(rows.shape[0], rows.shape[0], num_bytes, perf_counter() - started)
        with self._lock:
            self._counters += spent

    @abstractmethod
    def _read_rows(self, rows: NDArray[np.int64], out: NDArray[np.uint8]) -> int:
        """Copy the bytes of rows [n > 0] into `out` [n, row bytes]; returns the bytes read for that."""


class FeatureFile(RowReader):
    """Rows of one stored array [num_rows, dim], read on demand; every page is checked.

    Args:
        place, info: the file.
        num_rows, dim, dtype: its shape and element type.
        shape: as stored, where it is not (num_rows, dim).
        num_threads: reads in flight.
        max_gap_bytes: read through gaps up to this size; about bandwidth / (reads a second).
        direct: bypass the page cache where the file system allows.

    Memory: 1 MiB a thread, 40 bytes a row asked for, and the page sums (0.1 % of the file). Raises
    DamagedStore when the file is missing, short, of another shape, or changed, or else `gather` does.
    """

    def __init__(
        self,
        place: Place,
        info: FileInfo,
        *,
        num_rows: int,
        dim: int,
        dtype: DTypeLike,
        shape: tuple[int, ...] | None = None,
        num_threads: int = NUM_THREADS,
        max_gap_bytes: int = MAX_GAP_BYTES,
        direct: bool = True,
    ) -> None:
        super().__init__(num_rows=num_rows, dim=dim, dtype=dtype)
        self.max_gap_bytes = max_gap_bytes
        self._pool = ReadPool(num_threads=num_threads, staging_bytes=self._max_run_pages * PAGE_BYTES)
        self._file = PageFile(place, info, direct=direct)
        try:
            self._check_header(shape or (num_rows, dim))
        except BaseException:
            self._file.close()
            raise

    def _check_header(self, shape: tuple[int, ...]) -> None:
        place, info = self._file.place, self._file.info
        with self._pool.staging() as staging:
            self._file.read(staging.data, staging.words, first_page=0, num_pages=min(1, info.num_pages))
            header = staging.data[:HEADER_BYTES].tobytes()
        expected_bytes = HEADER_BYTES + self.num_rows * self._row_bytes
        if info.num_bytes != expected_bytes or header != npy_header(self.dtype, shape):
            raise damaged(place, info.name, f"not an array {shape} of {self.dtype}")

    def close(self) -> None:
        """End the threads and close the file."""
        self._pool.close()
        self._file.close()

    def _read_rows(self, rows: NDArray[np.int64], out: NDArray[np.uint8]) -> int:
        runs = plan(
            rows,
            row_bytes=self._row_bytes,
            max_gap_bytes=self.max_gap_bytes,
            max_run_pages=self._max_run_pages,
            num_threads=self._pool.num_threads,
        )
        if runs.rows[0] < 0 or runs.rows[-1] >= self.num_rows:
            outside = runs.rows[0] if runs.rows[0] < 0 else runs.rows[-1]
            raise IndexError(f"row {outside} of a table of {self.num_rows} rows")
        self._pool.run(lambda unit: self._read_unit(runs, unit, out), runs.cuts.shape[0] - 1)
        return int(runs.num_pages.sum()) * PAGE_BYTES

    def _read_unit(self, runs: Runs, unit: int, out: NDArray[np.uint8]) -> None:
        begin, end = int(runs.cuts[unit]), int(runs.cuts[unit + 1])
        with self._pool.staging() as staging:
            if self._file.descriptor >= 0:
                self._read_runs(runs, slice(begin, end), staging, out)
                return
            if self._read_cached(runs, slice(begin, end), staging, out):
                return
            for run in range(begin, end):
                first, num_pages = int(runs.first_page[run]), int(runs.num_pages[run])
                num_bytes = self._file.run_bytes(first, num_pages)
                self._file.fetch_directly(staging.data, first_page=first, num_bytes=num_bytes)
                self._read_runs(runs, slice(run, run + 1), staging, out)

    def _read_cached(self, runs: Runs, which: slice, staging: Staging, out: NDArray[np.uint8]) -> bool:
        """Read through the place's block cache; False when there is none, or no room in it."""
        file, cache = self._file, self._file.place.block_cache
        if cache is None or file.cached is None:
            return False
        try:
            read_cached_runs(cache, file.cached, runs=runs, which=which, staging=staging, out=out, sums=file.sums)
        except CacheFull:
            return False
        return True

    def _read_runs(self, runs: Runs, which: slice, staging: Staging, out: NDArray[np.uint8]) -> None:
        file = self._file
        while (
            status := read_planned(
                file.descriptor,
                staging,
                runs=runs,
                which=which,
                sums=file.sums,
                file_bytes=file.info.num_bytes,
                out=out,
            )
        ) != OK:
            file.explain(status)


class SegmentedFeatures:
    """Tables of the same width and type, one after another, as one table.

    Args:
        parts: at least one; row i of part p is row i + (rows of the parts before it).

    Raises ValueError for parts of different width or type.
    """

    def __init__(self, parts: Sequence[StoredFeatures]) -> None:
        self._parts = tuple(parts)
        self.dim = parts[0].dim
        self.dtype = parts[0].dtype
        for part in parts:
            if part.dim != self.dim or part.dtype != self.dtype:
                raise ValueError(f"a part of {part.dim} {part.dtype} among {self.dim} {self.dtype}")
        self._first = np.cumsum([0, *(part.num_rows for part in parts)], dtype=np.int64)
        self.num_rows = int(self._first[-1])

    @property
    def counters(self) -> TierCounters:
        """Sum over the parts."""
        return sum((part.counters for part in self._parts), TierCounters())

    def close(self) -> None:
        """Close every part."""
        for part in self._parts:
            part.close()

    def gather(self, rows: NDArray[np.int64], out: NDArray[Any]) -> None:
        """Copy rows (int64 [n], any order, repeats allowed) into `out` [n, dim].

        Rows that are spread over several parts take a detour through up to 16 MiB of memory. Raises as the
        parts do, and IndexError for a row outside the table.
        """
        if rows.size and (rows.min() < 0 or rows.max() >= self.num_rows):
            raise IndexError(f"rows {rows.min()} to {rows.max()} of a table of {self.num_rows} rows")
        owner = np.searchsorted(self._first, rows, side="right") - 1
        for index, part in enumerate(self._parts):
            mine = np.flatnonzero(owner == index)
            if mine.shape[0] == rows.shape[0]:
                part.gather(rows - self._first[index], out)
                return
            step = max(1, _DETOUR_BYTES // max(1, self.dim * self.dtype.itemsize))
            for start in range(0, mine.shape[0], step):
                which = mine[start : start + step]
                found = np.empty((which.shape[0], self.dim), dtype=self.dtype)
                part.gather(rows[which] - self._first[index], found)
                out[which] = found
