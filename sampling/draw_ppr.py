"""PPR draws: a row keeps the in-neighbours that personalised PageRank from its node ranks highest.

Scores are estimated by visits: `Walks.number` random walks from the row's node, against the edges, each ending with
probability `Walks.restart` before every step or after `Walks.longest` steps. Expected visits are in proportion to the
score, cut off at the longest walk: Avrachenkov et al., "Monte Carlo methods in PageRank computation: when one iteration
is sufficient", SIAM J. Numerical Analysis 45(2), 2007, section 2 (complete path). Ranking neighbours by visits of
short walks is PinSage's importance: Ying et al., "Graph convolutional neural networks for web-scale recommender
systems", KDD 2018, section 3.1. Here only in-neighbours compete, so that every edge of a batch is one of the graph.

A walk takes any in-edge of the hop's relations, all alike. Equal visits are decided by a hash of (row, offset), so that
neighbours that no walk saw, as most of a hub's are, fill the remaining places uniformly. Walks are drawn under the
hop's key like everything else, so the noise of the estimate differs from step to step and averages out.

Cost of a row that has more edges than places: at most number * longest reads, and a look-up an edge.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sampling.bottom_k import emit, offer
from sampling.keys import UNIT, below, draw, fold, mix
from storage.jit import kernel

WALK_TAG = 0x3A1C
"""keeps the walks' keys apart from those of relations, which fold small numbers under the hop's key"""


@dataclass(frozen=True)
class Walks:
    """The random walks that estimate a row's scores."""

    number: int = 32
    """walks from a row"""
    longest: int = 8
    """steps of a walk at most"""
    restart: float = 0.25
    """probability to end before each step; 1 - damping"""

    @property
    def visits(self) -> int:
        """Most visits of a row."""
        return self.number * self.longest


@kernel
def begin_walks(
    key: np.uint64,
    nodes: NDArray[np.int64],
    type_offsets: NDArray[np.int64],
    number: int,
    walk_key: NDArray[np.uint64],
    place: NDArray[np.int64],
) -> None:
    """Put walkers [n * number] on their rows' nodes; the key of walk w of a row is (key, type, id, w)."""
    for row in range(nodes.shape[0]):
        kind = 0
        while type_offsets[kind + 1] <= nodes[row]:
            kind += 1
        row_key = fold(fold(key, kind), nodes[row] - type_offsets[kind])
        for walk in range(number):
            walk_key[row * number + walk] = fold(row_key, walk)
            place[row * number + walk] = nodes[row]


@kernel
def choose_in_edges(
    walk_key: NDArray[np.uint64],
    step: int,
    restart: float,
    place: NDArray[np.int64],
    degree: NDArray[np.int64],
    relation: NDArray[np.int16],
    offset: NDArray[np.int64],
) -> None:
    """Where walkers go in step `step`: relation [M] and offset [M] in the node's list there; relation -1: it ends.

    `degree` [R, M] is what relation r offers at each walker's node; `place` [M] is -1 where a walk has ended.
    """
    for walker in range(place.shape[0]):
        relation[walker] = -1
        if place[walker] < 0:
            continue
        total = np.int64(0)
        for kind in range(degree.shape[0]):
            total += degree[kind, walker]
        goes_on = np.float64(draw(walk_key[walker], 2 * step) >> np.uint64(11)) * UNIT >= restart
        if total == 0 or not goes_on:
            continue
        left = np.int64(below(draw(walk_key[walker], 2 * step + 1), int(total)))
        kind = 0
        while left >= degree[kind, walker]:
            left -= degree[kind, walker]
            kind += 1
        relation[walker] = kind
        offset[walker] = left


@kernel
def follow(
    kind: int,
    begin: NDArray[np.int64],
    relation: NDArray[np.int16],
    offset: NDArray[np.int64],
    indices: NDArray[Any],
    first_source: int,
    place: NDArray[np.int64],
) -> None:
    """Move the walkers that chose relation `kind`; `begin` [M] is where their nodes' lists begin in `indices`."""
    for walker in range(place.shape[0]):
        if relation[walker] == kind:
            place[walker] = first_source + np.int64(indices[begin[walker] + offset[walker]])


@kernel
def record(relation: NDArray[np.int16], place: NDArray[np.int64], visited: NDArray[np.int64]) -> None:
    """End the walks that went nowhere, and write where all of them are: -1 for those that have ended."""
    for walker in range(place.shape[0]):
        if relation[walker] < 0:
            place[walker] = -1
        visited[walker] = place[walker]


@kernel
def draw_ppr(
    key: np.uint64,
    rows: NDArray[np.int64],
    visited: NDArray[np.int64],
    nodes: NDArray[np.int64],
    first: int,
    begin: NDArray[np.int64],
    degree: NDArray[np.int64],
    room: NDArray[np.int32],
    indices: NDArray[Any],
    first_source: int,
    position: NDArray[np.int64],
) -> None:
    """Fill the places of `rows` [c] with their edges from the most visited sources, ascending.

    Args:
        key: of the hop and relation.
        rows: numbers of rows, of `nodes`, `begin`, `degree` and `room`.
        visited: [c, visits] global ids that the walks of each row came to, -1 for none.
        first, first_source: global ids of the relation's first target and source.
        nodes, begin, degree, room, indices, position: as in `draw_labor`.
    """
    size_of_table = 8
    while size_of_table < 2 * visited.shape[1]:
        size_of_table *= 2
    seen = np.empty(size_of_table, dtype=np.int64)
    times = np.zeros(size_of_table, dtype=np.int64)
    largest = 0
    for number in range(rows.shape[0]):
        largest = max(largest, int(room[rows[number] + 1] - room[rows[number]]))
    keys = np.empty(largest, dtype=np.uint64)
    places = np.empty(largest, dtype=np.int64)
    for number in range(rows.shape[0]):
        row = rows[number]
        out = np.int64(room[row])
        count = np.int64(room[row + 1]) - out
        start = begin[row]
        size = degree[row]
        if count == size:
            for edge in range(size):
                position[out + edge] = start + edge
        elif count > 0:
            count_visits(visited[number], seen, times)
            row_key = fold(key, nodes[row] - first)
            kept = 0
            for offset in range(size):
                visits = times[place_of_node(int(indices[start + offset]) + first_source, seen)]
                rank = ((np.uint64(0xFFFFFF) - np.uint64(visits)) << np.uint64(40)) | (
                    draw(row_key, offset) >> np.uint64(24)
                )
                if kept < count or rank < keys[0]:
                    kept = offer(keys, places, kept, int(count), rank, offset)
            emit(places, kept, start, position, int(out))


@kernel
def count_visits(visited: NDArray[np.int64], seen: NDArray[np.int64], times: NDArray[np.int64]) -> None:
    """Fill an open-addressed table with the nodes of `visited` and how often each is there; an empty place holds -1."""
    seen[:] = -1
    times[:] = 0
    for number in range(visited.shape[0]):
        if visited[number] >= 0:
            place = place_of_node(visited[number], seen)
            seen[place] = visited[number]
            times[place] += 1


@kernel
def place_of_node(node: int, seen: NDArray[np.int64]) -> int:
    """Where `node` is in the table, or the empty place where it would be."""
    last = seen.shape[0] - 1
    place = np.int64(mix(np.uint64(node)) & np.uint64(last))
    while seen[place] >= 0 and seen[place] != node:
        place = (place + 1) & last
    return int(place)
