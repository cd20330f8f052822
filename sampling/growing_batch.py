"""A batch of which some hops are sampled: what it asks of the stored topology next, and what it makes of the answers.

    1. unspanned  -> nodes not looked up yet; their first edge and degree come back               add_spans
    2. draw       -> positions of the next hop's edges; the sources there come back               absorb
    3. pack       when all hops are there, with the nodes' out-degrees

State: 4 bytes a node, 8 an expanded node and relation, 4.1 an edge at most.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sampling.batch_frame import BatchFrame, HopShape, Step, draw_edges, room_of
from sampling.packed_rows import count_in, enter_rows, take_sources
from sampling.packed_sample import BatchArrays, PackedDegrees, PackedHop, PackedSample
from storage.errors import BadInput
from storage.own_memory import own_array, own_copy

MIN_ROWS = 1024


class GrowingBatch:
    """The sample of one step, hop after hop.

    Raises BadInput for a seed outside the graph or given twice.
    """

    def __init__(self, frame: BatchFrame, step: Step) -> None:
        self._frame = frame
        self._step = step
        self.nodes: NDArray[Any] = _checked_seeds(step.seeds, int(frame.type_offsets[-1])).astype(frame.node_dtype)
        self._num_spanned = 0
        self._hops: list[PackedHop] = []
        self._begin = [np.empty(0, dtype=relation.indptr.dtype) for relation in frame.relations]
        self._degree = [np.empty(0, dtype=np.int32) for _ in frame.relations]

    @property
    def is_whole(self) -> bool:
        """Whether every hop is there."""
        return len(self._hops) == len(self._frame.fanouts)

    @property
    def num_bytes(self) -> int:
        """Memory of the state."""
        hops = [array for hop in self._hops for array in (hop.fresh, hop.repeats, *hop.weight)]
        return sum(array.nbytes for array in (self.nodes, *hops, *self._begin, *self._degree) if array is not None)

    def count_unspanned(self, relation: int) -> int:
        """Nodes that the relation may have edges into and that were not looked up yet."""
        first, last = self._frame.id_range(self._frame.relations[relation].target_type)
        return count_in(self.nodes[self._num_spanned :], first, last)

    def unspanned(self, ids: NDArray[Any], *, relation: int) -> None:
        """Write their dense ids."""
        self._write_ids(self._frame.relations[relation].target_type, self.nodes[self._num_spanned :], ids)

    def count_sources(self, relation: int) -> int:
        """Nodes that the relation may have edges out of."""
        return count_in(self.nodes, *self._frame.id_range(self._frame.relations[relation].source_type))

    def sources(self, ids: NDArray[Any], *, relation: int) -> None:
        """Write their dense ids."""
        self._write_ids(self._frame.relations[relation].source_type, self.nodes, ids)

    def _write_ids(self, node_type: int, nodes: NDArray[Any], ids: NDArray[Any]) -> None:
        first, _ = self._frame.id_range(node_type)
        np.subtract(self._frame.nodes_of(node_type, nodes), first, out=ids, casting="unsafe")

    def add_spans(self, begin: Sequence[NDArray[Any]], degree: Sequence[NDArray[np.int32]]) -> None:
        """First edge and degree of what `unspanned` gave for each relation [R]; no first edges for a whole batch."""
        for index in range(len(degree)):
            self._degree[index] = own_copy(self._degree[index], degree[index])
            if not self.is_whole:
                self._begin[index] = own_copy(self._begin[index], begin[index])
        self._num_spanned = self.nodes.shape[0]

    def count_draws(self, relation: int) -> int:
        """Edges of the relation in the next hop."""
        return int(self._room(relation)[-1])

    def draw(self, position: NDArray[Any], *, relation: int) -> None:
        """Draw their positions."""
        draw_edges(
            self._frame,
            relation,
            epoch=self._step.epoch,
            step=self._step.step,
            hop=len(self._hops),
            nodes=self._frame.nodes_of(self._frame.relations[relation].target_type, self.nodes),
            begin=self._begin[relation],
            degree=self._degree[relation],
            room=self._room(relation),
            position=position,
        )

    def _room(self, relation: int) -> NDArray[np.int32]:
        return room_of(self._degree[relation], fanout=self._frame.fanouts[len(self._hops)][relation])

    def absorb(
        self, ids: Sequence[NDArray[Any]], weight: Sequence[NDArray[np.float32] | None], scratch: "AbsorbScratch"
    ) -> None:
        """Enter the hop's sources: complements of dense ids at the positions drawn, and weights there, [R] each."""
        num_known = self.nodes.shape[0]
        num_edges = sum(found.shape[0] for found in ids)
        scratch.reserve(num_known + num_edges)
        nodes, table, shift, repeats = scratch.nodes, scratch.table, scratch.shift, scratch.repeats
        nodes[:num_known] = self.nodes
        enter_rows(nodes, num_known, table, shift)
        fresh = np.zeros(-(-num_edges // 8), dtype=np.uint8)
        num_nodes, first_edge = num_known, 0
        for relation, found in zip(self._frame.relations, ids, strict=True):
            offset, _ = self._frame.id_range(relation.source_type)
            num_nodes = take_sources(
                found, offset, table, shift, nodes, num_nodes, first_edge, fresh, repeats,
                first_edge - (num_nodes - num_known),
            )  # fmt: skip
            first_edge += found.shape[0]
        shape = HopShape(
            epoch=self._step.epoch,
            step=self._step.step,
            hop=len(self._hops),
            num_targets=num_known,
            num_sources=num_nodes,
            num_edges=num_edges,
            num_rows=tuple(degree.shape[0] for degree in self._degree),
        )
        num_repeats = num_edges - (num_nodes - num_known)
        kept = tuple(None if found is None else own_copy(found) for found in weight)
        self._hops.append(PackedHop(shape, fresh, own_copy(repeats[:num_repeats]), kept))
        self.nodes = own_copy(nodes[:num_nodes])

    def pack(self, out_degree: Sequence[NDArray[np.int32]]) -> PackedSample:
        """The whole batch; `out_degree` [R] of what `sources` gave."""
        return PackedSample(
            self._frame,
            BatchArrays(
                nodes=self.nodes,
                hops=tuple(self._hops),
                begin=tuple(self._begin),
                in_degree=tuple(PackedDegrees.of(degree) for degree in self._degree),
                out_degree=tuple(PackedDegrees.of(degree) for degree in out_degree),
            ),
        )


class AbsorbScratch:
    """Memory of one thread for the sources of one hop of one batch; it grows to the largest."""

    def __init__(self, node_dtype: np.dtype[Any]) -> None:
        self._node_dtype = node_dtype
        self._reserved = 0
        self._table = np.empty(0, dtype=np.int32)
        self.reserve(MIN_ROWS)

    def reserve(self, num_rows: int) -> None:
        """Make room for a batch of so many nodes and edges, with an empty table of rows, at most half full."""
        if num_rows > self._reserved:
            self._reserved = num_rows + num_rows // 8
            self.nodes = own_array(self._reserved, self._node_dtype)
            self.repeats: NDArray[np.int32] = own_array(self._reserved, np.int32)
        bits = (2 * max(num_rows, MIN_ROWS) - 1).bit_length()
        if 1 << bits > self._table.shape[0]:
            self._table = own_array(1 << bits, np.int32)
        self.shift = 64 - bits
        self.table = self._table[: 1 << bits]
        self.table.fill(-1)


def _checked_seeds(seeds: NDArray[np.int64], num_nodes: int) -> NDArray[np.int64]:
    outside = np.flatnonzero((seeds < 0) | (seeds >= num_nodes))
    if outside.size:
        raise BadInput(
            f"seed nodes, entry {int(outside[0])}",
            f"global id {int(seeds[outside[0]])} ({outside.size} such seeds)",
            rule=f"ids lie in [0, {num_nodes})",
            remedy="take seeds from this store",
        )
    scratch = AbsorbScratch(seeds.dtype)
    scratch.reserve(seeds.shape[0])
    twice = enter_rows(seeds, seeds.shape[0], scratch.table, scratch.shift)
    if twice >= 0:
        raise BadInput(
            "seed nodes",
            f"node {int(seeds[twice])} twice in one batch",
            rule="the seeds of a batch are distinct",
            remedy="remove the repeated seed",
        )
    return seeds
