"""Law: our sampler draws from the distribution that DGL's draws from, on the same graph."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats

from sampling.neighbors import NeighborSampler
from service.message_passing import dgl_kernels
from storage.graph import Topology
from tests.sampling.graphs import one_type_graph

DRAWS = 600
FANOUTS = (3, 2)


def our_counts(graph: Topology, seeds: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """How often each edge is drawn in each hop, from the seeds outward."""
    sampler = NeighborSampler(graph, fanouts=FANOUTS, seed=2)
    counts = [np.zeros(graph.relations[0].indices.size, dtype=np.int64) for _ in FANOUTS]
    for step in range(DRAWS):
        for hop, count in zip(sampler.sample(seeds, epoch=0, step=step).hops, counts, strict=True):
            np.add.at(count, hop.position, 1)
    return counts


def dgl_counts(graph: Topology, seeds: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    import dgl

    relation = graph.relations[0]
    # in 64 bits: with 32-bit ids dgl 1.1.3 expands fewer nodes than it found
    arrays = [torch.from_numpy(array.astype(np.int64)) for array in (relation.indptr, relation.indices)]
    whole = dgl.graph(("csc", (*arrays, torch.empty(0, dtype=torch.int64))))
    sampler = dgl.dataloading.NeighborSampler(list(reversed(FANOUTS)))
    dgl.seed(5)
    counts = [np.zeros(relation.indices.size, dtype=np.int64) for _ in FANOUTS]
    for _ in range(DRAWS):
        _, _, blocks = sampler.sample_blocks(whole, torch.from_numpy(seeds))
        for block, count in zip(reversed(blocks), counts, strict=True):
            np.add.at(count, block.edata[dgl.EID].numpy(), 1)
    return counts


@pytest.mark.skipif(not dgl_kernels.is_available("cpu"), reason="dgl does not load here")
def test_edges_are_drawn_as_often_as_by_dgl_in_every_hop() -> None:
    graph = one_type_graph(num_nodes=40, num_edges=300)
    seeds = np.array([0, 3, 17], dtype=np.int64)
    for ours, theirs in zip(our_counts(graph, seeds), dgl_counts(graph, seeds), strict=True):
        assert abs(int(ours.sum()) - int(theirs.sum())) <= 0.01 * theirs.sum()
        drawn = (ours > 0) & (ours != DRAWS)
        # inclusion counts of one row are negatively correlated, so the statistic is below chi-square's: the test is
        # conservative against false alarms and still fails a sampler that favours some edges
        statistic = ((ours - theirs)[drawn] ** 2 / (ours + theirs)[drawn]).sum()
        assert stats.chi2.sf(statistic, int(drawn.sum())) > 1e-4
