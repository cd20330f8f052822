"""Sorted runs: chunks of rows, each ordered by bucket, from which a bucket is read slice by slice.

    write_run    columns [n], bucket of each row [n] -> one file a run; rows of a bucket stand together, in order
    read_bucket  the bucket's rows of all runs, run after run: so in the order of the input

A run is one file: its columns one after another, each column ordered by bucket. Nothing is appended to anything,
so workers never meet, and the result does not depend on who wrote what when.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.jit import kernel


@dataclass(frozen=True)
class Run:
    """One written run: bucket b holds rows [start[b], start[b + 1]) of every column."""

    path: str
    start: list[int]
    """[num_buckets + 1]"""

    @property
    def num_rows(self) -> int:
        """Rows of the run."""
        return self.start[-1]


@kernel
def bucket_order(buckets: NDArray[Any], num_buckets: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Stable counting sort: (order [n] of rows by bucket, start [num_buckets + 1] of each bucket in it)."""
    start = np.zeros(num_buckets + 1, dtype=np.int64)
    for row in range(buckets.shape[0]):
        start[buckets[row] + 1] += 1
    for bucket in range(num_buckets):
        start[bucket + 1] += start[bucket]
    order = np.empty(buckets.shape[0], dtype=np.int64)
    at = start[:-1].copy()
    for row in range(buckets.shape[0]):
        bucket = buckets[row]
        order[at[bucket]] = row
        at[bucket] += 1
    return order, start


def write_run(path: str, columns: Sequence[NDArray[Any]], *, buckets: NDArray[Any], num_buckets: int) -> Run:
    """Write columns ([n] or [n, width] each) ordered by `buckets` [n] as one run."""
    order, start = bucket_order(buckets, num_buckets)
    return write_ordered(path, (np.take(column, order, axis=0) for column in columns), start=start)


def write_ordered(path: str, columns: Iterable[NDArray[Any]], *, start: NDArray[np.int64]) -> Run:
    """Write columns that are ordered by bucket already; bucket b holds rows [start[b], start[b + 1])."""
    with open(path, "wb", buffering=0) as file:
        for column in columns:
            write_whole(file.fileno(), np.ascontiguousarray(column))
    return Run(path=path, start=start.tolist())


class RunWriter:
    """Collects batches of rows and writes a run whenever `run_rows` are there, so that memory stays bounded.

    Args:
        path: the runs' paths without their numbers.
        num_buckets: buckets of every run.
        run_rows: rows of a run.
    """

    def __init__(self, path: str, *, num_buckets: int, run_rows: int) -> None:
        self._path = path
        self._num_buckets = num_buckets
        self._run_rows = run_rows
        self._held: list[tuple[list[NDArray[Any]], NDArray[Any]]] = []
        self._num_held = 0
        self._runs: list[Run] = []

    def add(self, columns: list[NDArray[Any]], *, buckets: NDArray[Any]) -> None:
        """Take the next rows; `buckets` [n] says where each belongs."""
        self._held.append((columns, buckets))
        self._num_held += len(buckets)
        if self._num_held >= self._run_rows:
            self._flush()

    def _flush(self) -> None:
        if not self._num_held:
            return
        columns = [np.concatenate(parts) for parts in zip(*(columns for columns, _ in self._held), strict=True)]
        buckets = np.concatenate([buckets for _, buckets in self._held])
        self._held, self._num_held = [], 0
        path = f"{self._path}.{len(self._runs)}"
        self._runs.append(write_run(path, columns, buckets=buckets, num_buckets=self._num_buckets))

    def finish(self) -> list[Run]:
        """Write what is left and return all runs in order."""
        self._flush()
        return self._runs


def read_bucket(
    runs: Sequence[Run], bucket: int, *, columns: Sequence[tuple[np.dtype[Any], int]]
) -> list[NDArray[Any]]:
    """Columns of one bucket; each is given as (dtype, width) and comes as [n], or [n, width] where width > 1."""
    counts = [run.start[bucket + 1] - run.start[bucket] for run in runs]
    total = sum(counts)
    found = [np.empty((total, width) if width > 1 else total, dtype=dtype) for dtype, width in columns]
    row = 0
    for run, count in zip(runs, counts, strict=True):
        if count == 0:
            continue
        descriptor = os.open(run.path, os.O_RDONLY)
        try:
            offset = 0
            for column, (dtype, width) in zip(found, columns, strict=True):
                row_bytes = dtype.itemsize * width
                _read_whole(descriptor, column[row : row + count], offset + run.start[bucket] * row_bytes)
                offset += run.num_rows * row_bytes
        finally:
            os.close(descriptor)
        row += count
    return found


def read_array(path: str, dtype: Any, *, start: int = 0, count: int = -1) -> NDArray[Any]:
    """Elements of a file of plain values."""
    kind = np.dtype(dtype)
    return np.fromfile(path, dtype=kind, count=count, offset=start * kind.itemsize)


def write_array(path: str, array: NDArray[Any]) -> None:
    """Write a file of plain values, whole or with an OSError that has a number; `tofile` has none on a full disk."""
    with open(path, "wb", buffering=0) as file:
        write_whole(file.fileno(), np.ascontiguousarray(array))


def map_array(path: str, dtype: Any) -> NDArray[Any]:
    """A file of plain values as an array that the kernel's page cache holds, so that all workers share it."""
    if os.path.getsize(path) == 0:
        return np.empty(0, dtype=dtype)
    found: NDArray[Any] = np.memmap(path, dtype=dtype, mode="r").view(np.ndarray)
    return found


def write_whole(descriptor: int, array: NDArray[Any]) -> None:
    """Write all bytes of a contiguous array; a single call may take fewer."""
    data = array.reshape(-1).view(np.uint8).data
    while len(data):
        data = data[os.write(descriptor, data) :]


def _read_whole(descriptor: int, array: NDArray[Any], offset: int) -> None:
    data = array.reshape(-1).view(np.uint8).data
    while data:
        got = os.preadv(descriptor, [data], offset)
        if got == 0:
            raise OSError(f"a temporary file ended early at byte {offset}")
        data = data[got:]
        offset += got
