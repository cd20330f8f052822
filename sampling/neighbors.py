"""Neighbour sampling over several relations: seed nodes in, the hops of a mini-batch out.

Stages of one hop and relation, over n known rows, each its own loop so that cache misses overlap instead of
waiting for one another:

    1. span_rows   row [n] -> begin and degree in the CSC [n], places for drawn edges [n + 1]
    2. choose      -> position in the CSC [E], as the mode says (sampling.choose)
    3. gather      -> source id [E]
    4. drop_pairs  -> without excluded edges, where pairs are excluded (sampling.exclusion)
    5. extend      -> row of the source in the batch [E]; unseen sources are appended to the node list

Every hop draws for every row known before it, under the key (seed, epoch, step, hop, relation, node): the
neighbourhood of a node never depends on which other seeds share its batch, or on the rank or thread that draws.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sampling.batch_rows import BatchRows, NodeRows, TimedRows
from sampling.choose import EdgeLists, HopMoment, Rows, choose, narrow
from sampling.exclusion import Excluded, drop_pairs
from sampling.fanouts import ALL_NEIGHBORS, HopFanout, fanouts_by_relation, used_relations
from sampling.modes import UNIFORM, SamplingMode, check_columns, check_seed_times, check_weights
from sampling.ppr_rows import draw_ppr_hop
from sampling.row_kernels import (
    count_up,
    gather,
    pack_rows,
    span_rows,
)
from storage.errors import BadInput
from storage.graph import Topology

__all__ = ["ALL_NEIGHBORS", "NeighborSampler", "Sample", "SampledHop"]


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
    """[N] global ids (type offset + id); in temporal modes a node has a row for every seed time it is reached from"""
    hops: tuple[SampledHop, ...]
    times: NDArray[np.int64] | None = None
    """[N] the seed time of every row; None but in temporal modes"""


class NeighborSampler:
    """Samples mini-batches over one in-memory topology; holds scratch, so each thread has its own.

    Args:
        topology: in-neighbours per relation.
        fanouts: neighbours drawn per relation, from the seeds outward; -1 takes all. A hop may name its relations
            (`sampling.fanouts`).
        seed: the run's seed.
        mode: which neighbours are drawn.

    Scratch costs 4 bytes a node of the graph, in temporal modes as much as the largest batch. Source: GraphSAGE
    (Hamilton, Ying and Leskovec, NeurIPS 2017), section 3.1, with DGL's block semantics (every hop expands all nodes
    known before it). Raises BadInput for fan-outs that mean nothing and a graph that lacks what the mode reads.
    """

    def __init__(
        self, topology: Topology, *, fanouts: Sequence[HopFanout], seed: int, mode: SamplingMode = UNIFORM
    ) -> None:
        names = [relation.relation for relation in topology.relations]
        self.topology = topology
        self.fanouts = fanouts_by_relation(fanouts, names)
        self.seed = seed
        self.mode = mode
        timed = [relation.timestamp is not None for relation in topology.relations]
        check_columns(mode, names, timed=timed, fanouts=self.fanouts)
        if mode.name == "weighted":
            for number in used_relations(self.fanouts):
                check_weights(names[number], topology.relations[number].weight)
        self._num_nodes = int(topology.type_offsets[-1])
        self._rows: BatchRows = TimedRows() if mode.is_temporal else NodeRows(self._num_nodes)
        self._lists = tuple(
            EdgeLists(relation.indices, relation.weight, relation.timestamp) for relation in topology.relations
        )

    def sample(
        self,
        seeds: NDArray[np.int64],
        *,
        epoch: int,
        step: int,
        times: NDArray[np.int64] | None = None,
        exclude: Sequence[Excluded] = (),
    ) -> Sample:
        """Sample the neighbourhood of `seeds` (int64 [S], distinct global ids) for one step.

        Args:
            seeds: distinct; in temporal modes distinct with their times.
            epoch, step: what the draws are keyed by.
            times: [S] of the seeds, in temporal modes; None takes them from the mode's `node_times`.
            exclude: pairs whose edges no hop may hold.

        Raises BadInput for a seed outside the graph or given twice, and for missing times.
        """
        self._check_range(seeds)
        times = check_seed_times(self.mode, seeds, times)
        try:
            num_entered = self._rows.enter(seeds, times)
            if num_entered < seeds.shape[0]:
                at = "" if times is None else f" at time {int(times[num_entered])}"
                raise BadInput(
                    "seed nodes",
                    f"node {int(seeds[num_entered])}{at} twice in one batch",
                    rule="the seeds of a batch are distinct",
                    remedy="remove the repeated seed",
                )
            hops = tuple(
                self._sample_hop(HopMoment(self.seed, epoch, step, hop), fanouts, exclude)
                for hop, fanouts in enumerate(self.fanouts)
            )
            last = self._rows.num_rows
            return Sample(
                nodes=self._rows.nodes[:last].copy(),
                hops=hops,
                times=None if self._rows.times is None else self._rows.times[:last].copy(),
            )
        finally:
            self._rows.reset()

    def _sample_hop(self, moment: HopMoment, fanouts: Sequence[int], exclude: Sequence[Excluded]) -> SampledHop:
        num_known = self._rows.num_rows
        indptr = np.zeros((len(fanouts), num_known + 1), dtype=np.int32)
        rows = self._span(indptr, fanouts)
        position = np.empty(int(indptr[-1, -1]) if rows else 0, dtype=np.int64)
        counts = self._choose(moment, rows, fanouts, position)
        if any(count is not None for count in counts):
            position = position[: close_gaps(indptr, counts, position)]
        ids = np.empty(position.shape[0], dtype=np.int64)
        for index, relation in enumerate(self.topology.relations):
            span = slice(int(indptr[index, 0]), int(indptr[index, -1]))
            gather(relation.indices, position[span], self._first_source(index), ids[span])
        if exclude:
            counts = self._drop(rows, exclude, ids, position)
            end = close_gaps(indptr, counts, ids, position)
            ids, position = ids[:end], position[:end]
        source = np.empty(ids.shape[0], dtype=np.int32)
        self._rows.extend(ids, indptr, source)
        return SampledHop(num_known, self._rows.num_rows, indptr=indptr, source=source, position=position)

    def _span(self, indptr: NDArray[np.int32], fanouts: Sequence[int]) -> list[Rows]:
        """Every relation's rows [R], with their places counted in `indptr` [R, n + 1]."""
        num_known = self._rows.num_rows
        begin = np.empty((len(fanouts), num_known), dtype=np.int64)
        degree = np.empty((len(fanouts), num_known), dtype=np.int64)
        nodes, times = self._rows.nodes[:num_known], self._rows.times
        found = []
        base = 0
        for index, relation in enumerate(self.topology.relations):
            first, last = self._targets(index)
            end = span_rows(
                relation.indptr, nodes, num_known, first, last, fanouts[index], base,
                begin[index], degree[index], indptr[index],
            )  # fmt: skip
            rows = Rows(
                nodes=nodes,
                times=None if times is None else times[:num_known],
                first=first,
                begin=begin[index],
                degree=degree[index],
                room=indptr[index],
            )
            if self.mode.is_temporal:
                end = narrow(self.mode, rows, self._lists[index], fanout=fanouts[index], base=base)
            base = end
            found.append(rows)
        return found

    def _choose(
        self, moment: HopMoment, rows: Sequence[Rows], fanouts: Sequence[int], position: NDArray[np.int64]
    ) -> list[NDArray[np.int32] | None]:
        """Fill the rows' places in `position`; per relation how many places each row fills, None for all."""
        if self.mode.name == "ppr":
            draw_ppr_hop(self.mode.walks, moment, self.topology, rows, position, fanouts=fanouts)
            return [None] * len(rows)
        return [
            choose(
                self.mode, moment, rows[index], self._lists[index], position,
                relation=index, source_type=relation.source_type,
            )
            for index, relation in enumerate(self.topology.relations)
        ]  # fmt: skip

    def _drop(
        self, rows: Sequence[Rows], exclude: Sequence[Excluded], ids: NDArray[np.int64], position: NDArray[np.int64]
    ) -> list[NDArray[np.int32] | None]:
        """Take excluded edges out of the rows' entries of `ids` and `position`; what each row has left."""
        counts: list[NDArray[np.int32] | None] = []
        for index, spans in enumerate(rows):
            count = np.diff(spans.room)
            for excluded in exclude:
                pairs = excluded.pairs[index]
                if pairs is not None:
                    drop_pairs(
                        spans.nodes, spans.first, self._first_source(index), pairs.target, pairs.source,
                        spans.room, count, ids, position,
                    )  # fmt: skip
            counts.append(count)
        return counts

    def _targets(self, index: int) -> tuple[int, int]:
        """Global ids of the targets of relation `index`: the first, and one past the last."""
        kind = self.topology.relations[index].target_type
        return int(self.topology.type_offsets[kind]), int(self.topology.type_offsets[kind + 1])

    def _first_source(self, index: int) -> int:
        """Global id of the first source of relation `index`."""
        return int(self.topology.type_offsets[self.topology.relations[index].source_type])

    def _check_range(self, seeds: NDArray[np.int64]) -> None:
        outside = np.flatnonzero((seeds < 0) | (seeds >= self._num_nodes))
        if outside.size:
            raise BadInput(
                f"seed nodes, entry {int(outside[0])}",
                f"global id {int(seeds[outside[0]])} ({outside.size} such seeds)",
                rule=f"ids lie in [0, {self._num_nodes})",
                remedy="take seeds from this store",
            )


def close_gaps(
    indptr: NDArray[np.int32], counts: Sequence[NDArray[np.int32] | None], *entries: NDArray[np.int64]
) -> int:
    """Move every row's filled entries together and count them in `indptr` [R, n + 1]; returns how many there are.

    Args:
        counts: [R] of [n], how many of a row's places are filled, from the first; None for all.
        entries: arrays of one entry a place.
    """
    end = base = 0
    for rows, given in zip(indptr, counts, strict=True):
        count = np.diff(rows) if given is None else given
        for values in entries:
            end = pack_rows(rows, count, base, values)
        count_up(count, base, rows)
        base = end
    return end
