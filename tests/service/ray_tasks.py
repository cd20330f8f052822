"""Tasks for workers on Ray, importable there: what they did is seen in files, and they die where they are told to."""

import contextlib
import os
import resource
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from service.ray_executor import RayExecutor
from storage.errors import BadInput
from storage.stages.executor import MachineShare

Task = TypeVar("Task")
Result = TypeVar("Result")
FULL_BYTES = 100


def note_start(task: tuple[str, int]) -> int:
    """Leave a file that says the task has begun."""
    folder, number = task
    Path(folder, str(number)).touch()
    return number


def refuse_third(task: tuple[str, int]) -> int:
    """Task 3 breaks a rule as soon as task 4 has said who does it; task 4 then waits for what nobody writes."""
    folder, number = task
    if number == 3:
        Path(folder, "begun").read_bytes()
        raise BadInput("table, row 3", "three", rule="numbers are others", remedy="count again")
    if number > 3:
        Path(folder, f"pid-{os.getpid()}").touch()
        Path(folder, "begun").write_bytes(b"")
        Path(folder, "never").read_bytes()
    return number


def fail_with_full_disk(_: int) -> None:
    """What a worker says whose disk is full."""
    raise OSError(28, "No space left on device", "/some/file")


def always_die(_: int) -> None:
    """A task that no worker survives."""
    os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class Deadly:
    """A task of another function, whose first try is killed as soon as a file of it grows beyond FULL_BYTES."""

    function: Callable[[Any], Any]
    task: Any
    mark: str

    def __call__(self) -> Any:
        """Do it, or die."""
        with contextlib.suppress(FileExistsError):
            os.close(os.open(self.mark, os.O_CREAT | os.O_EXCL))
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # the kernel kills whoever writes beyond the limit
            resource.setrlimit(resource.RLIMIT_FSIZE, (FULL_BYTES, resource.RLIM_INFINITY))
            self.function(self.task)
            os.kill(os.getpid(), signal.SIGKILL)  # it wrote nothing large: dead all the same, before it could say so
        return self.function(self.task)


def call(task: Deadly) -> Any:
    """Do a deadly task."""
    return task()


class DeadlyExecutor(RayExecutor):
    """Ray, where the first worker at the first task of every kind is killed while it writes."""

    def __init__(self, num_workers: int, *, machine: MachineShare, marks: Path) -> None:
        super().__init__(num_workers, machine=machine)
        self._marks = marks
        self.kinds = set[str]()

    def limited(self, num_workers: int) -> "DeadlyExecutor":
        """The same: these ingests are small."""
        return self

    def map(self, function: Callable[[Task], Result], tasks: Sequence[Task]) -> Iterator[Result]:
        """As `RayExecutor.map`."""
        kind = f"{function.__module__}.{function.__qualname__}"
        self.kinds.add(kind)
        yield from super().map(call, [Deadly(function, task, str(self._marks / kind)) for task in tasks])
