"""What one rank takes of a global batch: the seed nodes that it samples and, where seeds are edges, its pairs.

Of a batch of edges the distinct end nodes are dealt out, and the edges by themselves. So every node of the global batch
is a seed of one rank alone, however many edges it has: statistics over seeds are those of one rank, and no state is
computed twice. The states of a pair's ends may then be another rank's; they are gathered before pairs are decoded. All
ranks exclude the pairs of the whole batch: an edge that is a target on one rank is in no other rank's blocks either.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from sampling.batch import SeedPairs
from sampling.edge_seeds import EdgeSampling, EdgeSeeds
from sampling.exclusion import Excluded
from sampling.seeds import SeedOrder, rank_slice


@dataclass(frozen=True)
class SeedShare:
    """What a sampler is asked for, and what it does not need to know."""

    nodes: NDArray[np.int64]
    """[S] distinct global ids; with their times where there are any"""
    num_global: int
    """seed nodes of the global batch over all ranks"""
    times: NDArray[np.int64] | None = None
    """[S] seed times, where the batch has its own"""
    exclude: tuple[Excluded, ...] = ()
    """pairs of the global batch whose edges no hop may hold"""
    pairs: SeedPairs | None = None
    """where seeds are edges"""


@dataclass(frozen=True)
class SeedShares:
    """Which seeds every rank has at every step: a pure function of both.

    Args:
        order: of nodes, or of edges by their places in the CSC of the relation of `edges`.
        edges: makes batches of seed edges; None where seeds are nodes.
    """

    order: SeedOrder
    world_size: int = 1
    edges: EdgeSampling | None = None

    def at(self, run_step: int, ranks: Sequence[int]) -> list[SeedShare]:
        """Of each of `ranks`, at a step counted over all epochs."""
        epoch, step = self.order.place_of(run_step)
        whole = self.order.global_batch(epoch=epoch, step=step)
        if self.edges is None:
            return [node_share(whole, rank=rank, world_size=self.world_size) for rank in ranks]
        batch = self.edges.batch(whole, epoch=epoch, step=step)
        return [edge_share(batch, rank=rank, world_size=self.world_size) for rank in ranks]

    def of_edges(self, run_step: int, ranks: Sequence[int]) -> list[SeedShare] | list[None]:
        """The same where seeds are edges, else None for each rank: what a batch is told beside its sample.

        A stream computes it again instead of keeping it with samples that wait: that is a sort of the step's ends.
        """
        return [None for _ in ranks] if self.edges is None else self.at(run_step, ranks)


def node_share(batch: NDArray[np.int64], *, rank: int, world_size: int) -> SeedShare:
    """Rank `rank`'s share of a global batch of seed nodes (int64 [S], global ids)."""
    return SeedShare(nodes=rank_slice(batch, rank=rank, world_size=world_size), num_global=batch.shape[0])


def edge_share(batch: EdgeSeeds, *, rank: int, world_size: int) -> SeedShare:
    """Rank `rank`'s share of a global batch of seed edges."""
    own = rank_slice(np.arange(batch.source.shape[0], dtype=np.int64), rank=rank, world_size=world_size)
    source, target, negative, position = (
        torch.from_numpy(values[own]) for values in (batch.source, batch.target, batch.negative, batch.position)
    )
    return SeedShare(
        nodes=rank_slice(batch.nodes, rank=rank, world_size=world_size),
        num_global=batch.nodes.shape[0],
        times=None if batch.times is None else rank_slice(batch.times, rank=rank, world_size=world_size),
        exclude=(batch.excluded,),
        pairs=SeedPairs(
            source=source,
            target=target,
            negative=negative,
            position=position,
            relation=batch.relation,
            replaces_source=batch.side == "source",
        ),
    )
