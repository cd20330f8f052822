"""Batches that are made whole on the device are those that the host would have served, bit for bit."""

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sampling import device_tier
from sampling.batch import Hop, MiniBatch
from sampling.device_tier import DeviceTier, on_device
from tests.sampling.fed_processes import digest, digests
from tests.sampling.tables import ArrayTable

CPU = torch.device("cpu")
DTYPES = ["float16", "float32", "uint8", "int8"]


def table_of(num_rows: int, dim: int, dtype: str, *, seed: int = 0) -> ArrayTable:
    """Random bytes: every value there is, NaNs of all kinds and infinities among them."""
    size = num_rows * dim * np.dtype(dtype).itemsize
    return ArrayTable(np.random.default_rng(seed).integers(0, 256, size, np.uint8).view(dtype).reshape(num_rows, dim))


def batch_of(tables: Sequence[ArrayTable | None], num_nodes: int, *, step: int = 0) -> MiniBatch:
    """As the host serves it, with all rows: nodes of all types mixed, some more than once, hot ones more often."""
    rng = np.random.default_rng(step)
    sizes = np.array([50 if table is None else table.num_rows for table in tables])
    types = rng.integers(0, len(tables), num_nodes)
    ids = (rng.random(num_nodes) ** 3 * sizes[types]).astype(np.int64)
    features = tuple(
        None if table is None else torch.from_numpy(table.table[ids[types == number]])
        for number, table in enumerate(tables)
    )
    hop = Hop(
        num_targets=num_nodes,
        num_sources=num_nodes,
        indptr=torch.arange(num_nodes + 1, dtype=torch.int32)[None],
        source=torch.from_numpy(rng.integers(0, max(1, num_nodes), num_nodes).astype(np.int32)),
        position=torch.from_numpy(rng.integers(0, 1 << 40, num_nodes)),
        weight=torch.from_numpy(rng.random(num_nodes).astype(np.float32)) if step % 2 else None,
    )
    return MiniBatch(
        epoch=0,
        step=step,
        num_seeds=num_nodes,
        num_seeds_global=num_nodes,
        hops=(hop, hop),
        node_type=torch.from_numpy(types),
        node_id=torch.from_numpy(ids),
        in_degree=torch.from_numpy(rng.integers(0, 9, (num_nodes, 1)).astype(np.int32)).T,
        out_degree=torch.from_numpy(rng.integers(0, 9, (1, num_nodes)).astype(np.int32)),
        features=features,
    )


def behind(batch: MiniBatch, num_rows: Sequence[int]) -> MiniBatch:
    """As a stream serves it that was told which rows the device keeps."""
    features = tuple(
        None if rows is None else rows[batch.node_id[batch.node_type == number] >= num_rows[number]]
        for number, rows in enumerate(batch.features)
    )
    return replace(batch, features=features)


def moved(batches: Sequence[MiniBatch], tier: DeviceTier, *, whole: bool) -> list[MiniBatch]:
    served = list(batches) if whole else [behind(batch, tier.num_rows) for batch in batches]
    return list(on_device(served, tier, whole=whole))


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_rows", [0, 1, 40, 199, 200, 1000])
def test_batches_are_those_of_the_host_bit_for_bit(dtype: str, num_rows: int, whole: bool) -> None:
    tables = [table_of(200, 7, dtype)]
    batches = [batch_of(tables, size, step=step) for step, size in enumerate([90, 1, 0, 300, 17])]
    tier = DeviceTier(tables, num_rows=[num_rows], device=CPU)
    assert tier.num_rows == (min(num_rows, 200),)
    assert digests(moved(batches, tier, whole=whole)) == digests(batches)


@pytest.mark.parametrize("num_rows", [(0, 0, 0, 0), (30, 10, 0, 80), (100, 40, 9, 80), (0, 7, 7, 1), (999, 0, 0, 0)])
def test_several_types_of_other_widths_and_one_without_features(num_rows: tuple[int, ...]) -> None:
    tables = [table_of(100, 3, "float16"), table_of(40, 16, "uint8", seed=1), None, table_of(80, 5, "float32", seed=2)]
    batches = [batch_of(tables, size, step=step) for step, size in enumerate([60, 2, 0, 200])]
    for whole in (False, True):
        tier = DeviceTier(tables, num_rows=num_rows, device=CPU)
        assert tier.num_rows[2] == 0
        assert digests(moved(batches, tier, whole=whole)) == digests(batches)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 60), st.integers(1, 9), st.integers(0, 70)), min_size=1, max_size=3),
    st.lists(st.integers(0, 50), max_size=4),
    st.sampled_from(DTYPES),
)
def test_any_tables_and_batches(shapes: list[tuple[int, int, int]], sizes: list[int], dtype: str) -> None:
    tables = [table_of(rows, dim, dtype, seed=number) for number, (rows, dim, _) in enumerate(shapes)]
    batches = [batch_of(tables, size, step=step) for step, size in enumerate(sizes)]
    tier = DeviceTier(tables, num_rows=[kept for _, _, kept in shapes], device=CPU)
    assert digests(moved(batches, tier, whole=False)) == digests(batches)


def test_a_batch_whose_rows_are_all_kept_and_one_with_none_of_them() -> None:
    tables = [table_of(100, 4, "float32")]
    hot, cold = (batch_of(tables, 30, step=step) for step in (0, 1))
    ids = torch.arange(30)
    hot = replace(hot, node_id=ids, features=(torch.from_numpy(tables[0].table[:30]),))
    cold = replace(cold, node_id=ids + 50, features=(torch.from_numpy(tables[0].table[50:80]),))
    tier = DeviceTier(tables, num_rows=[50], device=CPU)
    assert digests(moved([hot, cold, hot], tier, whole=False)) == digests([hot, cold, hot])
    assert (tier.counters.requests, tier.counters.hits) == (90, 60)


def test_the_prefix_is_read_in_parts_and_only_the_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_tier, "LOAD_BYTES", 100)
    table = table_of(500, 6, "float32")
    tier = DeviceTier([table, None], num_rows=[123, 5], device=CPU)
    kept, nothing = tier.kept
    assert kept is not None
    assert nothing is None
    assert kept.numpy().tobytes() == table.table[:123].tobytes()
    assert table.num_asked == 123


def test_only_rows_behind_the_prefix_are_copied_and_counted() -> None:
    tables = [table_of(300, 256, "float32")]
    batches = [batch_of(tables, 400, step=step) for step in range(5)]
    copied = {}
    for num_rows in (0, 100, 300):
        tier = DeviceTier(tables, num_rows=[num_rows], device=CPU)
        moved(batches[:2], tier, whole=True)
        moved(batches[2:], tier, whole=True)
        counters = tier.counters
        hits = sum(int((batch.node_id < num_rows).sum()) for batch in batches)
        assert (counters.batches, counters.requests, counters.hits) == (5, 2000, hits)
        assert min(counters.seconds, counters.waited_for_input_seconds, counters.wait_seconds) > 0
        copied[num_rows] = counters.bytes + hits * 1024
    picks = 2000 * 12 + 5 * 3 * device_tier.ALIGNMENT
    assert copied[0] >= 2000 * 1024
    assert copied[0] <= copied[100] <= copied[0] + picks
    assert copied[0] <= copied[300] <= copied[0] + picks


def test_the_next_batch_is_copied_while_one_is_used_and_no_more() -> None:
    tables = [table_of(50, 4, "float32")]
    asked: list[int] = []

    def source() -> Iterator[MiniBatch]:
        for step in range(8):
            asked.append(step)
            yield batch_of(tables, 20, step=step)

    tier = DeviceTier(tables, num_rows=[10], device=CPU)
    for step, batch in enumerate(on_device(source(), tier, whole=True)):
        deadline = time.monotonic() + 20
        while tier.counters.batches < min(step + 2, 8) and time.monotonic() < deadline:
            time.sleep(0.001)
        assert batch.step == step
        assert tier.counters.batches == min(step + 2, 8)
        # one in use, one copied, one that waits for its turn on the host
        assert len(asked) <= step + 3


def test_memory_of_the_source_may_be_used_again_once_it_is_asked_for_the_next() -> None:
    tables = [table_of(50, 4, "float32")]
    expected = [batch_of(tables, 20, step=step) for step in range(6)]

    def all_tensors(value: Any) -> Iterator[torch.Tensor]:
        if isinstance(value, torch.Tensor):
            yield value
        elif is_dataclass(value):
            for one in fields(value):
                yield from all_tensors(getattr(value, one.name))
        elif isinstance(value, tuple):
            for one in value:
                yield from all_tensors(one)

    def source() -> Iterator[MiniBatch]:
        for step in range(6):
            batch = batch_of(tables, 20, step=step)
            yield batch
            for tensor in all_tensors(batch):
                tensor.fill_(77)

    for num_rows in (0, 10):
        tier = DeviceTier(tables, num_rows=[num_rows], device=CPU)
        assert digests(list(on_device(source(), tier, whole=True))) == digests(expected)


def test_staging_that_has_grown_for_a_large_batch_serves_small_ones() -> None:
    tables = [table_of(500, 64, "uint8")]
    sizes = [1, 5000, 3, 20000, 0, 7]
    batches = [batch_of(tables, size, step=step) for step, size in enumerate(sizes)]
    tier = DeviceTier(tables, num_rows=[100], device=CPU)
    assert digests(moved(batches, tier, whole=False)) == digests(batches)


def test_an_error_of_the_source_is_raised_at_its_batch() -> None:
    tables = [table_of(50, 4, "float32")]

    def source() -> Iterator[MiniBatch]:
        yield batch_of(tables, 20, step=0)
        yield batch_of(tables, 20, step=1)
        raise OSError("the disk is gone")

    found = on_device(source(), DeviceTier(tables, num_rows=[10], device=CPU), whole=True)
    assert [next(found).step, next(found).step] == [0, 1]
    with pytest.raises(OSError, match="the disk is gone"):
        next(found)


def test_a_source_that_serves_other_rows_than_those_behind_the_prefix_is_caught() -> None:
    tables = [table_of(50, 4, "float32")]
    tier = DeviceTier(tables, num_rows=[10], device=CPU)
    with pytest.raises(AssertionError, match="table 0: not the rows behind 10"):
        list(on_device([batch_of(tables, 40)], tier))


def test_who_stops_early_leaves_no_thread_and_a_closed_source() -> None:
    tables = [table_of(50, 4, "float32")]
    closed = threading.Event()

    def source() -> Iterator[MiniBatch]:
        try:
            for step in range(1000):
                yield batch_of(tables, 20, step=step)
        finally:
            closed.set()

    before = threading.active_count()
    batches = on_device(source(), DeviceTier(tables, num_rows=[10], device=CPU), whole=True)
    next(batches)
    batches.close()
    assert closed.is_set()
    assert threading.active_count() == before


def test_nothing_comes_of_nothing() -> None:
    tier = DeviceTier([None], num_rows=[0], device=CPU)
    assert list(on_device([], tier)) == []
    batch = batch_of([None], 10)
    assert digests(list(on_device([batch], tier))) == [digest(batch)]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: copies on a stream of their own")
@pytest.mark.parametrize("num_rows", [0, 1000, 4000])
def test_on_a_gpu_the_batches_are_whole_while_the_gpu_is_busy_and_its_memory_is_used_again(num_rows: int) -> None:
    device = torch.device("cuda")
    tables = [table_of(4000, 128, "float16"), table_of(1000, 64, "uint8", seed=1)]
    batches = [batch_of(tables, 3000, step=step) for step in range(30)]
    tier = DeviceTier(tables, num_rows=[num_rows, num_rows], device=device)
    work = torch.randn((2048, 2048), device=device)
    seen = []
    for batch in on_device([behind(batch, tier.num_rows) for batch in batches], tier):
        for _ in range(20):  # the batch is read long after the next one was copied
            work = (work @ work).clamp(-1, 1)
        first, second = batch.features
        assert first is not None
        assert second is not None
        assert first.device == tier.device
        seen.append(replace(batch, features=(first.clone(), second.clone()), node_id=batch.node_id.clone()))
    for batch, expected in zip(seen, batches, strict=True):
        assert torch.equal(batch.node_id.cpu(), expected.node_id)
        for here, there in zip(batch.features, expected.features, strict=True):
            assert here is not None
            assert there is not None
            assert here.cpu().numpy().tobytes() == there.numpy().tobytes()
    assert tier.counters.batches == 30
