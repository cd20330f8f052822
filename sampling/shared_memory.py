"""Memory that the processes of one host share: the feeder writes batches into it, and ranks read them where they lie.

It is one file without a name (memfd_create). Whoever is handed its descriptor may map it, and it is gone when the last
process that has it has ended, in whatever way: there is nothing to clean up. It is as long as twice the machine's
memory, but only pages that were written to exist. They count as memory of the processes that share them, once, and not
as files of /dev/shm, whose size (64 MB in a container by default) is no limit here.

    SharedMemory   the feeder's side: tensors over ranges of the file, each free again when nobody holds its tensor
    MappedMemory   a rank's side: tensors over ranges that the feeder names
"""

import bisect
import fcntl
import mmap
import os
import weakref
from collections import deque
from threading import Lock
from typing import Protocol

import numpy as np
import torch
from numpy.typing import DTypeLike
from torch import Tensor

RANGE_BYTES = 64 << 10
"""ranges begin and end at multiples of this"""
DTYPES = {
    str(dtype): dtype
    for dtype in (
        torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,
        torch.float16, torch.float32, torch.float64,
    )
}  # fmt: skip
"""the element types that a tensor may have on its way, by their names"""


class FeatureMemory(Protocol):
    """Where the features of batches are served into: this memory, or that of `sampling.batch_memory`."""

    def empty(self, num_rows: int, dim: int, dtype: DTypeLike) -> Tensor:
        """An uninitialised tensor [num_rows, dim]."""


class SharedMemory:
    """The whole memory, of which tensors are made.

    Args:
        num_bytes: what there may be of it; twice the machine's memory by default.
    """

    def __init__(self, num_bytes: int | None = None) -> None:
        self.num_bytes = num_bytes or 2 * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        self.peak_bytes = 0
        """how much of it was ever written to, at most"""
        self.descriptor = os.memfd_create("hopstream-batches", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.descriptor, self.num_bytes)
        # nobody can shorten it under a reader
        fcntl.fcntl(self.descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        self._map = mmap.mmap(self.descriptor, self.num_bytes)
        self._address = int(np.frombuffer(self._map, dtype=np.uint8).ctypes.data)
        self._free = [(0, self.num_bytes)]
        """ranges [first, last) in order, no two of which touch"""
        self._cursor = 0
        self._returned: deque[tuple[int, int]] = deque()
        self._lock = Lock()

    def empty(self, num_rows: int, dim: int, dtype: DTypeLike) -> Tensor:
        """An uninitialised tensor [num_rows, dim]; its range is free again when the last view of it is gone."""
        kind = np.dtype(dtype)
        num_bytes = num_rows * dim * kind.itemsize
        if num_bytes == 0:
            return torch.from_numpy(np.empty((num_rows, dim), dtype=kind))
        first, last = self._take(-(-num_bytes // RANGE_BYTES) * RANGE_BYTES)
        lent = np.frombuffer(self._map, dtype=np.uint8, count=num_bytes, offset=first)
        # numpy's own hold on the range, which every view keeps. The end of a tensor may come at any moment, also
        # inside `_take`, so all that happens then is that the range is noted
        weakref.finalize(lent.base, self._returned.append, (first, last))
        return torch.from_numpy(lent.view(kind).reshape(num_rows, dim))

    def offset_of(self, tensor: Tensor) -> int | None:
        """Where in the memory a tensor lies; None when it lies elsewhere, or not in one piece."""
        offset = tensor.data_ptr() - self._address
        return offset if tensor.is_contiguous() and 0 <= offset < self.num_bytes else None

    def close(self) -> None:
        """Give the descriptor back; the memory stays until its last tensor and the last process that mapped it go."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def _take(self, num_bytes: int) -> tuple[int, int]:
        """A free range of this length: the next one behind the last that was taken, among pages written to before.

        Ranges come back in nearly the order in which they were taken, so memory is gone through in circles, and what
        is ever written to is 1.2 to 1.3 times what is lent at once.
        """
        with self._lock:
            while self._returned:
                self._give_back(*self._returned.popleft())
            fitting = [
                at for at, (first, last) in enumerate(self._free) if min(last, self.peak_bytes) - first >= num_bytes
            ]
            behind = [at for at in fitting if self._free[at][0] >= self._cursor]
            place = (behind or fitting or [len(self._free) - 1])[0]
            first, last = self._free[place] if self._free else (0, 0)
            if last - first < num_bytes:
                raise MemoryError(f"no room for {num_bytes} bytes in {self.num_bytes} bytes of shared memory")
            self._cursor = first + num_bytes
            self._free[place : place + 1] = [(self._cursor, last)] if self._cursor < last else []
            self.peak_bytes = max(self.peak_bytes, self._cursor)
            return first, self._cursor

    def _give_back(self, first: int, last: int) -> None:
        """Join a range with the free ones around it."""
        after = bisect.bisect(self._free, (first, last))
        before = after
        if after < len(self._free) and self._free[after][0] == last:
            last = self._free[after][1]
            after += 1
        if before > 0 and self._free[before - 1][1] == first:
            before -= 1
            first = self._free[before][0]
        self._free[before:after] = [(first, last)]


class MappedMemory:
    """Shared memory in another process than the one that made it.

    Args:
        descriptor: of the memory, as it came over a socket; closed here.
    """

    def __init__(self, descriptor: int) -> None:
        try:
            self._map = mmap.mmap(descriptor, os.fstat(descriptor).st_size)
        finally:
            os.close(descriptor)

    def tensor(self, *, offset: int, dtype: str, shape: list[int]) -> Tensor:
        """The tensor that lies at `offset`, not copied; whoever holds it keeps the memory mapped."""
        kind = DTYPES[dtype]
        count = int(np.prod(shape, dtype=np.int64))
        if count == 0:
            return torch.empty(shape, dtype=kind)
        return torch.frombuffer(self._map, dtype=kind, count=count, offset=offset).reshape(shape)
