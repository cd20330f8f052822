"""Memory and disk that batches wait in between being sampled and being served.

On disk, what is kept lies one behind another in anonymous files of FILE_PAGES pages. What is kept first is taken
first, so few files are open, however much waits; a file's space is free once the last of it has been taken.
"""

from dataclasses import dataclass
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from storage.pages import PAGE_BYTES, as_words
from storage.scratch_file import ScratchFile, new_staging

FILE_PAGES = (64 << 20) // PAGE_BYTES
BUNDLE_BYTES = 1 << 20
"""of small arrays that go to the disk and come back together: a read or write of a few pages takes as long"""


@dataclass(frozen=True)
class Extent:
    """Pages of a scratch file, which is closed when nothing names it any more."""

    file: ScratchFile
    first_page: int
    num_pages: int

    def read(self) -> NDArray[np.uint8]:
        """The pages, in memory of their own; raises BadInput when they are not what was written."""
        data = new_staging(self.num_pages).data
        self.file.read(data, as_words(data), first_page=self.first_page, num_pages=self.num_pages)
        return data


class SampleSpace:
    """Memory that samples are kept in, and the disk behind it, shared by the superbatches in flight.

    Args:
        memory_bytes: what may be in memory at once, unfinished bundles aside; the rest goes to `folder`.
        folder: local folder; None keeps everything in memory.
        bundle_bytes: how much a shelf gathers before it asks for its place.
    """

    def __init__(self, *, memory_bytes: int, folder: str | None, bundle_bytes: int = BUNDLE_BYTES) -> None:
        self.folder = folder
        self.bundle_bytes = bundle_bytes
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

    def give_back(self, num_bytes: int) -> None:
        """Free what `take` reserved."""
        with self._lock:
            self._free += num_bytes

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
