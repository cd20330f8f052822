"""LABOR draws: one variate a source, the smallest win, uniform edge by edge, fewer nodes, slowly turning variates."""

import math
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from sampling.choose import HopMoment
from sampling.draw_labor import LAST, turn, word_limit
from sampling.keys import draw
from sampling.modes import SamplingMode
from sampling.neighbors import NeighborSampler
from sampling.normals import normal
from tests.sampling.graphs import one_type_graph, rows_of_sources, two_type_graph

LABOR = SamplingMode("labor")
DEGREE, FANOUT = 12, 5


def exact_variates(*, num_sources: int, step: int, dependency: int, seed: int, hop: int = 0) -> NDArray[np.float64]:
    """The paper's formula, Phi included, by scipy, from the words of the two periods."""
    moment = HopMoment(seed=seed, epoch=0, step=step, hop=hop)
    normals = []
    for period in (step // dependency, step // dependency + 1):
        key = moment.variate_key(period=period, source_type=0)
        words = np.array([int(draw(key, source)) >> 11 for source in range(num_sources)], dtype=np.float64)
        normals.append(stats.norm.ppf((words + 0.5) / 2**53))
    angle = math.pi / 2 * (step % dependency) / dependency
    variates: NDArray[np.float64] = stats.norm.cdf(math.cos(angle) * normals[0] + math.sin(angle) * normals[1])
    return variates


@pytest.mark.parametrize(("step", "dependency"), [(0, 1), (3, 1), (8, 8), (9, 8), (12, 8), (15, 8), (70, 64)])
@pytest.mark.parametrize("fanout", [1, 5, 40])
def test_every_row_keeps_its_sources_of_smallest_variate(step: int, dependency: int, fanout: int) -> None:
    rng = np.random.default_rng(step)
    lists = [sorted(rng.choice(500, size, replace=False).tolist()) for size in (0, 1, 5, 40, 41, 300, 500)]
    graph = rows_of_sources(lists, num_sources=500)
    sampler = NeighborSampler(graph, fanouts=(fanout,), seed=3, mode=SamplingMode("labor", batch_dependency=dependency))
    hop = sampler.sample(np.arange(500, 507), epoch=0, step=step).hops[0]
    variates = exact_variates(num_sources=500, step=step, dependency=dependency, seed=3)
    for row, sources in enumerate(lists):
        drawn = graph.relations[0].indices[hop.position[hop.indptr[0, row] : hop.indptr[0, row + 1]]]
        assert sorted(drawn.tolist()) == sorted(sorted(sources, key=lambda source: variates[source])[:fanout])


def test_parallel_edges_share_their_sources_variate_and_fill_the_places_in_order() -> None:
    graph = rows_of_sources([[0, 0, 0, 1, 1, 1]], num_sources=2)
    sampler = NeighborSampler(graph, fanouts=(4,), seed=1, mode=LABOR)
    for step in range(30):
        position = sampler.sample(np.array([2]), epoch=0, step=step).hops[0].position.tolist()
        assert position in ([0, 1, 2, 3], [0, 3, 4, 5])


@pytest.mark.parametrize("dependency", [1, 4])
def test_every_edge_is_drawn_equally_often_in_every_phase(dependency: int) -> None:
    graph = rows_of_sources([list(range(DEGREE))], num_sources=DEGREE)
    sampler = NeighborSampler(graph, fanouts=(FANOUT,), seed=9, mode=SamplingMode("labor", batch_dependency=dependency))
    draws = 3000
    for phase in range(dependency):
        counts = np.zeros(DEGREE)
        for period in range(draws):
            sample = sampler.sample(np.array([DEGREE]), epoch=0, step=2 * period * dependency + phase)
            counts[sample.hops[0].position] += 1
        expected = draws * FANOUT / DEGREE
        # as in the sampler law: inclusion counts are negatively correlated
        statistic = ((counts - expected) ** 2).sum() / (expected * (1 - FANOUT / DEGREE)) * (DEGREE - 1) / DEGREE
        assert stats.chi2.sf(statistic, DEGREE - 1) > 1e-4


def test_a_batch_has_fewer_nodes_than_a_uniform_one_and_as_many_edges_of_its_rows() -> None:
    graph = one_type_graph(num_nodes=3000, num_edges=60_000)
    seeds = np.arange(0, 3000, 30, dtype=np.int64)
    nodes = {"uniform": 0, "labor": 0}
    for name in ("uniform", "labor"):
        sampler = NeighborSampler(graph, fanouts=(5, 5), seed=2, mode=SamplingMode(name))
        for step in range(10):
            sample = sampler.sample(seeds, epoch=0, step=step)
            nodes[name] += sample.nodes.size
            degree = np.diff(graph.relations[0].indptr)[sample.nodes]
            for hop in sample.hops:
                assert np.diff(hop.indptr[0]).tolist() == np.minimum(degree[: hop.num_targets], 5).tolist()
    assert nodes["labor"] < 0.9 * nodes["uniform"]


def test_relations_from_one_type_share_variates_and_types_do_not() -> None:
    keys = {
        (hop, kind): int(HopMoment(seed=1, epoch=0, step=0, hop=hop).variate_key(period=0, source_type=kind))
        for hop in range(3)
        for kind in range(2)
    }
    assert len(set(keys.values())) == 6
    graph = two_type_graph()
    seeds = np.arange(200, dtype=np.int64)
    hop = NeighborSampler(graph, fanouts=(1,), seed=1, mode=LABOR).sample(seeds, epoch=0, step=0).hops[0]
    key = HopMoment(seed=1, epoch=0, step=0, hop=0).variate_key(period=0, source_type=0)
    for number in (0, 2):  # both from type 0
        relation = graph.relations[number]
        for position in hop.position[hop.indptr[number, 0] : hop.indptr[number, -1]]:
            target = np.searchsorted(relation.indptr, position, side="right") - 1
            others = relation.indices[relation.indptr[target] : relation.indptr[target + 1]]
            assert draw(key, int(relation.indices[position])) == min(draw(key, int(other)) for other in others)


def test_consecutive_batches_share_the_more_the_slower_variates_turn() -> None:
    graph = one_type_graph(num_nodes=500, num_edges=20_000)
    seeds = np.arange(500, dtype=np.int64)

    def shared(dependency: int) -> float:
        mode = SamplingMode("labor", batch_dependency=dependency)
        sampler = NeighborSampler(graph, fanouts=(5,), seed=2, mode=mode)
        drawn = [set(sampler.sample(seeds, epoch=0, step=step).hops[0].position.tolist()) for step in range(9)]
        return float(np.mean([len(one & other) / len(one) for one, other in pairwise(drawn)]))

    fresh, turning, slow = shared(1), shared(4), shared(64)
    assert fresh + 0.1 < turning
    assert turning + 0.1 < slow


def test_the_steps_of_a_period_turn_from_its_key_towards_the_next() -> None:
    assert [turn(step=step, batch_dependency=4) for step in (0, 1, 3, 4, 9)] == [
        (0, 0.0), (0, 0.25), (0, 0.75), (1, 0.0), (2, 0.25),
    ]  # fmt: skip
    assert [turn(step=step, batch_dependency=1) for step in (0, 5)] == [(0, 0.0), (5, 0.0)]


def test_words_from_the_limit_on_have_numbers_above_the_bound() -> None:
    for bound in (-8.2, -8.0, -3.0, -1.0, -1e-3):
        limit = word_limit(bound)
        assert normal(limit) > bound
        assert int(limit) / 2**64 == pytest.approx(stats.norm.cdf(bound), rel=1e-8, abs=2.0**-52)
    assert word_limit(0.0) == LAST
    assert word_limit(2.0) == LAST
