"""Temporal draws: edges strictly before the seed's time only, and a row for every node and seed time."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from scipy import stats

from sampling.modes import ModeName, SamplingMode
from sampling.neighbors import ALL_NEIGHBORS, NeighborSampler
from storage.errors import BadInput
from storage.graph import Topology
from tests.sampling.graphs import dressed, one_type_graph, rows_of_sources, two_type_graph

NAMES: tuple[ModeName, ...] = ("temporal-uniform", "temporal-latest")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("graph", [dressed(one_type_graph()), dressed(two_type_graph())])
@pytest.mark.parametrize("fanouts", [(3, 2), (ALL_NEIGHBORS, 4, 1), (2, ALL_NEIGHBORS)])
def test_no_edge_is_later_than_the_seed_it_is_drawn_for(
    name: ModeName, graph: Topology, fanouts: tuple[int, ...]
) -> None:
    rng = np.random.default_rng(1)
    seeds = np.array([3, 3, 8, 150, 11, 8, 99, 42, 3], dtype=np.int64)
    times = np.array([10, 20, 0, 51, 25, 25, 1, 49, 30], dtype=np.int64)
    sampler = NeighborSampler(graph, fanouts=fanouts, seed=1, mode=SamplingMode(name))
    for step in range(5):
        order = rng.permutation(seeds.size)
        sample = sampler.sample(seeds[order], epoch=0, step=step, times=times[order])
        assert sample.times is not None
        rows = list(zip(sample.nodes.tolist(), sample.times.tolist(), strict=True))
        assert rows[: seeds.size] == list(zip(seeds[order].tolist(), times[order].tolist(), strict=True))
        assert len(set(rows)) == len(rows)
        num_known = seeds.size
        for hop, fanout in zip(sample.hops, fanouts, strict=True):
            assert hop.num_targets == num_known
            for number, relation in enumerate(graph.relations):
                assert relation.timestamp is not None
                first = int(graph.type_offsets[relation.target_type])
                for row in range(num_known):
                    positions = hop.position[hop.indptr[number, row] : hop.indptr[number, row + 1]].tolist()
                    sources = hop.source[hop.indptr[number, row] : hop.indptr[number, row + 1]].tolist()
                    node, time = rows[row]
                    if not 0 <= node - first < relation.indptr.size - 1:
                        assert positions == []
                        continue
                    begin, end = relation.indptr[node - first : node - first + 2].tolist()
                    allowed = [edge for edge in range(begin, end) if relation.timestamp[edge] < time]
                    assert len(set(positions)) == len(positions)
                    assert set(positions) <= set(allowed)
                    assert len(positions) == (len(allowed) if fanout < 0 else min(fanout, len(allowed)))
                    if name == "temporal-latest" and fanout > 0:
                        assert positions == allowed[-fanout:]
                    offset = int(graph.type_offsets[relation.source_type])
                    assert [rows[source] for source in sources] == [
                        (int(relation.indices[edge]) + offset, time) for edge in positions
                    ]
            num_known = hop.num_sources
        assert num_known == len(rows)


def test_every_edge_before_the_time_is_drawn_equally_often_and_later_ones_never() -> None:
    num_rows, degree, fanout, before = 20_000, 10, 3, 7
    graph = rows_of_sources(
        [list(range(degree))] * num_rows, num_sources=degree, timestamp=[list(range(0, 2 * degree, 2))] * num_rows
    )
    seeds = np.arange(degree, degree + num_rows, dtype=np.int64)
    times = np.full(num_rows, 2 * before - 1)
    sampler = NeighborSampler(graph, fanouts=(fanout,), seed=1, mode=SamplingMode("temporal-uniform"))
    drawn = sampler.sample(seeds, epoch=0, step=0, times=times).hops[0].position.reshape(num_rows, fanout) % degree
    sets = Counter(tuple(sorted(row)) for row in drawn.tolist())
    assert drawn.max() == before - 1
    assert len(sets) == 35
    assert stats.chisquare(list(sets.values())).pvalue > 1e-4


def test_an_edge_at_the_time_itself_is_not_before_it() -> None:
    graph = rows_of_sources([[0, 1, 2, 3]], num_sources=4, timestamp=[[5, 7, 7, 9]])
    for name in NAMES:
        sampler = NeighborSampler(graph, fanouts=(ALL_NEIGHBORS,), seed=1, mode=SamplingMode(name))
        drawn = {
            time: sampler.sample(np.array([4]), epoch=0, step=0, times=np.array([time])).hops[0].position.tolist()
            for time in (-(2**63), 5, 6, 7, 8, 10, 2**63 - 1)
        }
        assert [len(positions) for positions in drawn.values()] == [0, 0, 1, 1, 3, 4, 4]


def test_the_draws_of_one_node_at_two_times_are_independent() -> None:
    graph = rows_of_sources([list(range(1000))], num_sources=1000, timestamp=[[0] * 1000])
    sampler = NeighborSampler(graph, fanouts=(20,), seed=1, mode=SamplingMode("temporal-uniform"))
    sample = sampler.sample(np.full(5, 1000), epoch=0, step=0, times=np.arange(1, 6))
    drawn = [set(row.tolist()) for row in sample.hops[0].position.reshape(5, 20)]
    assert all(len(one & other) < 10 for one, other in pairwise(drawn))
    alone = sampler.sample(np.array([1000]), epoch=0, step=0, times=np.array([3]))
    assert set(alone.hops[0].position.tolist()) == drawn[2]


def test_times_come_from_the_nodes_where_none_are_given() -> None:
    graph = dressed(one_type_graph())
    node_times = np.random.default_rng(0).integers(0, 50, 200)
    seeds = np.array([7, 3, 150], dtype=np.int64)
    mode = SamplingMode("temporal-latest", node_times=node_times)
    implied = NeighborSampler(graph, fanouts=(3, 2), seed=1, mode=mode).sample(seeds, epoch=0, step=0)
    given = NeighborSampler(graph, fanouts=(3, 2), seed=1, mode=SamplingMode("temporal-latest")).sample(
        seeds, epoch=0, step=0, times=node_times[seeds]
    )
    assert implied.nodes.tolist() == given.nodes.tolist()
    assert implied.times is not None
    assert implied.times[:3].tolist() == node_times[seeds].tolist()
    assert [hop.position.tolist() for hop in implied.hops] == [hop.position.tolist() for hop in given.hops]


def test_what_a_temporal_mode_lacks_is_refused() -> None:
    seeds = np.array([1, 2], dtype=np.int64)
    mode = SamplingMode("temporal-uniform")
    with pytest.raises(BadInput, match=r"relation t0:a:t1 has no timestamps \(3 such relations\)"):
        NeighborSampler(two_type_graph(), fanouts=(3,), seed=1, mode=mode)
    with pytest.raises(BadInput, match="relation t1:b:t0 has no timestamps"):
        NeighborSampler(two_type_graph(), fanouts=({"t1:b:t0": 1},), seed=1, mode=mode)
    sampler = NeighborSampler(dressed(two_type_graph()), fanouts=(3,), seed=1, mode=mode)
    with pytest.raises(BadInput, match="no seed times"):
        sampler.sample(seeds, epoch=0, step=0)
    with pytest.raises(BadInput, match="3 times of 2 seeds"):
        sampler.sample(seeds, epoch=0, step=0, times=np.zeros(3, dtype=np.int64))
    with pytest.raises(BadInput, match="node 1 at time 5 twice"):
        sampler.sample(np.array([1, 1, 1]), epoch=0, step=0, times=np.array([5, 6, 5]))
    with pytest.raises(BadInput, match=r"sampling\.mode=uniform: times of 2 seeds"):
        NeighborSampler(two_type_graph(), fanouts=(3,), seed=1).sample(seeds, epoch=0, step=0, times=seeds)
    # and the sampler is as good as new afterwards
    assert sampler.sample(np.array([1]), epoch=0, step=0, times=np.array([5])).nodes[0] == 1


def test_a_relation_without_times_is_no_hindrance_where_it_is_not_used() -> None:
    graph = dressed(two_type_graph())
    bare = Topology(
        node_types=graph.node_types,
        type_offsets=graph.type_offsets,
        relations=(*graph.relations[:1], two_type_graph().relations[1], *graph.relations[2:]),
    )
    mode = SamplingMode("temporal-uniform")
    sampler = NeighborSampler(bare, fanouts=({"t0:a:t1": 3, "t0:c:t0": 2},), seed=1, mode=mode)
    hop = sampler.sample(np.arange(200), epoch=0, step=0, times=np.full(200, 25)).hops[0]
    assert hop.indptr[1, 0] == hop.indptr[1, -1] > 0
    assert hop.indptr[2, -1] > hop.indptr[2, 0]
