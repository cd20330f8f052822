"""A budget is divided so that everything fits in it, or refused with what would do."""

import re
from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from sampling.memory_split import StreamNeeds, TableNeeds, split_memory
from storage.errors import BadInput

MIB = 1 << 20


def table(num_rows: int, row_bytes: int, batch_rows: int, *, skew: float = 2.0) -> TableNeeds:
    rows = np.sort((np.random.default_rng(0).random(3 * batch_rows) ** skew * num_rows).astype(np.int64))
    return TableNeeds(num_rows, row_bytes, batch_rows, rows)


NEEDS = StreamNeeds(
    process_bytes=250 * MIB,
    num_nodes=20_000_000,
    topology_bytes=1280 * MIB,
    tables=(table(20_000_000, 256, 237_000),),
    batch_bytes=75 * MIB,
    num_threads=1,
    queue_batches=1,
    num_steps=10_000,
)


@settings(max_examples=200, deadline=None)
@given(
    st.integers(100, 100_000),
    st.integers(1, 8_000),
    st.lists(
        st.one_of(st.none(), st.tuples(st.integers(1, 10**7), st.integers(1, 4096), st.integers(1, 10**5))), max_size=3
    ),
    st.integers(0, 4_000),
    st.sampled_from(["auto", "memory", "disk"]),
)
def test_the_parts_fit_in_the_budget_or_the_least_that_does_is_named(
    num_steps: int, memory: int, kinds: list[tuple[int, int, int] | None], topology: int, place: str
) -> None:
    tables = tuple(None if kind is None else table(kind[0], kind[1], min(kind[2], kind[0])) for kind in kinds)
    needs = replace(NEEDS, tables=tables, topology_bytes=topology * MIB, num_steps=num_steps, num_nodes=10**6)

    def divide(num_bytes: int) -> int:
        return split_memory(needs, memory_bytes=num_bytes, topology=place).used_bytes  # type: ignore[arg-type]

    try:
        assert divide(memory * MIB) <= memory * MIB
    except BadInput as error:
        least = re.search(r"at least (\d+) bytes", error.found)
        assert least is not None
        assert int(least[1]) > memory * MIB
        assert divide(int(least[1]) + MIB) <= int(least[1]) + MIB


def test_a_larger_budget_caches_no_fewer_rows_and_plans_no_fewer_batches() -> None:
    rows, batches = 0, 0
    for gib in (2.5, 3, 4, 6, 8):
        split = split_memory(NEEDS, memory_bytes=int(gib * 1024 * MIB), topology="memory")
        memory = split.tables[0]
        assert memory is not None
        assert memory.num_static + memory.num_slots >= rows
        assert split.batches_per_superbatch >= batches
        rows, batches = memory.num_static + memory.num_slots, split.batches_per_superbatch


def test_a_table_that_fits_is_held_whole() -> None:
    split = split_memory(NEEDS, memory_bytes=9 * 1024 * MIB)
    memory = split.tables[0]
    assert memory is not None
    assert (memory.num_static, memory.num_slots) == (20_000_000, 0)


def test_a_topology_that_would_leave_little_to_the_features_stays_on_disk() -> None:
    assert split_memory(NEEDS, memory_bytes=1536 * MIB).topology == "disk"
    assert split_memory(NEEDS, memory_bytes=4096 * MIB).topology == "memory"


def test_given_caches_are_kept_to() -> None:
    split = split_memory(
        NEEDS, memory_bytes=4096 * MIB, topology="disk", cache_bytes=640 * MIB, topology_cache_bytes=160 * MIB
    )
    memory = split.tables[0]
    assert memory is not None
    assert 0.9 * 640 * MIB <= (memory.num_static + memory.num_slots) * 256 <= 640 * MIB
    assert split.topology_bytes >= 160 * MIB
