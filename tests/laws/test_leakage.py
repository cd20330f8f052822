"""Law: no edge between a target or held-out pair, parallel or turned round in the reverse, is in any block."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sampling.edge_seeds import EdgeSampling
from sampling.exclusion import exclude_pairs, turns_of
from sampling.modes import ModeName, SamplingMode
from sampling.neighbors import ALL_NEIGHBORS, NeighborSampler, Sample
from sampling.seed_share import edge_share
from sampling.seeds import SeedOrder
from storage.graph import RelationCSC, Topology
from storage.schema import Relation, RelationInfo
from tests.sampling.graphs import topology_of

FORTH, BACK, SAME, OTHER = (
    Relation("t0", "forth", "t1"), Relation("t1", "back", "t0"), Relation("t0", "same", "t0"),
    Relation("t0", "other", "t1"),
)  # fmt: skip
REVERSE_OF = {FORTH: None, BACK: FORTH, SAME: SAME, OTHER: None}
RELATIONS = tuple(REVERSE_OF)
TYPE_OF = {"t0": 0, "t1": 1}
SIZES = (6, 5)
MODES: tuple[ModeName, ...] = ("uniform", "weighted", "temporal-uniform", "temporal-latest", "labor", "ppr")

Pair = tuple[int, int]
Edges = list[Pair]


def relation_csc(relation: Relation, edges: Edges) -> RelationCSC:
    """A CSC with times by (source + target), so that each list is sorted by time and then by source."""
    sources, targets = SIZES[TYPE_OF[relation.source]], SIZES[TYPE_OF[relation.target]]
    ordered = sorted(edges, key=lambda edge: (edge[1], edge[0] + edge[1], edge[0]))
    source = np.array([edge[0] for edge in ordered], dtype=np.int32)
    target = np.array([edge[1] for edge in ordered], dtype=np.int64)
    return RelationCSC(
        relation=relation,
        source_type=TYPE_OF[relation.source],
        target_type=TYPE_OF[relation.target],
        indptr=np.concatenate([[0], np.cumsum(np.bincount(target, minlength=targets))]).astype(np.int32),
        indices=source,
        out_degree=np.bincount(source, minlength=sources).astype(np.int32),
        weight=np.ones(len(edges), dtype=np.float32),
        timestamp=source + target,
    )


def multigraph(forth: Edges, same: Edges, other: Edges) -> Topology:
    """The given edges with the reverses that a store keeps for them."""
    turned = [(target, source) for source, target in forth]
    both = [*same, *[(target, source) for source, target in same]]
    return topology_of(
        SIZES, *(relation_csc(*pair) for pair in zip(RELATIONS, (forth, turned, both, other), strict=True))
    )


def infos() -> list[RelationInfo]:
    """What a store says about the relations, without their files."""
    return [
        RelationInfo.model_construct(
            relation=name, reverse_of=turned, num_edges=0, has_weight=False, has_timestamp=False, segments=()
        )
        for name, turned in REVERSE_OF.items()
    ]


def forbidden(relation: Relation, pairs: set[Pair]) -> dict[Relation, set[Pair]]:
    """What may be in no block, spelled out by relation."""
    turned = {(target, source) for source, target in pairs}
    return {
        FORTH: {FORTH: pairs, BACK: turned},
        BACK: {BACK: pairs, FORTH: turned},
        SAME: {SAME: pairs | turned},
        OTHER: {OTHER: pairs},
    }[relation]


def edges_of_blocks(graph: Topology, sample: Sample) -> list[tuple[int, Relation, Pair, int]]:
    """(hop, relation, (source, target), row) of every sampled edge, by dense ids."""
    found = []
    for number, hop in enumerate(sample.hops):
        for index, relation in enumerate(graph.relations):
            for row in range(hop.num_targets):
                for edge in range(int(hop.indptr[index, row]), int(hop.indptr[index, row + 1])):
                    source = int(sample.nodes[hop.source[edge]] - graph.type_offsets[relation.source_type])
                    target = int(sample.nodes[row] - graph.type_offsets[relation.target_type])
                    assert int(relation.indices[hop.position[edge]]) == source
                    found.append((number, relation.relation, (source, target), row))
    return found


def drawn_edges(source_type: int, target_type: int) -> st.SearchStrategy[Edges]:
    pair = st.tuples(st.integers(0, SIZES[source_type] - 1), st.integers(0, SIZES[target_type] - 1))
    return st.lists(pair, min_size=1, max_size=25)  # of 30 pairs: parallel edges are common


@settings(max_examples=60, deadline=None)
@given(
    forth=drawn_edges(0, 1),
    same=drawn_edges(0, 0),
    other=drawn_edges(0, 1),
    relation=st.integers(0, 3),
    world_size=st.sampled_from([1, 2, 4]),
    mode=st.sampled_from(MODES),
    fanout=st.sampled_from([1, 2, 3, ALL_NEIGHBORS]),
    held_out=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_no_target_or_held_out_pair_is_in_a_block_of_any_rank(
    forth: Edges, same: Edges, other: Edges, relation: int, world_size: int, mode: ModeName, fanout: int,
    held_out: bool, seed: int,
) -> None:  # fmt: skip
    graph = multigraph(forth, same, other)
    turns = turns_of(infos())
    edges = graph.relations[relation]
    sampling_mode = SamplingMode(mode)
    sampler = NeighborSampler(graph, fanouts=(fanout, fanout), seed=seed, mode=sampling_mode)
    sampling = EdgeSampling(graph, relation, turns, seed=seed, num_negatives=2, timed=sampling_mode.is_temporal)
    order = SeedOrder(None, num_nodes=edges.indices.size, seeds_per_step=4, seed=seed)
    positions = order.global_batch(epoch=0, step=0)
    targets = np.searchsorted(edges.indptr, positions, side="right") - 1
    absent = forbidden(edges.relation, set(zip(edges.indices[positions].tolist(), targets.tolist(), strict=True)))
    always = []
    if held_out:  # the first edges of another relation than the seeds'
        kept_out: NDArray[np.int64] = np.array([forth, forth, same, other][relation - 1][:3], dtype=np.int64)
        name = (FORTH, FORTH, SAME, OTHER)[relation - 1]
        always.append(exclude_pairs(kept_out[:, 0], kept_out[:, 1], relation=RELATIONS.index(name), turns=turns))
        for of_relation, pairs in forbidden(name, {(int(source), int(target)) for source, target in kept_out}).items():
            absent[of_relation] = absent.get(of_relation, set()) | pairs
    batch = sampling.batch(positions, epoch=0, step=0)
    for rank in range(world_size):
        share = edge_share(batch, rank=rank, world_size=world_size)
        sample = sampler.sample(share.nodes, epoch=0, step=0, times=share.times, exclude=(*always, *share.exclude))
        blocks = edges_of_blocks(graph, sample)
        for _, name, pair, _ in blocks:
            assert pair not in absent.get(name, set())
        # nothing else is lost: with whole neighbourhoods every other in-edge is there
        if fanout == ALL_NEIGHBORS and mode == "uniform":
            for number, hop in enumerate(sample.hops):
                for index, csc in enumerate(graph.relations):
                    for row in range(hop.num_targets):
                        target = int(sample.nodes[row] - graph.type_offsets[csc.target_type])
                        if 0 <= target < csc.indptr.size - 1:
                            own = csc.indices[csc.indptr[target] : csc.indptr[target + 1]].tolist()
                            wanted = [s for s in own if (s, target) not in absent.get(csc.relation, set())]
                            got = [
                                pair[0] for hop_number, name, pair, at in blocks
                                if (hop_number, name, at) == (number, csc.relation, row)
                            ]  # fmt: skip
                            assert got == wanted
                        assert hop.indptr[index, 0] <= hop.indptr[index, -1]
        # nodes that only dropped edges lead to are not in the batch
        reached = set(range(share.nodes.size)) | {int(row) for hop in sample.hops for row in hop.source}
        assert reached == set(range(sample.nodes.size))


@pytest.mark.parametrize("mode", MODES)
def test_without_exclusion_the_same_blocks_do_leak(mode: ModeName) -> None:
    edges = [(0, 0), (0, 0), (1, 0), (2, 1)]
    graph = multigraph(edges, [(0, 1)], [(3, 3)])
    sampling_mode = SamplingMode(mode)
    sampling = EdgeSampling(graph, 0, turns_of(infos()), seed=1, timed=False)
    batch = sampling.batch(np.array([0]), epoch=0, step=0)
    times = np.full(batch.nodes.size, 99) if sampling_mode.is_temporal else None
    sampler = NeighborSampler(graph, fanouts=(ALL_NEIGHBORS,), seed=1, mode=sampling_mode)
    absent = forbidden(FORTH, {(0, 0)})

    def leaks(sample: Sample) -> int:
        return sum(pair in absent.get(name, set()) for _, name, pair, _ in edges_of_blocks(graph, sample))

    assert leaks(sampler.sample(batch.nodes, epoch=0, step=0, times=times)) >= 4
    assert leaks(sampler.sample(batch.nodes, epoch=0, step=0, times=times, exclude=(batch.excluded,))) == 0
