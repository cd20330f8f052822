"""The lines of a run's `metrics.jsonl`: appended while it trains, cut back to the step that it resumes from.

On a local disk it is one file that only grows. Elsewhere files cannot grow, so lines go to parts, metrics.jsonl,
metrics-00001.jsonl and so on, and only the newest part, of PART_LINES lines, is written anew.
"""

import json
import os
from collections.abc import Iterable
from typing import Any

from storage.place import Place

METRICS = "metrics.jsonl"
PART_LINES = 10_000


class MetricsLog:
    """The log of a run in folder `place`; nothing is read or written before `resume` or `flush`."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._pending: list[bytes] = []
        self._part = 0
        self._lines: list[bytes] = []
        """the newest part, where parts are written anew"""

    def resume(self, step: int) -> None:
        """Drop the lines of later steps, which are done again, and a line that was cut short."""
        self._pending = []
        path = self._place.local(METRICS)
        if path is None:
            self._resume_parts(step)
        elif os.path.exists(path):
            with open(path, "r+b") as file:
                file.truncate(sum(map(len, lines_up_to(step, file))))

    def add(self, row: dict[str, Any]) -> None:
        """Another line, written by the next `flush`; `row` holds its step and finite numbers only."""
        self._pending.append(json.dumps(row, allow_nan=False).encode() + b"\n")

    def flush(self, *, to_disk: bool = False) -> None:
        """Write what was added; with `to_disk` it also survives a loss of power, for checkpoints."""
        if not self._pending:
            return
        path = self._place.local(METRICS)
        if path is None:
            self._lines += self._pending
            self._place.write_bytes(part_name(self._part), b"".join(self._lines))
            if len(self._lines) >= PART_LINES:
                self._part, self._lines = self._part + 1, []
        else:
            with open(path, "ab") as file:
                file.write(b"".join(self._pending))
                if to_disk:
                    file.flush()
                    os.fsync(file.fileno())
        self._pending = []

    def _resume_parts(self, step: int) -> None:
        names = part_names(self._place)
        self._part, self._lines = 0, []
        for number in reversed(range(len(names))):
            found = self._place.read_bytes(names[number]).splitlines(keepends=True)
            kept = list(lines_up_to(step, found))
            if kept:
                self._part, self._lines = number, kept
                if len(kept) < len(found):
                    self._place.write_bytes(names[number], b"".join(kept))
                return
            self._place.remove(names[number])


def lines_up_to(step: int, lines: Iterable[bytes]) -> Iterable[bytes]:
    """The whole lines before the first that is of a later step, or no whole line."""
    for line in lines:
        try:
            later = json.loads(line)["step"] > step
        except (ValueError, KeyError, TypeError):
            return
        if later or not line.endswith(b"\n"):
            return
        yield line


def part_name(number: int) -> str:
    """The file of a part."""
    return METRICS if number == 0 else f"metrics-{number:05d}.jsonl"


def part_names(place: Place) -> list[str]:
    """The parts that there are, from the first without a gap."""
    present = set(place.names())
    names: list[str] = []
    while part_name(len(names)) in present:
        names.append(part_name(len(names)))
    return names
