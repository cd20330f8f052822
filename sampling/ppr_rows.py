"""One hop's ppr draws over a topology in memory: walks in step with one another, then every relation's rows.

Rows are taken in parts, so that the walks' visits need 16 MiB whatever the size of the hop; rows whose edges are all
taken need no walks.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sampling.choose import HopMoment, Rows
from sampling.draw_ppr import WALK_TAG, Walks, begin_walks, choose_in_edges, draw_ppr, follow, record
from sampling.fanouts import UNUSED
from sampling.keys import subkey
from sampling.row_kernels import span_rows
from storage.graph import Topology

VISITS_BYTES = 16 << 20


def draw_ppr_hop(
    walks: Walks,
    moment: HopMoment,
    topology: Topology,
    rows: Sequence[Rows],
    position: NDArray[np.int64],
    *,
    fanouts: Sequence[int],
) -> None:
    """Fill the places of `rows` [R] of one hop in `position`; walks keep to relations with a fan-out other than 0."""
    ranked = np.zeros(rows[0].nodes.shape[0] if rows else 0, dtype=np.bool_)
    for spans, fanout in zip(rows, fanouts, strict=True):
        if fanout != UNUSED:
            ranked |= np.diff(spans.room) < spans.degree
    plain, chosen = np.flatnonzero(~ranked), np.flatnonzero(ranked)
    nowhere = np.empty((plain.shape[0], 0), dtype=np.int64)
    draw_part(moment, topology, rows, position, part=plain, visited=nowhere)
    rows_at_once = max(1, VISITS_BYTES // (8 * walks.visits))
    for begin in range(0, chosen.shape[0], rows_at_once):
        part = chosen[begin : begin + rows_at_once]
        visited = visits(walks, moment, topology, rows[0].nodes[part], fanouts=fanouts)
        draw_part(moment, topology, rows, position, part=part, visited=visited)


def draw_part(
    moment: HopMoment,
    topology: Topology,
    rows: Sequence[Rows],
    position: NDArray[np.int64],
    *,
    part: NDArray[np.int64],
    visited: NDArray[np.int64],
) -> None:
    """Fill the places of the rows numbered `part` [c] in every relation, given what their walks visited [c, V]."""
    for index, relation in enumerate(topology.relations):
        spans = rows[index]
        draw_ppr(
            subkey(moment.key, index), part, visited, spans.nodes, spans.first, spans.begin, spans.degree, spans.room,
            relation.indices, int(topology.type_offsets[relation.source_type]), position,
        )  # fmt: skip


def visits(
    walks: Walks, moment: HopMoment, topology: Topology, nodes: NDArray[np.int64], *, fanouts: Sequence[int]
) -> NDArray[np.int64]:
    """[n, walks.visits] global ids that the walks from `nodes` [n] come to, -1 after the end of a walk."""
    num_walkers = nodes.shape[0] * walks.number
    walk_key = np.empty(num_walkers, dtype=np.uint64)
    place = np.empty(num_walkers, dtype=np.int64)
    begin_walks(subkey(moment.key, WALK_TAG), nodes, topology.type_offsets, walks.number, walk_key, place)
    visited = np.full((walks.longest, num_walkers), -1, dtype=np.int64)
    begin = np.zeros((len(topology.relations), num_walkers), dtype=np.int64)
    degree = np.zeros_like(begin)
    unused = np.empty(num_walkers + 1, dtype=np.int32)
    choice = np.empty(num_walkers, dtype=np.int16)
    offset = np.empty(num_walkers, dtype=np.int64)
    for step in range(walks.longest):
        for index, relation in enumerate(topology.relations):
            if fanouts[index] != UNUSED:
                first, last = topology.type_offsets[relation.target_type : relation.target_type + 2]
                span_rows(
                    relation.indptr, place, num_walkers, int(first), int(last), 0, 0,
                    begin[index], degree[index], unused,
                )  # fmt: skip
        choose_in_edges(walk_key, step, walks.restart, place, degree, choice, offset)
        for index, relation in enumerate(topology.relations):
            first_source = int(topology.type_offsets[relation.source_type])
            follow(index, begin[index], choice, offset, relation.indices, first_source, place)
        record(choice, place, visited[step])
    of_rows = visited.reshape(walks.longest, nodes.shape[0], walks.number).transpose(1, 0, 2)
    return np.ascontiguousarray(of_rows).reshape(nodes.shape[0], walks.visits)
