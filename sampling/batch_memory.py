"""Memory for the features of batches, used again once nobody holds the batch that had it.

A fresh tensor of tens of megabytes costs more than filling it: the system hands out and clears its pages one by one.
"""

import mmap
import weakref
from threading import RLock

import numpy as np
import torch
from numpy.typing import DTypeLike

GRANULE_BYTES = 4 << 20
"""sizes are rounded up to this, so that batches of nearly the same size share memory"""


class BatchMemory:
    """Tensors whose memory returns here when the last tensor, array or view over it is gone.

    Args:
        max_idle: pieces of memory kept without a user; more are given back to the system.
    """

    def __init__(self, *, max_idle: int) -> None:
        self._idle: list[mmap.mmap] = []
        self._max_idle = max_idle
        self._lock = RLock()  # memory may be given back by a collection of garbage inside `_take`

    def empty(self, num_rows: int, dim: int, dtype: DTypeLike) -> torch.Tensor:
        """An uninitialised tensor [num_rows, dim]."""
        kind = np.dtype(dtype)
        num_bytes = num_rows * dim * kind.itemsize
        if num_bytes == 0:
            return torch.from_numpy(np.empty((num_rows, dim), dtype=kind))
        memory = self._take(-(-num_bytes // GRANULE_BYTES) * GRANULE_BYTES)
        lent = np.frombuffer(memory, dtype=np.uint8, count=num_bytes)
        # numpy's own hold on the memory, which every view keeps, however numpy and torch pass it on
        weakref.finalize(lent.base, self._give_back, memory)
        return torch.from_numpy(lent.view(kind).reshape(num_rows, dim))

    def _take(self, num_bytes: int) -> mmap.mmap:
        with self._lock:
            for number, memory in enumerate(self._idle):
                if len(memory) >= num_bytes:
                    return self._idle.pop(number)
            if self._idle:
                self._idle.pop()  # all too small: batches have grown
        return mmap.mmap(-1, num_bytes)

    def _give_back(self, memory: mmap.mmap) -> None:
        with self._lock:
            if len(self._idle) < self._max_idle:
                self._idle.append(memory)
