"""Caches of C rows to compare the plan with: LRU, LFU, SIEVE, fixed sets, and brute-force Belady.

All start empty and are looked up batch by batch: a hit is a row of the batch that is there when it is looked up. LRU,
LFU and SIEVE look a batch's rows up in their order, and every miss takes a slot at once.

    lru     the row unused for longest goes
    lfu     the row with the fewest uses so far goes, the one unused for longest among equals; uses of rows that have
            gone are not forgotten, which keeps more of the right rows than forgetting them
    sieve   a hand goes from the oldest row to the newest and again; rows used since it last passed stay (Zhang et al.,
            NSDI 2024)

Shapes: R rows of the table, C slots, A accesses of a batch (distinct rows), K batches.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.jit import kernel

Trace = Sequence[NDArray[Any]]
"""int32 or int64 [A] for each of K batches: the rows that it needs, each once"""

USED, HAND, LOWEST = 0, 1, 2
"""places in `state`: slots filled so far; SIEVE's hand; LFU's number of uses below which no row has"""


@kernel
def _unlink(place: Any, newer: NDArray[np.int32], older: NDArray[np.int32]) -> None:
    after, before = newer[place], older[place]
    older[after] = before
    newer[before] = after


@kernel
def _link_newest(place: Any, ring: Any, newer: NDArray[np.int32], older: NDArray[np.int32]) -> None:
    """Make `place` the newest of a ring, which is closed by the place `ring`: older[ring] is its newest."""
    newest = older[ring]
    older[ring] = place
    newer[place] = ring
    older[place] = newest
    newer[newest] = place


@kernel
def _fill(slot: Any, row: Any, slot_of: NDArray[np.int32], row_of: NDArray[np.int32]) -> None:
    """Let `row` have the slot of whichever row has it."""
    if row_of[slot] >= 0:
        slot_of[row_of[slot]] = -1
    row_of[slot] = row
    slot_of[row] = slot


@kernel
def lru(
    rows: NDArray[Any],
    slot_of: NDArray[np.int32],
    row_of: NDArray[np.int32],
    newer: NDArray[np.int32],
    older: NDArray[np.int32],
    notes: NDArray[np.int32],
    state: NDArray[np.int64],
) -> int:
    """Hits of one batch."""
    num_slots = row_of.shape[0]
    hits = 0
    for index in range(rows.shape[0]):
        row = rows[index]
        slot = np.int64(slot_of[row])
        if slot >= 0:
            hits += 1
            _unlink(slot, newer, older)
        else:
            if state[USED] < num_slots:
                slot = state[USED]
                state[USED] += 1
            else:
                slot = np.int64(newer[num_slots])
                _unlink(slot, newer, older)
            _fill(slot, row, slot_of, row_of)
        _link_newest(slot, num_slots, newer, older)
    return hits


@kernel
def lfu(
    rows: NDArray[Any],
    slot_of: NDArray[np.int32],
    row_of: NDArray[np.int32],
    newer: NDArray[np.int32],
    older: NDArray[np.int32],
    notes: NDArray[np.int32],
    state: NDArray[np.int64],
) -> int:
    """Hits of one batch; `notes` [R] are the uses of each row, rows with n of them are in the ring C + n."""
    num_slots = row_of.shape[0]
    hits = 0
    for index in range(rows.shape[0]):
        row = rows[index]
        notes[row] += 1
        slot = np.int64(slot_of[row])
        if slot >= 0:
            hits += 1
            _unlink(slot, newer, older)
        else:
            if state[USED] < num_slots:
                slot = state[USED]
                state[USED] += 1
            else:
                while newer[num_slots + state[LOWEST]] == num_slots + state[LOWEST]:
                    state[LOWEST] += 1
                slot = np.int64(newer[num_slots + state[LOWEST]])
                _unlink(slot, newer, older)
            _fill(slot, row, slot_of, row_of)
            state[LOWEST] = min(state[LOWEST], np.int64(notes[row]))
        _link_newest(slot, num_slots + np.int64(notes[row]), newer, older)
    return hits


@kernel
def sieve(
    rows: NDArray[Any],
    slot_of: NDArray[np.int32],
    row_of: NDArray[np.int32],
    newer: NDArray[np.int32],
    older: NDArray[np.int32],
    notes: NDArray[np.int32],
    state: NDArray[np.int64],
) -> int:
    """Hits of one batch; `notes[slot]` is 1 where the slot's row was used since the hand last passed."""
    num_slots = row_of.shape[0]
    hits = 0
    for index in range(rows.shape[0]):
        row = rows[index]
        slot = np.int64(slot_of[row])
        if slot >= 0:
            hits += 1
            notes[slot] = 1
            continue
        if state[USED] < num_slots:
            slot = state[USED]
            state[USED] += 1
        else:
            slot = state[HAND]
            while slot == num_slots or notes[slot]:
                if slot < num_slots:
                    notes[slot] = 0
                slot = np.int64(newer[slot])
            state[HAND] = np.int64(newer[slot])
            _unlink(slot, newer, older)
        _fill(slot, row, slot_of, row_of)
        _link_newest(slot, num_slots, newer, older)
    return hits


ONLINE: dict[str, Callable[..., int]] = {"lru": lru, "lfu": lfu, "sieve": sieve}
"""by name"""


def online_hits(policy: str, trace: Trace, *, num_rows: int, num_slots: int) -> NDArray[np.int64]:
    """Hits of each batch [K] of a policy of ONLINE. Memory: 8 bytes a row, 12 a slot."""
    if num_slots == 0:
        return np.zeros(len(trace), dtype=np.int64)
    num_rings = len(trace) + 1
    slot_of, row_of = np.full(num_rows, -1, dtype=np.int32), np.full(num_slots, -1, dtype=np.int32)
    newer = np.arange(num_slots + num_rings, dtype=np.int32)
    older = newer.copy()
    notes = np.zeros(max(num_rows, num_slots), dtype=np.int32)
    state = np.array([0, num_slots, 1], dtype=np.int64)
    serve = ONLINE[policy]
    return np.array([serve(rows, slot_of, row_of, newer, older, notes, state) for rows in trace], dtype=np.int64)


def fixed_hits(trace: Trace, *, is_kept: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Hits of each batch [K] of a cache that keeps the rows of a fixed set [R] from their first use on, no others."""
    is_there = np.zeros(is_kept.shape[0], dtype=np.bool_)
    hits = np.zeros(len(trace), dtype=np.int64)
    for number, rows in enumerate(trace):
        kept = rows[is_kept[rows]]
        hits[number] = is_there[kept].sum()
        is_there[kept] = True
    return hits


def most_used(trace: Trace, *, num_rows: int, num_slots: int) -> NDArray[np.bool_]:
    """The rows [R] that most batches of the trace need: the best fixed set."""
    uses = np.zeros(num_rows, dtype=np.int32)
    for rows in trace:
        uses[rows] += 1
    is_kept = np.zeros(num_rows, dtype=np.bool_)
    is_kept[np.argpartition(-uses, num_slots - 1)[:num_slots] if num_slots else []] = True
    return is_kept


def next_uses(trace: Trace) -> list[NDArray[np.int32]]:
    """For every access [K][A] the next batch that needs its row, K where none does.

    Sorts all accesses by row, so that a row's are in one piece. Memory: 30 bytes an access.
    """
    num_batches = len(trace)
    first = np.cumsum([0, *(rows.shape[0] for rows in trace)])
    everything = np.concatenate(trace)
    by_row = np.argsort(everything, kind="stable")  # each row's accesses stay in the order of the batches
    ordered = everything[by_row]
    again = np.flatnonzero(ordered[1:] == ordered[:-1])
    del ordered, everything
    batch = np.repeat(np.arange(num_batches, dtype=np.int32), np.diff(first))
    following = np.full(by_row.shape[0], num_batches, dtype=np.int32)
    following[by_row[again]] = batch[by_row[again + 1]]
    return np.split(following, first[1:-1])


def belady_hits(
    trace: Trace, following: Sequence[NDArray[np.int32]], *, num_rows: int, num_slots: int
) -> NDArray[np.int64]:
    """Hits of each batch [K] when of all rows, there before or just needed, the C that are needed next stay.

    No cache with C rows between batches has more hits, with or without bypass: each hit takes a slot from the row's
    last use to this one, and of such spans those that end first leave the most room for others.

    Args:
        following: `next_uses(trace)`.
    """
    never = len(trace)
    next_use = np.full(num_rows, never, dtype=np.int32)
    is_there = np.zeros(num_rows, dtype=np.bool_)
    cached = np.empty(0, dtype=np.int32)
    hits = np.zeros(len(trace), dtype=np.int64)
    for number, rows in enumerate(trace):
        was_there = is_there[rows]
        hits[number] = was_there.sum()
        next_use[rows] = following[number]
        is_there[cached] = False
        cached = np.concatenate([cached, rows[~was_there].astype(np.int32)])
        when = next_use[cached]
        if cached.shape[0] > num_slots:
            nearest = np.argpartition(when, num_slots)[:num_slots]
            cached, when = cached[nearest], when[nearest]
        cached = cached[when < never]
        is_there[cached] = True
    return hits
