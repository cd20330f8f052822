"""What is known of batches before they are served: packed tightly in memory, and on local disk where that runs out."""

from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.pages import PAGE_BYTES, as_words
from storage.scratch_file import ScratchFile, ScratchFull, new_staging


class SampleSpace:
    """Memory that samples are kept in, shared by the superbatches in flight.

    Args:
        memory_bytes: what may be in memory at once; the rest goes to `folder`.
        folder: local folder; None keeps everything in memory.
    """

    def __init__(self, *, memory_bytes: int, folder: str | None) -> None:
        self.folder = folder
        self.spilled_bytes = 0
        self._free = memory_bytes
        self._lock = Lock()

    def take(self, num_bytes: int) -> bool:
        """Reserve memory; False when there is none left and a disk to go to."""
        with self._lock:
            if self.folder is not None and num_bytes and num_bytes > self._free:
                return False
            self._free -= num_bytes
            return True

    def spilled(self, num_bytes: int) -> None:
        """Count what went to the disk."""
        with self._lock:
            self.spilled_bytes += num_bytes

    def give_back(self, num_bytes: int) -> None:
        """Free what `take` reserved."""
        with self._lock:
            self._free += num_bytes


class KeptArrays:
    """A few arrays, in memory or in a scratch file of their own; taken once."""

    def __init__(self, arrays: list[NDArray[Any]], space: SampleSpace) -> None:
        self._shapes = [array.shape for array in arrays]
        self._dtypes = [array.dtype for array in arrays]
        self._num_bytes = sum(_aligned(array.nbytes) for array in arrays)
        self._space = space
        self._arrays: list[NDArray[Any]] | None = None
        self._file: ScratchFile | None = None
        if space.take(self._num_bytes):
            self._arrays = arrays
        else:
            self._spill(arrays)

    def _spill(self, arrays: list[NDArray[Any]]) -> None:
        folder = self._space.folder
        assert folder is not None
        num_pages = -(-self._num_bytes // PAGE_BYTES)
        staging = new_staging(num_pages).data
        at = 0
        for array in arrays:
            staging[at : at + array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
            at += _aligned(array.nbytes)
        self._file = ScratchFile(folder, num_pages=num_pages)
        try:
            self._file.write(staging, first_page=0)
        except ScratchFull:
            self.close()
            raise
        self._space.spilled(num_pages * PAGE_BYTES)

    def take(self) -> list[NDArray[Any]]:
        """The arrays as they were; their space is free afterwards."""
        arrays = self._unspill() if self._arrays is None else self._arrays
        self.close()
        return arrays

    def _unspill(self) -> list[NDArray[Any]]:
        assert self._file is not None, "kept arrays are taken once"
        num_pages = self._file.num_pages
        staging = new_staging(num_pages).data
        self._file.read(staging, as_words(staging), first_page=0, num_pages=num_pages)
        arrays = []
        at = 0
        for shape, dtype in zip(self._shapes, self._dtypes, strict=True):
            num_bytes = int(np.prod(shape)) * dtype.itemsize
            arrays.append(staging[at : at + num_bytes].view(dtype).reshape(shape))
            at += _aligned(num_bytes)
        return arrays

    def close(self) -> None:
        """Free the space."""
        if self._arrays is not None:
            self._arrays = None
            self._space.give_back(self._num_bytes)
        if self._file is not None:
            self._file.close()
            self._file = None


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // 8) * 8
