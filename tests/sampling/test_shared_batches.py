"""Shared memory hands out ranges that do not overlap, and a batch read from it is the one that was put there."""

import gc
import os
from collections import deque
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sampling.batch import SeedPairs
from sampling.shared_batches import found, share
from sampling.shared_memory import RANGE_BYTES, MappedMemory, SharedMemory
from tests.laws.test_stream import plain, tables
from tests.sampling.fed_processes import digest
from tests.sampling.graphs import two_type_graph


def seen_from_elsewhere(memory: SharedMemory) -> MappedMemory:
    """A second mapping, as another process has it."""
    return MappedMemory(os.dup(memory.descriptor))


@pytest.mark.parametrize("dtype", ["float16", "float32", "uint8", "int8"])
def test_what_is_written_on_one_side_is_read_on_the_other_without_a_copy(dtype: str) -> None:
    memory = SharedMemory()
    there = seen_from_elsewhere(memory)
    first, tensor = memory.empty(3, 5, dtype), memory.empty(7, 3, dtype)
    tensor.numpy()[...] = np.arange(21).reshape(7, 3)
    offset = memory.offset_of(tensor)
    assert offset is not None
    assert offset != memory.offset_of(first)
    seen = there.tensor(offset=offset, dtype=str(tensor.dtype), shape=[7, 3])
    assert torch.equal(seen, tensor)
    tensor[2, 2] = 100
    assert seen[2, 2] == 100
    assert memory.offset_of(torch.zeros(3)) is None
    assert memory.offset_of(tensor.T) is None


def test_the_pairs_of_seed_edges_are_read_as_they_were_put_there() -> None:
    memory = SharedMemory()
    there = seen_from_elsewhere(memory)
    source, target, position = torch.arange(4), torch.arange(4, 8), torch.arange(8, 12)
    pairs = SeedPairs(source, target, torch.arange(12, 20).reshape(4, 2), position, relation=2, replaces_source=True)
    seen = found(share(replace(plain(two_type_graph(), tables())[0], pairs=pairs), memory).description, there).pairs
    assert seen is not None
    assert (seen.relation, seen.replaces_source) == (2, True)
    for name in ("source", "target", "negative", "position"):
        assert torch.equal(getattr(seen, name), getattr(pairs, name))


def test_a_batch_is_read_as_it_was_put_there_wherever_its_tensors_were() -> None:
    memory = SharedMemory()
    there = seen_from_elsewhere(memory)
    for batch in plain(two_type_graph(), tables())[:3]:
        served = []
        for table in batch.features:
            assert table is not None
            served.append(memory.empty(table.shape[0], table.shape[1], table.numpy().dtype).copy_(table))
        odd = torch.empty((batch.node_id.shape[0], 2), dtype=torch.int64)[:, 0].copy_(batch.node_id)
        for given_batch in (batch, replace(batch, features=tuple(served)), replace(batch, node_id=odd)):
            shared = share(given_batch, memory)
            seen = found(shared.description, there)
            assert digest(seen) == digest(batch)
        # what was in the memory already has stayed where it was
        in_place = share(replace(batch, features=tuple(served)), memory)
        assert any(held is served[0] for held in in_place.held)
        assert len(in_place.held) == 1 + len(served)


def test_a_batch_without_features_and_one_without_nodes_of_a_type_are_described_too() -> None:
    memory = SharedMemory()
    there = seen_from_elsewhere(memory)
    (batch, *_) = plain(two_type_graph(), tables())
    for features in ((None, None), (torch.empty((0, 16)), None)):
        changed = replace(batch, features=features)
        shared = share(changed, memory)
        assert digest(found(shared.description, there)) == digest(changed)


def test_memory_is_used_again_when_the_last_view_is_gone_and_not_before() -> None:
    memory = SharedMemory()
    first = memory.empty(1000, 100, "float32")
    offset = memory.offset_of(first)
    view = first[10:20]
    del first
    gc.collect()
    other = memory.empty(1000, 100, "float32")
    assert memory.offset_of(other) != offset
    view.fill_(3.0)
    other.zero_()
    assert bool((view == 3.0).all())
    del view
    gc.collect()
    offsets = [memory.offset_of(memory.empty(1000, 100, "float32")) for _ in range(3)]
    assert offset in offsets


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 40), st.integers(0, 5)), max_size=60))
def test_ranges_never_overlap_and_all_come_back(steps: list[tuple[int, int]]) -> None:
    memory = SharedMemory(4000 * RANGE_BYTES)
    held: list[torch.Tensor] = []
    most = 0
    for size, dropped in steps:
        held.append(memory.empty(size * RANGE_BYTES - 1, 1, "uint8"))
        most = max(most, sum(tensor.nbytes + 1 for tensor in held))
        spans = sorted((memory.offset_of(tensor) or 0, tensor.nbytes) for tensor in held)
        assert all(at + length <= after for (at, length), (after, _) in pairwise(spans))
        assert memory.peak_bytes >= most
        for _ in range(min(dropped, len(held))):
            held.pop(size % len(held))
    held.clear()
    everything = memory.empty(4000 * RANGE_BYTES, 1, "uint8")  # in one piece again
    with pytest.raises(MemoryError, match="no room"):
        memory.empty(1, 1, "uint8")
    del everything


@pytest.mark.parametrize("num_ranks", [1, 2, 8])
def test_little_more_is_ever_written_to_than_is_lent_at_once(num_ranks: int) -> None:
    memory = SharedMemory()
    rng = np.random.default_rng(0)
    lent: deque[list[torch.Tensor]] = deque()
    most = 0
    for _ in range(1000):
        sizes = np.concatenate([rng.normal(45, 3, num_ranks), rng.normal(8, 0.5, num_ranks)])
        lent.append([memory.empty(int(size * (1 << 20)), 1, "uint8") for size in sizes])
        most = max(most, sum(tensor.nbytes for step in lent for tensor in step))
        if len(lent) > 6:
            lent.popleft()
    assert memory.peak_bytes <= 1.35 * most


def test_pages_that_were_not_written_to_take_no_memory() -> None:
    memory = SharedMemory()
    assert memory.num_bytes > os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    memory.empty(1 << 20, 1, "uint8").zero_()
    assert 1 << 20 <= os.fstat(memory.descriptor).st_blocks * 512 <= 4 << 20
    with pytest.raises(PermissionError):
        os.ftruncate(memory.descriptor, 0)  # under everybody's feet
    memory.close()
    memory.close()
