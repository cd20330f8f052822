"""The compiled loops of a planned table: which rows are planned, copying a batch's rows, filling slots.

Shapes: n rows of a batch, A of them behind the static prefix of S rows, M misses.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.jit import kernel, memcpy


@kernel
def select_cold(rows: NDArray[Any], num_static: int, out: NDArray[Any]) -> int:
    """Write the rows behind the prefix to `out` [n + 1], in their order; returns their number."""
    count = 0
    for index in range(rows.shape[0]):
        out[count] = rows[index]
        count += int(rows[index] >= num_static)
    return count


@kernel
def serve_rows(
    rows: NDArray[np.int64],
    num_static: int,
    where: NDArray[np.int32],
    cached: NDArray[Any],
    landing: NDArray[Any],
    out: NDArray[Any],
) -> None:
    """Copy every row of a batch from where it is."""
    row_bytes = out.shape[1] * out.itemsize
    target, kept, read = out.ctypes.data, cached.ctypes.data, landing.ctypes.data
    cold = 0
    for index in range(rows.shape[0]):
        row = rows[index]
        source = kept
        if row >= num_static:
            at = where[cold]
            cold += 1
            if at >= 0:
                row = num_static + at
            else:
                row = np.int64(~at)
                source = read
        memcpy(target + np.uintp(index * row_bytes), source + np.uintp(row * row_bytes), row_bytes)


@kernel
def admit_rows(
    slots: NDArray[np.int32], places: NDArray[np.int32], num_static: int, landing: NDArray[Any], cached: NDArray[Any]
) -> None:
    """Copy landed rows into the slots that keep them; a slot of -1 keeps nothing."""
    row_bytes = cached.shape[1] * cached.itemsize
    source, target = landing.ctypes.data, cached.ctypes.data
    for miss in range(slots.shape[0]):
        if slots[miss] >= 0:
            slot = np.int64(num_static + slots[miss])
            memcpy(target + np.uintp(slot * row_bytes), source + np.uintp(places[miss] * row_bytes), row_bytes)


@kernel
def point_at_places(where: NDArray[np.int32], places: NDArray[np.int32]) -> None:
    """Misses in `where` are from now on ~(row of the landing)."""
    for access in range(where.shape[0]):
        if where[access] < 0:
            where[access] = ~places[~where[access]]


@kernel
def kept_misses(slots: NDArray[np.int32], places: NDArray[np.int32]) -> int:
    """Move the misses that have a slot to the front of both; returns their number."""
    kept = 0
    for miss in range(slots.shape[0]):
        slot, place = slots[miss], places[miss]
        slots[kept], places[kept] = slot, place
        kept += int(slot >= 0)
    return kept
