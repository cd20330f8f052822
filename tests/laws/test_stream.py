"""Law: the planned stream gives the batches of the plain loader, bit for bit, whatever its cache, ranks and packs."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from sampling.assemble import TopologySurroundings
from sampling.batch import MiniBatch
from sampling.device_rows import tables_behind
from sampling.device_tier import DeviceTier, on_device
from sampling.loader import Loader
from sampling.neighbors import NeighborSampler
from sampling.planned_table import Packing, PlannedTable
from sampling.sample_space import SampleSpace
from sampling.seeds import SeedOrder
from sampling.shared_memory import FeatureMemory
from sampling.sources import ThreadSource
from sampling.stream import Stream
from storage.disk_speed import DiskSpeed
from storage.errors import BadInput
from storage.graph import Topology
from storage.read_pool import ReadPool
from tests.laws.test_order import assert_same
from tests.sampling.graphs import two_type_graph
from tests.sampling.tables import ArrayTable

NUM_NODES = 200
FANOUTS = (3, 2)
LAST = 22
SPEED = DiskSpeed(read_bytes_per_second=1e9, reads_per_second=5e4, write_bytes_per_second=1e9)


def tables(dim: int = 16) -> list[ArrayTable]:
    rng = np.random.default_rng(1)
    return [ArrayTable(rng.random((120, dim)).astype(np.float32)), ArrayTable(rng.integers(0, 255, (80, 64), np.uint8))]


def order_of() -> SeedOrder:
    return SeedOrder(None, num_nodes=NUM_NODES, seeds_per_step=48, seed=4)


def plain(graph: Topology, given: Sequence[ArrayTable], *, rank: int = 0, world_size: int = 1) -> list[MiniBatch]:
    loader = Loader(
        graph, order=order_of(), fanouts=FANOUTS, seed=4, features=list(given), rank=rank, world_size=world_size
    )
    try:
        return list(loader.batches(first_step=0, last_step=LAST))
    finally:
        loader.close()


class Planned:
    """A stream over array tables."""

    def __init__(
        self,
        graph: Topology,
        given: Sequence[ArrayTable],
        folder: Path,
        *,
        num_static: int = 10,
        num_slots: int = 20,
        landing_rows: int = 5000,
        superbatch: int = 6,
        packing: Packing = "always",
        ranks: Sequence[int] = (0,),
        world_size: int = 1,
        kept_bytes: int = 1 << 20,
        memory: FeatureMemory | None = None,
        device_rows: Sequence[int] = (0, 0),
        source: type[ThreadSource] = ThreadSource,
    ) -> None:
        pool = ReadPool(num_threads=2)
        self.space = SampleSpace(memory_bytes=kept_bytes, folder=str(folder), bundle_bytes=2000)
        self.tables = [
            PlannedTable(
                table,
                num_static=num_static,
                num_slots=num_slots,
                landing_bytes=landing_rows * table.dim * table.dtype.itemsize,
                chunk_bytes=1 << 16,
                folder=str(folder),
                speed=SPEED,
                pool=pool,
                space=self.space,
                packing=packing,
            )
            for table in tables_behind(given, device_rows)
            if table is not None
        ]
        order = order_of()
        sampling = source(
            lambda: NeighborSampler(graph, fanouts=FANOUTS, seed=4),
            TopologySurroundings(graph),
            order=order,
            ranks=ranks,
            world_size=world_size,
            num_threads=2,
        )
        self.stream = Stream(
            sampling,
            type_offsets=graph.type_offsets,
            order=order,
            tables=self.tables,
            space=self.space,
            batches_per_superbatch=superbatch,
            ranks=ranks,
            device_rows=device_rows,
            memory=memory,
        )

    def all(self, first: int = 0) -> list[list[MiniBatch]]:
        try:
            return list(self.stream.batches(first_step=first, last_step=LAST))
        finally:
            self.stream.close()


@pytest.mark.parametrize("packing", ["always", "never"])
@pytest.mark.parametrize(("num_static", "num_slots"), [(0, 0), (10, 20), (0, 200), (200, 0), (30, 1)])
@pytest.mark.parametrize("superbatch", [1, 6, 40])
def test_the_stream_gives_the_batches_of_the_plain_loader(
    tmp_path: Path, packing: Packing, num_static: int, num_slots: int, superbatch: int
) -> None:
    graph, given = two_type_graph(), tables()
    planned = Planned(
        graph, given, tmp_path, num_static=num_static, num_slots=num_slots, superbatch=superbatch, packing=packing
    )
    expected = plain(graph, given)
    found = planned.all()
    assert len(found) == len(expected)
    for (mine,), theirs in zip(found, expected, strict=True):
        assert_same(mine, theirs)
    packed = sum(table.counters.packed_superbatches for table in planned.tables)
    missed = sum(table.counters.misses for table in planned.tables)
    assert (packed > 0) == (packing == "always" and missed > 0)
    for table in planned.tables:
        counters = table.counters
        assert counters.requests == counters.static_hits + counters.dynamic_hits + counters.misses
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("packing", ["always", "never"])
@pytest.mark.parametrize("device_rows", [(16, 0), (33, 64), (120, 80)])
@pytest.mark.parametrize("world_size", [1, 2])
def test_with_rows_on_the_device_the_host_serves_the_others_and_the_batches_are_the_same(
    tmp_path: Path, packing: Packing, device_rows: tuple[int, int], world_size: int
) -> None:
    graph, given = two_type_graph(), tables()
    ranks = range(world_size)
    planned = Planned(
        graph, given, tmp_path, packing=packing, ranks=ranks, world_size=world_size, device_rows=device_rows
    )
    served = planned.all()
    requests = 0
    for rank in ranks:
        tier = DeviceTier(given, num_rows=device_rows, device=torch.device("cpu"))
        found = list(on_device((batches[rank] for batches in served), tier))
        for mine, theirs in zip(found, plain(graph, given, rank=rank, world_size=world_size), strict=True):
            assert_same(mine, theirs)
        requests += tier.counters.requests - tier.counters.hits
    assert sum(table.counters.requests for table in planned.tables) == requests


@pytest.mark.parametrize("device_rows", [(16, 0), (33, 64), (120, 80)])
def test_the_plain_loader_leaves_out_the_rows_on_the_device_too(device_rows: tuple[int, int]) -> None:
    graph, given = two_type_graph(), tables()
    tier = DeviceTier(given, num_rows=device_rows, device=torch.device("cpu"))
    loader = Loader(
        graph,
        order=order_of(),
        fanouts=FANOUTS,
        seed=4,
        features=tables_behind(given, device_rows),
        device_rows=device_rows,
    )
    try:
        found = list(on_device(loader.batches(first_step=0, last_step=LAST), tier))
    finally:
        loader.close()
    for mine, theirs in zip(found, plain(graph, given), strict=True):
        assert_same(mine, theirs)
    assert tier.counters.hits > 0


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_of_a_host_share_every_read(tmp_path: Path, world_size: int) -> None:
    graph, given = two_type_graph(), tables()
    ranks = range(world_size)
    found = Planned(graph, given, tmp_path, ranks=ranks, world_size=world_size).all()
    for rank in ranks:
        for mine, theirs in zip(found, plain(graph, given, rank=rank, world_size=world_size), strict=True):
            assert_same(mine[rank], theirs)


def test_a_host_serves_its_own_ranks_only(tmp_path: Path) -> None:
    graph, given = two_type_graph(), tables()
    found = Planned(graph, given, tmp_path, ranks=(2, 3), world_size=4).all()
    for place, rank in enumerate((2, 3)):
        for mine, theirs in zip(found, plain(graph, given, rank=rank, world_size=4), strict=True):
            assert_same(mine[place], theirs)


@pytest.mark.parametrize("first", [1, 7, 21, 22])
def test_a_resumed_stream_goes_on_as_the_uninterrupted_one(tmp_path: Path, first: int) -> None:
    graph, given = two_type_graph(), tables()
    found = Planned(graph, given, tmp_path).all(first)
    expected = plain(graph, given)[first:]
    assert len(found) == len(expected)
    for (mine,), theirs in zip(found, expected, strict=True):
        assert_same(mine, theirs)


@pytest.mark.parametrize("kept_bytes", [0, 3000])
def test_samples_that_do_not_fit_in_memory_wait_on_disk(tmp_path: Path, kept_bytes: int) -> None:
    graph, given = two_type_graph(), tables()
    planned = Planned(graph, given, tmp_path, kept_bytes=kept_bytes)
    for (mine,), theirs in zip(planned.all(), plain(graph, given), strict=True):
        assert_same(mine, theirs)
    assert planned.space.spilled_bytes > 0
    assert planned.space.take(kept_bytes)  # all is given back
    assert not planned.space.take(1)


def test_an_error_is_raised_at_the_batch_that_it_stopped_and_a_stream_may_be_left_early(tmp_path: Path) -> None:
    class Broken(ArrayTable):
        def gather(self, rows: NDArray[np.int64], out: NDArray[np.float32]) -> None:
            if self.num_asked > 400:
                raise BadInput("features", "a bad page", rule="pages match", remedy="restore it")
            super().gather(rows, out)

    graph, given = two_type_graph(), tables()
    given[0] = Broken(given[0].table)
    planned = Planned(graph, given, tmp_path, num_slots=0, superbatch=1, packing="never")
    served: list[MiniBatch] = []
    batches = planned.stream.batches(first_step=0, last_step=LAST)

    def take_all() -> None:
        for (batch,) in batches:
            served.append(batch)

    with pytest.raises(BadInput, match="a bad page"):
        take_all()
    assert 0 < len(served) < LAST
    for mine, theirs in zip(served, plain(graph, tables()), strict=False):
        assert torch.equal(mine.node_id, theirs.node_id)
    planned.stream.close()
    early = Planned(graph, tables(), tmp_path)
    stream = early.stream.batches(first_step=0, last_step=LAST)
    next(stream)
    stream.close()
    early.stream.close()
    assert list(tmp_path.iterdir()) == []
