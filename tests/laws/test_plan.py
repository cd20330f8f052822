"""Law: on a known trace the planned misses equal brute-force Belady with bypass, batch by batch.

Hence they never exceed those of LRU, LFU or SIEVE with as many slots. The plan is carried out on an array of slots,
which shows that every hit finds its row.
"""

from collections import Counter, OrderedDict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sampling.belady import Residency
from tests.benchmarks.cache_policies import ONLINE, belady_hits, next_uses, online_hits

NUM_ROWS = 24


@st.composite
def traces(draw: st.DrawFn) -> list[NDArray[np.int64]]:
    rows = st.lists(st.integers(0, NUM_ROWS - 1), max_size=9, unique=True)
    return [np.array(batch, dtype=np.int64) for batch in draw(st.lists(rows, min_size=1, max_size=14))]


def brute_force_misses(trace: list[NDArray[np.int64]], num_slots: int) -> list[int]:
    """Of resident and needed rows together keep the `num_slots` that are needed again first."""
    resident: set[int] = set()
    misses = []
    for number, batch in enumerate(trace):
        needed = set(batch.tolist())
        misses.append(len(needed - resident))

        def next_use(row: int, after: int = number) -> int:
            return next((k for k in range(after + 1, len(trace)) if row in trace[k]), len(trace))

        resident = set(sorted(resident | needed, key=next_use)[:num_slots])
    return misses


def plain_lru(trace: list[list[int]], num_slots: int) -> list[int]:
    """Hits of each batch; `there` runs from the row unused for longest."""
    there: OrderedDict[int, None] = OrderedDict()
    hits = []
    for batch in trace:
        hits.append(0)
        for row in batch:
            hits[-1] += row in there
            there[row] = None
            there.move_to_end(row)
            if len(there) > num_slots:
                there.popitem(last=False)
    return hits


def plain_lfu(trace: list[list[int]], num_slots: int) -> list[int]:
    """Hits of each batch; `uses` counts all uses of a row, `there` holds the time of its last one."""
    uses: Counter[int] = Counter()
    there: dict[int, int] = {}
    hits = []
    for batch in trace:
        hits.append(0)
        for row in batch:
            hits[-1] += row in there
            if row not in there and len(there) == num_slots:
                del there[min(there, key=lambda other: (uses[other], there[other]))]
            uses[row] += 1
            there[row] = uses.total()
    return hits


def plain_sieve(trace: list[list[int]], num_slots: int) -> list[int]:
    """Hits of each batch; `queue` runs from the oldest row, each with whether it was used since the hand passed."""
    queue: list[int] = []
    used: dict[int, bool] = {}
    hand = 0
    hits = []
    for batch in trace:
        hits.append(0)
        for row in batch:
            if row in used:
                hits[-1] += 1
                used[row] = True
                continue
            if len(queue) == num_slots:
                while used[queue[hand]]:
                    used[queue[hand]] = False
                    hand = (hand + 1) % num_slots
                del used[queue.pop(hand)]
                hand = 0 if hand == len(queue) else hand
            queue.append(row)
            used[row] = False
    return hits


class Cache:
    """An array of slots that carries plans out."""

    def __init__(self, num_slots: int) -> None:
        self.residency = Residency(num_rows=NUM_ROWS, num_slots=num_slots)
        self.slots = np.full(num_slots + 1, -1, dtype=np.int64)  # one more, so that there is something to index

    def serve(self, trace: list[NDArray[np.int64]], ahead: list[NDArray[np.int64]] | None = None) -> list[int]:
        """Serve a superbatch; returns the misses of each batch."""
        misses = []
        plans = self.residency.plan(list(trace), None if ahead is None else list(ahead))
        for batch, plan in zip(trace, plans, strict=True):
            served = np.where(plan.where >= 0, self.slots[np.maximum(plan.where, 0)], -1)
            served[plan.where < 0] = plan.miss_row[~plan.where[plan.where < 0]]
            assert served.tolist() == batch.tolist()
            kept = plan.miss_slot >= 0
            assert np.unique(plan.miss_slot[kept]).size == kept.sum()
            self.slots[plan.miss_slot[kept]] = plan.miss_row[kept]
            misses.append(plan.miss_row.size)
            assert plan.num_hits == batch.size - misses[-1]
        return misses


@settings(max_examples=400, deadline=None)
@given(traces(), st.integers(0, 30))
def test_a_known_trace_has_the_misses_of_brute_force_belady(trace: list[NDArray[np.int64]], num_slots: int) -> None:
    assert Cache(num_slots).serve(trace) == brute_force_misses(trace, num_slots)


@settings(max_examples=300, deadline=None)
@given(traces(), st.integers(0, 30))
def test_the_plan_never_misses_more_than_lru_lfu_or_sieve_with_as_many_slots(
    trace: list[NDArray[np.int64]], num_slots: int
) -> None:
    planned = np.cumsum(Cache(num_slots).serve(trace))
    needed = np.array([batch.size for batch in trace])
    for policy in ONLINE:
        missed = needed - online_hits(policy, trace, num_rows=NUM_ROWS, num_slots=num_slots)
        assert (planned <= np.cumsum(missed)).all(), policy


@pytest.mark.parametrize("num_slots", [1, 30, 150, 700])
def test_on_a_skewed_trace_the_plan_misses_less_than_lru_lfu_and_sieve(num_slots: int) -> None:
    rng, num_rows = np.random.default_rng(0), 2000
    weight = rng.pareto(1.2, num_rows) + 1
    trace = [rng.choice(num_rows, 120, replace=False, p=weight / weight.sum()) for _ in range(80)]
    plans = list(Residency(num_rows=num_rows, num_slots=num_slots).plan(list(trace)))
    hits = [plan.num_hits for plan in plans]
    assert hits == belady_hits(trace, next_uses(trace), num_rows=num_rows, num_slots=num_slots).tolist()
    for policy in ONLINE:
        assert sum(hits) > online_hits(policy, trace, num_rows=num_rows, num_slots=num_slots).sum(), policy


@settings(max_examples=200, deadline=None)
@given(traces(), st.integers(1, 30))
def test_the_policies_that_the_plan_is_compared_with_are_what_they_are_named(
    trace: list[NDArray[np.int64]], num_slots: int
) -> None:
    plain = {"lru": plain_lru, "lfu": plain_lfu, "sieve": plain_sieve}
    for policy, hits_of in plain.items():
        hits = online_hits(policy, trace, num_rows=NUM_ROWS, num_slots=num_slots)
        assert hits.tolist() == hits_of([batch.tolist() for batch in trace], num_slots), policy


@settings(max_examples=200, deadline=None)
@given(traces(), st.integers(0, 30), st.integers(1, 5))
def test_superbatches_find_every_row_where_the_plan_says_and_a_look_ahead_only_helps_so_far(
    trace: list[NDArray[np.int64]], num_slots: int, size: int
) -> None:
    cache = Cache(num_slots)
    parts = [trace[start : start + size] for start in range(0, len(trace), size)]
    misses = [
        count
        for number, part in enumerate(parts)
        for count in cache.serve(part, parts[number + 1] if number + 1 < len(parts) else None)
    ]
    best = brute_force_misses(trace, num_slots)
    assert sum(misses) >= sum(best)
    if len(parts) <= 2:  # all is known from the first plan on
        assert misses == best


def test_a_row_that_is_not_needed_soon_stays_when_its_table_place_is_hot() -> None:
    cache = Cache(2)
    cache.serve([np.array([1, 20]), np.array([3])])  # of 1, 20 and 3 nobody is known to need any again
    assert cache.serve([np.array([1, 3])]) == [0]
    assert cache.serve([np.array([20])]) == [1]


def test_too_many_batches_are_refused() -> None:
    empty = [np.empty(0, dtype=np.int64)] * 20_000
    with pytest.raises(ValueError, match="40000 batches"):
        next(Residency(num_rows=1, num_slots=1).plan(empty, empty))
