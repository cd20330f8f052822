"""Local disk space that has no name: pages written and read past the page cache, each checked when it is read.

The file is never linked into its folder, or unlinked as soon as it is made, so the system takes it back when the
process ends, however it ends.
"""

import errno
import os
import tempfile
from types import TracebackType
from typing import Any, Self

import numpy as np
from numba import types
from numpy.typing import NDArray

from storage.block_reads import DAMAGED, NUM_CODES, OK, Staging, load_run
from storage.errors import BadInput
from storage.jit import kernel
from storage.pages import PAGE_BYTES, as_words, page_sum

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

_pwrite: Any = types.ExternalFunction("pwrite", types.intp(types.int32, types.uintp, types.uintp, types.int64))


@kernel
def store_pieces(
    descriptor: int,
    data: NDArray[np.uint8],
    words: NDArray[np.uint64],
    starts: NDArray[np.int64],
    first_pages: NDArray[np.int64],
    sums: NDArray[np.uint32],
) -> int:
    """Write pages [starts[i], starts[i + 1]) of `data` from page first_pages[i] of a file on, for every i.

    Sums of the pages go to `sums`; `words` is `data` as uint64. Returns the first piece that the system did not take
    whole, -1 when it took all. Thousands of small pieces are one call, so that their writer never waits for Python.
    """
    for piece in range(first_pages.shape[0]):
        first = first_pages[piece]
        for page in range(starts[piece], starts[piece + 1]):
            sums[first + page - starts[piece]] = page_sum(words, data, data.shape[0], page)
        done = starts[piece] * PAGE_BYTES
        place = first * PAGE_BYTES - done
        end = starts[piece + 1] * PAGE_BYTES
        while done < end:
            put = _pwrite(descriptor, data.ctypes.data + np.uintp(done), end - done, place + done)
            if put <= 0:
                return piece
            done += put
    return -1


class ScratchFull(OSError):
    """The disk has no room for the pages."""


class ScratchFile:
    """An anonymous file of `num_pages` pages in `folder`; pages may be written and read by several threads.

    The pages' sums stay in memory: 4 bytes a page. Raises ScratchFull when the disk has no room for that many pages,
    OSError when the folder cannot be written to.
    """

    def __init__(self, folder: str, *, num_pages: int) -> None:
        self._descriptor = -1
        self.folder = folder
        self.num_pages = num_pages
        os.makedirs(folder, exist_ok=True)
        self._descriptor = _open_anonymous(folder)
        self._sums = np.zeros(num_pages, dtype=np.uint32)
        try:
            if num_pages:
                _allocate(self._descriptor, num_pages * PAGE_BYTES)
        except OSError as error:
            self.close()
            raise self._full(error) from error

    def close(self) -> None:
        """Give the space back; nothing may follow."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __del__(self) -> None:
        """The space goes with the object, as memory does."""
        self.close()

    def __enter__(self) -> Self:
        """Open already."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file."""
        self.close()

    def write(self, data: NDArray[np.uint8], *, first_page: int) -> None:
        """Write whole pages: `data` (uint8 [pages * 4096]) is memory of a `Staging`, from the start of a page on."""
        num_pages = data.shape[0] // PAGE_BYTES
        assert data.shape[0] == num_pages * PAGE_BYTES
        self.write_pieces(data, np.array([0, num_pages]), np.array([first_page]))

    def write_pieces(self, data: NDArray[np.uint8], starts: NDArray[np.int64], first_pages: NDArray[np.int64]) -> None:
        """Write pages [starts[i], starts[i + 1]) of `data`, as `write` takes it, from page first_pages[i] on."""
        assert np.all(first_pages + np.diff(starts) <= self.num_pages)
        left = store_pieces(self._descriptor, data, as_words(data), starts, first_pages, self._sums)
        if left >= 0:
            piece = data[starts[left] * PAGE_BYTES : starts[left + 1] * PAGE_BYTES]
            self._write_alone(piece, int(first_pages[left]) * PAGE_BYTES)
            self.write_pieces(data, starts[left + 1 :], first_pages[left + 1 :])

    def _write_alone(self, data: NDArray[np.uint8], place: int) -> None:
        """Write what the kernel could not, or raise why the system will not have it."""
        done = 0
        view = memoryview(data.data)
        while done < data.shape[0]:
            try:
                done += os.pwrite(self._descriptor, view[done:], place + done)
            except OSError as error:
                raise self._full(error) from error

    def read(self, staging: NDArray[np.uint8], words: NDArray[np.uint64], *, first_page: int, num_pages: int) -> None:
        """Read pages into `staging`, memory of a `Staging` from the start of a page on (`words` the same as uint64).

        Raises BadInput when a page is not what was written.
        """
        status = load_run(self._descriptor, staging, words, first_page, num_pages * PAGE_BYTES, self._sums, 0)
        if status != OK:
            page, code = divmod(status, NUM_CODES)
            raise BadInput(
                f"scratch space in {self.folder}, page {page}",
                "changed since it was written" if code == DAMAGED else "cannot be read",
                rule="the disk gives back what it was given",
                remedy="check the disk, or name another folder with tiers.scratch_folder",
            )

    def _full(self, error: OSError) -> OSError:
        if error.errno not in NO_SPACE:
            return error
        return ScratchFull(
            error.errno,
            f"{self.folder}: no room for {self.num_pages * PAGE_BYTES} bytes of scratch; free space there, or name "
            "another folder with tiers.scratch_folder",
        )


def new_staging(num_pages: int) -> Staging:
    """Memory that scratch pages are written from and read into."""
    return Staging(num_pages * PAGE_BYTES)


def _open_anonymous(folder: str) -> int:
    flags = os.O_RDWR | getattr(os, "O_DIRECT", 0)
    if hasattr(os, "O_TMPFILE"):
        for more in (flags, os.O_RDWR):
            try:
                return os.open(folder, os.O_TMPFILE | more, 0o600)
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.EISDIR):
                    raise
    descriptor, path = tempfile.mkstemp(dir=folder, prefix="hopstream-")
    os.unlink(path)
    return descriptor


def _allocate(descriptor: int, num_bytes: int) -> None:
    if not hasattr(os, "posix_fallocate"):
        return
    try:
        os.posix_fallocate(descriptor, 0, num_bytes)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise
