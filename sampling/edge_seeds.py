"""Seed edges: a global batch of edges of one relation, their ends, drawn negatives, and the pairs no block may hold.

    positions in the CSC [P] -> ends -> negatives [P, K] -> distinct seed nodes [S] for the neighbour sampler

The order of seed edges is a `sampling.seeds.SeedOrder` over positions, which is a pure function of (seed, epoch, step).
What is made here is the whole global batch, the same on every rank; `sampling.seed_share` deals it out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sampling.exclusion import Excluded, Turns, exclude_pairs
from sampling.keys import below, draw, fold, step_key, subkey
from storage.errors import BadInput
from storage.graph import RelationCSC, Topology
from storage.jit import kernel

NEGATIVE_TAG = 0x4E36
"""keeps the keys of negatives apart from those of hops, which fold small numbers under the step's key"""

Side = Literal["source", "target"]


@dataclass(frozen=True)
class EdgeSeeds:
    """A global batch of P seed edges with K negatives each."""

    nodes: NDArray[np.int64]
    """[S] distinct global ids, the seeds to sample; with their times where there are any"""
    times: NDArray[np.int64] | None
    """[S] seed times, of the edges that the nodes belong to; None without times"""
    source: NDArray[np.int64]
    """[P] place of the positive's source in `nodes`"""
    target: NDArray[np.int64]
    """[P] place of the positive's target in `nodes`"""
    negative: NDArray[np.int64]
    """[P, K] places in `nodes` of what takes the place of the positive's source or target"""
    position: NDArray[np.int64]
    """[P] place of the edge in its relation's CSC"""
    excluded: Excluded
    """the pairs of the batch, for the sampler's `exclude`"""
    relation: int
    """number of the edges' relation"""
    side: Side
    """the end that negatives replace"""


@dataclass(frozen=True)
class EdgeSampling:
    """How batches of seed edges are made.

    Args:
        relation: number of the relation whose edges are seeds.
        turns: of every relation (`exclusion.turns_of`).
        seed: the run's seed.
        num_negatives: negatives per positive.
        side: the end that negatives replace.
        candidates: dense ids to draw negatives from; None for every node of the end's type. A negative may by chance be
            a true neighbour.
        timed: seeds carry the times of their edges, for temporal modes.
    """

    topology: Topology
    relation: int
    turns: Sequence[Turns]
    seed: int
    num_negatives: int = 1
    side: Side = "target"
    candidates: NDArray[np.int64] | None = None
    timed: bool = False

    def __post_init__(self) -> None:
        edges = self.topology.relations[self.relation]
        if self.timed and edges.timestamp is None:
            raise BadInput(
                f"seed edges of relation {edges.relation}",
                "no timestamps",
                rule="in temporal modes a seed edge has a time",
                remedy="ingest the relation with a column timestamp, or choose another sampling.mode",
            )
        if self.num_negatives and not self._num_candidates:
            raise BadInput(
                f"negatives of relation {edges.relation}",
                f"no {self.side} nodes to draw from",
                rule="a negative is drawn from at least one node",
                remedy="give other candidates, or no negatives",
            )

    def batch(self, positions: NDArray[np.int64], *, epoch: int, step: int) -> EdgeSeeds:
        """The global batch of edges at `positions` (int64 [P], distinct) of one step.

        Raises BadInput for a position outside the relation.
        """
        edges = self.topology.relations[self.relation]
        source, target = edge_ends(edges, positions)
        excluded = exclude_pairs(source, target, relation=self.relation, turns=self.turns)
        drawn = np.empty((positions.shape[0], self.num_negatives), dtype=np.int64)
        key = subkey(step_key(seed=self.seed, epoch=epoch, step=step), NEGATIVE_TAG, self.relation)
        draw_negatives(key, positions, self._num_candidates, drawn)
        if self.candidates is not None:
            drawn = self.candidates[drawn]
        offsets = self.topology.type_offsets
        first_source, first_target = int(offsets[edges.source_type]), int(offsets[edges.target_type])
        ends = (
            source + first_source,
            target + first_target,
            drawn.ravel() + (first_target if self.side == "target" else first_source),
        )
        times = None
        if self.timed:
            assert edges.timestamp is not None
            of_edges = edges.timestamp[positions]
            times = np.concatenate([of_edges, of_edges, np.repeat(of_edges, self.num_negatives)])
        nodes, node_times, places = distinct(np.concatenate(ends), times)
        count = positions.shape[0]
        return EdgeSeeds(
            nodes=nodes,
            times=node_times,
            source=places[:count],
            target=places[count : 2 * count],
            negative=places[2 * count :].reshape(drawn.shape),
            position=positions,
            excluded=excluded,
            relation=self.relation,
            side=self.side,
        )

    @property
    def _num_candidates(self) -> int:
        if self.candidates is not None:
            return int(self.candidates.shape[0])
        edges = self.topology.relations[self.relation]
        kind = edges.target_type if self.side == "target" else edges.source_type
        return int(self.topology.type_offsets[kind + 1] - self.topology.type_offsets[kind])


def edge_ends(edges: RelationCSC, positions: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Dense source and target ids [P] of the edges at `positions` [P]; BadInput for one outside the relation."""
    num_edges = edges.indices.shape[0]
    outside = np.flatnonzero((positions < 0) | (positions >= num_edges))
    if outside.size:
        raise BadInput(
            f"seed edges of relation {edges.relation}, entry {int(outside[0])}",
            f"position {int(positions[outside[0]])} ({outside.size} such edges)",
            rule=f"positions lie in [0, {num_edges})",
            remedy="take seed edges from this store",
        )
    # in the pointers' own type: of another one numpy would copy all pointers at every call
    target = np.searchsorted(edges.indptr, positions.astype(edges.indptr.dtype), side="right") - 1
    return edges.indices[positions].astype(np.int64), target.astype(np.int64)


def distinct(
    nodes: NDArray[np.int64], times: NDArray[np.int64] | None
) -> tuple[NDArray[np.int64], NDArray[np.int64] | None, NDArray[np.int64]]:
    """Distinct nodes (with times: distinct pairs) in ascending order, and the place of every entry among them."""
    if times is None:
        found, places = np.unique(nodes, return_inverse=True)
        return found, None, places.astype(np.int64)
    order = np.lexsort((times, nodes))
    nodes, times = nodes[order], times[order]
    fresh = np.ones(nodes.shape[0], dtype=np.bool_)
    fresh[1:] = (nodes[1:] != nodes[:-1]) | (times[1:] != times[:-1])
    places = np.empty(nodes.shape[0], dtype=np.int64)
    places[order] = np.cumsum(fresh) - 1
    return nodes[fresh], times[fresh], places


@kernel
def draw_negatives(key: np.uint64, positions: NDArray[np.int64], num_candidates: int, out: NDArray[np.int64]) -> None:
    """Uniform numbers below `num_candidates` into `out` [P, K]; entry k of an edge is keyed by (edge, k)."""
    for row in range(positions.shape[0]):
        edge_key = fold(key, positions[row])
        for number in range(out.shape[1]):
            out[row, number] = below(draw(edge_key, number), num_candidates)
