"""Batches of seed edges of small graphs, made as the loader makes them: order apart, from the topology in memory."""

import numpy as np
import torch
from numpy.typing import NDArray

from sampling.assemble import assemble
from sampling.batch import MiniBatch
from sampling.edge_seeds import EdgeSampling, EdgeSeeds, Side
from sampling.exclusion import turns_of
from sampling.neighbors import ALL_NEIGHBORS, NeighborSampler
from sampling.seed_share import edge_share
from storage.graph import RelationCSC, Topology
from storage.schema import Relation, RelationInfo
from tests.service.batches import SmallGraph

SEED = 5


def topology_of(graph: SmallGraph) -> Topology:
    """The graph as a topology in memory."""
    return Topology(
        node_types=tuple(kind.name for kind in graph.schema.node_types),
        type_offsets=np.cumsum([0, *graph.num_nodes], dtype=np.int64),
        relations=tuple(
            RelationCSC(
                relation=Relation.parse(info.name),
                source_type=info.source_type,
                target_type=info.target_type,
                indptr=graph.indptr[number].astype(np.int32),
                indices=graph.indices[number].astype(np.int32),
                out_degree=graph.out_degree(number).astype(np.int32),
                weight=None if graph.weight is None else graph.weight[number],
                timestamp=None,
            )
            for number, info in enumerate(graph.schema.relations)
        ),
    )


def edge_sampling(graph: SmallGraph, relation: int, *, num_negatives: int, side: Side) -> EdgeSampling:
    """What makes batches of one relation's edges."""
    names = [Relation.parse(info.name) for info in graph.schema.relations]
    infos = [
        RelationInfo.model_construct(
            relation=name,
            reverse_of=None if info.reverse_of is None else names[info.reverse_of],
            num_edges=0,
            has_weight=False,
            has_timestamp=False,
            segments=(),
        )
        for name, info in zip(names, graph.schema.relations, strict=True)
    ]
    return EdgeSampling(
        topology_of(graph), relation, turns_of(infos), seed=SEED, num_negatives=num_negatives, side=side
    )


def edge_batch(
    graph: SmallGraph,
    seeds: EdgeSeeds,
    *,
    num_hops: int,
    fanout: int = ALL_NEIGHBORS,
    rank: int = 0,
    world_size: int = 1,
    dtype: torch.dtype = torch.float64,
) -> MiniBatch:
    """One rank's mini-batch of a global batch of seed edges."""
    topology = topology_of(graph)
    share = edge_share(seeds, rank=rank, world_size=world_size)
    sampler = NeighborSampler(topology, fanouts=(fanout,) * num_hops, seed=SEED)
    sample = sampler.sample(share.nodes, epoch=0, step=0, exclude=share.exclude)

    def features(kind: int, table: NDArray[np.float64] | None) -> torch.Tensor | None:
        first, last = topology.type_offsets[kind : kind + 2]
        rows = sample.nodes[(sample.nodes >= first) & (sample.nodes < last)] - first
        return None if table is None else torch.from_numpy(table[rows]).to(dtype)

    return assemble(
        topology,
        sample,
        epoch=0,
        step=0,
        num_seeds=share.nodes.shape[0],
        num_seeds_global=share.num_global,
        features=tuple(features(kind, table) for kind, table in enumerate(graph.features)),
        pairs=share.pairs,
    )
