"""Every mode chooses the same edges from a compact copy of the lists it needs, in any order of the rows."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from sampling.choose import EdgeLists, HopMoment, Rows, choose, narrow
from sampling.draw_ppr import Walks, draw_ppr
from sampling.keys import subkey
from sampling.modes import ModeName, SamplingMode
from sampling.ppr_rows import visits
from sampling.row_kernels import count_rows
from storage.graph import RelationCSC
from tests.sampling.graphs import dressed, one_type_graph

MOMENT = HopMoment(seed=4, epoch=1, step=6, hop=2)
NAMES: tuple[ModeName, ...] = ("uniform", "weighted", "temporal-uniform", "temporal-latest", "labor")


def compact(relation: RelationCSC, nodes: NDArray[np.int64]) -> tuple[EdgeLists, NDArray[np.int64]]:
    """Only the lists of `nodes`, one after the other in another order with rubbish between; where each begins."""
    assert relation.weight is not None
    assert relation.timestamp is not None
    order = np.random.default_rng(0).permutation(nodes.size)
    begin = np.empty(nodes.size, dtype=np.int64)
    places = [np.empty(0, dtype=np.int64)]
    end = 0
    for number in order:
        span = np.arange(int(relation.indptr[nodes[number]]), int(relation.indptr[nodes[number] + 1]))
        begin[number] = end + 3
        places += [np.arange(3), span]
        end += 3 + span.size
    copied = np.concatenate(places)
    return EdgeLists(relation.indices[copied], relation.weight[copied], relation.timestamp[copied]), begin


def rows_of(nodes: NDArray[np.int64], begin: NDArray[np.int64], degree: NDArray[np.int64], fanout: int) -> Rows:
    room = np.empty(nodes.size + 1, dtype=np.int32)
    count_rows(degree, nodes.size, fanout, 0, room)
    times = (nodes * 7) % 50
    return Rows(nodes=nodes, times=times, first=0, begin=begin.copy(), degree=degree.copy(), room=room)


def offsets_drawn(
    rows: Rows, lists: EdgeLists, mode: SamplingMode, fanout: int, begin: NDArray[np.int64]
) -> list[list[int]]:
    """Offsets inside each row's own list, which begins at `begin`."""
    position = np.full(narrow(mode, rows, lists, fanout=fanout, base=0), -1, dtype=np.int64)
    count = choose(mode, MOMENT, rows, lists, position, relation=0, source_type=0)
    filled = np.diff(rows.room) if count is None else count
    return [
        (position[rows.room[row] : rows.room[row] + filled[row]] - begin[row]).tolist() for row in range(begin.size)
    ]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("fanout", [3, -1])
@pytest.mark.parametrize("dependency", [1, 4])
def test_a_mode_chooses_the_same_edges_from_a_copy_of_a_few_lists(name: ModeName, fanout: int, dependency: int) -> None:
    relation = dressed(one_type_graph()).relations[0]
    mode = SamplingMode(name, batch_dependency=dependency)
    nodes = np.array([0, 1, 5, 17, 40, 41, 3, 150], dtype=np.int64)
    begin = relation.indptr[nodes].astype(np.int64)
    degree = relation.indptr[nodes + 1].astype(np.int64) - begin
    whole = EdgeLists(relation.indices, relation.weight, relation.timestamp)
    copied, elsewhere = compact(relation, nodes)
    drawn = offsets_drawn(rows_of(nodes, begin, degree, fanout), whole, mode, fanout, begin)
    again = offsets_drawn(rows_of(nodes, elsewhere, degree, fanout), copied, mode, fanout, elsewhere)
    assert drawn == again
    assert sum(map(len, drawn)) > 8


def test_ppr_chooses_the_same_edges_from_a_copy_of_a_few_lists() -> None:
    graph = dressed(one_type_graph())
    relation = graph.relations[0]
    nodes = np.array([0, 1, 5, 17, 40, 41, 3, 150], dtype=np.int64)
    visited = visits(Walks(), MOMENT, graph, nodes, fanouts=(3,))
    begin = relation.indptr[nodes].astype(np.int64)
    degree = relation.indptr[nodes + 1].astype(np.int64) - begin
    copied, elsewhere = compact(relation, nodes)
    drawn = []
    for lists, start in ((relation.indices, begin), (copied.indices, elsewhere)):
        rows = rows_of(nodes, start, degree, 3)
        position = np.full(int(rows.room[-1]), -1, dtype=np.int64)
        draw_ppr(
            subkey(MOMENT.key, 0),
            np.arange(nodes.size),
            visited,
            nodes,
            0,
            start,
            degree,
            rows.room,
            lists,
            0,
            position,
        )
        drawn.append((position - np.repeat(start, np.diff(rows.room))).tolist())
    assert drawn[0] == drawn[1]
    assert min(drawn[0]) >= 0


def test_ids_of_64_bits_choose_as_those_of_32() -> None:
    graph = dressed(one_type_graph())
    relation = graph.relations[0]
    wide = replace(relation, indices=relation.indices.astype(np.int64), indptr=relation.indptr.astype(np.int64))
    nodes = np.arange(200, dtype=np.int64)
    for name in NAMES:
        found = []
        for edges in (relation, wide):
            begin = edges.indptr[nodes].astype(np.int64)
            degree = edges.indptr[nodes + 1].astype(np.int64) - begin
            lists = EdgeLists(edges.indices, edges.weight, edges.timestamp)
            found.append(offsets_drawn(rows_of(nodes, begin, degree, 3), lists, SamplingMode(name), 3, begin))
        assert found[0] == found[1]
