"""The cached blocks that one process has open, for all its threads, and what it knows of those that it has closed.

A block that nobody reads stays open, up to a number of them. Of a block that this process has checked or written
itself it keeps the inode, so that opening it again costs no reading of its pages, and when its time of last use was
noted. Evicted blocks are forgotten: at once by who evicts them, else when they are next asked for or let go.
"""

import os
import time
import weakref
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from threading import Lock

from storage.block_files import BlockName, OpenBlock

MOST_IDLE = 256
"""blocks kept open while nobody reads them"""
TOUCH_SECONDS = 60.0
"""the time of last use is kept to this precision"""


@dataclass
class _Known:
    """A block whose pages were checked or written here."""

    inode: int
    touched: float
    """when its time of last use was noted"""


@dataclass
class HeldBlock:
    """An open block and how many use it."""

    block: OpenBlock
    users: int
    known: _Known


class OpenBlocks:
    """Open blocks by name; safe from several threads. They are closed when this is dropped.

    Args:
        most_idle: kept open while nobody reads them.
    """

    def __init__(self, *, most_idle: int) -> None:
        self._most_idle = most_idle
        self._lock = Lock()
        self._open: OrderedDict[BlockName, HeldBlock] = OrderedDict()
        self._known: dict[BlockName, _Known] = {}
        # the end of the process closes them by itself, perhaps while threads still read
        weakref.finalize(self, _close_all, self._open).atexit = False

    def take(self, name: BlockName) -> HeldBlock | None:
        """An open block, with one user more, who lets it go; None when it is not open."""
        with self._lock:
            held = self._open.get(name)
            if held is not None:
                held.users += 1
            return held

    def put(self, name: BlockName, block: OpenBlock) -> HeldBlock:
        """Hold a block that was opened and checked, with one user; closed when another thread was faster."""
        with self._lock:
            held = self._open.get(name)
            if held is not None:
                block.close()
                held.users += 1
                return held
            known = self._known.get(name)
            if known is None or known.inode != block.inode:
                known = self._known[name] = _Known(block.inode, touched=-TOUCH_SECONDS)
            self._open[name] = held = HeldBlock(block, users=1, known=known)
            return held

    def let_go(self, name: BlockName, held: HeldBlock) -> None:
        """One user less, who is noted as its last. What nobody uses is closed once it is evicted, or idle longest."""
        is_evicted = False
        try:
            is_evicted = not _note_use(held)
        finally:
            with self._lock:
                held.users -= 1
                if is_evicted:  # let the disk have its space back
                    if self._known.get(name) is held.known:
                        del self._known[name]
                    if self._open.get(name) is held:
                        del self._open[name]
                if self._open.get(name) is held:
                    self._open.move_to_end(name)
                    self._close_idle()
                elif held.users == 0:
                    held.block.close()

    def _close_idle(self) -> None:
        if len(self._open) > self._most_idle:
            idle = [name for name, held in self._open.items() if held.users == 0]
            for extra in idle[: max(0, len(idle) - self._most_idle)]:
                self._open.pop(extra).block.close()

    def inode(self, name: BlockName) -> int | None:
        """Of the block that was checked or written here under this name."""
        known = self._known.get(name)
        return None if known is None else known.inode

    def wrote(self, name: BlockName, *, inode: int) -> None:
        """Trust a block that was just written here."""
        with self._lock:
            self._known[name] = _Known(inode, touched=time.monotonic())

    def forget(self, names: Iterable[BlockName]) -> None:
        """Trust these no longer: they are evicted."""
        with self._lock:
            for name in names:
                self._known.pop(name, None)

    def drop(self, name: BlockName) -> None:
        """Trust a block no longer, and open it anew when it is next asked for."""
        with self._lock:
            self._known.pop(name, None)
            held = self._open.pop(name, None)
            if held is not None and held.users == 0:
                held.block.close()

    def close(self) -> None:
        """Close all blocks; none may be in use."""
        with self._lock:
            _close_all(self._open)


def _note_use(held: HeldBlock) -> bool:
    """Note that a block is in use, if that is not noted yet; False when it turns out to be evicted."""
    now = time.monotonic()
    if now < held.known.touched + TOUCH_SECONDS:
        return True
    held.known.touched = now
    os.utime(held.block.descriptor)
    return os.fstat(held.block.descriptor).st_nlink > 0


def _close_all(held: OrderedDict[BlockName, HeldBlock]) -> None:
    for one in held.values():
        one.block.close()
    held.clear()
