"""`sweep`: one pass over the whole feature file for every superbatch.

    python -m tests.benchmarks.out_of_core_contenders sweep --data FOLDER --cache-bytes BYTES [...]

    1. sample   batches until their distinct rows fill the buffer of `--cache-bytes`; each row gets a slot of it;
                no more than `--superbatch` batches where that is given
    2. sweep    the whole file in order by direct reads of 8 MiB, `--threads` in flight; needed rows go to their slots
    3. gather   each batch from the buffer

The next superbatch is sampled while the file is read for this one. Page sums are not checked.
"""

import argparse
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sampling.host_tier import as_words
from sampling.neighbors import Sample
from storage.jit import kernel
from storage.npy import HEADER_BYTES
from storage.pages import PAGE_BYTES
from storage.read_pool import ReadPool
from storage.row_runs import copy_rows
from tests.benchmarks.contender import BenchStore, Served, arguments, run
from tests.benchmarks.contender_sampling import SampledAhead

NUM_THREADS = 4
READ_BYTES = 8 << 20


@dataclass(frozen=True)
class Superbatch:
    """K batches whose rows share one buffer."""

    rows: NDArray[np.int32]
    """[distinct rows] by slot"""
    slots: list[NDArray[np.int32]]
    """[K][N]: the slot of each node of each batch"""
    hops: list[tuple[NDArray[Any], ...]]
    """[K]: indptr and source of every hop, which a training step would need"""


@kernel
def count_new(nodes: NDArray[np.int64], slot_of: NDArray[np.int32]) -> int:
    """How many of the nodes have no slot."""
    total = 0
    for index in range(nodes.shape[0]):
        total += int(slot_of[nodes[index]] < 0)
    return total


@kernel
def enter(
    nodes: NDArray[np.int64],
    slot_of: NDArray[np.int32],
    rows: NDArray[np.int32],
    num_rows: int,
    slots: NDArray[np.int32],
) -> int:
    """Fill `slots`, giving nodes without one the next; returns the new number of rows."""
    for index in range(nodes.shape[0]):
        node = nodes[index]
        slot = slot_of[node]
        if slot < 0:
            slot = np.int32(num_rows)
            slot_of[node] = slot
            rows[num_rows] = node
            num_rows += 1
        slots[index] = slot
    return num_rows


@kernel
def take(table: NDArray[Any], slots: NDArray[np.int32], out: NDArray[Any]) -> None:
    """`out = table[slots]`."""
    for index in range(slots.shape[0]):
        out[index, :] = table[slots[index], :]


class Superbatches:
    """Samples steps in order into superbatches of at most `capacity` distinct rows."""

    def __init__(self, options: argparse.Namespace, store: BenchStore, *, capacity: int) -> None:
        self._samples = SampledAhead(options, store).steps(0)
        self._slot_of = np.full(store.num_nodes, -1, dtype=np.int32)
        self._capacity = capacity
        self._most = options.superbatch or sys.maxsize
        self._left: Sample | None = None

    def next(self) -> Superbatch:
        """The next superbatch; MemoryError when not even one batch fits."""
        rows = np.empty(self._capacity, dtype=np.int32)
        found = Superbatch(rows=rows, slots=[], hops=[])
        num_rows = 0
        while len(found.slots) < self._most:
            sample = self._left or next(self._samples)
            if num_rows + count_new(sample.nodes, self._slot_of) > self._capacity:
                self._left = sample
                break
            slots = np.empty(sample.nodes.shape[0], dtype=np.int32)
            num_rows = enter(sample.nodes, self._slot_of, rows, num_rows, slots)
            found.slots.append(slots)
            found.hops.append(tuple(part for hop in sample.hops for part in (hop.indptr, hop.source)))
            self._left = None
        if not found.slots:
            raise MemoryError(f"no batch fits a buffer of {self._capacity} rows")
        self._slot_of[rows[:num_rows]] = -1
        return Superbatch(rows=rows[:num_rows], slots=found.slots, hops=found.hops)


class FeatureSweep:
    """Reads a whole feature file and keeps the rows that are asked for."""

    def __init__(self, path: str, *, num_rows: int, row_bytes: int, num_threads: int) -> None:
        self._descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
        self._pool = ReadPool(num_threads=num_threads, staging_bytes=READ_BYTES)
        self._num_parts = -(-num_rows * row_bytes // READ_BYTES)
        self._rows_per_part = READ_BYTES // row_bytes
        assert READ_BYTES % row_bytes == 0, "no row lies in two parts"

    def read(self, rows: NDArray[np.int32], out: NDArray[np.uint8]) -> None:
        """`out[i] = row rows[i]`, bytes [n, row bytes]."""
        order = np.argsort(rows)
        ordered = rows[order]
        cuts = np.searchsorted(ordered, np.arange(self._num_parts + 1) * self._rows_per_part)

        def part(number: int) -> None:
            start = HEADER_BYTES + number * READ_BYTES
            with self._pool.staging() as staging:
                done = 0
                while got := os.preadv(self._descriptor, [staging.data[done:].data], start + done):
                    done += got
                    if done == READ_BYTES or done % PAGE_BYTES:  # whole, or the end of the file
                        break
                mine = slice(cuts[number], cuts[number + 1])
                copy_rows(staging.data, start, ordered[mine].astype(np.int64), order[mine], out)

        self._pool.run(part, self._num_parts)

    def close(self) -> None:
        """Give threads and file back."""
        self._pool.close()
        os.close(self._descriptor)


def batches(options: argparse.Namespace, store: BenchStore, sizes: list[int]) -> Iterator[Served]:
    """Batches in step order; `sizes` gets the number of batches of every superbatch."""
    plain = store.plain(store.features)
    num_rows, dim = plain.shape
    row_bytes = dim * plain.itemsize
    buffer = np.empty((min(num_rows, options.cache_bytes // row_bytes), dim), dtype=plain.dtype)
    source = Superbatches(options, store, capacity=buffer.shape[0])
    file = FeatureSweep(store.path(store.features), num_rows=num_rows, row_bytes=row_bytes, num_threads=options.threads)
    with ThreadPoolExecutor(1) as thread:
        ahead = thread.submit(source.next)
        while True:
            found = ahead.result()
            ahead = thread.submit(source.next)
            file.read(found.rows, buffer[: found.rows.shape[0]].view(np.uint8))
            sizes.append(len(found.slots))
            for number, slots in enumerate(found.slots):
                out = np.empty((slots.shape[0], dim), dtype=plain.dtype)
                take(as_words(buffer), slots, as_words(out))
                last = number + 1 == len(found.slots)
                yield Served(nodes=found.rows[slots], features=out, ends_group=last)


def main() -> None:
    """Run it."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--superbatch", type=int, default=0, help="batches a sweep; 0: as many as fit")
    options = parser.parse_args()
    options.threads = options.threads or NUM_THREADS
    store = BenchStore(options)
    sizes: list[int] = []
    run(
        "sweep",
        options,
        batches(options, store, sizes),
        plain=lambda: store.plain(store.features),
        more=lambda: {"superbatch_batches": sizes},
    )
