"""Edges that a store has, back in a spill: in dense ids of live nodes, without the edges of deleted ones.

Segments come in the order of writing, and inside a segment a target's in-neighbours by (time, source, position): so
what is sorted from the spill again keeps the order of edges that are equal in time and ends.
"""

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from storage.npy import damaged
from storage.place import Place
from storage.schema import EdgeSegment, RelationInfo
from storage.stages.crew import Crew
from storage.stages.edge_view import EdgeChunk, Spill, SpillPart
from storage.stages.spill_files import SpillFiles
from storage.streams import ArrayStream

_BLOCK_TARGETS = 1 << 20
_BYTES_PER_EDGE = 96


class EdgeChange(Protocol):
    """What becomes of stored edges on their way; importable by name, small, and survives pickling."""

    def __call__(self, edges: EdgeChunk) -> EdgeChunk:
        """The edges as they are to be, in the same order; some may be left out."""


@dataclass(frozen=True)
class Renumbered:
    """Dense ids counted over live nodes only.

    Attributes:
        sources, targets: ascending dense ids of deleted nodes.
    """

    sources: NDArray[np.int64]
    targets: NDArray[np.int64]

    def __call__(self, edges: EdgeChunk) -> EdgeChunk:
        """The same edges with other numbers."""
        return EdgeChunk(
            source=_counted(edges.source, self.sources),
            target=_counted(edges.target, self.targets),
            timestamp=edges.timestamp,
            weight=edges.weight,
        )


@dataclass(frozen=True)
class _Task:
    place: Place
    segment: EdgeSegment
    first: int
    last: int
    change: EdgeChange
    max_edges: int
    path: str


@dataclass(frozen=True)
class _Done:
    part: SpillPart
    num_read: int


def spill_stored(
    folder: str, *, place: Place, info: RelationInfo, num_targets: int, change: EdgeChange, crew: Crew
) -> Spill:
    """Write the edges of a stored relation into `folder`; DamagedStore for a changed page.

    Args:
        folder: for the columns.
        place: the store.
        info: the relation.
        num_targets: nodes of its target type.
        change: what becomes of the edges.
        crew: told the number of edges read.
    """
    max_edges = crew.budget.rows(_BYTES_PER_EDGE)
    block = min(_BLOCK_TARGETS, max_edges)
    tasks = [
        _Task(place, segment, first, min(first + block, num_targets), change, max_edges, f"{folder}/{number}.{first}")
        for number, segment in enumerate(info.segments)
        for first in range(0, num_targets, block)
    ]
    parts = list[SpillPart]()
    for done in crew.executor.map(_read_block, tasks):
        parts.append(done.part)
        crew.advance(done.num_read)
    num_edges = sum(part.num_edges for part in parts)
    return Spill(
        parts=[part for part in parts if part.num_edges],
        has_weight=info.has_weight,
        has_timestamp=info.has_timestamp,
        num_rows=num_edges,
        num_dangling=0,
        num_loops=0,
    )


def _read_block(task: _Task) -> _Done:
    """The edges of some targets of one segment, at most `max_edges` at a time."""
    with ArrayStream(task.place, task.segment.indptr) as stream:
        num_known = stream.left - 1
        if task.first >= num_known:  # the segment is older than these targets
            return _Done(SpillPart(task.path, 0), 0)
        stream.skip_to(task.first)
        pointers = stream.take(task.last - task.first + 1).astype(np.int64)
    if (np.diff(pointers) < 0).any() or pointers[0] < 0 or pointers[-1] > task.segment.num_edges:
        raise damaged(task.place, task.segment.indptr.name, "pointers that do not fit the edges")
    columns = {"source": task.segment.indices, "timestamp": task.segment.timestamp, "weight": task.segment.weight}
    streams = {name: ArrayStream(task.place, info) for name, info in columns.items() if info is not None}
    num_edges = 0
    with ExitStack() as stack, SpillFiles(task.path, ["target", *streams]) as files:
        for stream in streams.values():
            stack.enter_context(stream).skip_to(int(pointers[0]))
        for start in range(int(pointers[0]), int(pointers[-1]), task.max_edges):
            count = min(task.max_edges, int(pointers[-1]) - start)
            read: dict[str, NDArray[Any]] = {name: stream.take(count) for name, stream in streams.items()}
            ends = np.clip(pointers, start, start + count)
            inside = ends[1:] - ends[:-1]
            targets = np.arange(task.first, task.first + len(inside), dtype=np.uint32)
            edges = task.change(
                EdgeChunk(
                    source=read["source"].astype(np.uint32),
                    target=np.repeat(targets, inside),
                    timestamp=read.get("timestamp"),
                    weight=read.get("weight"),
                )
            )
            files.write(edges)
            num_edges += len(edges.source)
    return _Done(SpillPart(task.path, num_edges), int(pointers[-1] - pointers[0]))


def _counted(ids: NDArray[np.uint32], deleted: NDArray[np.int64]) -> NDArray[np.uint32]:
    if not len(deleted):
        return ids
    return ids - np.searchsorted(deleted, ids).astype(np.uint32)
