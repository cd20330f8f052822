"""What an evaluation asks of a task: which nodes it looks at, and how it scores their rows.

A task is given each kind of rows in turn (`service.evaluation_rows`) and keeps one result for each of them.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from service.evaluation_report import RowsName, Scores, TaskName, TaskReport, no_scores, scores
from service.evaluation_rows import Rows
from storage.progress import Progress


class Task(Protocol):
    """One thing that rows are scored at."""

    @property
    def wanted(self) -> Mapping[int, NDArray[np.int64]]:
        """Dense ids, in any order, of each node type that the task looks at."""

    def score(self, rows: Rows, progress: Progress) -> None:
        """Score rows that exist for all types in `wanted`."""

    def leave_out(self, name: RowsName, *, note: str) -> None:
        """Say why there is no score of a kind of rows."""


class FigureTask(ABC):
    """A task whose result is a set of named figures; a subclass computes them for one kind of rows.

    Args:
        task: its name in the run file.
        of: the node type or relation it is about.
        settings: what is done and on how much, for the report.
    """

    def __init__(self, task: TaskName, *, of: str, settings: Mapping[str, int | float | str | bool]) -> None:
        self.results: list[Scores] = []
        self._task: TaskName = task
        self._of = of
        self._settings = dict(settings)

    @property
    @abstractmethod
    def wanted(self) -> Mapping[int, NDArray[np.int64]]:
        """Dense ids, in any order, of each node type that the task looks at."""

    @property
    @abstractmethod
    def num_rounds(self) -> int:
        """Times that `figures` reports progress."""

    @abstractmethod
    def figures(self, rows: Rows, progress: Progress) -> Mapping[str, Sequence[float]]:
        """The values of each figure over splits, draws or seeds; advances `progress` by `num_rounds` in all."""

    def score(self, rows: Rows, progress: Progress) -> None:
        """Keep the figures of one kind of rows."""
        began = time.monotonic()
        progress.stage(f"{self._task.replace('_', '-')} {self._of}, {rows.name}", total=self.num_rounds, unit="rounds")
        found = self.figures(rows, progress)
        dims = [table.shape[1] for index in self.wanted if (table := rows.x[index]) is not None]
        seconds = rows.seconds * len(self.wanted) + time.monotonic() - began
        self.results.append(scores(rows.name, dim=dims[0], figures=found, seconds=seconds))

    def leave_out(self, name: RowsName, *, note: str) -> None:
        """Say why there is no score of a kind of rows."""
        self.results.append(no_scores(name, note=note))

    def report(self) -> TaskReport:
        """What was found, after all rows have been scored."""
        return TaskReport(task=self._task, of=self._of, settings=self._settings, results=tuple(self.results))
