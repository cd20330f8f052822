"""Which rows a cache of C slots keeps while K known batches pass: Belady's rule with bypass, batch by batch.

Every batch needs all of its rows at once. Rows that are resident are hits; the others are misses, which the batch
gets from its reads. Of resident and missed rows together the C with the nearest next use stay (Belady, IBM Systems
Journal 5(2), 1966; with bypass as in Ginex, Park et al., VLDB 2022, section 4.2), so a missed row that is not among
them never enters a slot.

The next use of a row is looked for in this superbatch and in the next one, whose batches are known already. A row
that neither needs goes by its place in the table, since tables run hottest first: by the octave of its row number.

Shapes: R rows of the table, A accesses of one batch (distinct rows), M misses of it, K batches, C slots.
Times: batch k of the superbatch is time k + 1, batch k of the next one K + k + 1; 0 is never.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sampling.slot_stacks import new_stacks, pop, push
from storage.jit import kernel

LARGEST_ROW = 2**31 - 1
MAX_BATCHES = 32_000
"""of two superbatches: times are 16 bits wide"""
OCTAVES = 32
MOST_NUMBERED = 2**16 - 1
NONE = -1

Trace = list[NDArray[Any]]
"""int32 or int64 [A] for each of K batches: the rows that it needs, each once"""


@dataclass(frozen=True)
class BatchPlan:
    """What to do with every access of a batch; serving it is: read hits, read misses, then admit."""

    where: NDArray[np.int32]
    """[A]: slot of a hit, or ~m for miss number m"""
    miss_row: NDArray[Any]
    """[M] rows to read, in the order of the accesses"""
    miss_slot: NDArray[np.int32]
    """[M]: slot that keeps the row after the batch; -1 for none"""

    @property
    def num_hits(self) -> int:
        """Accesses that a slot serves."""
        return int(self.where.shape[0] - self.miss_row.shape[0])


@kernel
def _mark(rows: NDArray[Any], time: int, upcoming: NDArray[np.uint16]) -> None:
    for access in range(rows.shape[0]):
        upcoming[rows[access]] = np.uint16(time)


@kernel
def _next_uses(rows: NDArray[Any], time: int, upcoming: NDArray[np.uint16], following: NDArray[np.uint16]) -> None:
    """`following[a]` = time at which the row of access a is needed again; batches are given last first."""
    for access in range(rows.shape[0]):
        row = rows[access]
        following[access] = upcoming[row]
        upcoming[row] = np.uint16(time)


@kernel
def _key(time: int, row: int, num_times: int) -> Any:
    """Key of a next use: times first, then rows that nobody is known to need, hottest octave first."""
    octave = max(np.int64(0), (np.float64(row).view(np.int64) >> 52) - 1022)  # bits of the row number, by its exponent
    return np.int64(time) if time > 0 else np.int64(num_times + 1) + octave


@kernel
def _stack_residents(
    slot_row: NDArray[np.int32],
    upcoming: NDArray[np.uint16],
    num_times: int,
    size: NDArray[np.int32],
    head: NDArray[np.int32],
    link: NDArray[np.int32],
) -> None:
    """Put every used slot on the stack of its key, and free ones on the last stack."""
    free = size.shape[0] - 1
    for slot in range(slot_row.shape[0] - 1, -1, -1):
        row = slot_row[slot]
        key = _key(upcoming[row], row, num_times) if row >= 0 else free
        push(size, head, link, key, np.int32(slot))


@kernel
def _find_hits(
    rows: NDArray[Any],
    time: int,
    size: NDArray[np.int32],
    head: NDArray[np.int32],
    link: NDArray[np.int32],
    slot_row: NDArray[np.int32],
    number: NDArray[np.uint16],
    where: NDArray[np.int32],
) -> None:
    """`where[a]` = slot that holds the row of access a, NONE where none does.

    Those slots are known: they are the stack of the batch's own time, which this empties. They are numbered, as many
    at once as 16 bits can; `number` [R] is all zeros before and after.
    """
    slots = np.empty(MOST_NUMBERED + 1, dtype=np.int32)
    slots[0] = NONE
    where[:] = NONE
    while size[time] > 0:
        count = min(int(size[time]), MOST_NUMBERED)
        for place in range(1, count + 1):
            slot = pop(size, head, link, time)
            slots[place] = slot
            number[slot_row[slot]] = np.uint16(place)
        for access in range(rows.shape[0]):
            where[access] = max(where[access], slots[number[rows[access]]])
        for place in range(1, count + 1):
            number[slot_row[slots[place]]] = np.uint16(0)


@kernel
def _place_batch(
    rows: NDArray[Any],
    following: NDArray[np.uint16],
    num_times: int,
    size: NDArray[np.int32],
    head: NDArray[np.int32],
    link: NDArray[np.int32],
    slot_row: NDArray[np.int32],
    where: NDArray[np.int32],
    miss_row: NDArray[Any],
    miss_slot: NDArray[np.int32],
) -> int:
    """Plan one batch; `where` holds each row's slot or NONE. Returns its misses."""
    num_keys = size.shape[0] - 1
    free = num_keys
    count = np.zeros(num_keys + 1, dtype=np.int64)
    misses = 0
    for access in range(rows.shape[0]):
        row = rows[access]
        slot = where[access]
        key = _key(following[access], row, num_times)
        if slot >= 0:
            push(size, head, link, key, slot)
        else:
            where[access] = ~np.int32(misses)
            miss_row[misses] = row
            miss_slot[misses] = np.int32(key)  # until the slot is known
            count[key + 1] += 1
            misses += 1
    for key in range(num_keys):
        count[key + 1] += count[key]
    order = np.empty(misses, dtype=np.int32)
    for miss in range(misses):  # nearest next use first
        key = miss_slot[miss]
        order[count[key]] = np.int32(miss)
        count[key] += 1
    far = num_keys - 1
    for place in range(misses):
        miss = order[place]
        key = miss_slot[miss]
        slot = np.int32(NONE)
        if size[free] > 0:
            slot = pop(size, head, link, free)
        else:
            while far > 0 and size[far] == 0:
                far -= 1
            if far > key:
                slot = pop(size, head, link, far)
        miss_slot[miss] = slot
        if slot >= 0:
            slot_row[slot] = miss_row[miss]
            push(size, head, link, key, slot)
            far = max(far, key)
    return misses


class Residency:
    """Which row is in which of C slots, from one superbatch to the next.

    Memory: 2 bytes a row of the table, 8 bytes a slot; while planning also 2 bytes an access.

    Args:
        num_rows: R, below 2**31.
        num_slots: C, may be 0.
    """

    def __init__(self, *, num_rows: int, num_slots: int) -> None:
        if num_rows > LARGEST_ROW:
            raise ValueError(f"a table of {num_rows} rows, at most {LARGEST_ROW}")
        self.num_slots = num_slots
        self._slot_row = np.full(num_slots, NONE, dtype=np.int32)
        self._upcoming = np.zeros(num_rows, dtype=np.uint16)

    @staticmethod
    def memory_bytes(*, num_rows: int, num_slots: int) -> int:
        """What an instance holds, at most; the stacks of a plan under way included."""
        return 2 * num_rows + 8 * num_slots

    def plan(self, batches: Trace, ahead: Trace | None = None) -> Iterator[BatchPlan]:
        """Plan one superbatch batch by batch, in order, and move on to its end; to be iterated to the end.

        Args:
            batches: of the superbatch; emptied as they are planned.
            ahead: of the next one; None when it is the last.

        Raises ValueError for more batches than times can count.
        """
        num_batches = len(batches)
        num_times = num_batches + (0 if ahead is None else len(ahead))
        if num_times > MAX_BATCHES:
            raise ValueError(f"{num_times} batches in two superbatches, at most {MAX_BATCHES}")
        known = ahead or []
        for number in range(len(known) - 1, -1, -1):
            _mark(known[number], num_batches + number + 1, self._upcoming)
        following = [np.empty(rows.shape[0], dtype=np.uint16) for rows in batches]
        for number in range(num_batches - 1, -1, -1):
            _next_uses(batches[number], number + 1, self._upcoming, following[number])
        size, head, link = new_stacks(num_times + 1 + OCTAVES + 1, self.num_slots)
        _stack_residents(self._slot_row, self._upcoming, num_times, size, head, link)
        self._upcoming.fill(0)
        nothing = np.empty(0, dtype=np.int32)
        for number, rows in enumerate(batches):
            where = np.empty(rows.shape[0], dtype=np.int32)
            _find_hits(rows, number + 1, size, head, link, self._slot_row, self._upcoming, where)
            miss_row = np.empty_like(rows)
            miss_slot = np.empty(rows.shape[0], dtype=np.int32)
            num_misses = _place_batch(
                rows, following[number], num_times, size, head, link, self._slot_row, where, miss_row, miss_slot
            )
            batches[number], following[number] = nothing, np.empty(0, dtype=np.uint16)
            yield BatchPlan(where, miss_row[:num_misses].copy(), miss_slot[:num_misses].copy())
