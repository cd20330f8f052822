"""Who does the tasks of a stage: threads of this process, or whatever an upper room hands down (Ray)."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")


@dataclass(frozen=True)
class MachineShare:
    """What an executor takes of one machine, beside the process of the ingest and the memory of its tasks.

    Attributes:
        num_workers: tasks that run there at once.
        worker_bytes: of each worker without a task; 0 for a thread.
        fixed_bytes: however many workers there are.
        copies_results: whether a result is copied on its way to the caller, as it is between processes.
    """

    num_workers: int
    worker_bytes: int = 0
    fixed_bytes: int = 0
    copies_results: bool = False


class Executor(Protocol):
    """Does independent tasks side by side.

    Functions are importable by name; tasks and results are small, or arrays, and survive pickling between our own
    processes. All workers see the same files under the same paths.
    """

    @property
    def num_workers(self) -> int:
        """Tasks that run at once."""

    @property
    def machine(self) -> MachineShare:
        """What it takes of the machine that has most of its workers: an ingest's memory is that of one machine."""

    def limited(self, num_workers: int) -> "Executor":
        """The same with at most `num_workers` tasks at once on any machine."""

    def map(self, function: Callable[[Task], Result], tasks: Sequence[Task]) -> Iterator[Result]:
        """`function(task)` of every task in their order; at most `num_workers` + 1 results wait for the caller.

        Raises what the first failing task raised; no task runs any more then.
        """


class LocalExecutor:
    """Threads of this process; kernels and Parquet decoding leave the GIL, so they use all its cores."""

    def __init__(self, num_workers: int) -> None:
        self.num_workers = num_workers
        self.machine = MachineShare(num_workers)

    def limited(self, num_workers: int) -> "LocalExecutor":
        """As `Executor.limited`."""
        return LocalExecutor(min(num_workers, self.num_workers))

    def map(self, function: Callable[[Task], Result], tasks: Sequence[Task]) -> Iterator[Result]:
        """As `Executor.map`; with one worker, in the calling thread."""
        if self.num_workers == 1 or len(tasks) == 1:
            yield from map(function, tasks)
            return
        with ThreadPoolExecutor(self.num_workers, thread_name_prefix="ingest") as threads:
            waiting = deque[Future[Result]]()
            try:
                for task in tasks:
                    if len(waiting) > self.num_workers:
                        yield waiting.popleft().result()
                    waiting.append(threads.submit(function, task))
                while waiting:
                    yield waiting.popleft().result()
            finally:
                for ahead in waiting:
                    ahead.cancel()
