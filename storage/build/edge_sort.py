"""From a relation's spill to its CSC by target, in dense ids: partitioned by target range, each range sorted.

    spill slices -> source, target [n] dense ids -> runs by target range        partition_edges, any order of workers
    a range      -> degrees, sources sorted in each target                      sorted_ranges, in order of targets

Ranges are cut so that each holds as many edges as a worker can sort; inside a target, in-neighbours stand by (time,
source, input position), without times by (source, input position). One target's edges are sorted whole.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.build.crew import Crew
from storage.build.edge_view import EdgeView, Slice
from storage.build.runs import Run, map_array, read_bucket, write_run
from storage.jit import kernel
from storage.segments import SortedEdges

_PARTITION_BYTES_PER_EDGE = 128
"""columns as read and turned, keys, the run's order and its copy"""
_SORT_BYTES_PER_EDGE = 32
"""keys, their sort, and what waits to be written"""
_COLUMN_SORT_BYTES_PER_EDGE = 96
_SOURCE_MASK = np.uint64((1 << 32) - 1)
_COLUMNS: dict[str, tuple[np.dtype[Any], int]] = {
    "key": (np.dtype(np.uint64), 1),
    "timestamp": (np.dtype(np.int64), 1),
    "weight": (np.dtype(np.float32), 1),
}


@dataclass(frozen=True)
class Ranks:
    """Dense ids of input positions: files of uint32, or None where input order is kept."""

    source: str | None
    target: str | None


@dataclass(frozen=True)
class Partition:
    """A relation's edges in runs by target range.

    Attributes:
        bounds: [num_ranges + 1] first target of each range.
        runs: columns key uint64 (target << 32 | source), then timestamp and weight where there are any.
    """

    bounds: list[int]
    runs: list[Run]


@dataclass(frozen=True)
class _Task:
    view: EdgeView
    piece: Slice
    ranks: Ranks
    bounds: NDArray[np.int64]
    path: str


def partition_edges(folder: str, *, view: EdgeView, ranks: Ranks, in_degree: str, crew: Crew) -> Partition:
    """Write the edges of a relation as runs by target range.

    Args:
        view: the relation.
        ranks: dense ids of input positions.
        in_degree: file of uint32 [num_targets] by input position.
        folder: for the runs.
        crew: told the number of edges done.
    """
    plain = not (view.spill.has_weight or view.spill.has_timestamp)
    max_edges = crew.budget.sort_rows(_SORT_BYTES_PER_EDGE if plain else _COLUMN_SORT_BYTES_PER_EDGE)
    bounds = _cut_ranges(in_degree, ranks.target, max_edges=max_edges)
    tasks = [
        _Task(view, piece, ranks, np.array(bounds), f"{folder}/{number}")
        for number, piece in enumerate(view.slices(max_edges=crew.budget.sort_rows(_PARTITION_BYTES_PER_EDGE)))
    ]
    runs = list[Run]()
    for task, run in zip(tasks, crew.executor.map(_partition, tasks), strict=True):
        runs.append(run)
        crew.advance(task.piece.count)
    return Partition(bounds=bounds, runs=runs)


def sorted_ranges(partition: Partition, view: EdgeView, *, crew: Crew) -> Iterator[SortedEdges]:
    """The edges of every target range, sorted, in order of targets."""
    names = ["key"]
    names += ["timestamp"] if view.spill.has_timestamp else []
    names += ["weight"] if view.spill.has_weight else []
    tasks = [
        _SortTask(partition.runs, number, first, last, tuple(names))
        for number, (first, last) in enumerate(pairwise(partition.bounds))
    ]
    yield from crew.executor.map(_sort_range, tasks)


@dataclass(frozen=True)
class _SortTask:
    runs: list[Run]
    number: int
    first: int
    last: int
    names: tuple[str, ...]


def _partition(task: _Task) -> Run:
    edges = task.view.read(task.piece)
    source, target = _dense(edges.source, task.ranks.source), _dense(edges.target, task.ranks.target)
    columns: list[NDArray[Any]] = [np.empty(len(source), dtype=np.uint64)]
    buckets = np.empty(len(source), dtype=np.uint16 if len(task.bounds) <= 1 << 16 else np.uint32)
    _pack(source, target, task.bounds, columns[0], buckets)
    columns += [column for column in (edges.timestamp, edges.weight) if column is not None]
    return write_run(task.path, columns, buckets=buckets, num_buckets=len(task.bounds) - 1)


def _dense(positions: NDArray[np.uint32], rank: str | None) -> NDArray[np.uint32]:
    return positions if rank is None else map_array(rank, np.uint32)[positions]


def _sort_range(task: _SortTask) -> SortedEdges:
    columns = dict(
        zip(task.names, read_bucket(task.runs, task.number, columns=[_COLUMNS[n] for n in task.names]), strict=True)
    )
    key, timestamp, weight = columns["key"], columns.get("timestamp"), columns.get("weight")
    if timestamp is None and weight is None:
        key.sort()  # equal keys are the same edge twice: their order cannot be told
        num_parallel = int(np.count_nonzero(key[1:] == key[:-1]))
    else:
        order = np.argsort(key, kind="stable")
        sorted_key = key[order]
        num_parallel = int(np.count_nonzero(sorted_key[1:] == sorted_key[:-1]))
        if timestamp is not None:
            by_time = order[np.argsort(timestamp[order], kind="stable")]
            order = by_time[np.argsort(key[by_time] >> np.uint64(32), kind="stable")]
            timestamp = timestamp[order]
        key = key[order]
        weight = None if weight is None else weight[order]
    degrees = np.zeros(task.last - task.first, dtype=np.int64)
    indices = np.empty(len(key), dtype=np.uint32)
    _unpack(key, task.first, degrees, indices)
    return SortedEdges(degrees=degrees, indices=indices, timestamp=timestamp, weight=weight, num_parallel=num_parallel)


def _cut_ranges(in_degree: str, rank: str | None, *, max_edges: int) -> list[int]:
    """First targets of ranges of at most `max_edges` edges each, or of one target; the number of targets last."""
    degree = map_array(in_degree, np.uint32)
    if rank is not None:
        by_rank = np.empty_like(degree)
        by_rank[map_array(rank, np.uint32)] = degree
        degree = by_rank
    return [*_cut(degree, max_edges).tolist(), len(degree)]


@kernel
def _cut(degree: NDArray[np.uint32], max_edges: int) -> NDArray[np.int64]:
    starts = np.zeros(1024, dtype=np.int64)
    num_ranges = 1
    held = 0
    for target in range(degree.shape[0]):
        if held and held + degree[target] > max_edges:
            if num_ranges == starts.shape[0]:
                starts = np.concatenate((starts, np.zeros_like(starts)))
            starts[num_ranges] = target
            num_ranges += 1
            held = 0
        held += degree[target]
    return starts[:num_ranges].copy()


@kernel
def _pack(
    source: NDArray[np.uint32],
    target: NDArray[np.uint32],
    bounds: NDArray[np.int64],
    key: NDArray[np.uint64],
    buckets: NDArray[Any],
) -> None:
    """Fill key = target << 32 | source; bucket = the range that holds the target."""
    for edge in range(source.shape[0]):
        key[edge] = (np.uint64(target[edge]) << np.uint64(32)) | np.uint64(source[edge])
        low = 0
        high = bounds.shape[0] - 1
        while high - low > 1:
            middle = (low + high) // 2
            if target[edge] >= bounds[middle]:
                low = middle
            else:
                high = middle
        buckets[edge] = low


@kernel
def _unpack(key: NDArray[np.uint64], first: int, degrees: NDArray[np.int64], indices: NDArray[np.uint32]) -> None:
    for edge in range(key.shape[0]):
        indices[edge] = np.uint32(key[edge] & _SOURCE_MASK)
        degrees[np.int64(key[edge] >> np.uint64(32)) - first] += 1
