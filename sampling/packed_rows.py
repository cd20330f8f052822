"""Kernels of batches kept in few bytes: sources as "a new node" or an earlier row, degrees as bytes.

An edge that brings a new node into a batch leads to the next row, so a bit says all about it; only the others need
the row spelled out. Degrees are small save for hubs: a byte each, and where that is LARGE the next of a second list.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sampling.keys import GOLDEN
from storage.jit import kernel

LARGE = 255


@kernel
def row_place(node: np.int64, table: NDArray[np.int32], shift: int, nodes: NDArray[Any]) -> int:
    """Where the row of `node` is in an open-addressed table of rows, or the empty place (-1) where it would be."""
    last = table.shape[0] - 1
    place = np.int64((np.uint64(node) * GOLDEN) >> np.uint64(shift))
    while table[place] >= 0 and np.int64(nodes[table[place]]) != node:
        place = (place + 1) & last
    return int(place)


@kernel
def enter_rows(nodes: NDArray[Any], num_rows: int, table: NDArray[np.int32], shift: int) -> int:
    """Enter the first `num_rows` nodes into a table; returns the first row whose node was there before, or -1."""
    for row in range(num_rows):
        place = row_place(np.int64(nodes[row]), table, shift, nodes)
        if table[place] >= 0:
            return row
        table[place] = row
    return -1


@kernel
def take_sources(
    ids: NDArray[Any],
    offset: int,
    table: NDArray[np.int32],
    shift: int,
    nodes: NDArray[Any],
    num_nodes: int,
    first_edge: int,
    fresh: NDArray[np.uint8],
    repeats: NDArray[np.int32],
    num_repeats: int,
) -> int:
    """Enter the sources of edges `first_edge`, ...: a bit in `fresh` for a new node, else its row in `repeats`.

    `ids` are complements of dense ids, `offset` the global id of dense id 0. New nodes are appended to `nodes`.
    Returns the new number of nodes; that of repeats follows from it.
    """
    for number in range(ids.shape[0]):
        node = ~np.int64(ids[number]) + offset
        place = row_place(node, table, shift, nodes)
        row = table[place]
        if row < 0:
            table[place] = num_nodes
            nodes[num_nodes] = node
            num_nodes += 1
            edge = first_edge + number
            fresh[edge >> 3] |= np.uint8(1 << (edge & 7))
        else:
            repeats[num_repeats] = row
            num_repeats += 1
    return num_nodes


@kernel
def spell_sources(
    fresh: NDArray[np.uint8], repeats: NDArray[np.int32], num_known: int, source: NDArray[np.int32]
) -> None:
    """Write the row of each edge's source [E]; the first new node has row `num_known`."""
    repeat = 0
    for edge in range(source.shape[0]):
        if (fresh[edge >> 3] >> (edge & 7)) & 1:
            source[edge] = num_known
            num_known += 1
        else:
            source[edge] = repeats[repeat]
            repeat += 1


@kernel
def select_rows(nodes: NDArray[Any], first: int, last: int, chosen: NDArray[Any]) -> int:
    """Write the nodes of [first, last) into `chosen` in order; returns their number. `chosen` may have that size."""
    found = 0
    for row in range(nodes.shape[0]):
        node = np.int64(nodes[row])
        if first <= node < last:
            chosen[found] = node
            found += 1
    return found


@kernel
def count_in(nodes: NDArray[Any], first: int, last: int) -> int:
    """Nodes of [first, last)."""
    found = 0
    for row in range(nodes.shape[0]):
        found += int(first <= np.int64(nodes[row]) < last)
    return found


@kernel
def spread_counts(
    nodes: NDArray[Any], first: int, last: int, room: NDArray[np.int32], base: int, indptr: NDArray[np.int32]
) -> None:
    """`indptr` over all rows, from the running count over those of nodes in [first, last), from `base` on."""
    found = 0
    indptr[0] = base
    for row in range(nodes.shape[0]):
        found += int(first <= np.int64(nodes[row]) < last)
        indptr[row + 1] = base + room[found]


@kernel
def spread_degrees(
    nodes: NDArray[Any], first: int, last: int, small: NDArray[np.uint8], large: NDArray[np.int32], out: NDArray[Any]
) -> None:
    """`out[row]` = packed degree of the row where its node is in [first, last), else 0."""
    found = 0
    num_large = 0
    for row in range(nodes.shape[0]):
        value = np.int32(0)
        if first <= np.int64(nodes[row]) < last:
            value = np.int32(small[found])
            found += 1
            if value == LARGE:
                value = large[num_large]
                num_large += 1
        out[row] = value


@kernel
def count_large(degree: NDArray[np.int32]) -> int:
    """Degrees that do not fit in a byte."""
    found = 0
    for number in range(degree.shape[0]):
        found += int(degree[number] >= LARGE)
    return found


@kernel
def pack_degrees(degree: NDArray[np.int32], small: NDArray[np.uint8], large: NDArray[np.int32]) -> None:
    """Split degrees into bytes and the large ones."""
    found = 0
    for number in range(degree.shape[0]):
        value = degree[number]
        if value >= LARGE:
            small[number] = LARGE
            large[found] = value
            found += 1
        else:
            small[number] = np.uint8(value)


@kernel
def unpack_degrees(small: NDArray[np.uint8], large: NDArray[np.int32], degree: NDArray[np.int32]) -> None:
    """Undo `pack_degrees` for the first degrees."""
    found = 0
    for number in range(degree.shape[0]):
        value = np.int32(small[number])
        if value == LARGE:
            value = large[found]
            found += 1
        degree[number] = value
