"""A relation's edges in runs by range of targets: what `storage.stages.edge_sort` sorts range by range.

    source, target [n] dense ids -> key uint64 [n] = target << 32 | source, range of each -> one run

Ranges are cut so that each holds as many edges as a worker can sort: exactly, where degrees are known, or by a sample
of the table, where edges are partitioned while they are read.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.jit import kernel
from storage.stages.crew import Crew
from storage.stages.edge_view import EdgeChunk, EdgeView, Slice, SpillPart
from storage.stages.runs import Run, map_array, read_array, write_ordered, write_run

PARTITION_BYTES_PER_EDGE = 128
"""columns as read and turned, keys, the run's order and its copy"""
SORT_BYTES_PER_EDGE = 32
"""keys, what becomes of them, and what waits to be written"""
COLUMN_SORT_BYTES_PER_EDGE = 96
SOURCE_MASK = np.uint64((1 << 32) - 1)
TARGET_SHIFT = np.uint64(32)
_COARSE = 1 << 12
_CACHED_EDGES = 1 << 19
_MANY_RANGES = 256


@dataclass(frozen=True)
class Ranks:
    """Dense ids of input positions: files of uint32, or None where input order is kept."""

    source: str | None
    target: str | None


@dataclass(frozen=True)
class Partition:
    """A relation's edges by target range.

    Attributes:
        bounds: [num_ranges + 1] first target of each range, the number of targets last.
        runs: columns key uint64 (target << 32 | source), then timestamp and weight where there are any.
    """

    bounds: list[int]
    runs: list[Run]

    def slices(self, *, max_edges: int) -> list[Slice]:
        """The runs cut into slices of at most `max_edges`."""
        return [
            Slice(SpillPart(run.path, run.num_rows), start, min(max_edges, run.num_rows - start))
            for run in self.runs
            for start in range(0, run.num_rows, max_edges)
        ]

    def keys(self, piece: Slice) -> NDArray[np.uint64]:
        """The keys of the edges in a slice."""
        return read_array(piece.part.path, np.uint64, start=piece.start, count=piece.count)


def sortable_edges(crew: Crew, num_edges: int, *, plain: bool) -> int:
    """Edges of a range of a relation of `num_edges`; `plain` ones have neither weight nor time.

    As few as the processor's cache likes, unless that made the pieces of a range too small to read.
    """
    most = crew.budget.sort_rows(SORT_BYTES_PER_EDGE if plain else COLUMN_SORT_BYTES_PER_EDGE)
    return min(most, max(_CACHED_EDGES, num_edges // _MANY_RANGES))


def write_edge_run(path: str, edges: EdgeChunk, *, bounds: NDArray[np.int64]) -> Run:
    """Write edges (dense ids) as one run by target range."""
    keys = np.empty(len(edges.source), dtype=np.uint64)
    buckets = np.empty(len(edges.source), dtype=np.uint16 if len(bounds) <= 1 << 16 else np.uint32)
    if edges.timestamp is None and edges.weight is None:
        return write_ordered(
            path, [keys], start=_place(edges.source, edges.target, bounds, *_coarse(bounds), buckets, keys)
        )
    _pack(edges.source, edges.target, bounds, *_coarse(bounds), keys, buckets)
    columns = [keys, *(column for column in (edges.timestamp, edges.weight) if column is not None)]
    return write_run(path, columns, buckets=buckets, num_buckets=len(bounds) - 1)


def partition_edges(folder: str, *, view: EdgeView, ranks: Ranks, in_degree: str, crew: Crew) -> Partition:
    """Write the edges of a relation as runs by target range.

    Args:
        folder: for the runs.
        view: the relation.
        ranks: dense ids of input positions.
        in_degree: file of uint32 [num_targets] by input position.
        crew: told the number of edges done.
    """
    plain = not (view.spill.has_weight or view.spill.has_timestamp)
    max_edges = sortable_edges(crew, view.num_edges, plain=plain)
    bounds = _cut_ranges(in_degree, ranks.target, max_edges=max_edges)
    pieces = view.slices(max_edges=crew.budget.sort_rows(PARTITION_BYTES_PER_EDGE))
    tasks = [_Task(view, piece, ranks, np.array(bounds), f"{folder}/{n}") for n, piece in enumerate(pieces)]
    runs = list[Run]()
    for task, run in zip(tasks, crew.executor.map(_partition, tasks), strict=True):
        runs.append(run)
        crew.advance(task.piece.count)
    return Partition(bounds=bounds, runs=runs)


def sampled_bounds(targets: NDArray[np.uint32], *, num_targets: int, num_edges: int, max_edges: int) -> list[int]:
    """Bounds of ranges that hold about half of `max_edges` each, if `targets` [n] are a fair sample of the edges."""
    num_ranges = max(1, -(-2 * num_edges // max_edges))
    quantiles = np.sort(targets)[np.linspace(0, max(0, len(targets) - 1), num_ranges + 1).astype(np.int64)[1:-1]]
    return [0, *sorted({int(bound) for bound in quantiles if 0 < bound < num_targets}), num_targets]


def split_range(partition: Partition, number: int, *, max_edges: int) -> Iterator[tuple[int, int]]:
    """Target ranges [first, last) that make up range `number`, of at most `max_edges` edges or of one target."""
    first, last = partition.bounds[number], partition.bounds[number + 1]
    counts = [run.start[number + 1] - run.start[number] for run in partition.runs]
    if sum(counts) <= 2 * max_edges or last - first == 1:
        yield first, last
        return
    degree = np.zeros(last - first, dtype=np.uint32)
    for run, count in zip(partition.runs, counts, strict=True):
        for start in range(0, count, max_edges):
            piece = Slice(SpillPart(run.path, run.num_rows), run.start[number] + start, min(max_edges, count - start))
            target = (partition.keys(piece) >> TARGET_SHIFT).astype(np.int64) - first
            degree += np.bincount(target, minlength=last - first).astype(np.uint32)
    cuts = [*(_cut(degree, max_edges) + first).tolist(), last]
    yield from pairwise(cuts)


@dataclass(frozen=True)
class _Task:
    view: EdgeView
    piece: Slice
    ranks: Ranks
    bounds: NDArray[np.int64]
    path: str


def _partition(task: _Task) -> Run:
    edges = task.view.read(task.piece)
    dense = EdgeChunk(
        source=_dense(edges.source, task.ranks.source),
        target=_dense(edges.target, task.ranks.target),
        timestamp=edges.timestamp,
        weight=edges.weight,
    )
    return write_edge_run(task.path, dense, bounds=task.bounds)


def _dense(positions: NDArray[np.uint32], rank: str | None) -> NDArray[np.uint32]:
    return positions if rank is None else map_array(rank, np.uint32)[positions]


def _cut_ranges(in_degree: str, rank: str | None, *, max_edges: int) -> list[int]:
    """First targets of ranges of at most `max_edges` edges each, or of one target; the number of targets last."""
    degree = map_array(in_degree, np.uint32)
    if rank is not None:
        by_rank = np.empty_like(degree)
        by_rank[map_array(rank, np.uint32)] = degree
        degree = by_rank
    return [*_cut(degree, max_edges).tolist(), len(degree)]


def _coarse(bounds: NDArray[np.int64]) -> tuple[NDArray[np.int64], int]:
    """(range of the first target of each block of 2^shift targets, shift): where a search for a range begins."""
    shift = max(0, int(bounds[-1]).bit_length() - _COARSE.bit_length())
    blocks = np.arange(0, (int(bounds[-1]) >> shift) + 1, dtype=np.int64) << shift
    found: NDArray[np.int64] = np.searchsorted(bounds, blocks, side="right") - 1
    return np.minimum(found, len(bounds) - 2), shift


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
def _range_of(target: np.uint32, bounds: NDArray[np.int64], coarse: NDArray[np.int64], shift: int) -> np.int64:
    found = coarse[target >> shift]
    while target >= bounds[found + 1]:
        found += 1
    return np.int64(found)


@kernel
def _pack(
    source: NDArray[np.uint32],
    target: NDArray[np.uint32],
    bounds: NDArray[np.int64],
    coarse: NDArray[np.int64],
    shift: int,
    keys: NDArray[np.uint64],
    buckets: NDArray[Any],
) -> None:
    """Fill key = target << 32 | source, and the range that holds each target."""
    for edge in range(source.shape[0]):
        keys[edge] = (np.uint64(target[edge]) << TARGET_SHIFT) | np.uint64(source[edge])
        buckets[edge] = _range_of(target[edge], bounds, coarse, shift)


@kernel
def _place(
    source: NDArray[np.uint32],
    target: NDArray[np.uint32],
    bounds: NDArray[np.int64],
    coarse: NDArray[np.int64],
    shift: int,
    buckets: NDArray[Any],
    keys: NDArray[np.uint64],
) -> NDArray[np.int64]:
    """As `_pack`, with the keys in the order of ranges at once; returns where each range starts in them."""
    start = np.zeros(bounds.shape[0], dtype=np.int64)
    for edge in range(source.shape[0]):
        bucket = _range_of(target[edge], bounds, coarse, shift)
        buckets[edge] = bucket
        start[bucket + 1] += 1
    for number in range(1, start.shape[0]):
        start[number] += start[number - 1]
    at = start.copy()
    for edge in range(source.shape[0]):
        bucket = np.int64(buckets[edge])
        keys[at[bucket]] = (np.uint64(target[edge]) << TARGET_SHIFT) | np.uint64(source[edge])
        at[bucket] += 1
    return start
