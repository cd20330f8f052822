"""Grouping and slicing: one large query for several steps' seeds, cut into batches of one step each.

A neighbourhood depends on its node and the key it is drawn under, never on the seeds around it. So a query for the
seeds of G steps under one key holds each of their batches; shared nodes are drawn, and their features fetched, once.
Source: LiGNN (Borisyuk et al., KDD 2024; arXiv 2402.11139), grouping and slicing.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sampling.neighbors import NeighborSampler, Sample, SampledHop
from sampling.seeds import SeedOrder, rank_slice
from storage.jit import kernel


@dataclass(frozen=True)
class Grouping:
    """Steps of an epoch in groups of `steps`; the last group may be smaller.

    All batches of a group are drawn under the key (epoch, number of the group).
    """

    steps: int

    def group_of(self, step: int) -> int:
        """The group of a step."""
        return step // self.steps

    def steps_of(self, group: int, *, steps_per_epoch: int) -> range:
        """The steps of a group."""
        return range(group * self.steps, min((group + 1) * self.steps, steps_per_epoch))


def sample_group(
    sampler: NeighborSampler,
    order: SeedOrder,
    grouping: Grouping,
    *,
    epoch: int,
    group: int,
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[Sample]:
    """Draw the rank's seeds of a whole group at once; yields the sample of each of its steps, in order."""
    shares = [
        rank_slice(order.global_batch(epoch=epoch, step=step), rank=rank, world_size=world_size)
        for step in grouping.steps_of(group, steps_per_epoch=order.steps_per_epoch)
    ]
    whole = sampler.sample(np.concatenate(shares), epoch=epoch, step=group)
    slot = np.full(whole.nodes.shape[0], -1, dtype=np.int32)
    begin = 0
    for share in shares:
        yield cut(whole, begin, begin + share.shape[0], slot)
        begin += share.shape[0]


def cut(whole: Sample, first: int, last: int, slot: NDArray[np.int32]) -> Sample:
    """The part of a sample that its seeds [first, last) reach, with the rows that sampling them alone would give.

    Args:
        slot: int32 [N] of -1, scratch; left as it was.
    """
    rows = np.arange(first, last, dtype=np.int64)  # rows of the whole that are rows of the part, in its order
    slot[first:last] = np.arange(last - first, dtype=np.int32)
    hops = []
    for hop in whole.hops:
        num_known = rows.shape[0]
        indptr = np.empty((hop.indptr.shape[0], num_known + 1), dtype=np.int32)
        num_edges = 0
        for of_relation, counted in zip(hop.indptr, indptr, strict=True):
            num_edges = count_part(of_relation, rows, num_edges, counted)
        source = np.empty(num_edges, dtype=np.int32)
        position = np.empty(num_edges, dtype=np.int64)
        rows = np.concatenate([rows, np.empty(num_edges + 1, dtype=np.int64)])
        known = num_known
        for of_relation, counted in zip(hop.indptr, indptr, strict=True):
            known = copy_part(
                of_relation, hop.source, hop.position, num_known, rows, known, slot, counted, source, position
            )
        rows = rows[:known]
        hops.append(SampledHop(num_known, known, indptr=indptr, source=source, position=position))
    slot[rows] = -1
    return Sample(nodes=whole.nodes[rows], hops=tuple(hops), times=None if whole.times is None else whole.times[rows])


@kernel
def count_part(indptr: NDArray[np.int32], rows: NDArray[np.int64], base: int, out: NDArray[np.int32]) -> int:
    """The running count, from `base`, of the edges of `rows` [n] into `out` [n + 1]; returns its end."""
    total = base
    out[0] = total
    for number in range(rows.shape[0]):
        total += int(indptr[rows[number] + 1] - indptr[rows[number]])
        out[number + 1] = total
    return total


@kernel
def copy_part(
    indptr: NDArray[np.int32],
    whole_source: NDArray[np.int32],
    whole_position: NDArray[np.int64],
    num_targets: int,
    rows: NDArray[np.int64],
    num_known: int,
    slot: NDArray[np.int32],
    counted: NDArray[np.int32],
    source: NDArray[np.int32],
    position: NDArray[np.int64],
) -> int:
    """Copy one relation's edges of the first `num_targets` of `rows`; returns the new number of known rows."""
    for number in range(num_targets):
        edge = indptr[rows[number]]
        for out in range(counted[number], counted[number + 1]):
            old = whole_source[edge]
            row = slot[old]
            if row < 0:
                row = np.int32(num_known)
                slot[old] = row
                rows[num_known] = old
                num_known += 1
            source[out] = row
            position[out] = whole_position[edge]
            edge += 1
    return num_known
