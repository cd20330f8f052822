"""A superbatch of one table between planning and serving: where rows come from, and how those missed are read."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sampling.kept import KeptArrays
from sampling.packing import Pack


@dataclass
class TableCounters:
    """What a planned table has done."""

    requests: int = 0
    """rows that batches asked for"""
    static_hits: int = 0
    dynamic_hits: int = 0
    misses: int = 0
    planned_read_bytes: int = 0
    """from the table: predicted before it was read, counted when it has been"""
    packed_bytes: int = 0
    """written to local disk, and read from there once"""
    packed_superbatches: int = 0
    direct_superbatches: int = 0
    unpacked_superbatches: int = 0
    """of the direct ones, those for whose pack disk or memory had no room"""


@dataclass(frozen=True)
class Group:
    """Consecutive batches [first, last) of a superbatch whose misses are read together."""

    first: int
    last: int
    planned_bytes: int = 0
    """to be read from the table for them"""


@dataclass(frozen=True)
class Draft:
    """A planned superbatch of one table whose misses have no place yet."""

    tickets: list[KeptArrays]
    """[K]: as `PlannedMisses.tickets`, with the numbers of misses for their places"""
    miss_rows: list[NDArray[Any]]
    """[K]: `BatchPlan.miss_row`"""


class PlannedMisses:
    """A planned superbatch of one table: where every row of its batches comes from, and how to read those missed."""

    def __init__(self, sizes: NDArray[np.int64], pack: Pack | None) -> None:
        self.sizes = sizes
        """[K]: rows of a landing that each batch takes"""
        self.pack = pack
        self.tickets: list[KeptArrays] = []
        """[K]: where [A], slots [kept misses], places [kept misses]; what serving the batch takes"""
        self.rows: list[KeptArrays] = []
        """[K]: rows to read [M]; none where they are packed"""
        self.groups: list[Group] = []
        """batches that land together"""

    def close(self) -> None:
        """Give memory and disk space back."""
        for kept in (*self.tickets, *self.rows):
            kept.close()
        if self.pack is not None:
            self.pack.close()
