"""`direct_lru`: every batch reads what an LRU cache of rows lacks, by parallel direct reads, as GraphBolt does.

    python -m tests.benchmarks.out_of_core_contenders direct_lru --data FOLDER --cache-bytes BYTES [...]

The next batches are sampled while this one is fetched. Reads are this project's own (`storage.features.FeatureFile`:
O_DIRECT, sorted, merged across gaps, `--threads` in flight), so that only the policy differs. With the topology on disk
it is mapped, with MADV_RANDOM, and the page cache inside the cap holds what it can of it. The cache starts as it would
be after many batches: later steps pass through it, unread, until it was filled twice.
"""

import argparse
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sampling.host_tier import as_words, scatter_rows
from storage.features import Features
from storage.jit import kernel
from tests.benchmarks.contender import BenchStore, Served, arguments, run
from tests.benchmarks.contender_sampling import SampledAhead

NUM_THREADS = 16
LOADED_ROWS = 1 << 18
FILLED_TIMES = 2
AGEING_STEP = 10_000
"""far from the steps that are measured"""
HEAD = 0
"""place of the list's head in `newer` and `older`; slot s is at place s + 1"""


@kernel
def touch(
    nodes: NDArray[np.int64],
    slot_of: NDArray[np.int32],
    owner: NDArray[np.int32],
    newer: NDArray[np.int32],
    older: NDArray[np.int32],
    table: NDArray[Any],
    out: NDArray[Any],
    missed: NDArray[np.int64],
    slots: NDArray[np.int64],
) -> int:
    """Serve the batch in order: copy a hit's row to `out`, give a miss the slot unused for longest.

    Every node becomes the newest in its turn. Fills `missed` [misses] with places in the batch and `slots` with the
    slots they got; returns their number. `newer` and `older` are a ring through HEAD: older[HEAD] is the newest place.
    """
    num_missed = 0
    for index in range(nodes.shape[0]):
        node = nodes[index]
        slot = np.int64(slot_of[node])
        if slot >= 0:
            out[index, :] = table[slot, :]
        else:
            slot = np.int64(newer[HEAD]) - 1
            if owner[slot] >= 0:
                slot_of[owner[slot]] = -1
            owner[slot] = node
            slot_of[node] = slot
            missed[num_missed] = index
            slots[num_missed] = slot
            num_missed += 1
        place = slot + 1
        after, before = newer[place], older[place]
        older[after] = before
        newer[before] = after
        newest = older[HEAD]
        older[HEAD] = place
        newer[place] = HEAD
        older[place] = newest
        newer[newest] = place
    return num_missed


class LruRows:
    """An exact LRU cache of feature rows. Memory: `cache_bytes`, 12 bytes a cached row, 4 bytes a row of the table."""

    def __init__(self, below: Features, *, cache_bytes: int) -> None:
        self._below = below
        num_slots = max(1, min(below.num_rows, cache_bytes // (below.dim * below.dtype.itemsize)))
        self._table = np.zeros((num_slots, below.dim), dtype=below.dtype)
        self._slot_of = np.full(below.num_rows, -1, dtype=np.int32)
        self._owner = np.full(num_slots, -1, dtype=np.int32)
        places = np.arange(num_slots + 1, dtype=np.int32)
        self._older, self._newer = np.roll(places, -1), np.roll(places, 1)
        self.hits = 0

    def age(self, steps: Iterator[NDArray[np.int64]]) -> None:
        """Hold what it would hold after steps (each distinct nodes) that missed twice as many rows as there is room."""
        owed = FILLED_TIMES * self._owner.shape[0]
        while owed > 0:
            owed -= self._touch(next(steps))[1].shape[0]
        by_row = np.argsort(self._owner)
        for first in range(0, by_row.shape[0], LOADED_ROWS):
            slots = by_row[first : first + LOADED_ROWS]
            read = np.empty((slots.shape[0], self._table.shape[1]), dtype=self._table.dtype)
            self._below.gather(self._owner[slots].astype(np.int64), read)
            scatter_rows(as_words(read), slots, as_words(self._table))

    def gather(self, nodes: NDArray[np.int64]) -> NDArray[Any]:
        """Rows [N, dim] of distinct nodes [N]."""
        out, missed, slots = self._touch(nodes)
        self.hits += nodes.shape[0] - missed.shape[0]
        read = np.empty((missed.shape[0], self._table.shape[1]), dtype=self._table.dtype)
        self._below.gather(nodes[missed], read)
        scatter_rows(as_words(read), missed, as_words(out))
        scatter_rows(as_words(read), slots, as_words(self._table))
        return out

    def _touch(self, nodes: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[np.int64], NDArray[np.int64]]:
        """Rows of hits [N, dim]; places of misses in `nodes`, and the slots that they got."""
        out = np.empty((nodes.shape[0], self._table.shape[1]), dtype=self._table.dtype)
        missed, slots = np.empty(nodes.shape[0], dtype=np.int64), np.empty(nodes.shape[0], dtype=np.int64)
        num_missed = touch(
            nodes, self._slot_of, self._owner, self._newer, self._older, as_words(self._table), as_words(out),
            missed, slots,
        )  # fmt: skip
        return out, missed[:num_missed], slots[:num_missed]


def batches(options: argparse.Namespace, store: BenchStore, cache: LruRows) -> Iterator[Served]:
    """Batches in step order."""
    ahead = SampledAhead(options, store)
    cache.age(sample.nodes for sample in ahead.steps(AGEING_STEP))
    for sample in ahead.steps(0):
        yield Served(nodes=sample.nodes, features=cache.gather(sample.nodes))


def main() -> None:
    """Run it."""
    options = arguments(__doc__ or "").parse_args()
    options.threads = options.threads or NUM_THREADS
    store = BenchStore(options)
    file = store.feature_file(num_threads=options.threads)
    cache = LruRows(file, cache_bytes=options.cache_bytes)

    def more() -> dict[str, Any]:
        return {"hits": cache.hits, "requests": cache.hits + file.counters.requests}

    run("direct_lru", options, batches(options, store, cache), plain=lambda: store.plain(store.features), more=more)
    file.close()
