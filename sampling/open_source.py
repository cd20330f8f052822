"""Opening what samples: threads over a topology in memory, sweeps over one on disk, or somebody else's."""

from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass

from sampling.assemble import TopologySurroundings
from sampling.batch_size import NUM_LOOKED_AT, BatchSize, batch_size
from sampling.edge_seeds import EdgeSampling
from sampling.fanouts import HopFanout
from sampling.memory_split import MIB, TOPOLOGY_WORK_BYTES, MemorySplit
from sampling.modes import SamplingMode
from sampling.neighbors import NeighborSampler
from sampling.seeds import SeedOrder
from sampling.sources import DiskSource, SampleSource, ThreadSource
from sampling.superbatch_sampler import SuperbatchSampler
from storage.graph import Topology
from storage.schema import EdgeSegment, FileInfo
from storage.store import Store
from storage.stored_topology import StoredTopology

SWEEP_BYTES = 64 << 20
"""of batches that are sampled at once from a topology on disk, in their last hop"""
SWEEP_NODE_BYTES = 7
"""of each of their nodes"""
SWEEP_SHARE = 0.5
"""of a superbatch's batches are sampled in one sweep of a topology on disk"""
LOOK_CACHE_BYTES = 64 * MIB


@dataclass(frozen=True)
class Served:
    """Which seeds a source samples for."""

    order: SeedOrder
    ranks: Sequence[int]
    world_size: int
    edges: EdgeSampling | None = None
    """makes batches of seed edges, of the topology in memory; None where seeds are nodes"""


class SourceOpener:
    """Samples of one store, seed and mode, before and after memory has been divided.

    Args:
        topology: in memory already; None where that is not decided.
        given: samples elsewhere instead; closed by whoever made it.
    """

    def __init__(
        self,
        store: Store,
        *,
        fanouts: Sequence[HopFanout],
        seed: int,
        mode: SamplingMode,
        served: Served,
        topology: Topology | None,
        given: SampleSource | None,
    ) -> None:
        self._store = store
        self._fanouts = fanouts
        self._seed = seed
        self._mode = mode
        self._served = served
        self._topology: Topology | StoredTopology | None = topology
        self._given = given

    @property
    def num_bytes(self) -> int:
        """Of the topology, were it all in memory here."""
        return 0 if self._given is not None else topology_bytes(self._store)

    def look(self, fanouts: Sequence[HopFanout]) -> BatchSize:
        """How large batches are with some fan-outs; while none are streamed."""
        offsets = self._store.type_offsets
        if self._given is not None and fanouts == self._fanouts:
            return batch_size(self._given, num_hops=len(fanouts), type_offsets=offsets)
        with ExitStack() as looking:
            topology = self._topology
            if topology is None:
                topology = looking.enter_context(
                    StoredTopology(self._store, cache_bytes=LOOK_CACHE_BYTES, max_gap_bytes=0)
                )
            source = looking.enter_context(closing(self._over(topology, fanouts, threads=1, sweep=NUM_LOOKED_AT)))
            return batch_size(source, num_hops=len(fanouts), type_offsets=offsets)

    def open(
        self, split: MemorySplit, *, batch_nodes: float, num_threads: int, max_gap_bytes: int, opened: ExitStack
    ) -> SampleSource:
        """What the stream samples from, closed by `opened`; `batch_nodes` are those of a batch, of all ranks served."""
        if self._given is not None:
            return self._given
        if split.topology == "memory":
            self._topology = self._topology or self._store.topology()
            source = self._over(self._topology, self._fanouts, threads=num_threads, sweep=1)
        else:
            cache = split.topology_bytes - TOPOLOGY_WORK_BYTES
            self._topology = opened.enter_context(
                StoredTopology(self._store, cache_bytes=cache, max_gap_bytes=max_gap_bytes)
            )
            most = SWEEP_BYTES / (SWEEP_NODE_BYTES * max(1.0, batch_nodes))
            sweep = max(1, int(min(split.batches_per_superbatch * SWEEP_SHARE, most)))
            source = self._over(self._topology, self._fanouts, threads=num_threads, sweep=sweep)
        opened.callback(source.close)
        return source

    def _over(
        self, topology: Topology | StoredTopology, fanouts: Sequence[HopFanout], *, threads: int, sweep: int
    ) -> SampleSource:
        served = self._served
        if isinstance(topology, StoredTopology):
            return DiskSource(
                SuperbatchSampler(topology, fanouts=fanouts, seed=self._seed, num_threads=threads),
                order=served.order,
                ranks=served.ranks,
                world_size=served.world_size,
                batches_per_sweep=sweep,
            )
        return ThreadSource(
            lambda: NeighborSampler(topology, fanouts=fanouts, seed=self._seed, mode=self._mode),
            TopologySurroundings(topology),
            order=served.order,
            ranks=served.ranks,
            world_size=served.world_size,
            num_threads=threads,
            edges=served.edges,
        )


def topology_bytes(store: Store) -> int:
    """Of the graph in memory."""
    return sum(file.num_bytes for info in store.relations for segment in info.segments for file in edge_files(segment))


def edge_files(segment: EdgeSegment) -> list[FileInfo]:
    """The files of an edge segment."""
    found = (segment.indptr, segment.indices, segment.out_degree, segment.weight, segment.timestamp)
    return [file for file in found if file is not None]
