"""A sampled batch in about a third of its bytes, from which the sample is made again when it is served.

Kept are the nodes, where each expanded node's list begins and how long it is, and which edges bring a new node. Drawn
positions are not: they are drawn again, being a pure function of the key, begin and degree.

Bytes of a batch: 4 a node; a good byte a node for its degree in each relation and direction; 4 an expanded node and
relation; an eighth an edge, 4 more for an edge to a node that was there already; 4 an edge of a weighted relation.
Numbers of 4 bytes take 8 where nodes or edges do not fit in them.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sampling.batch_frame import BatchFrame, HopShape, draw_edges, room_of
from sampling.neighbors import Sample, SampledHop
from sampling.packed_rows import (
    count_large,
    pack_degrees,
    spell_sources,
    spread_counts,
    spread_degrees,
    unpack_degrees,
)
from storage.own_memory import own_array

ALIGN_BYTES = 8


@dataclass(frozen=True, eq=False)
class PackedHop:
    """Sources and weights of a hop."""

    shape: HopShape
    fresh: NDArray[np.uint8]
    """a bit an edge: its source is new to the batch"""
    repeats: NDArray[np.int32]
    """rows of the other edges' sources"""
    weight: tuple[NDArray[np.float32] | None, ...]
    """[R] of the relation's edges, where it has weights"""


@dataclass(frozen=True, eq=False)
class PackedDegrees:
    """Degrees of the nodes of a type."""

    small: NDArray[np.uint8]
    large: NDArray[np.int32]

    @classmethod
    def of(cls, degree: NDArray[np.int32]) -> "PackedDegrees":
        """Pack degrees [n]."""
        packed = cls(np.empty(degree.shape[0], dtype=np.uint8), np.empty(count_large(degree), dtype=np.int32))
        pack_degrees(degree, packed.small, packed.large)
        return packed


@dataclass(frozen=True, eq=False)
class BatchArrays:
    """The arrays of a whole batch."""

    nodes: NDArray[Any]
    """[N] global ids"""
    hops: tuple[PackedHop, ...]
    begin: tuple[NDArray[Any], ...]
    """[R] of the expanded nodes that are of the relation's target type"""
    in_degree: tuple[PackedDegrees, ...]
    """[R] of all nodes of its target type"""
    out_degree: tuple[PackedDegrees, ...]
    """[R] of all nodes of its source type"""

    def __iter__(self) -> Iterator[NDArray[Any]]:
        """Every array."""
        yield self.nodes
        for hop in self.hops:
            yield hop.fresh
            yield hop.repeats
            yield from (weight for weight in hop.weight if weight is not None)
        yield from self.begin
        for degrees in (*self.in_degree, *self.out_degree):
            yield degrees.small
            yield degrees.large

    def mapped(self, function: Callable[[NDArray[Any]], NDArray[Any]]) -> "BatchArrays":
        """The same with `function` of every array, called in their order."""

        def of_degrees(found: Sequence[PackedDegrees]) -> tuple[PackedDegrees, ...]:
            return tuple(PackedDegrees(function(degrees.small), function(degrees.large)) for degrees in found)

        return BatchArrays(
            nodes=function(self.nodes),
            hops=tuple(
                PackedHop(
                    hop.shape,
                    fresh=function(hop.fresh),
                    repeats=function(hop.repeats),
                    weight=tuple(None if weight is None else function(weight) for weight in hop.weight),
                )
                for hop in self.hops
            ),
            begin=tuple(function(array) for array in self.begin),
            in_degree=of_degrees(self.in_degree),
            out_degree=of_degrees(self.out_degree),
        )

    @property
    def num_bytes(self) -> int:
        """Of all arrays, each from a multiple of 8 bytes on."""
        return sum(-(-array.nbytes // ALIGN_BYTES) * ALIGN_BYTES for array in self)

    def together(self) -> "BatchArrays":
        """Copies side by side in memory of their own, which returns to the system when all of them have gone."""
        memory = own_array(self.num_bytes, np.uint8)
        used = 0

        def put(array: NDArray[Any]) -> NDArray[Any]:
            nonlocal used
            copy = memory[used : used + array.nbytes].view(array.dtype)
            copy[:] = array
            used += -(-array.nbytes // ALIGN_BYTES) * ALIGN_BYTES
            return copy

        return self.mapped(put)


class PackedSample:
    """One batch, sampled; `sampling.assemble` takes its degrees and weights from here.

    Whoever needs its memory may put `arrays` elsewhere meanwhile; it is made of nothing else that grows.
    """

    def __init__(self, frame: BatchFrame, arrays: BatchArrays) -> None:
        self._frame = frame
        self.arrays = arrays.together()
        self.num_bytes = self.arrays.num_bytes

    @property
    def nodes(self) -> NDArray[Any]:
        """[N] global ids, seeds first; uint32 where they fit, else int64."""
        return self.arrays.nodes

    @property
    def num_edges(self) -> int:
        """Over all hops."""
        return sum(hop.shape.num_edges for hop in self.arrays.hops)

    @property
    def type_offsets(self) -> NDArray[np.int64]:
        """[T + 1]: global ids of type t are [type_offsets[t], type_offsets[t + 1])."""
        return self._frame.type_offsets

    def sample(self) -> Sample:
        """The sample, made anew."""
        degree = []
        for begin, packed in zip(self.arrays.begin, self.arrays.in_degree, strict=True):
            found = np.empty(begin.shape[0], dtype=np.int32)
            unpack_degrees(packed.small, packed.large, found)
            degree.append(found)
        hops = tuple(self._hop(hop, degree) for hop in self.arrays.hops)
        return Sample(nodes=self.nodes.astype(np.int64), hops=hops)

    def _hop(self, hop: PackedHop, degree: Sequence[NDArray[np.int32]]) -> SampledHop:
        shape, frame = hop.shape, self._frame
        targets = self.nodes[: shape.num_targets]
        indptr = np.zeros((len(frame.relations), shape.num_targets + 1), dtype=np.int32)
        position = np.empty(shape.num_edges, dtype=np.int64)
        num_edges = 0
        for index, relation in enumerate(frame.relations):
            rows = slice(0, shape.num_rows[index])
            room = room_of(degree[index][rows], fanout=frame.fanouts[shape.hop][index])
            draw_edges(
                frame,
                index,
                epoch=shape.epoch,
                step=shape.step,
                hop=shape.hop,
                nodes=frame.nodes_of(relation.target_type, targets),
                begin=self.arrays.begin[index][rows],
                degree=degree[index][rows],
                room=room,
                position=position[num_edges:],
            )
            spread_counts(targets, *frame.id_range(relation.target_type), room, num_edges, indptr[index])
            num_edges += int(room[-1])
        source = np.empty(shape.num_edges, dtype=np.int32)
        spell_sources(hop.fresh, hop.repeats, shape.num_targets, source)
        return SampledHop(
            num_targets=shape.num_targets,
            num_sources=shape.num_sources,
            indptr=indptr,
            source=source,
            position=position,
        )

    def degrees(self, nodes: NDArray[np.int64]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """In- and out-degrees [R, N] of the batch's nodes in the whole graph."""
        assert nodes.shape == self.nodes.shape, "degrees are known of this batch's nodes only"
        relations = self._frame.relations
        inward = np.empty((len(relations), nodes.shape[0]), dtype=np.int32)
        outward = np.empty_like(inward)
        for index, relation in enumerate(relations):
            for node_type, packed, out in (
                (relation.target_type, self.arrays.in_degree[index], inward[index]),
                (relation.source_type, self.arrays.out_degree[index], outward[index]),
            ):
                spread_degrees(self.nodes, *self._frame.id_range(node_type), packed.small, packed.large, out)
        return inward, outward

    def edge_weights(self, hop: int, sampled: SampledHop) -> NDArray[np.float32] | None:
        """Weights [E_h] of hop number `hop`, 1 in relations without; None when no relation has any."""
        found = self.arrays.hops[hop].weight
        if all(weight is None for weight in found):
            return None
        weights = np.ones(sampled.position.shape[0], dtype=np.float32)
        for index, weight in enumerate(found):
            if weight is not None:
                weights[sampled.indptr[index, 0] : sampled.indptr[index, -1]] = weight
        return weights
