"""How the stream divides a memory budget: what must fit, and what the rest is best used for.

In this order: the process and the training step as they are; for every table the landings, chunks and threads of its
reads; batches that wait; the sampler's scratch; plans, which decide how many batches a superbatch has; then the
topology, in memory where that leaves the features enough, else the hottest part of it; all that remains holds feature
rows, most of them the static prefix.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sampling.belady import Residency
from sampling.packing import LEAST_PIECES, align_rows
from storage.block_reads import STAGING_BYTES
from storage.errors import BadInput
from storage.read_pool import NUM_THREADS

TopologyPlace = Literal["auto", "memory", "disk"]
MIB = 1 << 20

MOST_BATCHES = 2048
"""of a superbatch: beyond, a sweep of the table is spread over so many batches that others bind"""
LEAST_BATCHES = 4
CHUNK_BYTES = 16 * MIB
"""of one of a pack's two chunks, unless the batches are so many that a batch's piece of it would be small"""
PIECE_BYTES = 24 << 10
"""of a chunk, for each batch of a superbatch, unless its rows fill whole pages only by the hundred"""
MOST_PIECE_BYTES = 512 << 10
LANDING_BYTES = 4 * MIB
"""of one of two, unless a batch misses more: small batches are read several at once"""
KEPT_BYTES = 32 * MIB
"""of samples and plans that wait in memory; the others wait on disk"""
PACK_THREADS = 8
HEAP_BYTES = 128 * MIB
"""small arrays that come and go, and what the C library keeps of them"""
PLAN_BYTES = 21
"""of a plan under way, for each row behind a prefix of each batch of a superbatch"""
HEADROOM = 1.3
"""batches differ: the largest over the mean of those that were looked at"""
PLAN_HEADROOM = 1.1
"""a superbatch's batches together differ less"""
PLAN_SHARE = 0.3
"""of what is free goes to plans at most"""
STATIC_SHARE = 0.6
"""of a table's rows in memory: planning the others is work, and of the hottest a plan would keep nearly all"""
TOPOLOGY_SHARE = 0.6
"""of what is free the topology may take before it stays on disk"""
TOPOLOGY_CACHE_SHARE = 0.3
"""of what is free for the hottest adjacency, where the topology stays on disk"""
TOPOLOGY_WORK_BYTES = 192 * MIB
"""answers and batches under way, where the topology stays on disk"""


@dataclass(frozen=True, eq=False)
class TableNeeds:
    """One feature table and what a batch takes of it."""

    num_rows: int
    row_bytes: int
    batch_rows: int
    """rows of a batch, of all ranks served"""
    seen_rows: NDArray[np.int64]
    """rows of some batches, ascending: how many of a batch's lie behind a prefix"""

    @property
    def num_bytes(self) -> int:
        """The whole table."""
        return self.num_rows * self.row_bytes

    def cold_rows(self, num_static: int) -> int:
        """Rows of a batch behind a prefix, with room for larger batches."""
        behind = self.seen_rows.shape[0] - int(np.searchsorted(self.seen_rows, num_static))
        return int(self.batch_rows * HEADROOM * behind / max(1, self.seen_rows.shape[0])) + 1


@dataclass(frozen=True)
class StreamNeeds:
    """What a run takes, as far as it is known before it starts."""

    process_bytes: int
    """in use already, and by the training step"""
    num_nodes: int
    topology_bytes: int
    tables: tuple[TableNeeds | None, ...]
    batch_bytes: int
    """a batch as the step gets it, features included, of all ranks served"""
    num_threads: int
    """that sample"""
    queue_batches: int
    num_steps: int


@dataclass(frozen=True)
class TableMemory:
    """What one table gets."""

    num_static: int
    num_slots: int
    landing_bytes: int
    """of one of two"""
    chunk_bytes: int
    """of one of two"""


@dataclass(frozen=True)
class MemorySplit:
    """A budget, divided."""

    memory_bytes: int
    process_bytes: int
    topology: Literal["memory", "disk"]
    topology_bytes: int
    """all of it, or the cache of its hottest part"""
    sampler_bytes: int
    waiting_bytes: int
    """batches that wait, samples and plans that are kept in memory"""
    read_bytes: int
    """landings, chunks and threads"""
    plan_bytes: int
    """with that by which many batches enlarge a chunk"""
    cache_bytes: int
    """feature rows, with the map of the slots"""
    batches_per_superbatch: int
    tables: tuple[TableMemory | None, ...]

    @property
    def used_bytes(self) -> int:
        """Everything together; at most `memory_bytes`."""
        parts = (self.process_bytes, self.topology_bytes, self.sampler_bytes, self.waiting_bytes, self.read_bytes)
        return sum(parts) + self.plan_bytes + self.cache_bytes


def split_memory(
    needs: StreamNeeds,
    *,
    memory_bytes: int,
    topology: TopologyPlace = "auto",
    cache_bytes: int | None = None,
    topology_cache_bytes: int | None = None,
) -> MemorySplit:
    """Divide `memory_bytes`.

    Args:
        topology: where it is to be; auto decides by size.
        cache_bytes: for feature rows, instead of all that remains.
        topology_cache_bytes: for the hottest adjacency where the topology stays on disk.

    Raises BadInput for a budget in which nothing works, with the least that does.
    """
    split = _split(needs, [0] * len(needs.tables), memory_bytes, topology, cache_bytes, topology_cache_bytes)
    for _ in range(2):  # a prefix in memory leaves less to read and to plan, so that it may be larger
        prefix = [0 if memory is None else memory.num_static for memory in split.tables]
        split = _split(needs, prefix, memory_bytes, topology, cache_bytes, topology_cache_bytes)
    return split


def _split(
    needs: StreamNeeds,
    prefix: Sequence[int],
    memory_bytes: int,
    topology: TopologyPlace,
    cache_bytes: int | None,
    topology_cache_bytes: int | None,
) -> MemorySplit:
    """`split_memory` with the static prefixes [T] that decide what batches read."""
    tables = needs.tables
    cold = [0 if t is None else t.cold_rows(first) for t, first in zip(tables, prefix, strict=True)]
    missed = [0 if t is None else rows * t.row_bytes for t, rows in zip(tables, cold, strict=True)]
    landing = [
        0 if t is None else max(least, min(LANDING_BYTES, t.num_bytes)) for t, least in zip(tables, missed, strict=True)
    ]
    read_bytes = sum(
        0 if t is None else 2 * land + 2 * CHUNK_BYTES + (NUM_THREADS + PACK_THREADS) * STAGING_BYTES
        for t, land in zip(tables, landing, strict=True)
    )
    waiting = (needs.queue_batches + 1) * int(needs.batch_bytes * HEADROOM) + KEPT_BYTES
    sampler = 4 * needs.num_nodes * needs.num_threads + HEAP_BYTES
    residency = sum(0 if t is None else Residency.memory_bytes(num_rows=t.num_rows, num_slots=0) for t in tables)
    fixed = needs.process_bytes + read_bytes + waiting + sampler + residency
    floor_rows = [0 if t is None else min(t.num_bytes, 2 * least) for t, least in zip(tables, missed, strict=True)]
    pieces = [0 if t is None else _piece_bytes(t.row_bytes) for t in tables]
    plan_batch = int(sum(cold) * PLAN_HEADROOM / HEADROOM) * PLAN_BYTES + 2 * sum(pieces)
    in_memory = topology == "memory" or (
        topology == "auto"
        and needs.topology_bytes
        <= max(
            TOPOLOGY_WORK_BYTES,  # on disk it would take as much
            TOPOLOGY_SHARE * (memory_bytes - fixed - sum(floor_rows) - LEAST_BATCHES * plan_batch),
        )
    )
    topology_floor = needs.topology_bytes if in_memory else TOPOLOGY_WORK_BYTES
    least = fixed + sum(floor_rows) + LEAST_BATCHES * plan_batch + topology_floor
    least += 0 if in_memory else topology_cache_bytes or 0
    if least > memory_bytes:
        raise BadInput(
            f"tiers.memory_bytes={memory_bytes}",
            f"at least {least} bytes are needed ({-(-least // MIB)} MiB)",
            rule=f"the process takes {needs.process_bytes}, reads {read_bytes}, waiting batches {waiting}, the sampler "
            f"{sampler + topology_floor}, the smallest plan and cache {least - fixed - topology_floor}",
            remedy="give more memory, or take fewer seeds a step or smaller fan-outs",
        )
    free = memory_bytes - fixed - topology_floor
    batches = int(max(LEAST_BATCHES, min(MOST_BATCHES, PLAN_SHARE * free // max(1, plan_batch), needs.num_steps)))
    plan_bytes = batches * plan_batch
    free -= plan_bytes
    topology_cache = 0
    if not in_memory:
        share = int(TOPOLOGY_CACHE_SHARE * free)
        topology_cache = min(needs.topology_bytes, share if topology_cache_bytes is None else topology_cache_bytes)
        free -= topology_cache
    held = free if cache_bytes is None else min(free, max(cache_bytes, sum(floor_rows)))
    chunks = [max(CHUNK_BYTES, batches * piece) for piece in pieces]
    memories = tuple(
        None if t is None else _table_memory(t, share, landing_bytes=land, chunk_bytes=chunk)
        for t, share, land, chunk in zip(tables, _shares(tables, held), landing, chunks, strict=True)
    )
    rows = sum(
        0 if t is None or m is None else (m.num_static + m.num_slots) * t.row_bytes + _slot_bytes(m.num_slots)
        for t, m in zip(tables, memories, strict=True)
    )
    return MemorySplit(
        memory_bytes=memory_bytes,
        process_bytes=needs.process_bytes,
        topology="memory" if in_memory else "disk",
        topology_bytes=topology_floor + topology_cache,
        sampler_bytes=sampler,
        waiting_bytes=waiting,
        read_bytes=read_bytes,
        plan_bytes=plan_bytes,
        cache_bytes=rows + residency,
        batches_per_superbatch=batches,
        tables=memories,
    )


def _piece_bytes(row_bytes: int) -> int:
    """Of a batch in a chunk, for each of two chunks: several whole pages of whole rows, where that is not too much."""
    least = (LEAST_PIECES + 1) * align_rows(row_bytes) * row_bytes
    return max(PIECE_BYTES, least) if least <= MOST_PIECE_BYTES else PIECE_BYTES


def _shares(tables: Sequence[TableNeeds | None], free: int) -> list[int]:
    """Memory of each table's rows: by the bytes that a batch takes of it, at most the whole table."""
    shares = [0] * len(tables)
    left = {number: t for number, t in enumerate(tables) if t is not None and t.num_rows}
    while left:
        weight = sum(max(1, t.batch_rows * t.row_bytes) for t in left.values())
        asked = {n: int(free * max(1, t.batch_rows * t.row_bytes) / weight) for n, t in left.items()}
        full = [n for n, t in left.items() if asked[n] >= t.num_bytes]
        for number in full or list(left):
            table = left.pop(number)
            shares[number] = min(asked[number], table.num_bytes)
            free -= shares[number]
    return shares


def _table_memory(table: TableNeeds, share: int, *, landing_bytes: int, chunk_bytes: int) -> TableMemory:
    if share >= table.num_bytes:
        return TableMemory(table.num_rows, 0, landing_bytes, chunk_bytes)
    slot_bytes = table.row_bytes + _slot_bytes(1)
    num_static = int(STATIC_SHARE * share) // max(1, table.row_bytes)
    num_slots = (share - num_static * table.row_bytes) // slot_bytes
    return TableMemory(num_static, num_slots, landing_bytes, chunk_bytes)


def _slot_bytes(num_slots: int) -> int:
    """The map of the slots."""
    return Residency.memory_bytes(num_rows=0, num_slots=num_slots)
