"""How processes that share the folder of a block cache agree: what it takes on the disk, and who fetches a block.

    <folder>/locks/<00 .. ff>     who fetches a block holds the lock that its name falls on
    <folder>/reserved/            room held for blocks on their way
    <folder>/usage                bytes of all of it

Before blocks are written their size is reserved under one lock: the total is kept in the file `usage`, and when
it would pass the limit, or the disk has no room, the blocks that were used longest ago are removed. The folder
is counted then, so a total that is wrong (a process died between reserving and writing) does not stay so.
"""

import errno
import fcntl
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import BinaryIO, NamedTuple

import xxhash

from storage.block_files import NO_ROOM, PARTIAL, BlockName, CacheFull, open_held, remove_abandoned
from storage.errors import BadInput

BLOCKS = "blocks"
RESERVED = "reserved"
NUM_LOCKS = 256
REFUSALS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR)
SLACK_SHARE = 16
"""a sixteenth of the limit is freed beyond what is needed, so that not every block counts the folder"""


class _Block(NamedTuple):
    used: int
    """time of last use in nanoseconds"""
    path: str
    num_bytes: int

    @property
    def name(self) -> BlockName:
        """As its path says."""
        folder, number = os.path.split(self.path)
        return BlockName(key=os.path.basename(folder), number=int(number) if number.isdecimal() else -1)


class Reservation:
    """Room held for blocks on their way: an empty file of that size, which shrinks as they are written."""

    def __init__(self, file: BinaryIO, *, num_bytes: int, evicted: list[BlockName]) -> None:
        self.evicted = evicted
        """blocks that had to go"""
        self._file = file
        self._left = num_bytes
        os.ftruncate(file.fileno(), num_bytes)

    def spend(self, num_bytes: int) -> None:
        """A file of this size has been written."""
        self._left = max(0, self._left - num_bytes)
        os.ftruncate(self._file.fileno(), self._left)


class CacheSpace:
    """The room under `folder`; safe from several threads and processes.

    Args:
        folder: of the cache; made when first needed.
        limit_bytes: most bytes of blocks in it.
    """

    def __init__(self, folder: str, *, limit_bytes: int) -> None:
        self._folder = folder
        self._limit_bytes = limit_bytes

    @contextmanager
    def reserve(self, num_bytes: int) -> Iterator[Reservation]:
        """Hold room for `num_bytes` bytes of files that the caller writes inside the block.

        Raises:
            CacheFull: the limit or the disk is too small.
        """
        if num_bytes > self._limit_bytes:
            raise CacheFull(f"{self._folder}: {num_bytes} bytes needed at once, {self._limit_bytes} allowed")
        for name in (BLOCKS, RESERVED):
            os.makedirs(os.path.join(self._folder, name), exist_ok=True)
        with self._locked() as usage:
            used = _read_number(usage)
            evicted = list[BlockName]()
            if used is None or used + num_bytes > self._limit_bytes or self._free_bytes() < num_bytes:
                used, evicted = self._make_room(num_bytes)
            descriptor, path = tempfile.mkstemp(dir=os.path.join(self._folder, RESERVED))
            os.close(descriptor)
            file = open_held(path)
            reservation = Reservation(file, num_bytes=num_bytes, evicted=evicted)
            os.pwrite(usage, (used + num_bytes).to_bytes(8, "little"), 0)
        try:
            yield reservation
        finally:
            os.unlink(path)
            file.close()

    def _make_room(self, num_bytes: int) -> tuple[int, list[BlockName]]:
        """Bytes in use after evicting what must go, and the blocks evicted."""
        # in this order: a block that gets its name in between is counted twice, not left out
        reserved = self._reserved_bytes()
        blocks = sorted(self._blocks())
        used = sum(block.num_bytes for block in blocks) + reserved
        goal = self._limit_bytes - num_bytes
        if used > goal:
            goal = max(0, goal - self._limit_bytes // SLACK_SHARE)
        evicted = list[BlockName]()
        for block in blocks:
            if used <= goal and self._free_bytes() >= num_bytes:
                break
            with suppress(FileNotFoundError):  # another process found it damaged
                os.unlink(block.path)
            used -= block.num_bytes
            evicted.append(block.name)
        if self._free_bytes() < num_bytes:
            raise CacheFull(f"{self._folder}: the disk is full")
        return used, evicted

    def _blocks(self) -> Iterator[_Block]:
        """Every block; temporary files without a writer are removed."""
        for folder in os.scandir(os.path.join(self._folder, BLOCKS)):
            for entry in os.scandir(folder.path):
                try:
                    status = entry.stat(follow_symlinks=False)
                    if not entry.name.endswith(PARTIAL):
                        yield _Block(status.st_mtime_ns, entry.path, status.st_size)
                    else:
                        remove_abandoned(entry.path)
                except FileNotFoundError:
                    continue  # renamed, or removed as damaged, since it was listed

    def _reserved_bytes(self) -> int:
        total = 0
        for entry in os.scandir(os.path.join(self._folder, RESERVED)):
            try:
                if not remove_abandoned(entry.path):
                    total += entry.stat().st_size
            except FileNotFoundError:
                continue  # given back since it was listed
        return total

    def _free_bytes(self) -> int:
        status = os.statvfs(self._folder)
        return status.f_bavail * status.f_frsize

    @contextmanager
    def _locked(self) -> Iterator[int]:
        """The file `usage`, held: a descriptor of its own for every caller, so threads exclude each other too."""
        descriptor = os.open(os.path.join(self._folder, "usage"), os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield descriptor
        finally:
            os.close(descriptor)


@contextmanager
def holding(folder: str, names: Iterable[str]) -> Iterator[None]:
    """Hold the locks that `names` fall on, always taken in the same order; other holders wait."""
    locks = os.path.join(folder, "locks")
    os.makedirs(locks, exist_ok=True)
    with ExitStack() as stack:
        for lock in sorted({xxhash.xxh64_intdigest(name.encode()) % NUM_LOCKS for name in names}):
            held = stack.enter_context(open(os.path.join(locks, f"{lock:02x}"), "wb"))
            fcntl.flock(held, fcntl.LOCK_EX)
        yield


@contextmanager
def refusals_explained(folder: str) -> Iterator[None]:
    """Say of what the system refuses inside the block what it means for a cache."""
    try:
        yield
    except OSError as error:
        if error.errno in NO_ROOM:
            raise CacheFull(f"{folder}: {error.strerror}") from error
        if error.errno in REFUSALS and str(error.filename).startswith(folder):
            raise BadInput(
                f"block cache {folder}",
                str(error.strerror),
                rule="the folder of a block cache can be written",
                remedy="name another with tiers.disk_cache_folder",
            ) from error
        raise


def _read_number(descriptor: int) -> int | None:
    raw = os.pread(descriptor, 9, 0)
    return int.from_bytes(raw, "little") if len(raw) == 8 else None
