"""The files of one part of a spill, open for writing: a file of plain values for each column."""

from collections.abc import Iterable
from contextlib import ExitStack
from io import FileIO
from typing import Self

import numpy as np

from storage.stages.edge_view import COLUMN_DTYPES, EdgeChunk
from storage.stages.runs import write_whole


class SpillFiles:
    """Files `<path>.<column>`; use as a context manager."""

    def __init__(self, path: str, columns: Iterable[str]) -> None:
        self._path = path
        self._columns = tuple(columns)
        self._files: dict[str, FileIO] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        """Open them empty."""
        for name in self._columns:
            self._files[name] = self._stack.enter_context(open(f"{self._path}.{name}", "wb", buffering=0))
        return self

    def __exit__(self, *_: object) -> None:
        """Close them."""
        self._stack.close()

    def write(self, edges: EdgeChunk) -> None:
        """Add edges behind those that are there."""
        for name, file in self._files.items():
            write_whole(file.fileno(), np.ascontiguousarray(getattr(edges, name), dtype=COLUMN_DTYPES[name]))
