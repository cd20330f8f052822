"""Verified reads of stored pages: straight from the disk where the file system allows, checked before use.

The compiled part (`load_run`) reads consecutive pages into page-aligned memory and checks each of them, all
without the GIL, so a reading thread never waits for Python. It calls the C library's `pread` by name.
"""

import errno
import mmap
import os
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

import numpy as np
from numba import types
from numpy.typing import NDArray

from storage.block_files import CacheFull, without_read_ahead
from storage.cached_file import CachedFile, identity
from storage.errors import DamagedStore
from storage.jit import kernel
from storage.npy import damaged, read_sums
from storage.pages import PAGE_BYTES, as_words, check_pages
from storage.place import Place
from storage.range_reader import LONGEST_BYTES
from storage.schema import FileInfo

STAGING_BYTES = 1 << 20
"""memory of one reading thread, and the longest single read unless one row needs more"""

OK = -1
DAMAGED, SHORT, FAILED = 0, 1, 2
NUM_CODES = 3
"""a status is OK or page * NUM_CODES + code, so that a kernel returns one number"""

_pread: Any = types.ExternalFunction("pread", types.intp(types.int32, types.uintp, types.uintp, types.int64))


@kernel
def load_run(
    descriptor: int,
    data: NDArray[np.uint8],
    words: NDArray[np.uint64],
    first_page: int,
    num_bytes: int,
    sums: NDArray[np.uint32],
    base_page: int,
) -> int:
    """Read `num_bytes` bytes from page `first_page` into `data` and check every page; returns a status.

    `data` begins at a page of memory and has room for whole pages; `words` is the same memory as uint64. With
    a negative descriptor the bytes are there already and are only checked. What the descriptor is open on, and
    `sums`, begin at page `base_page` of the file: 0 unless it is a block of it.
    """
    here = first_page - base_page
    if descriptor >= 0:
        room = -(-num_bytes // PAGE_BYTES) * PAGE_BYTES
        done = 0
        while done < num_bytes:
            got = _pread(descriptor, data.ctypes.data + np.uintp(done), room - done, here * PAGE_BYTES + done)
            if got <= 0:
                return (first_page + done // PAGE_BYTES) * NUM_CODES + (SHORT if got == 0 else FAILED)
            done += got
    bad = check_pages(words, data, num_bytes, sums, here)
    return OK if bad < 0 else (first_page + bad) * NUM_CODES + DAMAGED


class Staging:
    """Page-aligned memory that files are read into; anonymous, so it returns to the system when dropped."""

    def __init__(self, num_bytes: int) -> None:
        num_bytes = -(-num_bytes // PAGE_BYTES) * PAGE_BYTES
        self.data: NDArray[np.uint8] = np.frombuffer(mmap.mmap(-1, num_bytes), dtype=np.uint8)
        self.words = as_words(self.data)


class PageFile:
    """One stored file, open for verified reads; safe to use from several threads until closed.

    Args:
        place, info: the file.
        direct: go past the page cache (O_DIRECT) where the file system can; else buffered without read-ahead.

    A file elsewhere is read through the place's block cache if it has one: `cached` is then the file as the
    cache knows it. Raises DamagedStore when the file or its sums are missing, short, or not the ones recorded.
    Page sums stay in memory: 0.1 % of the file.
    """

    def __init__(self, place: Place, info: FileInfo, *, direct: bool = True) -> None:
        self.place = place
        self.info = info
        self.descriptor = -1
        self.cached: CachedFile | None = None
        path = place.local(info.name)
        try:
            num_bytes = place.size(info.name)
        except FileNotFoundError:
            raise damaged(place, info.name, "missing file") from None
        if num_bytes != info.num_bytes:
            raise damaged(place, info.name, f"{num_bytes} bytes where {info.num_bytes} were written")
        self.sums = read_sums(place, info)
        if path is not None:
            self.descriptor = _open_direct(path) if direct else _open_buffered(path)
        elif place.block_cache is not None and info.num_bytes:
            key = identity(place.full(info.name), info.num_bytes, info.sums_xxh64)
            self.cached = CachedFile(key=key, num_bytes=info.num_bytes, read=self._download)

    def close(self) -> None:
        """Give the file back; no read may follow."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def __enter__(self) -> Self:
        """Open already."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    def run_bytes(self, first_page: int, num_pages: int) -> int:
        """Bytes that pages [first_page, first_page + num_pages) hold; the file's last page may be partial."""
        return min((first_page + num_pages) * PAGE_BYTES, self.info.num_bytes) - first_page * PAGE_BYTES

    def fetch(self, data: NDArray[np.uint8], *, first_page: int, num_bytes: int) -> None:
        """Copy bytes of a file elsewhere into `data`, unchecked; local files are read by the kernels."""
        if self.cached is not None and self.place.block_cache is not None:
            try:
                self.place.block_cache.copy(self.cached, data[:num_bytes], start=first_page * PAGE_BYTES)
                return
            except CacheFull:
                pass  # it has counted that; the file itself is still there
        self.fetch_directly(data, first_page=first_page, num_bytes=num_bytes)

    def fetch_directly(self, data: NDArray[np.uint8], *, first_page: int, num_bytes: int) -> None:
        """As `fetch`, past the block cache: for a caller whom it has told that it has no room."""
        start = first_page * PAGE_BYTES
        data[:num_bytes] = np.frombuffer(self._read_range(start, start + num_bytes), dtype=np.uint8)

    def _read_range(self, start: int, stop: int) -> bytes:
        try:
            got = self.place.read_range(self.info.name, start=start, stop=stop)
        except FileNotFoundError:
            raise damaged(self.place, self.info.name, "missing file") from None
        if len(got) != stop - start:
            raise self.error((start + len(got)) // PAGE_BYTES, SHORT)
        return got

    def _download(self, start: int, stop: int) -> Iterator[NDArray[np.uint8]]:
        """Checked pieces for the cache, which would keep damage that happened on the way."""
        for first in range(start, stop, LONGEST_BYTES):
            piece = np.frombuffer(self._read_range(first, min(first + LONGEST_BYTES, stop)), dtype=np.uint8)
            bad = check_pages(as_words(piece), piece, piece.shape[0], self.sums, first // PAGE_BYTES)
            if bad >= 0:
                raise self.error(first // PAGE_BYTES + bad, DAMAGED)
            yield piece

    def read(self, data: NDArray[np.uint8], words: NDArray[np.uint64], *, first_page: int, num_pages: int) -> int:
        """Read and check consecutive pages into page-aligned `data`; returns their number of bytes."""
        num_bytes = self.run_bytes(first_page, num_pages)
        trusted = self.cached is None
        while True:
            if self.descriptor < 0:
                self.fetch(data, first_page=first_page, num_bytes=num_bytes)
            status = load_run(self.descriptor, data, words, first_page, num_bytes, self.sums, 0)
            if status == OK:
                return num_bytes
            if trusted:
                self.explain(status)
            else:  # perhaps only the cached copy is damaged
                trusted = True
                self.distrust(first_page, num_pages)

    def distrust(self, first_page: int, num_pages: int) -> None:
        """Have the cached blocks of these pages fetched again."""
        cache = self.place.block_cache
        if self.cached is not None and cache is not None and num_pages:
            per_block = cache.block_bytes // PAGE_BYTES
            cache.distrust(self.cached, range(first_page // per_block, (first_page + num_pages - 1) // per_block + 1))

    def explain(self, status: int) -> None:
        """Raise what a failed read's status means; return when reading again may help."""
        page, code = divmod(status, NUM_CODES)
        if code != FAILED:
            raise self.error(page, code)
        # the kernel cannot see errno: do the same read here, where an interrupted call is also repeated
        try:
            os.preadv(self.descriptor, [Staging(PAGE_BYTES).data.data], page * PAGE_BYTES)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            raise damaged(self.place, self.info.name, f"page {page} cannot be read from the disk") from error

    def error(self, page: int, code: int) -> DamagedStore:
        """The error for a page that is not what was written."""
        found = f"page {page} has changed" if code == DAMAGED else f"file ends before the end of page {page}"
        return damaged(self.place, self.info.name, found)


def _open_direct(path: str) -> int:
    """A descriptor that bypasses the page cache, or a buffered one where the file system refuses that."""
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_DIRECT", 0))
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return _open_buffered(path)
    try:
        # some file systems take the flag and refuse the read
        os.preadv(descriptor, [Staging(PAGE_BYTES).data.data], 0)
    except OSError as error:
        os.close(descriptor)
        if error.errno != errno.EINVAL:
            raise
        return _open_buffered(path)
    return descriptor


def _open_buffered(path: str) -> int:
    return without_read_ahead(os.open(path, os.O_RDONLY))
