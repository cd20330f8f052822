"""One feature table behind a planned cache: the hottest rows always in memory, the others as a plan says.

Memory of the cache is one array: S rows of the static prefix, then C slots that Belady's rule fills
(`sampling.belady`). Rows that a batch misses are read for it into memory of their own, the landing, in groups of
consecutive batches, straight from the table or from a pack (`sampling.packing`), whichever is predicted to take
less time; a batch's missed rows that have a slot are copied there once the batch has been served.

Shapes: n rows of a batch, A accesses of rows behind the prefix, M misses, K batches.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sampling.belady import Residency, Trace
from sampling.host_tier import as_words, load_prefix
from sampling.kept import Shelf
from sampling.packing import Layout, Pack, lay_out, packing_pays, padding_rows
from sampling.planned_misses import Draft, Group, PlannedMisses, TableCounters
from sampling.read_cost import ReadCost, read_cost
from sampling.row_moves import admit_rows, kept_misses, select_cold, serve_rows
from sampling.sample_space import SampleSpace
from storage.block_reads import Staging
from storage.disk_speed import DiskSpeed
from storage.errors import BadInput
from storage.features import Features
from storage.pages import PAGE_BYTES
from storage.read_pool import ReadPool
from storage.scratch_file import ScratchFull

Packing = Literal["auto", "always", "never"]


class PlannedTable:
    """A feature table of `below.num_rows` rows behind a static prefix and a planned region.

    Args:
        below: the table; its reads are verified.
        num_static, num_slots: rows of the cache's two parts.
        landing_bytes: memory of one landing; at least the largest batch's misses.
        chunk_bytes: memory of one of the two chunks of a pack.
        folder: local folder for packs; None never packs.
        packing: whether to pack; by default where that is predicted to be faster.
        speed: of the disk that is read and packed to.
        pool: threads that read and write packs.
        space: where plans are kept until their batches are served.
    """

    def __init__(
        self,
        below: Features,
        *,
        num_static: int,
        num_slots: int,
        landing_bytes: int,
        chunk_bytes: int,
        folder: str | None,
        speed: DiskSpeed,
        pool: ReadPool,
        space: SampleSpace,
        packing: Packing = "auto",
    ) -> None:
        self.below = below
        self.row_bytes = below.dim * below.dtype.itemsize
        self.num_static = min(num_static, below.num_rows)
        self.num_slots = min(num_slots, below.num_rows - self.num_static)
        self.counters = TableCounters()
        self.landing_rows = landing_bytes // self.row_bytes
        self._chunk_bytes = chunk_bytes
        self._folder = folder
        self._speed = speed
        self._pool = pool
        self._tickets, self._places, self._rows = Shelf(space), Shelf(space), Shelf(space)
        self._packing = packing
        self._residency = Residency(num_rows=below.num_rows, num_slots=self.num_slots)
        self._cached = np.empty((self.num_static + self.num_slots, below.dim), dtype=below.dtype)
        load_prefix(below, self._cached[: self.num_static])

    def cold_rows(self, rows: NDArray[Any]) -> NDArray[np.int32]:
        """The rows behind the prefix, in their order: what a batch adds to the accesses that are planned."""
        out = np.empty(rows.shape[0] + 1, dtype=np.int32)
        count = select_cold(rows, self.num_static, out)
        return out[:count].copy()

    def plan(self, batches: Trace, ahead: Trace | None) -> Draft:
        """Plan a superbatch, emptying `batches`, and choose how to read; superbatches are planned in their order."""
        tickets, miss_rows = [], []
        for batch in self._residency.plan(batches, ahead):
            self.counters.dynamic_hits += batch.num_hits
            self.counters.misses += batch.miss_row.shape[0]
            slots, numbers = batch.miss_slot, np.arange(batch.miss_slot.shape[0], dtype=np.int32)
            kept = kept_misses(slots, numbers)
            tickets.append(self._tickets.keep([batch.where, slots[:kept].copy(), numbers[:kept].copy()]))
            miss_rows.append(batch.miss_row)
        sizes = np.array([rows.shape[0] for rows in miss_rows], dtype=np.int64)
        direct, cost = self._direct(miss_rows, sizes)
        sweep = self._sweep(miss_rows, cost)
        if sweep is None:
            return Draft(sizes, tickets, direct, miss_rows)
        shape = {"num_rows": self.below.num_rows, "row_bytes": self.row_bytes, "chunk_bytes": self._chunk_bytes}
        layout = lay_out(miss_rows, **shape)
        places = [self._places.keep([place]) for place in layout.places]
        layout.places.clear()
        return Draft(sizes, tickets, direct, [], layout, places, sweep.num_bytes)

    def prepare(self, draft: Draft) -> PlannedMisses:
        """Read the misses of a planned superbatch into a pack, where that is faster and there is room for it."""
        layout = draft.layout
        pack = None if layout is None else self._pack(layout)
        if layout is not None and pack is not None:
            self.counters.packed_superbatches += 1
            self.counters.packed_bytes += pack.num_bytes
            self.counters.planned_sweep_bytes += draft.sweep_bytes
            sizes = layout.batch_pages * PAGE_BYTES // self.row_bytes
            return PlannedMisses(sizes, draft.tickets, self.groups(sizes), draft.places, pack=pack)
        self.counters.direct_superbatches += 1
        places, rows, shelf = [], draft.miss_rows, self._rows
        if layout is not None:
            shelf = Shelf(SampleSpace(memory_bytes=0, folder=None))  # the disk that had no room may be the one behind
            rows, unpadded = layout.unpacked([kept.take()[0] for kept in draft.places])
            places = [shelf.keep([place]) for place in unpadded]
        return PlannedMisses(draft.sizes, draft.tickets, draft.direct, places, [shelf.keep([row]) for row in rows])

    def groups(self, sizes: NDArray[np.int64]) -> list[Group]:
        """Consecutive batches that fit in a landing together, of batches that take `sizes` [K] rows of it.

        Raises BadInput for a batch that does not fit alone.
        """
        groups = []
        first, held = 0, 0
        for batch, size in enumerate(sizes.tolist()):
            if size > self.landing_rows:
                raise BadInput(
                    f"a batch of {size} rows that are not in the cache",
                    f"memory for {self.landing_rows}",
                    rule="what a batch reads fits in memory",
                    remedy=f"give the tiers {(size - self.landing_rows) * self.row_bytes * 2} bytes more, or take "
                    "fewer seeds a step or smaller fan-outs",
                )
            if held + size > self.landing_rows:
                groups.append(Group(first, batch))
                first, held = batch, 0
            held += size
        groups.append(Group(first, sizes.shape[0]))
        return groups

    def fetch(self, misses: PlannedMisses, group: Group, landing: Staging) -> list[NDArray[Any]]:
        """Read the misses of a group into `landing`; returns each batch's rows [landed, dim] of it."""
        if misses.pack is not None:
            misses.pack.fetch(group.first, group.last, landing.data)
        bounds = np.cumsum(np.append(0, misses.sizes[group.first : group.last]))
        table = landing.data[: int(bounds[-1]) * self.row_bytes].view(self.below.dtype)
        rows = table.reshape(int(bounds[-1]), self.below.dim)
        if misses.pack is None:
            wanted = [misses.rows[batch].take()[0] for batch in range(group.first, group.last)]
            self.below.gather(np.concatenate(wanted, dtype=np.int64), rows)
            self.counters.planned_read_bytes += group.planned_bytes
        return [rows[bounds[number] : bounds[number + 1]] for number in range(group.last - group.first)]

    def serve(
        self,
        ticket: Sequence[NDArray[Any]],
        rows: NDArray[np.int64],
        landed: NDArray[Any],
        out: NDArray[Any],
        *,
        accesses: NDArray[np.int32] | None = None,
    ) -> None:
        """Copy rows of a batch (int64 [n]) into `out` [n, dim].

        Args:
            ticket: of the batch, `PlannedMisses.take_ticket`.
            landed: the batch's rows as `fetch` returned them.
            accesses: number among the batch's accesses of each row behind the prefix; None where they are those
                accesses, in their order.
        """
        where = ticket[0] if accesses is None else ticket[0][accesses]
        serve_rows(rows, self.num_static, where, as_words(self._cached), as_words(landed), as_words(out))
        self.counters.requests += rows.shape[0]
        self.counters.static_hits += rows.shape[0] - where.shape[0]

    def admit(self, ticket: Sequence[NDArray[Any]], landed: NDArray[Any]) -> None:
        """Move on to the next batch, once every row of this one has been served: fill the slots that it fills."""
        _, slots, places = ticket
        admit_rows(slots, places, self.num_static, as_words(landed), as_words(self._cached))

    def _direct(self, miss_rows: list[NDArray[Any]], sizes: NDArray[np.int64]) -> tuple[list[Group], ReadCost]:
        """The groups of a superbatch that is read without a pack, and what that costs."""
        groups, total = [], ReadCost()
        for group in self.groups(sizes):
            cost = self._cost(miss_rows[group.first : group.last])
            groups.append(replace(group, planned_bytes=cost.num_bytes))
            total += cost
        return groups, total

    def _sweep(self, miss_rows: list[NDArray[Any]], direct: ReadCost) -> ReadCost | None:
        """The cost of reading a superbatch's misses at once, for a pack; None where that is not predicted to pay."""
        num_rows = sum(rows.shape[0] for rows in miss_rows)
        if self._folder is None or self._packing == "never" or num_rows == 0:
            return None
        sweep = self._cost(miss_rows)
        if self._packing == "always":
            return sweep
        padding = padding_rows(num_rows, len(miss_rows), row_bytes=self.row_bytes, chunk_bytes=self._chunk_bytes)
        if padding is None:
            return None
        packed_bytes = (num_rows + padding) * self.row_bytes
        return sweep if packing_pays(direct, sweep, packed_bytes=packed_bytes, speed=self._speed) else None

    def _pack(self, layout: Layout) -> Pack | None:
        """The pack, or None where its batches do not fit in memory with what rounds them up, or it on the disk."""
        assert self._folder is not None
        if int(layout.batch_pages.max()) * PAGE_BYTES > self.landing_rows * self.row_bytes:
            self.counters.unpacked_superbatches += 1
            return None
        try:
            return Pack(self.below, layout, folder=self._folder, pool=self._pool)
        except ScratchFull:
            self.counters.unpacked_superbatches += 1
            return None

    def _cost(self, miss_rows: list[NDArray[Any]]) -> ReadCost:
        return read_cost(
            miss_rows, num_rows=self.below.num_rows, row_bytes=self.row_bytes, gap_bytes=self._speed.gap_bytes
        )
