"""A store and a budget in, a running stream out: looks at a few real batches, divides the memory, opens the tiers.

store, order, fan-outs -> batch sizes     a few batches, sampled
batch sizes, budget    -> memory split    sampling.memory_split
memory split           -> source, tables  sampling.sources, sampling.planned_table
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sampling.batch_size import NUM_LOOKED_AT, BatchSize, batch_bytes, table_needs
from sampling.device_rows import tables_behind
from sampling.edge_seeds import EdgeSampling
from sampling.fanouts import HopFanout
from sampling.memory_split import (
    HEADROOM,
    KEPT_BYTES,
    PACK_THREADS,
    MemorySplit,
    StreamNeeds,
    TopologyPlace,
    split_memory,
)
from sampling.modes import UNIFORM, SamplingMode
from sampling.open_source import Served, SourceOpener, topology_bytes
from sampling.planned_table import Packing, PlannedTable
from sampling.sample_space import SampleSpace
from sampling.seed_share import SeedShares
from sampling.seeds import SeedOrder
from sampling.shared_memory import FeatureMemory
from sampling.sources import SampleSource
from sampling.stream import Stream
from storage.disk_speed import DiskSpeed, disk_speed
from storage.features import StoredFeatures
from storage.graph import Topology
from storage.progress import NoProgress, Progress
from storage.read_pool import ReadPool
from storage.store import Store

WAITING_SHARE = 1 / 16
"""of the budget: finished batches that wait"""
MOST_WAITING = 8
"""disks pause for several batches at times; what waits lets the consumer go on meanwhile"""
SURELY_SMALL = 0.3
"""of the budget: a topology of at most this is read into memory before anything is known of the batches"""


@dataclass(frozen=True)
class StreamSettings:
    """What a stream may use."""

    memory_bytes: int
    """of this process, for everything"""
    process_bytes: int
    """of them, what it has in use already"""
    scratch_folder: str
    """local folder for packs and waiting samples"""
    step_bytes: Callable[[BatchSize], int] = lambda _: 0
    """what a training step takes"""
    topology: TopologyPlace = "auto"
    cache_bytes: int | None = None
    """for feature rows; None for all that remains"""
    topology_cache_bytes: int | None = None
    """for the hottest adjacency of a topology on disk; None for a share"""
    batches_per_superbatch: int | None = None
    """None for as many as memory allows"""
    packing: Packing = "auto"
    num_threads: int = 1
    queue_batches: int | None = None
    """finished batches that may wait; None for as many as a share of memory holds"""
    device_rows: Sequence[int] | None = None
    """of each node type, kept on the training device and not served; the same for all ranks of a host"""


@dataclass(frozen=True)
class OpenStream:
    """A stream, and how it came to be as it is."""

    stream: Stream
    split: MemorySplit
    split_of: Callable[[int], MemorySplit]
    """what another budget would be divided into"""
    needs: StreamNeeds
    batch: BatchSize
    speed: DiskSpeed
    look: Callable[[Sequence[HopFanout]], BatchSize]
    """how large batches are with other fan-outs; while no batches are streamed"""

    def trace(self, num_steps: int) -> list[list[NDArray[np.int64]]]:
        """Rows of each table [T][num_steps] that the first batches ask for; while no batches are streamed."""
        found: list[list[NDArray[np.int64]]] = [[] for _ in self.stream.tables]
        for drawn in self.stream.source.samples(0, num_steps):
            for index, rows in enumerate(found):
                asked = [self.stream.rows_of(batch.nodes, index).astype(np.int64) for batch in drawn]
                rows.append(asked[0] if len(asked) == 1 else np.unique(np.concatenate(asked)))
        return found


def open_stream(
    store: Store,
    *,
    order: SeedOrder,
    fanouts: Sequence[HopFanout],
    seed: int,
    settings: StreamSettings,
    opened: ExitStack,
    mode: SamplingMode = UNIFORM,
    ranks: Sequence[int] = (0,),
    world_size: int = 1,
    num_steps: int | None = None,
    make_source: Callable[[], SampleSource] | None = None,
    make_edges: Callable[[Topology], EdgeSampling] | None = None,
    memory: FeatureMemory | None = None,
    progress: Progress | None = None,
) -> OpenStream:
    """Open everything between a store and its mini-batches; what was opened is closed by `opened`.

    Args:
        num_steps: how many batches will be asked for, where that is known.
        make_source: samples elsewhere, instead of from a topology here.
        make_edges: where seeds are edges, makes what makes batches of them; the topology is then in memory here.
        memory: what the features of batches are written to; None for memory of the stream's own.

    Raises BadInput for a budget in which nothing works.
    """
    progress = progress or NoProgress()
    progress.stage("measure disk", total=1, unit="disks")
    speed = disk_speed(settings.scratch_folder)
    progress.advance(1)
    progress.stage("read topology", total=1, unit="graphs")
    given = None if make_source is None else make_source()
    if given is not None:
        opened.callback(given.close)
    topology = None
    if make_edges is not None:
        topology = store.topology()
    elif make_source is None:
        topology = _topology_if_small(store, settings, mode)
    edges = None if make_edges is None or topology is None else make_edges(topology)
    sources = SourceOpener(
        store,
        fanouts=fanouts,
        seed=seed,
        mode=mode,
        served=Served(order, ranks, world_size, edges),
        topology=topology,
        given=given,
    )
    progress.advance(1)
    progress.stage("look at batches", total=NUM_LOOKED_AT, unit="batches")
    batch = sources.look(fanouts)
    progress.advance(NUM_LOOKED_AT)
    stored: list[StoredFeatures | None] = []
    for kind in store.node_types:
        file = store.features(kind.name, max_gap_bytes=speed.gap_bytes)
        stored.append(file if file is None else opened.enter_context(closing(file)))
    on_device = settings.device_rows or [0] * len(stored)
    tables, batch = tables_behind(stored, on_device), batch.behind(on_device)
    bytes_of_batch = batch_bytes(batch, tables, num_relations=len(store.relations))
    needs = StreamNeeds(
        process_bytes=settings.process_bytes + settings.step_bytes(batch),
        num_nodes=int(store.type_offsets[-1]),
        topology_bytes=sources.num_bytes,
        tables=tuple(table_needs(table, seen) for table, seen in zip(tables, batch.seen, strict=True)),
        batch_bytes=bytes_of_batch,
        num_threads=settings.num_threads,
        queue_batches=_waiting_batches(settings, bytes_of_batch, is_fed=memory is not None),
        num_steps=num_steps or order.steps_per_epoch,
    )

    def split_of(memory_bytes: int) -> MemorySplit:
        return split_memory(
            needs,
            memory_bytes=memory_bytes,
            topology="memory" if edges is not None else _place(store, settings, mode),
            cache_bytes=settings.cache_bytes,
            topology_cache_bytes=settings.topology_cache_bytes,
        )

    split = split_of(settings.memory_bytes)
    source = sources.open(
        split,
        batch_nodes=batch.num_nodes,
        num_threads=settings.num_threads,
        max_gap_bytes=speed.gap_bytes,
        opened=opened,
    )
    space = SampleSpace(memory_bytes=KEPT_BYTES, folder=settings.scratch_folder)
    pool = ReadPool(num_threads=PACK_THREADS)
    opened.callback(pool.close)
    progress.stage("fill host cache", total=len(tables), unit="tables")
    planned: list[PlannedTable | None] = []
    for table, share in zip(tables, split.tables, strict=True):
        planned.append(
            None
            if table is None or share is None
            else PlannedTable(
                table,
                num_static=share.num_static,
                num_slots=share.num_slots,
                landing_bytes=share.landing_bytes,
                chunk_bytes=share.chunk_bytes,
                folder=settings.scratch_folder,
                speed=speed,
                pool=pool,
                space=space,
                packing=settings.packing,
            )
        )
        progress.advance(1)
    stream = Stream(
        source,
        type_offsets=store.type_offsets,
        order=order,
        tables=planned,
        space=space,
        batches_per_superbatch=settings.batches_per_superbatch or split.batches_per_superbatch,
        ranks=ranks,
        queue_batches=needs.queue_batches,
        device_rows=on_device,
        memory=memory,
        shares=SeedShares(order, world_size, edges),
    )
    return OpenStream(stream, split, split_of, needs, batch, speed, sources.look)


def _waiting_batches(settings: StreamSettings, bytes_of_batch: int, *, is_fed: bool) -> int:
    """Finished batches that may wait; of a feeder's stream one, as a feeder has a queue of its own behind it."""
    if settings.queue_batches is not None or is_fed:
        return settings.queue_batches or 1
    fitting = int(WAITING_SHARE * settings.memory_bytes / (HEADROOM * max(1, bytes_of_batch)))
    return max(1, min(MOST_WAITING, fitting))


def _place(store: Store, settings: StreamSettings, mode: SamplingMode) -> TopologyPlace:
    """Where the topology is to be, as far as that is known before the batches are."""
    small = topology_bytes(store) <= SURELY_SMALL * (settings.memory_bytes - settings.process_bytes)
    return "memory" if mode.name != "uniform" or (small and settings.topology == "auto") else settings.topology


def _topology_if_small(store: Store, settings: StreamSettings, mode: SamplingMode) -> Topology | None:
    fits = topology_bytes(store) <= settings.memory_bytes - settings.process_bytes  # else the budget is refused below
    return store.topology() if fits and _place(store, settings, mode) == "memory" else None
