"""Tells the progress which stage of an ingest runs, and keeps the seconds of each."""

import ctypes
import time
from collections.abc import Callable

import pyarrow as pa

from storage.progress import Progress


class Stages:
    """One stage at a time; the seconds of stages of one name are added.

    Args:
        progress: told about stages and advances.
        alive: called at every advance.
    """

    def __init__(self, progress: Progress, *, alive: Callable[[], None]) -> None:
        self.seconds: dict[str, float] = {}
        self._progress = progress
        self._alive = alive
        self._name: str | None = None
        self._began = 0.0

    def begin(self, name: str, *, total: int, unit: str) -> None:
        """A new stage begins and the one before it is over."""
        self.end()
        give_back_memory()
        self._name, self._began = name, time.perf_counter()
        self._progress.stage(name, total=total, unit=unit)
        self._alive()

    def advance(self, amount: int) -> None:
        """`amount` more rows or edges of the stage are done."""
        self._progress.advance(amount)
        self._alive()

    def end(self) -> None:
        """The stage is over."""
        if self._name is not None:
            spent = time.perf_counter() - self._began
            self.seconds[self._name] = round(self.seconds.get(self._name, 0.0) + spent, 3)
        self._name = None


def give_back_memory() -> None:
    """Return what freed arrays and Arrow's pool still hold to the system, so that stages do not add up."""
    pa.default_memory_pool().release_unused()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:  # glibc
        trim(0)
