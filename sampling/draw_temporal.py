"""Temporal draws: only edges from strictly before the row's seed time, uniformly or the latest.

Adjacency is sorted by time, so the edges before a moment are a prefix of the list: narrowing a row to them, or to
the last k of them, takes a binary search and no pass over the list. Source: Rossi et al., "Temporal graph networks
for deep learning on dynamic graphs", 2020 (arXiv 2006.10637), whose embedding module reads uniform or most recent
neighbours from before the event.
"""

import numpy as np
from numpy.typing import NDArray

from sampling.keys import fold
from sampling.row_kernels import floyd
from storage.jit import kernel


@kernel
def keep_earlier(
    timestamp: NDArray[np.int64],
    times: NDArray[np.int64],
    num_known: int,
    begin: NDArray[np.int64],
    degree: NDArray[np.int64],
) -> None:
    """Shrink each row's `degree` to its edges with `timestamp` < `times[row]`, the first of its list."""
    for row in range(num_known):
        low = begin[row]
        high = low + degree[row]
        while low < high:
            middle = (low + high) >> 1
            if timestamp[middle] < times[row]:
                low = middle + 1
            else:
                high = middle
        degree[row] = low - begin[row]


@kernel
def keep_latest(fanout: int, num_known: int, begin: NDArray[np.int64], degree: NDArray[np.int64]) -> None:
    """Narrow each row to the last `fanout` edges of its list; -1 keeps all."""
    for row in range(num_known):
        surplus = degree[row] - fanout
        if fanout >= 0 and surplus > 0:
            begin[row] += surplus
            degree[row] = fanout


@kernel
def draw_timed(
    key: np.uint64,
    nodes: NDArray[np.int64],
    times: NDArray[np.int64],
    num_known: int,
    first: int,
    begin: NDArray[np.int64],
    degree: NDArray[np.int64],
    sampled: NDArray[np.int32],
    position: NDArray[np.int64],
) -> None:
    """As `row_kernels.draw_positions`, under the key of (node, time): the pair takes the node's place."""
    for row in range(num_known):
        out = np.int64(sampled[row])
        count = np.int64(sampled[row + 1]) - out
        if count == degree[row]:
            for number in range(count):
                position[out + number] = begin[row] + number
        else:
            row_key = fold(fold(key, nodes[row] - first), times[row])
            floyd(row_key, begin[row], degree[row], int(count), int(out), position)
