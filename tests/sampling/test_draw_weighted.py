"""Weighted draws: exactly the distribution of drawing one edge after the other by weight, without replacement."""

from collections import Counter
from itertools import combinations, permutations

import numpy as np
import pytest
from scipy import stats

from sampling.modes import SamplingMode
from sampling.neighbors import ALL_NEIGHBORS, NeighborSampler
from storage.errors import BadInput
from tests.sampling.graphs import dressed, one_type_graph, rows_of_sources, two_type_graph

WEIGHTED = SamplingMode("weighted")


def probability_of(chosen: tuple[int, ...], weights: list[float]) -> float:
    """That drawing without replacement gives this set, by enumeration of the orders."""
    total = 0.0
    for order in permutations(chosen):
        left, product = sum(weights), 1.0
        for edge in order:
            product *= weights[edge] / left
            left -= weights[edge]
        total += product
    return total


@pytest.mark.parametrize(
    ("weights", "fanout"),
    [
        ([1, 2, 3, 4], 1),
        ([1, 2, 3, 4], 2),
        ([0.1, 5, 0.1, 1, 1], 3),
        ([7, 7, 7, 7, 7, 7], 2),
        ([1e-6, 1, 1e6], 2),
        ([0, 1, 2, 0, 3], 2),
    ],
)
def test_every_set_of_edges_is_drawn_as_often_as_enumeration_says(weights: list[float], fanout: int) -> None:
    num_rows = 20_000  # rows are keyed by their nodes, so as many nodes with the same list are as many draws
    sources = list(range(len(weights)))
    graph = rows_of_sources([sources] * num_rows, num_sources=len(weights), weight=[weights] * num_rows)
    seeds = np.arange(len(weights), len(weights) + num_rows, dtype=np.int64)
    hop = NeighborSampler(graph, fanouts=(fanout,), seed=5, mode=WEIGHTED).sample(seeds, epoch=0, step=0).hops[0]
    drawn = (hop.position % len(weights)).reshape(num_rows, fanout)
    observed = Counter(map(tuple, drawn.tolist()))
    sets = [chosen for chosen in combinations(sources, fanout) if all(weights[edge] for edge in chosen)]
    assert set(observed) <= set(sets)
    expected = np.array([probability_of(chosen, weights) for chosen in sets]) * num_rows
    counts = np.array([observed[chosen] for chosen in sets])
    assert expected.sum() == pytest.approx(num_rows)
    likely = expected > 5
    assert counts[~likely].sum() <= 3 * expected[~likely].sum() + 5
    scaled = expected[likely] * counts[likely].sum() / expected[likely].sum()
    if likely.sum() > 1:
        assert stats.chisquare(counts[likely], scaled).pvalue > 1e-4


@pytest.mark.parametrize("fanout", [2, 100, ALL_NEIGHBORS])
def test_an_edge_of_weight_0_is_never_drawn_and_all_others_are_where_there_is_room(fanout: int) -> None:
    lists = [[0, 1, 2, 3], [4], [0, 5], [], [1, 2, 3]]
    weight: list[list[float]] = [[1, 0, 2, 0], [0], [3, 4], [], [0, 0, 1]]
    graph = rows_of_sources(lists, num_sources=6, weight=weight)
    seeds = np.arange(6, 11, dtype=np.int64)
    for step in range(20):
        sample = NeighborSampler(graph, fanouts=(fanout,), seed=1, mode=WEIGHTED).sample(seeds, epoch=0, step=step)
        hop = sample.hops[0]
        assert hop.indptr.tolist() == [[0, 2, 2, 4, 4, 5]]
        assert hop.position.tolist() == [0, 2, 5, 6, 9]
        assert sample.nodes[hop.source].tolist() == [0, 2, 0, 5, 3]
        assert sorted(sample.nodes.tolist()) == [0, 2, 3, 5, *range(6, 11)]


def test_a_relation_without_weights_is_drawn_from_uniformly() -> None:
    graph = one_type_graph()
    seeds = np.arange(200, dtype=np.int64)
    weighted = NeighborSampler(graph, fanouts=(3,), seed=1, mode=WEIGHTED).sample(seeds, epoch=0, step=4)
    uniform = NeighborSampler(graph, fanouts=(3,), seed=1).sample(seeds, epoch=0, step=4)
    assert weighted.hops[0].position.tolist() == uniform.hops[0].position.tolist()


@pytest.mark.parametrize(("wrong", "shown"), [(-0.5, "-0.5"), (np.nan, "nan"), (np.inf, "inf")])
def test_weights_that_mean_nothing_are_refused_where_the_mode_reads_them(wrong: float, shown: str) -> None:
    graph = dressed(two_type_graph())
    weight = graph.relations[1].weight
    assert weight is not None
    weight[[17, 30]] = wrong
    with pytest.raises(BadInput, match=rf"relation t1:b:t0, weight of edge 17: {shown} \(2 such edges\)"):
        NeighborSampler(graph, fanouts=(3,), seed=1, mode=WEIGHTED)
    NeighborSampler(graph, fanouts=(3,), seed=1)
    NeighborSampler(graph, fanouts=({"t0:a:t1": 3},), seed=1, mode=WEIGHTED)
