"""Progress bars: every stage of a command on one live display, on the error stream."""

import sys
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class ProgressBars:
    """A bar a stage, with count, elapsed and remaining time; implements `storage.progress.Progress`.

    Args:
        shown: False draws nothing, for `--json` and tests.

    Where the error stream is no terminal, each stage is one plain line when it ends.
    """

    def __init__(self, *, shown: bool = True) -> None:
        self._console = Console(file=sys.stderr)
        self._live = shown and self._console.is_terminal
        self._plain = shown and not self._console.is_terminal
        self._bars = Progress(
            SpinnerColumn(finished_text="[green]✓"),
            TextColumn("{task.description:<24}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
        )
        self._task: TaskID | None = None
        self._line = ""

    def __enter__(self) -> "ProgressBars":
        if self._live:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._finish()
        if self._live:
            self._bars.stop()

    def stage(self, name: str, *, total: int, unit: str) -> None:
        """A new stage begins, and the one before it is complete; `total` 0 means unknown."""
        self._finish()
        self._task = self._bars.add_task(name, total=total or None, unit=unit)
        self._line = name

    def advance(self, amount: int) -> None:
        """`amount` more units of the stage are done."""
        if self._task is not None:
            self._bars.advance(self._task, amount)

    def note(self, text: str) -> None:
        """A line above the bars."""
        if self._live or self._plain:
            self._console.print(text, highlight=False)

    def _finish(self) -> None:
        if self._task is None:
            return
        task = self._bars.tasks[-1]
        if task.total is None:
            self._bars.update(self._task, total=task.completed)
        self._bars.stop_task(self._task)
        if self._plain:
            unit = task.fields["unit"]
            self._console.print(f"{self._line:<24} {int(task.completed):>12,} {unit:<8} {task.elapsed or 0:8.1f} s")
        self._task = None
