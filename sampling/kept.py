"""What is known of batches before they are served: packed tightly in memory, and on local disk where that runs out.

On disk, arrays lie one behind another in anonymous files of FILE_PAGES pages. What is kept first is taken first, so
few files are open, however many arrays wait; the space of a file is free once the last of its arrays has been taken.
"""

from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.pages import PAGE_BYTES, as_words
from storage.scratch_file import ScratchFile, new_staging

FILE_PAGES = (64 << 20) // PAGE_BYTES


@dataclass(frozen=True)
class Extent:
    """Pages of a scratch file, which is closed when nothing names it any more."""

    file: ScratchFile
    first_page: int
    num_pages: int


class SampleSpace:
    """Memory that samples are kept in, and the disk behind it, shared by the superbatches in flight.

    Args:
        memory_bytes: what may be in memory at once; the rest goes to `folder`.
        folder: local folder; None keeps everything in memory.
    """

    def __init__(self, *, memory_bytes: int, folder: str | None) -> None:
        self.folder = folder
        self.spilled_bytes = 0
        self._free = memory_bytes
        self._lock = Lock()
        self._file: ScratchFile | None = None
        self._next_page = 0

    def take(self, num_bytes: int) -> bool:
        """Reserve memory; False when there is none left and a disk to go to."""
        with self._lock:
            if self.folder is not None and num_bytes and num_bytes > self._free:
                return False
            self._free -= num_bytes
            return True

    def spill(self, data: NDArray[np.uint8]) -> Extent:
        """Write whole pages (`data` is memory of a `Staging`) to the disk; raises ScratchFull when it has no room."""
        assert self.folder is not None
        num_pages = data.shape[0] // PAGE_BYTES
        with self._lock:
            if self._file is None or self._next_page + num_pages > self._file.num_pages:
                self._file, self._next_page = ScratchFile(self.folder, num_pages=max(FILE_PAGES, num_pages)), 0
            extent = Extent(self._file, self._next_page, num_pages)
            self._next_page += num_pages
            self.spilled_bytes += data.shape[0]
        extent.file.write(data, first_page=extent.first_page)
        return extent

    def give_back(self, num_bytes: int) -> None:
        """Free what `take` reserved."""
        with self._lock:
            self._free += num_bytes


class KeptArrays:
    """A few arrays, in memory or on the disk; taken once."""

    def __init__(self, arrays: list[NDArray[Any]], space: SampleSpace) -> None:
        self._shapes = [array.shape for array in arrays]
        self._dtypes = [array.dtype for array in arrays]
        self._num_bytes = sum(_aligned(array.nbytes) for array in arrays)
        self._space = space
        self._arrays: list[NDArray[Any]] | None = None
        self._extent: Extent | None = None
        if space.take(self._num_bytes):
            self._arrays = arrays
        else:
            self._extent = space.spill(self._packed(arrays))

    def _packed(self, arrays: list[NDArray[Any]]) -> NDArray[np.uint8]:
        staging = new_staging(-(-self._num_bytes // PAGE_BYTES)).data
        at = 0
        for array in arrays:
            staging[at : at + array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
            at += _aligned(array.nbytes)
        return staging

    def take(self) -> list[NDArray[Any]]:
        """The arrays as they were; their space is free afterwards."""
        arrays = self._unspill() if self._arrays is None else self._arrays
        self.close()
        return arrays

    def _unspill(self) -> list[NDArray[Any]]:
        extent = self._extent
        assert extent is not None, "kept arrays are taken once"
        staging = new_staging(extent.num_pages).data
        extent.file.read(staging, as_words(staging), first_page=extent.first_page, num_pages=extent.num_pages)
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
        self._extent = None


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // 8) * 8
