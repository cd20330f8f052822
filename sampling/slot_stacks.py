"""Stacks of slots, one for each key: every slot is on at most one, and what was pushed last is popped first.

A stack is LANES linked lists that take turns, so that popping many slots one after another waits for LANES memory
accesses at a time rather than for one.

Shapes: Y keys, C slots. Memory: 4 bytes a slot and 36 a key.
"""

import numpy as np
from numpy.typing import NDArray

from storage.jit import kernel

LANES = 8


def new_stacks(num_keys: int, num_slots: int) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]:
    """Empty stacks: `size` [Y]; `head` [Y * LANES], the first of each list; `link` [C], the slot behind each."""
    size = np.zeros(num_keys, dtype=np.int32)
    return size, np.empty(num_keys * LANES, dtype=np.int32), np.empty(num_slots, dtype=np.int32)


@kernel
def push(size: NDArray[np.int32], head: NDArray[np.int32], link: NDArray[np.int32], key: int, slot: np.int32) -> None:
    """Put a slot on the stack of `key`."""
    at = key * LANES + (size[key] & (LANES - 1))
    link[slot] = head[at]
    head[at] = slot
    size[key] += 1


@kernel
def pop(size: NDArray[np.int32], head: NDArray[np.int32], link: NDArray[np.int32], key: int) -> np.int32:
    """Take the slot off that was pushed last on the stack of `key`, which is not empty."""
    size[key] -= 1
    at = key * LANES + (size[key] & (LANES - 1))
    slot: np.int32 = head[at]
    head[at] = link[slot]
    return slot
