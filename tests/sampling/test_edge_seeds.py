"""Seed edges: their ends, uniform negatives, dealt out to any number of ranks, and what is refused."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from sampling.edge_seeds import EdgeSampling, Side, distinct, edge_ends
from sampling.exclusion import Turns, exclude_pairs
from sampling.seed_share import edge_share
from sampling.seeds import SeedOrder
from storage.errors import BadInput
from storage.graph import Topology
from tests.sampling.graphs import dressed, one_type_graph, two_type_graph

TURNS = tuple(Turns(same=(number,), turned=()) for number in range(3))


def edges_of(graph: Topology, relation: int) -> list[tuple[int, int]]:
    """(source, target) of every position, by a plain loop."""
    edges = graph.relations[relation]
    return [
        (int(edges.indices[position]), target)
        for target in range(edges.indptr.size - 1)
        for position in range(int(edges.indptr[target]), int(edges.indptr[target + 1]))
    ]


@pytest.mark.parametrize("relation", [0, 1, 2])
def test_a_position_has_the_ends_that_the_csc_says(relation: int) -> None:
    graph = two_type_graph()
    wanted = edges_of(graph, relation)
    source, target = edge_ends(graph.relations[relation], np.arange(len(wanted)))
    assert list(zip(source.tolist(), target.tolist(), strict=True)) == wanted


@pytest.mark.parametrize("relation", [0, 1, 2])
@pytest.mark.parametrize("side", ["source", "target"])
def test_a_batch_names_every_end_once(relation: int, side: Side) -> None:
    graph = two_type_graph()
    kinds = graph.relations[relation]
    sampling = EdgeSampling(graph, relation, TURNS, seed=3, num_negatives=4, side=side)
    positions = np.array([5, 17, 300, 299, 8], dtype=np.int64)
    batch = sampling.batch(positions, epoch=1, step=2)
    assert np.unique(batch.nodes).size == batch.nodes.size
    first_source, first_target = graph.type_offsets[kinds.source_type], graph.type_offsets[kinds.target_type]
    ends = edges_of(graph, relation)
    assert batch.nodes[batch.source].tolist() == [ends[place][0] + first_source for place in positions]
    assert batch.nodes[batch.target].tolist() == [ends[place][1] + first_target for place in positions]
    assert batch.negative.shape == (5, 4)
    kind = kinds.target_type if side == "target" else kinds.source_type
    drawn = batch.nodes[batch.negative]
    assert ((drawn >= graph.type_offsets[kind]) & (drawn < graph.type_offsets[kind + 1])).all()
    used = set(batch.source.tolist()) | set(batch.target.tolist()) | set(batch.negative.ravel().tolist())
    assert used == set(range(batch.nodes.size))
    assert batch.position.tolist() == positions.tolist()


@pytest.mark.parametrize("candidates", [None, np.arange(0, 80, 5)])
def test_negatives_are_uniform_over_the_candidates(candidates: NDArray[np.int64] | None) -> None:
    graph = two_type_graph()
    sampling = EdgeSampling(graph, 0, TURNS, seed=3, num_negatives=20, candidates=candidates)
    counts = np.zeros(80)
    for step in range(30):
        batch = sampling.batch(np.arange(600), epoch=0, step=step)
        np.add.at(counts, batch.nodes[batch.negative].ravel() - 120, 1)
    allowed = np.arange(80) if candidates is None else candidates
    assert counts.sum() == counts[allowed].sum() == 30 * 600 * 20
    assert stats.chisquare(counts[allowed]).pvalue > 1e-4


@pytest.mark.parametrize("world_size", [1, 2, 4, 7, 60])
@pytest.mark.parametrize("timed", [False, True])
def test_ranks_share_the_nodes_and_the_edges_of_a_batch_and_all_exclude_the_whole_of_it(
    world_size: int, timed: bool
) -> None:
    graph = dressed(two_type_graph())
    order = SeedOrder(None, num_nodes=600, seeds_per_step=10, seed=2)
    sampling = EdgeSampling(graph, 0, TURNS, seed=3, num_negatives=3, side="source", timed=timed)
    whole = sampling.batch(order.global_batch(epoch=0, step=4), epoch=0, step=4)
    shares = [edge_share(whole, rank=rank, world_size=world_size) for rank in range(world_size)]
    # ends are places in the list that the ranks' seeds make one after another
    assert np.concatenate([share.nodes for share in shares]).tolist() == whole.nodes.tolist()
    assert {share.num_global for share in shares} == {whole.nodes.size}
    for name in ("source", "target", "negative", "position"):
        together = [row for share in shares if share.pairs for row in getattr(share.pairs, name).tolist()]
        assert together == getattr(whole, name).tolist()
    for share in shares:
        assert share.exclude == (whole.excluded,)
        assert share.pairs is not None
        assert (share.pairs.relation, share.pairs.replaces_source) == (0, True)
        assert (share.times is None) == (not timed)
    if whole.times is not None:
        times = [share.times for share in shares if share.times is not None]
        assert np.concatenate(times).tolist() == whole.times.tolist()


def test_in_temporal_modes_a_node_is_a_seed_at_the_time_of_each_of_its_edges() -> None:
    graph = dressed(one_type_graph())
    edges = graph.relations[0]
    assert edges.timestamp is not None
    positions = np.arange(0, 1500, 11)
    batch = EdgeSampling(graph, 0, TURNS[:1], seed=3, num_negatives=2, timed=True).batch(positions, epoch=0, step=0)
    assert batch.times is not None
    pairs = list(zip(batch.nodes.tolist(), batch.times.tolist(), strict=True))
    assert len(set(pairs)) == len(pairs)
    for places in (batch.source, batch.target, batch.negative[:, 0], batch.negative[:, 1]):
        assert batch.times[places].tolist() == edges.timestamp[positions].tolist()


def test_a_step_draws_other_negatives_and_the_same_one_again_the_same() -> None:
    sampling = EdgeSampling(one_type_graph(), 0, TURNS[:1], seed=3, num_negatives=5)
    positions = np.arange(50)
    first, again, later = (sampling.batch(positions, epoch=0, step=step) for step in (0, 0, 1))
    assert first.nodes[first.negative].tolist() == again.nodes[again.negative].tolist()
    assert first.nodes[first.negative].tolist() != later.nodes[later.negative].tolist()


def test_no_negatives_and_no_edges_are_batches_too() -> None:
    graph = one_type_graph()
    batch = EdgeSampling(graph, 0, TURNS[:1], seed=3, num_negatives=0).batch(np.arange(5), epoch=0, step=0)
    assert batch.negative.shape == (5, 0)
    empty = EdgeSampling(graph, 0, TURNS[:1], seed=3).batch(np.arange(0), epoch=0, step=0)
    assert empty.nodes.size == 0
    assert empty.excluded.pairs == (None,)


def test_distinct_pairs_are_numbered() -> None:
    nodes, times = np.array([5, 3, 5, 5, 3]), np.array([1, 9, 0, 1, 9])
    found, found_times, places = distinct(nodes, times)
    assert found_times is not None
    assert list(zip(found.tolist(), found_times.tolist(), strict=True)) == [(3, 9), (5, 0), (5, 1)]
    assert places.tolist() == [2, 0, 1, 2, 0]


def test_what_means_nothing_is_refused() -> None:
    graph = two_type_graph()
    with pytest.raises(BadInput, match=r"relation t0:a:t1, entry 1: position 600 \(2 such edges\)"):
        EdgeSampling(graph, 0, TURNS, seed=0).batch(np.array([3, 600, -1]), epoch=0, step=0)
    with pytest.raises(BadInput, match="no timestamps"):
        EdgeSampling(graph, 0, TURNS, seed=0, timed=True)
    with pytest.raises(BadInput, match="no target nodes to draw from"):
        EdgeSampling(graph, 0, TURNS, seed=0, candidates=np.empty(0, dtype=np.int64))
    with pytest.raises(BadInput, match="2 sources and 3 targets"):
        exclude_pairs(np.arange(2), np.arange(3), relation=0, turns=TURNS)
