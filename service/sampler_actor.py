"""A sampling process on any machine of a Ray cluster: seeds of a step in, ids and structure out, never features.

    SamplerActor   opens the store where it runs, reads the topology into memory once, draws
    SentSample     what it sends of one rank's batch: narrow arrays, with the degrees and weights of its surroundings
    DrawnThere     the same where it arrives, in memory of that process

Bytes of a batch on the wire: 4 a node; a good byte a node for its degree in each relation and direction; 8 an edge, 4
more in a graph with weights; 4 an expanded node and relation; 8 a node for its time in temporal modes. Ids and
positions of 4 bytes take 8 where they do not fit.
"""

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sampling.assemble import Surroundings, TopologySurroundings
from sampling.drawn import UINT32_END, KeptBatch
from sampling.fanouts import HopFanout
from sampling.kept import KeptArrays, Shelf
from sampling.modes import SamplingMode
from sampling.neighbors import NeighborSampler, Sample, SampledHop
from sampling.packed_rows import spread_degrees
from sampling.packed_sample import ALIGN_BYTES, PackedDegrees
from service.process import keep_freed_memory
from storage.block_cache import BlockCache
from storage.errors import BadInput
from storage.own_memory import own_array
from storage.store import Store

ARRAYS_A_HOP = 3
ARRAYS_A_RELATION = 4


@dataclass(frozen=True)
class SeedSlice:
    """One rank's seeds of a step."""

    epoch: int
    step: int
    seeds: NDArray[np.int64]
    times: NDArray[np.int64] | None
    """of the seeds, in temporal modes"""


@dataclass(frozen=True)
class ActorWork:
    """What an actor samples."""

    store: str
    """URL of the store, as all machines know it"""
    generation: int
    generation_xxh64: str
    block_cache: BlockCache | None
    fanouts: tuple[HopFanout, ...]
    seed: int
    mode: SamplingMode
    """without times of nodes: those of the seeds come with them"""


@dataclass(frozen=True)
class GraphFrame:
    """What is known of a graph without its topology: the ids of its types, and between which its relations are."""

    type_offsets: NDArray[np.int64]
    """[T + 1]"""
    relation_types: tuple[tuple[int, int], ...]
    """[R] source and target type"""

    @classmethod
    def of(cls, store: Store) -> "GraphFrame":
        """That of a store."""
        names = [info.relation for info in store.relations]
        types = tuple((store.type_index(name.source), store.type_index(name.target)) for name in names)
        return cls(store.type_offsets, types)

    def id_range(self, node_type: int) -> tuple[int, int]:
        """Global ids of a type: the first, and one past the last."""
        return int(self.type_offsets[node_type]), int(self.type_offsets[node_type + 1])


@dataclass(frozen=True, eq=False)
class SentSample:
    """One rank's batch on its way."""

    arrays: tuple[NDArray[Any], ...]
    """nodes [N]; indptr, source and position of each hop; small and large in-degrees, small and large out-degrees of
    each relation (`PackedDegrees`); weights [E_h] of each hop where the graph has any; times [N] in temporal modes"""
    hop_rows: tuple[tuple[int, int], ...]
    """[H] rows known before and after"""
    has_weights: bool
    has_times: bool

    @classmethod
    def of(cls, sample: Sample, around: Surroundings, frame: GraphFrame) -> "SentSample":
        """Pack `sample` with what `around` tells of it."""
        nodes = sample.nodes
        arrays: list[NDArray[Any]] = [_narrow(nodes)]
        for hop in sample.hops:
            arrays += [hop.indptr, hop.source, _narrow(hop.position)]
        for in_degree, out_degree, types in zip(*around.degrees(nodes), frame.relation_types, strict=True):
            for degree, node_type in ((in_degree, types[1]), (out_degree, types[0])):
                first, last = frame.id_range(node_type)
                packed = PackedDegrees.of(degree[(nodes >= first) & (nodes < last)])
                arrays += [packed.small, packed.large]
        weights = [around.edge_weights(number, hop) for number, hop in enumerate(sample.hops)]
        known = [weight for weight in weights if weight is not None]
        arrays += known
        if sample.times is not None:
            arrays.append(sample.times)
        rows = tuple((hop.num_targets, hop.num_sources) for hop in sample.hops)
        return cls(tuple(arrays), rows, has_weights=bool(known), has_times=sample.times is not None)


@dataclass(frozen=True)
class SentStep:
    """A step's samples, of each rank asked for."""

    samples: tuple[SentSample, ...]
    seconds: float
    """that drawing took"""


class SamplerActor:
    """What the actor does. It opens the store when it is first asked for something: what goes wrong is then raised
    there, and an actor that Ray has started anew needs to be told nothing.
    """

    def __init__(self, work: ActorWork) -> None:
        keep_freed_memory()
        self._work = work
        self._opened: tuple[NeighborSampler, TopologySurroundings, GraphFrame] | None = None

    def here(self) -> int:
        """The id of its process; the answer says that there is one."""
        return os.getpid()

    def open(self) -> None:
        """Read the topology.

        Raises BadInput when the store is not there, is another one, or lacks what the mode reads.
        """
        self._open()

    def sample(self, slices: Sequence[SeedSlice]) -> SentStep:
        """Draw a step for each of its slices."""
        sampler, around, frame = self._open()
        began = time.perf_counter()
        samples = tuple(
            SentSample.of(
                sampler.sample(
                    part.seeds.copy(),  # what comes through Ray cannot be written to, which kernels are not made for
                    epoch=part.epoch,
                    step=part.step,
                    times=None if part.times is None else part.times.copy(),
                ),
                around,
                frame,
            )
            for part in slices
        )
        return SentStep(samples, time.perf_counter() - began)

    def _open(self) -> tuple[NeighborSampler, TopologySurroundings, GraphFrame]:
        if self._opened is None:
            work = self._work
            store = _open_store(work)
            topology = store.topology()
            sampler = NeighborSampler(topology, fanouts=work.fanouts, seed=work.seed, mode=work.mode)
            self._opened = sampler, TopologySurroundings(topology), GraphFrame.of(store)
        return self._opened


class DrawnThere:
    """A batch that an actor has drawn: a copy in memory of this process, so that nothing is held in Ray's."""

    def __init__(self, sent: SentSample, frame: GraphFrame) -> None:
        self._sent = SentSample((), sent.hop_rows, has_weights=sent.has_weights, has_times=sent.has_times)
        self._frame = frame
        self._arrays = list(_copied(sent.arrays))
        self.nodes: NDArray[Any] = self._arrays[0]
        self.num_edges: int = sum(
            array.shape[0] for array in self._arrays[2 : 1 + ARRAYS_A_HOP * len(sent.hop_rows) : ARRAYS_A_HOP]
        )

    def keep(self, shelf: Shelf) -> KeptBatch:
        """See `sampling.drawn.Drawn`."""
        return _KeptThere(self._sent, self._frame, shelf.keep(self._arrays))


class _KeptThere:
    def __init__(self, sent: SentSample, frame: GraphFrame, kept: KeptArrays) -> None:
        self._sent = sent
        self._frame = frame
        self._kept = kept

    def take(self) -> tuple[Sample, Surroundings]:
        arrays = iter(self._kept.take())
        nodes = next(arrays)
        hops = []
        for num_targets, num_sources in self._sent.hop_rows:
            indptr, source, position = next(arrays), next(arrays), next(arrays)
            hops.append(SampledHop(num_targets, num_sources, indptr, source, position.astype(np.int64, copy=False)))
        degrees = [next(arrays) for _ in range(ARRAYS_A_RELATION * len(self._frame.relation_types))]
        weights = [next(arrays) for _ in hops] if self._sent.has_weights else None
        times = next(arrays) if self._sent.has_times else None
        sample = Sample(nodes=nodes.astype(np.int64, copy=False), hops=tuple(hops), times=times)
        return sample, _SentSurroundings(self._frame, nodes, degrees, weights)


class _SentSurroundings:
    """What a batch is told of the graph, as it came with it."""

    def __init__(
        self,
        frame: GraphFrame,
        nodes: NDArray[Any],
        degrees: Sequence[NDArray[Any]],
        weights: Sequence[NDArray[np.float32]] | None,
    ) -> None:
        self._frame = frame
        self._nodes = nodes
        self._degrees = degrees
        self._weights = weights

    @property
    def type_offsets(self) -> NDArray[np.int64]:
        return self._frame.type_offsets

    def degrees(self, nodes: NDArray[np.int64]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        assert nodes.shape == self._nodes.shape, "degrees are known of this batch's nodes only"
        relations = self._frame.relation_types
        inward = np.empty((len(relations), nodes.shape[0]), dtype=np.int32)
        outward = np.empty_like(inward)
        packed = iter(self._degrees)
        for index, (source, target) in enumerate(relations):
            for node_type, out in ((target, inward[index]), (source, outward[index])):
                spread_degrees(self._nodes, *self._frame.id_range(node_type), next(packed), next(packed), out)
        return inward, outward

    def edge_weights(self, hop: int, sampled: SampledHop) -> NDArray[np.float32] | None:
        return None if self._weights is None else self._weights[hop]


def _open_store(work: ActorWork) -> Store:
    # not `service.run_folder.open_same_store`: with what that imports, a process takes twice as long to start
    store = Store.open(work.store, generation=work.generation, block_cache=work.block_cache)
    if store.generation_xxh64 != work.generation_xxh64:
        raise BadInput(
            f"{work.store}, as a sampling actor sees it",
            f"generation {work.generation} is {store.generation_xxh64}, not {work.generation_xxh64}",
            rule="a run and its sampling actors read the same store",
            remedy="put the store back that the run began with, under the same path or URL on all machines",
        )
    return store


def _narrow(array: NDArray[np.int64]) -> NDArray[Any]:
    """As uint32 where every value fits."""
    return array.astype(np.uint32) if array.size == 0 or array.max() < UINT32_END else array


def _copied(arrays: Sequence[NDArray[Any]]) -> Iterator[NDArray[Any]]:
    """Copies side by side in memory that returns to the system when all of them have gone."""
    room = [-(-array.nbytes // ALIGN_BYTES) * ALIGN_BYTES for array in arrays]
    memory = own_array(sum(room), np.uint8)
    at = 0
    for array, num_bytes in zip(arrays, room, strict=True):
        copy = memory[at : at + array.nbytes].view(array.dtype).reshape(array.shape)
        copy[...] = array
        at += num_bytes
        yield copy
