"""Threads that read, each with memory of its own to read into."""

from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from queue import LifoQueue
from threading import Lock

from storage.block_reads import STAGING_BYTES, Staging

NUM_THREADS = 16
"""reads of features in flight, unless another number is asked for"""


class ReadPool:
    """Threads that read, and one staging buffer for each; both are made when first needed.

    Args:
        num_threads: reads in flight.
        staging_bytes: memory of one thread.
    """

    def __init__(self, *, num_threads: int, staging_bytes: int = STAGING_BYTES) -> None:
        self.num_threads = num_threads
        self.staging_bytes = staging_bytes
        self._lock = Lock()
        self._threads: ThreadPoolExecutor | None = None
        self._buffers: LifoQueue[Staging | None] = LifoQueue()
        for _ in range(num_threads):
            self._buffers.put(None)

    @contextmanager
    def staging(self) -> Iterator[Staging]:
        """Borrow a buffer; waits while all are lent, so that memory stays bounded."""
        lent = self._buffers.get()
        try:
            lent = lent or Staging(self.staging_bytes)
            yield lent
        finally:
            self._buffers.put(lent)

    def run(self, work: Callable[[int], None], num_units: int) -> None:
        """Do `work(0) ... work(num_units - 1)`, side by side where there are several; raises the first error.

        Returns when no unit is running any more, also after an error, so no memory is written to afterwards.
        """
        if num_units <= 1:
            for unit in range(num_units):
                work(unit)
            return
        with self._lock:
            if self._threads is None:
                self._threads = ThreadPoolExecutor(self.num_threads, thread_name_prefix="read")
            units = [self._threads.submit(work, unit) for unit in range(num_units)]
        _, waiting = wait(units, return_when=FIRST_EXCEPTION)
        for unit_ahead in waiting:
            unit_ahead.cancel()
        wait(waiting)
        for finished in units:
            if not finished.cancelled():
                finished.result()

    def close(self) -> None:
        """End the threads."""
        with self._lock:
            if self._threads is not None:
                self._threads.shutdown()
                self._threads = None
