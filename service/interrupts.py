"""Ctrl-C in a loop whose threads and locks must not be left halfway: it ends between two steps.

Python raises KeyboardInterrupt at any instruction, also between the taking of a lock and the block that gives it
back; whoever then waits for that lock waits for ever. So the first Ctrl-C is only noted, and raised where the loop
asks. A second one is raised at once, for a loop that hangs.
"""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self


class Interrupts:
    """Holds Ctrl-C back inside a `with` block; outside the main thread, where Python raises none, it does nothing."""

    def __init__(self) -> None:
        self._asked = False
        self._before: Any = None

    def __enter__(self) -> Self:
        """Take the signal over."""
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the signal back; one that nobody asked about yet is raised now."""
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
        if error is None:
            self.check()

    def check(self) -> None:
        """Raise KeyboardInterrupt when Ctrl-C was pressed."""
        if self._asked:
            self._asked = False
            raise KeyboardInterrupt

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True
