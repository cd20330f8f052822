"""Kernels of one hop: rows to spans, spans to drawn positions, positions to sources, sources to rows of the batch.

A row is a node that a hop draws for. Its adjacency list lies at [begin, begin + degree) of the relation's arrays; a
position is begin + an offset. Keys come from the node and offsets count inside the row, so a kernel that is given the
same lists elsewhere, as in a compact copy of a few of them, chooses the same edges.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sampling.keys import below, draw, fold
from storage.jit import kernel


@kernel
def span_rows(
    indptr: NDArray[Any],
    nodes: NDArray[np.int64],
    num_known: int,
    first: int,
    last: int,
    fanout: int,
    base: int,
    begin: NDArray[np.int64],
    degree: NDArray[np.int64],
    sampled: NDArray[np.int32],
) -> int:
    """Fill [begin, degree] of every known node in [first, last) and the running count of draws from `base`."""
    total = base
    sampled[0] = total
    for row in range(num_known):
        node = nodes[row]
        begin[row] = 0
        degree[row] = 0
        if first <= node < last:
            start = np.int64(indptr[node - first])
            size = np.int64(indptr[node - first + 1]) - start
            begin[row] = start
            degree[row] = size
            total += int(size) if fanout < 0 or size < fanout else fanout
        sampled[row + 1] = total
    return total


@kernel
def count_rows(degree: NDArray[np.int64], num_known: int, fanout: int, base: int, sampled: NDArray[np.int32]) -> int:
    """Fill the running count of draws from `base`, as `span_rows` does, from degrees that were changed since."""
    total = base
    sampled[0] = total
    for row in range(num_known):
        size = degree[row]
        total += int(size) if fanout < 0 or size < fanout else fanout
        sampled[row + 1] = total
    return total


@kernel
def pack_rows(room: NDArray[np.int32], count: NDArray[np.int32], base: int, values: NDArray[np.int64]) -> int:
    """Close the gaps between rows that fill only `count` of their places; returns where the last one ends.

    Row r's values move from `values[room[r]:]` to `values[base + count[0] + ... + count[r - 1]:]`, never right.
    """
    out = base
    for row in range(count.shape[0]):
        begin = room[row]
        for number in range(count[row]):
            values[out + number] = values[begin + number]
        out += count[row]
    return out


@kernel
def count_up(count: NDArray[np.int32], base: int, sampled: NDArray[np.int32]) -> None:
    """Fill the running count of rows' entries from `base`."""
    total = base
    sampled[0] = total
    for row in range(count.shape[0]):
        total += count[row]
        sampled[row + 1] = total


@kernel
def floyd(row_key: np.uint64, start: int, size: int, count: int, out: int, position: NDArray[np.int64]) -> None:
    """Draw `count` of the places [start, start + size) without replacement into `position[out:out + count]`."""
    for number in range(count):
        top = size - count + number
        pick = start + below(draw(row_key, number), top + 1)
        seen = False
        for earlier in range(out, out + number):
            seen |= position[earlier] == pick
        position[out + number] = start + top if seen else pick


@kernel
def draw_positions(
    key: np.uint64,
    nodes: NDArray[np.int64],
    num_known: int,
    first: int,
    begin: NDArray[np.int64],
    degree: NDArray[np.int64],
    sampled: NDArray[np.int32],
    position: NDArray[np.int64],
) -> None:
    """Draw each row's edges without replacement (Floyd; Bentley and Floyd, CACM 30(9), 1987)."""
    for row in range(num_known):
        out = np.int64(sampled[row])
        count = np.int64(sampled[row + 1]) - out
        if count == degree[row]:
            for number in range(count):
                position[out + number] = begin[row] + number
        else:
            floyd(fold(key, nodes[row] - first), begin[row], degree[row], int(count), int(out), position)


@kernel
def gather(indices: NDArray[Any], position: NDArray[np.int64], offset: int, ids: NDArray[np.int64]) -> None:
    """`ids = offset + indices[position]`."""
    for edge in range(position.shape[0]):
        ids[edge] = np.int64(indices[position[edge]]) + offset


@kernel
def relabel(
    ids: NDArray[np.int64],
    slot: NDArray[np.int32],
    nodes: NDArray[np.int64],
    num_nodes: int,
    source: NDArray[np.int32],
) -> int:
    """Turn global ids into batch rows, appending unseen nodes; returns the new node count.

    Written without a branch on "seen before": which it is cannot be predicted, and a wrong guess costs more
    than a store that repeats what is there.
    """
    for edge in range(ids.shape[0]):
        node = ids[edge]
        row = slot[node]
        fresh = row < 0
        nodes[num_nodes] = node
        row = np.int32(num_nodes) if fresh else row
        slot[node] = row
        source[edge] = row
        num_nodes += int(fresh)
    return num_nodes


@kernel
def enter_seeds(seeds: NDArray[np.int64], slot: NDArray[np.int32], nodes: NDArray[np.int64]) -> int:
    """Give seeds the first rows; returns the number entered before the first repeated one."""
    for row in range(seeds.shape[0]):
        if slot[seeds[row]] >= 0:
            return row
        slot[seeds[row]] = row
        nodes[row] = seeds[row]
    return int(seeds.shape[0])


@kernel
def clear(slot: NDArray[np.int32], nodes: NDArray[np.int64], num_nodes: int) -> None:
    """Forget the rows of a finished batch."""
    for row in range(num_nodes):
        slot[nodes[row]] = -1
