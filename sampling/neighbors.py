"""Uniform neighbour sampling over several relations: seed nodes in, the hops of a mini-batch out.

Stages of one hop and relation, over n known nodes, each its own loop so that cache misses overlap instead of
waiting for one another:

    1. span_rows       node [n] -> first edge and degree in the CSC [n], indptr of the sample [n + 1]
    2. draw_positions  -> position in the CSC [E]: Floyd's algorithm, O(fan-out) per row whatever the degree
    3. gather          -> source id [E]
    4. relabel         -> row of the source in the batch [E]; unseen sources are appended to the node list

Every hop draws for every node known before it, under the key (seed, epoch, step, hop, relation, node): the
neighbourhood of a node never depends on which other seeds share its batch, or on the rank or thread that draws.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sampling.keys import below, draw, fold, step_key, subkey
from storage.errors import BadInput
from storage.graph import RelationCSC, Topology
from storage.jit import kernel

ALL_NEIGHBORS = -1


@dataclass(frozen=True)
class SampledHop:
    """One hop in local rows: R relations, n target rows, E edges (see `sampling.batch.Hop`)."""

    num_targets: int
    num_sources: int
    indptr: NDArray[np.int32]
    """[R, n + 1]"""
    source: NDArray[np.int32]
    """[E]"""
    position: NDArray[np.int64]
    """[E]"""


@dataclass(frozen=True)
class Sample:
    """The nodes of a batch, seeds first, and its hops from the seeds outward."""

    nodes: NDArray[np.int64]
    """[N] global ids (type offset + id)"""
    hops: tuple[SampledHop, ...]


@kernel
def span_rows(
    indptr: NDArray[Any],
    nodes: NDArray[np.int64],
    num_known: int,
    first: int,
    last: int,
    fanout: int,
    base: int,
    begin: NDArray[np.int64],
    degree: NDArray[np.int64],
    sampled: NDArray[np.int32],
) -> int:
    """Fill [begin, degree] of every known node in [first, last) and the running count of draws from `base`."""
    total = base
    sampled[0] = total
    for row in range(num_known):
        node = nodes[row]
        begin[row] = 0
        degree[row] = 0
        if first <= node < last:
            start = np.int64(indptr[node - first])
            size = np.int64(indptr[node - first + 1]) - start
            begin[row] = start
            degree[row] = size
            total += int(size) if fanout < 0 or size < fanout else fanout
        sampled[row + 1] = total
    return total


@kernel
def draw_positions(
    key: np.uint64,
    nodes: NDArray[np.int64],
    num_known: int,
    first: int,
    begin: NDArray[np.int64],
    degree: NDArray[np.int64],
    sampled: NDArray[np.int32],
    position: NDArray[np.int64],
) -> None:
    """Draw each row's edges without replacement (Floyd; Bentley and Floyd, CACM 30(9), 1987)."""
    for row in range(num_known):
        out = np.int64(sampled[row])
        count = np.int64(sampled[row + 1]) - out
        start = begin[row]
        size = degree[row]
        if count == size:
            for number in range(count):
                position[out + number] = start + number
        else:
            row_key = fold(key, nodes[row] - first)
            for number in range(count):
                top = size - count + number
                pick = start + below(draw(row_key, number), top + 1)
                seen = False
                for earlier in range(out, out + number):
                    seen |= position[earlier] == pick
                position[out + number] = start + top if seen else pick


@kernel
def gather(indices: NDArray[Any], position: NDArray[np.int64], offset: int, ids: NDArray[np.int64]) -> None:
    """`ids = offset + indices[position]`."""
    for edge in range(position.shape[0]):
        ids[edge] = np.int64(indices[position[edge]]) + offset


@kernel
def relabel(
    ids: NDArray[np.int64],
    slot: NDArray[np.int32],
    nodes: NDArray[np.int64],
    num_nodes: int,
    source: NDArray[np.int32],
) -> int:
    """Turn global ids into batch rows, appending unseen nodes; returns the new node count.

    Written without a branch on "seen before": which it is cannot be predicted, and a wrong guess costs more
    than a store that repeats what is there.
    """
    for edge in range(ids.shape[0]):
        node = ids[edge]
        row = slot[node]
        fresh = row < 0
        nodes[num_nodes] = node
        row = np.int32(num_nodes) if fresh else row
        slot[node] = row
        source[edge] = row
        num_nodes += int(fresh)
    return num_nodes


@kernel
def enter_seeds(seeds: NDArray[np.int64], slot: NDArray[np.int32], nodes: NDArray[np.int64]) -> int:
    """Give seeds the first rows; returns the number entered before the first repeated one."""
    for row in range(seeds.shape[0]):
        if slot[seeds[row]] >= 0:
            return row
        slot[seeds[row]] = row
        nodes[row] = seeds[row]
    return int(seeds.shape[0])


@kernel
def clear(slot: NDArray[np.int32], nodes: NDArray[np.int64], num_nodes: int) -> None:
    """Forget the rows of a finished batch."""
    for row in range(num_nodes):
        slot[nodes[row]] = -1


class NeighborSampler:
    """Samples mini-batches over one in-memory topology; holds scratch, so each thread has its own.

    Args:
        topology: in-neighbours per relation.
        fanouts: neighbours drawn per relation, from the seeds outward; -1 takes all.
        seed: the run's seed.

    Scratch costs 4 bytes a node of the graph. Source: GraphSAGE (Hamilton, Ying and Leskovec, NeurIPS 2017),
    section 3.1, with DGL's block semantics (every hop expands all nodes known before it).
    """

    def __init__(self, topology: Topology, *, fanouts: Sequence[int], seed: int) -> None:
        for fanout in fanouts:
            if fanout == 0 or fanout < ALL_NEIGHBORS:
                raise BadInput(
                    f"sampling.fanouts={tuple(fanouts)}",
                    f"fan-out {fanout}",
                    rule="every fan-out is >= 1, or -1 for all neighbours",
                    remedy="drop the hop or change the fan-out",
                )
        self.topology = topology
        self.fanouts = tuple(fanouts)
        self.seed = seed
        self._slot = np.full(int(topology.type_offsets[-1]), -1, dtype=np.int32)
        self._nodes = np.empty(1024, dtype=np.int64)

    def sample(self, seeds: NDArray[np.int64], *, epoch: int, step: int) -> Sample:
        """Sample the neighbourhood of `seeds` (int64 [S], distinct global ids) for one step.

        Raises BadInput for a seed outside the graph or given twice.
        """
        self._check_range(seeds)
        num_nodes = 0
        try:
            self._reserve(0, seeds.shape[0])
            num_nodes = enter_seeds(seeds, self._slot, self._nodes)
            if num_nodes < seeds.shape[0]:
                raise BadInput(
                    "seed nodes",
                    f"node {int(seeds[num_nodes])} twice in one batch",
                    rule="the seeds of a batch are distinct",
                    remedy="remove the repeated seed",
                )
            key = step_key(seed=self.seed, epoch=epoch, step=step)
            hops = []
            for hop, fanout in enumerate(self.fanouts):
                sampled, num_nodes = self._sample_hop(subkey(key, hop), fanout, num_nodes)
                hops.append(sampled)
            return Sample(nodes=self._nodes[:num_nodes].copy(), hops=tuple(hops))
        finally:
            clear(self._slot, self._nodes, num_nodes)

    def _sample_hop(self, key: np.uint64, fanout: int, num_known: int) -> tuple[SampledHop, int]:
        relations = self.topology.relations
        begin = np.empty((len(relations), num_known), dtype=np.int64)
        degree = np.empty((len(relations), num_known), dtype=np.int64)
        indptr = np.zeros((len(relations), num_known + 1), dtype=np.int32)
        num_edges = 0
        for index, relation in enumerate(relations):
            first, last = self._target_range(relation)
            num_edges = span_rows(
                relation.indptr, self._nodes, num_known, first, last, fanout, num_edges,
                begin[index], degree[index], indptr[index],
            )  # fmt: skip
        position = np.empty(num_edges, dtype=np.int64)
        source = np.empty(num_edges, dtype=np.int32)
        ids = np.empty(num_edges, dtype=np.int64)
        for index, relation in enumerate(relations):
            first, _ = self._target_range(relation)
            rows = indptr[index]
            draw_positions(
                subkey(key, index), self._nodes, num_known, first, begin[index], degree[index], rows, position
            )
            span = slice(int(rows[0]), int(rows[-1]))
            offset = int(self.topology.type_offsets[relation.source_type])
            gather(relation.indices, position[span], offset, ids[span])
        self._reserve(num_known, num_edges)
        num_nodes = relabel(ids, self._slot, self._nodes, num_known, source)
        hop = SampledHop(num_targets=num_known, num_sources=num_nodes, indptr=indptr, source=source, position=position)
        return hop, num_nodes

    def _target_range(self, relation: RelationCSC) -> tuple[int, int]:
        offsets = self.topology.type_offsets
        return int(offsets[relation.target_type]), int(offsets[relation.target_type + 1])

    def _reserve(self, num_known: int, num_more: int) -> None:
        """Make room for `num_more` nodes; `relabel` writes one place past the last node it keeps."""
        needed = num_known + num_more + 1
        if needed > self._nodes.shape[0]:
            grown = np.empty(max(needed, 2 * self._nodes.shape[0]), dtype=np.int64)
            grown[:num_known] = self._nodes[:num_known]
            self._nodes = grown

    def _check_range(self, seeds: NDArray[np.int64]) -> None:
        num_nodes = self._slot.shape[0]
        outside = np.flatnonzero((seeds < 0) | (seeds >= num_nodes))
        if outside.size:
            raise BadInput(
                f"seed nodes, entry {int(outside[0])}",
                f"global id {int(seeds[outside[0]])} ({outside.size} such seeds)",
                rule=f"ids lie in [0, {num_nodes})",
                remedy="take seeds from this store",
            )
