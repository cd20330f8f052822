"""Large arrays whose memory returns to the system when they are dropped.

Memory of the C library's heap may stay with the process, between pieces that are still in use; where arrays of many
megabytes come and go in threads, that can be as much again as is in use.
"""

import mmap
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

LEAST_BYTES = 1 << 16
"""smaller arrays are taken from the heap, where they fill the gaps"""
HUGE_BYTES = 4 << 20
"""from here on huge pages are asked for, as numpy does for its own: look-ups here and there miss fewer page tables"""


def own_array(length: int, dtype: DTypeLike) -> NDArray[Any]:
    """An array [length], of zeros where it is large and of anything where it is small."""
    num_bytes = length * np.dtype(dtype).itemsize
    if num_bytes < LEAST_BYTES:
        return np.empty(length, dtype=dtype)
    memory = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if num_bytes >= HUGE_BYTES and hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a system without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, dtype=dtype)


def own_copy(*parts: NDArray[Any]) -> NDArray[Any]:
    """Arrays [n_i] of one type, one behind the other in memory of their own."""
    whole = own_array(sum(part.shape[0] for part in parts), parts[0].dtype)
    at = 0
    for part in parts:
        whole[at : at + part.shape[0]] = part
        at += part.shape[0]
    return whole
