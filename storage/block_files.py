"""One cached block on disk: its bytes, then the sum of each of its pages, then a seal over those sums.

    data [num_bytes] | page sums uint32 [ceil(num_bytes / 4096)] | XXH64 of key, number and page sums [8 bytes]

The seal says which block of which file this is, so one that was moved, cut or written over is not taken for
another. Once the seal and every page have been checked, the page sums vouch for each later read.
"""

import errno
import fcntl
import os
import threading
from dataclasses import dataclass
from typing import BinaryIO, cast

import numpy as np
import xxhash
from numpy.typing import NDArray

from storage.pages import PAGE_BYTES, as_words, check_pages, page_sums

PARTIAL = ".partial"
"""ends the temporary name of a file that is being written"""
_SUMS_DTYPE = np.dtype("<u4")
_SEAL_BYTES = 8
_CHECK_BYTES = 1 << 20
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""what a system says when a file cannot grow"""


class CacheFull(Exception):
    """There is no room for a block: the disk is full, or the cache is smaller than what is needed at once."""


@dataclass(frozen=True)
class BlockName:
    """Block `number` of the file that `key` identifies."""

    key: str
    number: int


@dataclass(frozen=True)
class OpenBlock:
    """A checked block, open for reading at `descriptor`; it stays readable when its file is removed."""

    descriptor: int
    inode: int
    num_bytes: int
    sums: NDArray[np.uint32]
    """of its pages"""

    def close(self) -> None:
        """Give the descriptor back."""
        os.close(self.descriptor)


def block_file_bytes(num_bytes: int) -> int:
    """Size of the file of a block of `num_bytes` bytes."""
    return num_bytes + -(-num_bytes // PAGE_BYTES) * _SUMS_DTYPE.itemsize + _SEAL_BYTES


def write_block(path: str, name: BlockName, data: NDArray[np.uint8]) -> int:
    """Write a block under a temporary name, locked while it grows, and rename it into place; returns its inode.

    Not flushed to the disk: what a power cut leaves half-written is found out by its seal and fetched again.

    Raises:
        CacheFull: the disk is.
    """
    sums = page_sums(data).astype(_SUMS_DTYPE, copy=False).tobytes()
    os.makedirs(os.path.dirname(path), exist_ok=True)
    partial = f"{path}.{os.getpid()}-{threading.get_ident()}{PARTIAL}"
    with open_held(partial) as file:
        try:
            for part in (data.data, sums, _seal(name, sums)):
                left = memoryview(part)
                while left.nbytes:
                    left = left[file.write(left) :]
            os.replace(partial, path)
            return os.fstat(file.fileno()).st_ino
        except BaseException as error:
            os.unlink(partial)
            if isinstance(error, OSError) and error.errno in NO_ROOM:
                raise CacheFull(f"{path}: {error.strerror}") from error
            raise


def open_block(path: str, name: BlockName, num_bytes: int, *, known_inode: int | None) -> OpenBlock | None:
    """Open and check a block; one whose inode this process has checked before, or written, is only opened.

    Raises FileNotFoundError when there is none; returns None when it is damaged.
    """
    descriptor = os.open(path, os.O_RDONLY)
    block = None
    try:
        block = _checked(descriptor, name, num_bytes, known_inode=known_inode)
    finally:
        if block is None:
            os.close(descriptor)
    return block


def without_read_ahead(descriptor: int) -> int:
    """Have single pages read: read-ahead would read megabytes around each. Returns the descriptor."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
    return descriptor


def open_held(path: str) -> BinaryIO:
    """A new file that is locked while it is open, by which others know that its writer lives."""
    while True:
        file = open(path, "wb", buffering=0)  # noqa: SIM115  # the caller closes it
        fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file.fileno()).st_nlink:
            return cast(BinaryIO, file)
        file.close()  # someone took it for abandoned before it was locked


def remove_abandoned(path: str) -> bool:
    """Remove a file of `open_held` that has lost its writer; False when it lives. It may be gone already."""
    try:
        with open(path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(path)  # while it is locked, so that a writer which is about to lock it sees that
            return True
    except BlockingIOError:
        return False


def _checked(descriptor: int, name: BlockName, num_bytes: int, *, known_inode: int | None) -> OpenBlock | None:
    status = os.fstat(descriptor)
    if status.st_size != block_file_bytes(num_bytes):
        return None
    trailer = os.pread(descriptor, status.st_size - num_bytes, num_bytes)
    raw, seal = trailer[:-_SEAL_BYTES], trailer[-_SEAL_BYTES:]
    if seal != _seal(name, raw):
        return None
    sums = np.frombuffer(raw, dtype=_SUMS_DTYPE).astype(np.uint32)
    without_read_ahead(descriptor)
    if status.st_ino != known_inode and not _pages_hold(descriptor, num_bytes, sums):
        return None
    return OpenBlock(descriptor=descriptor, inode=status.st_ino, num_bytes=num_bytes, sums=sums)


def _pages_hold(descriptor: int, num_bytes: int, sums: NDArray[np.uint32]) -> bool:
    buffer = np.empty(min(_CHECK_BYTES, num_bytes), dtype=np.uint8)
    for start in range(0, num_bytes, _CHECK_BYTES):
        part = buffer[: min(_CHECK_BYTES, num_bytes - start)]
        try:
            got = os.preadv(descriptor, [part.data], start)
        except OSError:  # a sector that cannot be read is damage like any other
            return False
        if got != part.shape[0] or check_pages(as_words(part), part, got, sums, start // PAGE_BYTES) >= 0:
            return False
    return True


def _seal(name: BlockName, sums: bytes) -> bytes:
    return xxhash.xxh64_digest(f"{name.key}/{name.number}/".encode() + sums)
