"""A superbatch of one table between planning and serving: where rows come from, and how those missed are read."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sampling.kept import KeptArrays
from sampling.packing import Layout, Pack
from sampling.row_moves import point_at_places


@dataclass
class TableCounters:
    """What a planned table has done."""

    requests: int = 0
    """rows that batches asked for"""
    static_hits: int = 0
    dynamic_hits: int = 0
    misses: int = 0
    planned_read_bytes: int = 0
    """from the table, batch by batch: predicted before it was read, counted when it has been"""
    planned_sweep_bytes: int = 0
    """the same, for packs"""
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
    """A planned superbatch of one table, and how its misses are best read."""

    sizes: NDArray[np.int64]
    """[K]: misses of each batch"""
    tickets: list[KeptArrays]
    """[K]: where [A], slots [kept misses], numbers of those misses"""
    direct: list[Group]
    """batches that land together without a pack"""
    miss_rows: list[NDArray[Any]]
    """[K]: `BatchPlan.miss_row`; none where there is a layout"""
    layout: Layout | None = None
    """of the pack, where one is predicted to be faster"""
    places: list[KeptArrays] = field(default_factory=list)
    """[K]: `Layout.places`"""
    sweep_bytes: int = 0
    """to be read for the pack"""


@dataclass(frozen=True)
class PlannedMisses:
    """A planned superbatch of one table: where every row of its batches comes from, and how to read those missed."""

    sizes: NDArray[np.int64]
    """[K]: rows of a landing that each batch takes"""
    tickets: list[KeptArrays]
    """[K]: as `Draft.tickets`"""
    groups: list[Group]
    """batches that land together"""
    places: list[KeptArrays]
    """[K]: rows of the landing [M] by the misses' numbers; none where they are those numbers"""
    rows: list[KeptArrays] = field(default_factory=list)
    """[K]: rows to read [M]; none where they are packed"""
    pack: Pack | None = None

    def take_ticket(self, number: int) -> list[NDArray[np.int32]]:
        """Where [A], slots [kept misses], places [kept misses] of batch `number`: what serving it takes; only once."""
        where, slots, numbers = self.tickets[number].take()
        if not self.places:
            return [where, slots, numbers]
        (places,) = self.places[number].take()
        point_at_places(where, places)
        return [where, slots, places[numbers]]

    def close(self) -> None:
        """Give the pack's disk space back."""
        if self.pack is not None:
            self.pack.close()
