"""A cache of blocks of slow files (remote ones, decoded Parquet) on the local disk, shared by all processes.

    <folder>/blocks/<key>/<number>     one block (`block_files`); 8 MiB unless the limit is small
    <folder>/locks, reserved, usage    how processes agree (`cache_space`)

A block is fetched once, whoever asks, written under a temporary name and renamed. It is checked when a process
first opens it; one that is damaged is fetched again. What was used longest ago is removed when the limit is
reached; a reader that has it open keeps reading. A cache that cannot hold a block says `CacheFull`, upon which
readers of remote files read directly.
"""

import errno
import os
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from storage.block_files import (
    BlockName,
    CacheFull,
    OpenBlock,
    block_file_bytes,
    open_block,
    write_block,
)
from storage.cache_space import BLOCKS, CacheSpace, holding, writing
from storage.cached_file import CachedFile
from storage.errors import BadInput
from storage.pages import PAGE_BYTES

BLOCK_BYTES = 8 << 20
JOINED_BYTES = 16 << 20
"""adjacent missing blocks are fetched by one request up to this size"""
LEAST_LIMIT_BYTES = 1 << 16
BLOCKS_IN_LIMIT = 8
"""a cache is cut into at least this many blocks"""
MOST_IDLE = 64
"""blocks kept open while nobody reads them"""
TOUCH_SECONDS = 60.0
"""the time of last use is kept to this precision"""
_ATTEMPTS = 4
"""a block may be evicted between being written and being opened"""


@dataclass
class BlockCacheCounters:
    """What one cache object has done since it was made."""

    requests: int = 0
    """blocks asked for"""
    hits: int = 0
    """blocks that were there"""
    bytes: int = 0
    """bytes fetched from the files"""
    seconds: float = 0.0
    """time callers waited for blocks that were not there, summed over callers"""
    evicted: int = 0
    """blocks removed to make room"""
    refetched: int = 0
    """damaged blocks found and fetched again"""
    uncached: int = 0
    """requests that found no room"""


@dataclass
class _Entry:
    block: OpenBlock
    users: int
    touched: float


class BlockCache:
    """Blocks under `folder`, at most `limit_bytes` of them; safe from several threads and processes.

    Args:
        folder: made when the first block is written; caches of the same folder share blocks.
        limit_bytes: most bytes on the disk. Up to 64 blocks more stay allocated while evicted and open.
        block_bytes: size of a block in whole pages; 8 MiB, or an eighth of the limit if that is less.

    Raises BadInput for a limit below 64 KiB. Memory: 8 KiB a block open and 16 MiB a fetch.
    """

    def __init__(self, folder: str, *, limit_bytes: int, block_bytes: int | None = None) -> None:
        if limit_bytes < LEAST_LIMIT_BYTES:
            raise BadInput(
                f"block cache {folder}",
                f"limit of {limit_bytes} bytes",
                rule=f"a block cache has at least {LEAST_LIMIT_BYTES >> 10} KiB",
                remedy="allow it more, or 0 for no cache",
            )
        most = limit_bytes // BLOCKS_IN_LIMIT // PAGE_BYTES * PAGE_BYTES
        self.folder = os.path.abspath(os.path.expanduser(folder))
        self.limit_bytes = limit_bytes
        self.block_bytes = min(BLOCK_BYTES, most) if block_bytes is None else block_bytes
        assert self.block_bytes % PAGE_BYTES == 0
        self._space = CacheSpace(self.folder, limit_bytes=limit_bytes)
        self._most_idle = min(MOST_IDLE, max(1, limit_bytes // self.block_bytes // 2))
        self._lock = Lock()
        self._open: OrderedDict[BlockName, _Entry] = OrderedDict()
        self._checked: dict[BlockName, int] = {}
        self._counters = BlockCacheCounters()

    @property
    def counters(self) -> BlockCacheCounters:
        """A copy."""
        with self._lock:
            return replace(self._counters)

    @contextmanager
    def block(self, file: CachedFile, number: int, *, last: int | None = None) -> Iterator[OpenBlock]:
        """Block `number` of `file`, checked and open; fetched when it is not there.

        Args:
            file: whose.
            number: which.
            last: the caller goes on to read up to this block, so adjacent ones may be fetched with it.

        Raises:
            CacheFull: there is no room for it. Also whatever reading the file raises.
        """
        name = self._name(file, number)
        with self._lock:
            self._counters.requests += 1
            entry = self._open.get(name)
            if entry is not None:
                entry.users += 1
                self._counters.hits += 1
        try:
            entry = entry or self._enter(file, number, last=number if last is None else last)
        except CacheFull:
            self._count(uncached=1)
            raise
        try:
            yield entry.block
        finally:
            self._leave(name, entry)

    def copy(self, file: CachedFile, data: NDArray[np.uint8], *, start: int) -> NDArray[np.uint32]:
        """Fill `data` with the bytes of `file` from `start` (a page's) on; returns the sums of their pages.

        Bytes are not checked here; those that the disk does not give are left as they were. Raises as `block`.
        """
        last = (start + data.shape[0] - 1) // self.block_bytes
        sums, done = list[NDArray[np.uint32]](), 0
        while done < data.shape[0]:
            number, skip = divmod(start + done, self.block_bytes)
            with self.block(file, number, last=last) as block:
                part = data[done : done + block.num_bytes - skip]
                try:
                    os.preadv(block.descriptor, [part.data], skip)
                except OSError as error:
                    if error.errno != errno.EIO:
                        raise
                sums.append(block.sums[skip // PAGE_BYTES : -(-(skip + part.shape[0]) // PAGE_BYTES)])
            done += part.shape[0]
        return np.concatenate(sums)

    def distrust(self, file: CachedFile, numbers: range) -> None:
        """Forget blocks whose pages turned out damaged: the next request fetches them again."""
        for number in numbers:
            name = self._name(file, number)
            with self._lock:
                self._counters.refetched += 1
                self._checked.pop(name, None)
                entry = self._open.pop(name, None)
                if entry is not None and entry.users == 0:
                    entry.block.close()
            _unlink(self._path(name))

    def close(self) -> None:
        """Close all blocks; none may be in use."""
        with self._lock:
            for entry in self._open.values():
                entry.block.close()
            self._open.clear()

    def _name(self, file: CachedFile, number: int) -> BlockName:
        return BlockName(key=f"{file.key}-{self.block_bytes}", number=number)

    def _path(self, name: BlockName) -> str:
        return os.path.join(self.folder, BLOCKS, name.key, str(name.number))

    def _count(self, **more: float) -> None:
        with self._lock:
            for field, amount in more.items():
                setattr(self._counters, field, getattr(self._counters, field) + amount)

    def _enter(self, file: CachedFile, number: int, *, last: int) -> _Entry:
        """Open a block, fetching it first where needed, and put it among the open ones with one user."""
        began = time.perf_counter()
        name = self._name(file, number)
        block = self._open_stored(file, number)
        if block is not None:
            self._count(hits=1)
            return self._put(name, block)
        for _ in range(_ATTEMPTS):
            block = self._fetch(file, number, last)
            if block is not None:
                self._count(seconds=time.perf_counter() - began)
                return self._put(name, block)
        raise CacheFull(f"{self.folder}: blocks are evicted as fast as they are fetched")

    def _open_stored(self, file: CachedFile, number: int) -> OpenBlock | None:
        name = self._name(file, number)
        path = self._path(name)
        try:
            block = open_block(
                path, name, file.size(number, block_bytes=self.block_bytes), known_inode=self._checked.get(name)
            )
        except (FileNotFoundError, NotADirectoryError):
            return None
        if block is None:
            self._count(refetched=1)
            _unlink(path)
        return block

    def _put(self, name: BlockName, block: OpenBlock) -> _Entry:
        with self._lock:
            self._checked[name] = block.inode
            entry = self._open.get(name)
            if entry is not None:  # another thread was faster
                block.close()
                entry.users += 1
                return entry
            self._open[name] = entry = _Entry(block, users=1, touched=-TOUCH_SECONDS)
            return entry

    def _leave(self, name: BlockName, entry: _Entry) -> None:
        now = time.monotonic()
        with self._lock:
            if entry.touched + TOUCH_SECONDS <= now:
                entry.touched = now
                os.utime(entry.block.descriptor)
                if os.fstat(entry.block.descriptor).st_nlink == 0 and self._open.get(name) is entry:
                    del self._open[name]  # evicted: let the disk have its space back
            entry.users -= 1
            if self._open.get(name) is not entry:
                if entry.users == 0:
                    entry.block.close()
                return
            self._open.move_to_end(name)
            if len(self._open) > self._most_idle:
                idle = [name for name, other in self._open.items() if other.users == 0]
                for extra in idle[: max(0, len(idle) - self._most_idle)]:
                    self._open.pop(extra).block.close()

    def _fetch(self, file: CachedFile, number: int, last: int) -> OpenBlock | None:
        """Make blocks [number, last] that are missing, as far as one request goes, or all of a whole file.

        Returns block `number`, opened before anyone could evict it; None in the rare case that someone did.
        """
        ahead = max(1, min(JOINED_BYTES, self.limit_bytes // 4) // self.block_bytes)
        wanted = range(number, min(last, number + ahead - 1) + 1)
        if file.whole:
            wanted = range(-(-file.num_bytes // self.block_bytes))
        names = [file.key] if file.whole else [f"{file.key}/{n}" for n in wanted]
        with writing(self.folder), holding(self.folder, names):
            # another may have been faster
            return self._open_stored(file, number) or self._write_missing(file, wanted, number)

    def _write_missing(self, file: CachedFile, wanted: range, number: int) -> OpenBlock | None:
        missing = [n for n in wanted if n == number or not os.path.exists(self._path(self._name(file, n)))]
        if not file.whole:  # those that follow without a hole
            missing = [n for place, n in enumerate(missing) if n == wanted[0] + place]
        sizes = {n: file.size(n, block_bytes=self.block_bytes) for n in missing}
        opened: OpenBlock | None = None
        try:
            with self._space.reserve(sum(map(block_file_bytes, sizes.values()))) as reservation:
                self._count(evicted=reservation.evicted)
                blocks = file.blocks(wanted[0], missing[-1], block_bytes=self.block_bytes)
                for n, data in enumerate(blocks, wanted[0]):
                    if n in sizes:
                        name = self._name(file, n)
                        write_block(self._path(name), name, data)
                        reservation.spend(block_file_bytes(sizes[n]))
                    if n == number:
                        opened = self._open_stored(file, n)
        except BaseException:
            if opened is not None:
                opened.close()
            raise
        self._count(bytes=sum(sizes.values()))
        return opened


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        return  # another process was faster
