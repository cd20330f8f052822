"""LABOR draws: a source has one variate in a step, whatever target it is looked at from; a row keeps its smallest ones.

Rows that share in-neighbours so tend to draw the same of them, and a batch has fewer distinct nodes; each edge of a row
is still drawn with probability fan-out / degree. Source: Balin and Catalyurek, "Layer-neighbor sampling: defusing
neighborhood explosion in GNNs", NeurIPS 2023, section 3 (LABOR-0, in its sequential Poisson form, which draws exactly
min(fan-out, degree) edges).

Batch dependency lets variates turn slowly from step to step, so that consecutive batches share nodes: Balin et al.,
"Cooperative minibatching in graph neural networks", arXiv 2310.12403, section 3.2, as GraphBolt does it. In phase r of
[0, 1) a source's variate is Phi(cos(pi r / 2) n_1 + sin(pi r / 2) n_2) of its normal numbers under the period's own key
and the next one's. Only the order counts, so Phi is left out.

Parallel edges have the same variate and are told apart by their offset. Cost: one or two hashes an edge.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sampling.bottom_k import emit, largest_room, offer
from sampling.keys import draw
from sampling.normals import normal
from storage.jit import kernel

TWO_64 = 18446744073709551616.0
GRAIN = np.uint64(2048)
"""words that `normals.normal` does not tell apart"""
LAST = np.uint64(0xFFFFFFFFFFFFFFFF)


def turn(*, step: int, batch_dependency: int) -> tuple[int, float]:
    """Period of a step, and its phase in [0, 1); every epoch begins a period."""
    period, number = divmod(step, batch_dependency)
    return period, number / batch_dependency


@kernel
def draw_labor(
    key: np.uint64,
    num_known: int,
    begin: NDArray[np.int64],
    degree: NDArray[np.int64],
    room: NDArray[np.int32],
    indices: NDArray[Any],
    position: NDArray[np.int64],
) -> None:
    """Fill each row's places with its edges of smallest source hash, ascending.

    Args:
        key: of (seed, epoch, step, hop, source type).
        indices: dense source ids of the relation.
        num_known, begin, degree, room, position: as in `row_kernels.draw_positions`.
    """
    largest = largest_room(room, num_known)
    keys = np.empty(largest, dtype=np.uint64)
    places = np.empty(largest, dtype=np.int64)
    for row in range(num_known):
        out = np.int64(room[row])
        count = np.int64(room[row + 1]) - out
        start = begin[row]
        size = degree[row]
        if count == size:
            for number in range(size):
                position[out + number] = start + number
        elif count > 0:
            kept = 0
            for offset in range(size):
                variate = draw(key, indices[start + offset])
                if kept < count or variate < keys[0]:
                    kept = offer(keys, places, kept, int(count), variate, offset)
            emit(places, kept, start, position, int(out))


@kernel
def draw_turning_labor(
    key: np.uint64,
    next_key: np.uint64,
    phase: float,
    num_known: int,
    begin: NDArray[np.int64],
    degree: NDArray[np.int64],
    room: NDArray[np.int32],
    indices: NDArray[Any],
    position: NDArray[np.int64],
) -> None:
    """As `draw_labor`, at `phase` between the variates of `key` and of `next_key`."""
    own = math.cos(math.pi * phase / 2)
    other = math.sin(math.pi * phase / 2)
    largest = largest_room(room, num_known)
    keys = np.empty(largest, dtype=np.float64)
    places = np.empty(largest, dtype=np.int64)
    for row in range(num_known):
        out = np.int64(room[row])
        count = np.int64(room[row + 1]) - out
        start = begin[row]
        size = degree[row]
        if count == size:
            for number in range(size):
                position[out + number] = start + number
        elif count > 0:
            kept = 0
            limit = LAST
            for offset in range(size):
                source = indices[start + offset]
                left = draw(key, source)
                right = draw(next_key, source)
                if left >= limit and right >= limit:
                    continue
                variate = own * normal(left) + other * normal(right)
                if kept < count or variate < keys[0]:
                    kept = offer(keys, places, kept, int(count), variate, offset)
                    if kept == count:
                        limit = word_limit(keys[0] / (own + other))
            emit(places, kept, start, position, int(out))


@kernel
def word_limit(bound: float) -> np.uint64:
    """Random words from here on have normal numbers above `bound`, where it is negative; else no word does.

    Two such words make a variate above `bound` * (cos + sin), the largest kept one: a long list is passed over without
    computing normal numbers. The margins are those of rounding and of the 53 bits that a normal number is made of.
    """
    if bound >= 0:
        return LAST
    return np.uint64(0.5 * math.erfc(-bound / math.sqrt(2.0)) * (1.0 + 1e-9) * TWO_64) + GRAIN
