"""Weighted draws: edges of a row without replacement, each next one with probability in proportion to its weight.

Every edge gets the key E / weight, E exponential from the hash of (row, offset), and the smallest keys win: algorithm
A-ES of Efraimidis and Spirakis, "Weighted random sampling with a reservoir", Information Processing Letters 97(5),
2006, section 2 (its u^(1/w) is exp(-key)). An edge of weight 0 is never drawn, so a row may fill fewer places than it
has. Cost: a hash an edge, and a logarithm only for those that may enter.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sampling.bottom_k import emit, largest_room, offer
from sampling.keys import UNIT, draw, fold
from storage.jit import kernel


@kernel
def draw_weighted(
    key: np.uint64,
    nodes: NDArray[np.int64],
    num_known: int,
    first: int,
    begin: NDArray[np.int64],
    degree: NDArray[np.int64],
    room: NDArray[np.int32],
    weight: NDArray[Any],
    position: NDArray[np.int64],
    count: NDArray[np.int32],
) -> None:
    """Draw each row's edges into its places, ascending, and how many of them into `count` [num_known].

    Arguments as in `row_kernels.draw_positions`; `weight` is the relation's, finite and at least 0.
    """
    largest = largest_room(room, num_known)
    keys = np.empty(largest, dtype=np.float64)
    places = np.empty(largest, dtype=np.int64)
    for row in range(num_known):
        out = np.int64(room[row])
        places_left = np.int64(room[row + 1]) - out
        start = begin[row]
        size = degree[row]
        kept = 0
        if places_left == size:
            for edge in range(start, start + size):
                position[out + kept] = edge
                kept += int(weight[edge] > 0)
        elif places_left > 0:
            row_key = fold(key, nodes[row] - first)
            for offset in range(size):
                heaviness = np.float64(weight[start + offset])
                share = np.float64(draw(row_key, offset) >> np.uint64(11)) * UNIT
                # -log(1 - share) >= share: most edges of a long list are told apart without the logarithm
                if heaviness > 0 and (kept < places_left or share < keys[0] * heaviness):
                    kept = offer(keys, places, kept, int(places_left), -math.log1p(-share) / heaviness, offset)
            emit(places, kept, start, position, int(out))
        count[row] = kept
