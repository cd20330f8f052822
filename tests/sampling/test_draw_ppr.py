"""PPR draws: walks visit nodes as an exact computation says, and rows keep what it ranks highest."""

import numpy as np
import pytest
from numpy.typing import NDArray

from sampling.choose import HopMoment
from sampling.draw_ppr import Walks
from sampling.modes import SamplingMode
from sampling.neighbors import NeighborSampler
from sampling.ppr_rows import visits
from storage.graph import Topology
from tests.sampling.graphs import one_type_graph, rows_of_sources, two_type_graph

MANY = Walks(number=20_000, longest=8, restart=0.25)


def exact_visits(graph: Topology, walks: Walks, used: tuple[bool, ...]) -> NDArray[np.float64]:
    """[v, u] expected visits of u on one walk from v: sum over t of ((1 - restart) P)^t, by dense matrices."""
    num_nodes = int(graph.type_offsets[-1])
    edges = np.zeros((num_nodes, num_nodes))
    for relation, is_used in zip(graph.relations, used, strict=True):
        target = np.repeat(np.arange(relation.indptr.size - 1), np.diff(relation.indptr))
        rows = target + graph.type_offsets[relation.target_type]
        columns = relation.indices + graph.type_offsets[relation.source_type]
        np.add.at(edges, (rows, columns), float(is_used))
    degree = edges.sum(axis=1, keepdims=True)
    step = (1 - walks.restart) * np.divide(edges, degree, out=np.zeros_like(edges), where=degree > 0)
    total: NDArray[np.float64] = np.zeros_like(step)
    power = np.eye(num_nodes)
    for _ in range(walks.longest):
        power = power @ step
        total += power
    return total


def small_one_type() -> Topology:
    return one_type_graph(num_nodes=12, num_edges=50)


@pytest.mark.parametrize(
    ("graph", "fanouts"), [(small_one_type(), (3,)), (two_type_graph(), (3, 3, 3)), (two_type_graph(), (3, 0, 3))]
)
def test_walks_visit_nodes_as_often_as_the_exact_computation_says(graph: Topology, fanouts: tuple[int, ...]) -> None:
    num_nodes = int(graph.type_offsets[-1])
    nodes = np.array([0, 5, num_nodes - 1], dtype=np.int64)
    visited = visits(MANY, HopMoment(seed=1, epoch=0, step=0, hop=0), graph, nodes, fanouts=fanouts)
    exact = exact_visits(graph, MANY, tuple(fanout != 0 for fanout in fanouts))
    for number, node in enumerate(nodes):
        walks = visited[number].reshape(MANY.longest, MANY.number)
        counts = np.stack([(walks == other).sum(axis=0) for other in range(num_nodes)])
        error = counts.std(axis=1) / np.sqrt(MANY.number)
        assert (np.abs(counts.mean(axis=1) - exact[node]) <= 5 * error + 1e-3).all()
        assert counts.mean() * num_nodes > 0.5  # it does walk


def test_rows_keep_the_in_neighbours_of_highest_exact_score() -> None:
    graph = one_type_graph(num_nodes=40, num_edges=400)
    relation = graph.relations[0]
    exact = exact_visits(graph, MANY, (True,))
    mode = SamplingMode("ppr", walks=MANY)
    seeds = np.arange(40, dtype=np.int64)
    hop = NeighborSampler(graph, fanouts=(4,), seed=1, mode=mode).sample(seeds, epoch=0, step=0).hops[0]
    told_apart = 0
    for row in range(40):
        own = range(int(relation.indptr[row]), int(relation.indptr[row + 1]))
        drawn = hop.position[hop.indptr[0, row] : hop.indptr[0, row + 1]].tolist()
        assert len(drawn) == len(set(drawn)) == min(4, len(own))
        assert set(drawn) <= set(own)
        scores = {edge: exact[row, relation.indices[edge]] for edge in own}
        left_out = [scores[edge] for edge in own if edge not in drawn]
        if left_out:
            noise = 5 * np.sqrt(2 * max(left_out) / MANY.number)
            assert min(scores[edge] for edge in drawn) >= max(left_out) - noise
            told_apart += min(scores.values()) < max(scores.values()) - 2 * noise
    assert told_apart > 10


def test_equal_scores_are_decided_uniformly() -> None:
    # sources without in-edges: no walk gets beyond them, and all have the same score
    degree, fanout, num_rows = 8, 2, 8000
    graph = rows_of_sources([list(range(degree))] * num_rows, num_sources=degree)
    mode = SamplingMode("ppr", walks=Walks(number=4))
    seeds = np.arange(degree, degree + num_rows, dtype=np.int64)
    position = NeighborSampler(graph, fanouts=(fanout,), seed=1, mode=mode).sample(seeds, epoch=0, step=0).hops[0]
    counts = np.bincount(position.position % degree, minlength=degree)
    expected = num_rows * fanout / degree
    assert (np.abs(counts - expected) < 5 * np.sqrt(expected)).all()


def test_rows_in_parts_draw_what_they_draw_together(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = two_type_graph()
    seeds = np.arange(200, dtype=np.int64)
    mode = SamplingMode("ppr")

    def drawn() -> list[list[int]]:
        sample = NeighborSampler(graph, fanouts=(3, 2), seed=1, mode=mode).sample(seeds, epoch=0, step=0)
        return [hop.position.tolist() for hop in sample.hops]

    together = drawn()
    monkeypatch.setattr("sampling.ppr_rows.VISITS_BYTES", 8 * mode.walks.visits * 7)
    assert drawn() == together


def test_a_row_depends_on_its_node_and_the_step_only() -> None:
    graph = two_type_graph()
    sampler = NeighborSampler(graph, fanouts=(3, 2), seed=1, mode=SamplingMode("ppr"))
    alone = sampler.sample(np.array([42]), epoch=0, step=3).hops[0]
    among = sampler.sample(np.array([7, 130, 42]), epoch=0, step=3).hops[0]
    for number in range(3):
        left = alone.position[alone.indptr[number, 0] : alone.indptr[number, 1]]
        right = among.position[among.indptr[number, 2] : among.indptr[number, 3]]
        assert left.tolist() == right.tolist()
