"""A cache of blocks of slow files (remote ones, decoded Parquet) on the local disk, shared by all processes.

    <folder>/blocks/<key>/<number>     one block (`block_files`); 8 MiB unless the limit is small
    <folder>/locks, reserved, usage    how processes agree (`cache_space`)

A block is fetched once, whoever asks, written under a temporary name and renamed. A process checks it when it
first opens one that it has not written itself; one that is damaged is fetched again. What was used longest ago is
removed when the limit is reached; a reader that has it open (`open_blocks`) keeps reading. A cache that cannot hold
a block says `CacheFull`, upon which readers of remote files read directly.
"""

import errno
import os
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from threading import Lock
from typing import Any

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
from storage.cache_space import BLOCKS, CacheSpace, holding, refusals_explained
from storage.cached_file import CachedFile
from storage.errors import BadInput
from storage.open_blocks import MOST_IDLE, HeldBlock, OpenBlocks
from storage.pages import PAGE_BYTES

BLOCK_BYTES = 8 << 20
JOINED_BYTES = 16 << 20
"""adjacent missing blocks are fetched by one request up to this size"""
LEAST_LIMIT_BYTES = 1 << 16
BLOCKS_IN_LIMIT = 8
"""a cache is cut into at least this many blocks"""
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


class BlockCache:
    """Blocks under `folder`, at most `limit_bytes` of them; safe from several threads and processes.

    Args:
        folder: made when the first block is written; caches of the same folder share blocks.
        limit_bytes: most bytes on the disk. Blocks that a process has open (up to 256, and half the limit, beside
            those being read) stay allocated when they are evicted.
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
        self._open = OpenBlocks(most_idle=min(MOST_IDLE, max(1, limit_bytes // self.block_bytes // 2)))
        self._lock = Lock()
        self._counters = BlockCacheCounters()

    def __reduce__(self) -> tuple[Any, ...]:
        """A cache of the same folder, limit and size of blocks, which opens its blocks itself."""
        again = partial(type(self), limit_bytes=self.limit_bytes, block_bytes=self.block_bytes)
        return again, (self.folder,)

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
        held = self._open.take(name)
        self._count(requests=1, hits=int(held is not None))
        try:
            held = held or self._enter(file, number, last=number if last is None else last)
        except CacheFull:
            self._count(uncached=1)
            raise
        try:
            yield held.block
        finally:
            self._open.let_go(name, held)

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
            self._count(refetched=1)
            self._open.drop(name)
            _unlink(self._path(name))

    def close(self) -> None:
        """Close all blocks; none may be in use."""
        self._open.close()

    def _name(self, file: CachedFile, number: int) -> BlockName:
        return BlockName(key=f"{file.key}-{self.block_bytes}", number=number)

    def _path(self, name: BlockName) -> str:
        return os.path.join(self.folder, BLOCKS, name.key, str(name.number))

    def _count(self, **more: float) -> None:
        with self._lock:
            for field, amount in more.items():
                setattr(self._counters, field, getattr(self._counters, field) + amount)

    def _enter(self, file: CachedFile, number: int, *, last: int) -> HeldBlock:
        """Open a block, fetching it first where needed, and put it among the open ones with one user."""
        began = time.perf_counter()
        name = self._name(file, number)
        block = self._open_stored(file, number)
        if block is not None:
            self._count(hits=1)
            return self._open.put(name, block)
        for _ in range(_ATTEMPTS):
            block = self._fetch(file, number, last)
            if block is not None:
                self._count(seconds=time.perf_counter() - began)
                return self._open.put(name, block)
        raise CacheFull(f"{self.folder}: blocks are evicted as fast as they are fetched")

    def _open_stored(self, file: CachedFile, number: int) -> OpenBlock | None:
        name = self._name(file, number)
        path, size = self._path(name), file.size(number, block_bytes=self.block_bytes)
        try:
            block = open_block(path, name, size, known_inode=self._open.inode(name))
        except (FileNotFoundError, NotADirectoryError):
            self._open.forget([name])
            return None
        if block is None:
            self._count(refetched=1)
            self._open.forget([name])
            _unlink(path)
        return block

    def _fetch(self, file: CachedFile, number: int, last: int) -> OpenBlock | None:
        """Make blocks [number, last] that are missing, as far as one request goes, or all of a whole file.

        Returns block `number`, opened before anyone could evict it; None in the rare case that someone did.
        """
        ahead = max(1, min(JOINED_BYTES, self.limit_bytes // 4) // self.block_bytes)
        wanted = range(number, min(last, number + ahead - 1) + 1)
        if file.whole:
            wanted = range(-(-file.num_bytes // self.block_bytes))
        names = [file.key] if file.whole else [f"{file.key}/{n}" for n in wanted]
        with refusals_explained(self.folder), holding(self.folder, names):
            # another may have been faster
            return self._open_stored(file, number) or self._write_missing(file, wanted, number)

    def _write_missing(self, file: CachedFile, wanted: range, number: int) -> OpenBlock | None:
        missing = [n for n in wanted if n == number or not os.path.exists(self._path(self._name(file, n)))]
        if not file.whole:  # those that follow without a hole
            missing = [n for place, n in enumerate(missing) if n == wanted[0] + place]
        last = wanted[-1] if file.whole else missing[-1]
        sizes = {n: file.size(n, block_bytes=self.block_bytes) for n in missing}
        opened: OpenBlock | None = None
        try:
            with self._space.reserve(sum(map(block_file_bytes, sizes.values()))) as reservation:
                self._count(evicted=len(reservation.evicted))
                self._open.forget(reservation.evicted)
                # closed at once, also where a block cannot be written: reading may hold what others wait for
                with closing(file.blocks(wanted[0], last, block_bytes=self.block_bytes)) as blocks:
                    for n, data in enumerate(blocks, wanted[0]):
                        if n in sizes:
                            name = self._name(file, n)
                            self._open.wrote(name, inode=write_block(self._path(name), name, data))
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
