"""The k smallest of a stream of keys: a bounded heap, largest on top, for kernels that choose edges by key.

The order is by (key, place), so that equal keys are told apart and the result never depends on the heap's shape.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.jit import kernel


@kernel
def offer(keys: NDArray[Any], places: NDArray[np.int64], size: int, room: int, key: Any, place: int) -> int:
    """Offer `key` to a heap of at most `room` entries, the first `size` of `keys` and `places`; returns its new size.

    Places are offered in ascending order, so an equal key loses against those inside.
    """
    if size < room:
        here = size
        while here > 0:  # move up
            above = (here - 1) >> 1
            if keys[above] > key or (keys[above] == key and places[above] > place):
                break
            keys[here] = keys[above]
            places[here] = places[above]
            here = above
        keys[here] = key
        places[here] = place
        return size + 1
    if not key < keys[0]:
        return size
    here = 0
    while True:  # move down from the top
        below = 2 * here + 1
        if below >= size:
            break
        other = below + 1
        if other < size and (
            keys[other] > keys[below] or (keys[other] == keys[below] and places[other] > places[below])
        ):
            below = other
        if key > keys[below] or (key == keys[below] and place > places[below]):
            break
        keys[here] = keys[below]
        places[here] = places[below]
        here = below
    keys[here] = key
    places[here] = place
    return size


@kernel
def emit(places: NDArray[np.int64], size: int, begin: int, position: NDArray[np.int64], out: int) -> None:
    """Write the heap's places as ascending positions: `position[out:out + size] = begin + sorted places`."""
    for number in range(size):
        position[out + number] = begin + places[number]
    position[out : out + size].sort()


@kernel
def largest_room(room: NDArray[np.int32], num_rows: int) -> int:
    """The most entries that a row of `room` (running count [num_rows + 1]) has places for."""
    largest = 0
    for row in range(num_rows):
        largest = max(largest, int(room[row + 1] - room[row]))
    return largest
