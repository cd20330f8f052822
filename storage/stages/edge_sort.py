"""From runs by target range to a relation's CSC: each range sorted in memory, in order of targets.

Inside a target, in-neighbours stand by (time, source, input position), without times by (source, input position). One
target's edges are sorted whole.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.jit import kernel
from storage.segments import SortedEdges
from storage.stages.crew import Crew
from storage.stages.edge_partition import SOURCE_MASK, TARGET_SHIFT, Partition, sortable_edges, split_range
from storage.stages.edge_view import EdgeView
from storage.stages.runs import Run, read_bucket

_COLUMNS: dict[str, tuple[np.dtype[Any], int]] = {
    "key": (np.dtype(np.uint64), 1),
    "timestamp": (np.dtype(np.int64), 1),
    "weight": (np.dtype(np.float32), 1),
}
_FEW = 32
"""up to so many in-neighbours are sorted by insertion"""


@dataclass(frozen=True)
class _Task:
    runs: list[Run]
    number: int
    is_part: bool
    first: int
    last: int
    names: tuple[str, ...]


def sorted_ranges(partition: Partition, view: EdgeView, *, crew: Crew) -> Iterator[SortedEdges]:
    """The edges of every target range, sorted, in order of targets."""
    names = ["key"]
    names += ["timestamp"] if view.spill.has_timestamp else []
    names += ["weight"] if view.spill.has_weight else []
    max_edges = sortable_edges(crew, view.num_edges, plain=len(names) == 1)
    tasks = list[_Task]()
    for number in range(len(partition.bounds) - 1):
        parts = list(split_range(partition, number, max_edges=max_edges))
        tasks += [_Task(partition.runs, number, len(parts) > 1, first, last, tuple(names)) for first, last in parts]
    yield from crew.executor.map(_sort_range, tasks)


def _sort_range(task: _Task) -> SortedEdges:
    columns = dict(zip(task.names, _read(task), strict=True))
    key, timestamp, weight = columns["key"], columns.get("timestamp"), columns.get("weight")
    degrees = np.zeros(task.last - task.first, dtype=np.int64)
    indices = np.empty(len(key), dtype=np.uint32)
    if timestamp is None and weight is None:
        num_parallel = _sort_plain(key, task.first, degrees, indices)
        return SortedEdges(
            degrees=degrees, indices=indices, timestamp=None, weight=None, num_parallel=int(num_parallel)
        )
    order = np.argsort(key, kind="stable")
    sorted_key = key[order]
    num_parallel = int(np.count_nonzero(sorted_key[1:] == sorted_key[:-1]))
    if timestamp is not None:
        by_time = order[np.argsort(timestamp[order], kind="stable")]
        order = by_time[np.argsort(key[by_time] >> TARGET_SHIFT, kind="stable")]
        timestamp = timestamp[order]
    _unpack(key[order], task.first, degrees, indices)
    return SortedEdges(
        degrees=degrees,
        indices=indices,
        timestamp=timestamp,
        weight=None if weight is None else weight[order],
        num_parallel=num_parallel,
    )


def _read(task: _Task) -> list[NDArray[Any]]:
    """The columns of the task's targets; of a range that is sorted in parts, run by run."""
    kinds = [_COLUMNS[name] for name in task.names]
    if not task.is_part:
        return read_bucket(task.runs, task.number, columns=kinds)
    found: list[list[NDArray[Any]]] = [[] for _ in kinds]
    for run in task.runs:
        columns = read_bucket([run], task.number, columns=kinds)
        target = columns[0] >> TARGET_SHIFT
        inside = (target >= np.uint64(task.first)) & (target < np.uint64(task.last))
        for parts, column in zip(found, columns, strict=True):
            parts.append(column[inside])
    return [np.concatenate(parts) for parts in found]


@kernel
def _sort_plain(key: NDArray[np.uint64], first: int, degrees: NDArray[np.int64], indices: NDArray[np.uint32]) -> int:
    """Fill `degrees` and `indices`, each target's ascending; returns how many repeat the one before.

    Equal keys are the same edge twice, so their order cannot be told: targets by counting, sources in place.
    """
    for edge in range(key.shape[0]):
        degrees[np.int64(key[edge] >> TARGET_SHIFT) - first] += 1
    end = np.empty(degrees.shape[0], dtype=np.int64)
    at = 0
    for target in range(degrees.shape[0]):
        end[target] = at
        at += degrees[target]
    for edge in range(key.shape[0]):
        row = np.int64(key[edge] >> TARGET_SHIFT) - first
        indices[end[row]] = np.uint32(key[edge] & SOURCE_MASK)
        end[row] += 1
    num_repeated = 0
    for target in range(degrees.shape[0]):
        begin, stop = end[target] - degrees[target], end[target]
        if stop - begin > _FEW:
            indices[begin:stop].sort()
        else:
            for place in range(begin + 1, stop):
                source = indices[place]
                before = place - 1
                while before >= begin and indices[before] > source:
                    indices[before + 1] = indices[before]
                    before -= 1
                indices[before + 1] = source
        for place in range(begin + 1, stop):
            if indices[place] == indices[place - 1]:
                num_repeated += 1
    return num_repeated


@kernel
def _unpack(key: NDArray[np.uint64], first: int, degrees: NDArray[np.int64], indices: NDArray[np.uint32]) -> None:
    for edge in range(key.shape[0]):
        indices[edge] = np.uint32(key[edge] & SOURCE_MASK)
        degrees[np.int64(key[edge] >> TARGET_SHIFT) - first] += 1
