"""What the stages of the stream hand on, and what they count."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from sampling.belady import Trace
from sampling.drawn import KeptBatch
from sampling.kept import KeptArrays
from sampling.planned_misses import Draft, PlannedMisses
from storage.block_reads import Staging


@dataclass
class StageCounters:
    """One stage: what it did and what it waited for."""

    items: int = 0
    seconds: float = 0.0
    """at work"""
    waited_for_input_seconds: float = 0.0
    waited_for_room_seconds: float = 0.0


@dataclass
class StreamCounters:
    """The whole stream."""

    sample: StageCounters = field(default_factory=StageCounters)
    plan: StageCounters = field(default_factory=StageCounters)
    pack: StageCounters = field(default_factory=StageCounters)
    read: StageCounters = field(default_factory=StageCounters)
    serve: StageCounters = field(default_factory=StageCounters)
    sampled_nodes: int = 0
    sampled_edges: int = 0
    wait_seconds: float = 0.0
    """the consumer waited for a batch: the data stall"""


@dataclass
class Superbatch:
    """Between stages 1 and 2."""

    first_step: int
    samples: list[list[KeptBatch]]
    """[K][W]"""
    traces: list[list[KeptArrays]]
    """per table [K]: rows behind its prefix that the batch needs, each once"""
    unions: list[list[KeptArrays]]
    """per table [K]: of each rank the number among the batch's accesses of its rows; none with one rank"""


@dataclass
class Drafted:
    """Between stages 2 and 3."""

    superbatch: Superbatch
    drafts: list[Draft | None]


@dataclass
class Planned:
    """Between stages 3 and 4."""

    superbatch: Superbatch
    misses: list[PlannedMisses | None]

    def close(self) -> None:
        for misses in self.misses:
            if misses is not None:
                misses.close()


@dataclass
class ReadBatch:
    """Between stages 4 and 5: one batch."""

    planned: Planned
    number: int
    landed: list[NDArray[np.generic] | None]
    last_of: list[tuple[int, Staging]]
    """landings, with their tables, that are free once this batch has been served"""


def taken_traces(superbatch: Superbatch | None) -> list[Trace]:
    """The rows that a superbatch needs, per table; nothing behind the last."""
    if superbatch is None:
        return []
    return [[kept.take()[0] for kept in batches] for batches in superbatch.traces]


def union_rows(rows: list[NDArray[np.int32]]) -> tuple[NDArray[np.int32], list[NDArray[np.int32]]]:
    """The distinct rows of all ranks, and the place in them of each rank's rows; as they are with one rank."""
    if len(rows) == 1:
        return rows[0], []
    union, places = np.unique(np.concatenate(rows), return_inverse=True)
    cuts = np.cumsum([part.shape[0] for part in rows])[:-1]
    return union, [part.astype(np.int32) for part in np.split(places, cuts)]
