"""In- and out-degrees of a relation by input position, counted from wherever its edges are.

Workers count disjoint slices into arrays of their own, which are then added: no two touch one counter.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from storage.jit import kernel
from storage.stages.crew import Crew
from storage.stages.edge_partition import SOURCE_MASK, TARGET_SHIFT, Partition
from storage.stages.edge_view import EdgeView, Slice
from storage.stages.runs import map_array, write_array

STREAM_BYTES_PER_EDGE = 64
"""working memory of a streamed edge: columns as read, turned both ways, and what is made of them"""
_SUM_ELEMENTS = 1 << 20


@dataclass(frozen=True)
class Degrees:
    """Files of uint32: `in_degree` [num_targets], `out_degree` [num_sources], by input position."""

    in_degree: str
    out_degree: str


@dataclass(frozen=True)
class _Task:
    view: EdgeView | Partition
    pieces: list[Slice]
    num_sources: int
    num_targets: int
    path: str


def count_degrees(
    folder: str, *, view: EdgeView | Partition, num_sources: int, num_targets: int, crew: Crew
) -> Degrees:
    """Count the degrees of a relation, in its spill or partitioned already, into files in `folder`."""
    tasks = [
        _Task(view, pieces, num_sources, num_targets, f"{folder}/{number}")
        for number, pieces in enumerate(share_slices(view, crew, private_bytes=4 * (num_sources + num_targets)))
    ]
    for task, _ in zip(tasks, crew.executor.map(_count, tasks), strict=True):
        crew.advance(sum(piece.count for piece in task.pieces))
    for name in ("in", "out"):
        add_up([f"{task.path}.{name}" for task in tasks], f"{folder}/{name}", dtype=np.uint32)
    return Degrees(in_degree=f"{folder}/in", out_degree=f"{folder}/out")


def share_slices(view: EdgeView | Partition, crew: Crew, *, private_bytes: int) -> list[list[Slice]]:
    """Slices dealt to as many workers as can hold `private_bytes` each; at least one share, maybe empty."""
    pieces = view.slices(max_edges=crew.budget.rows(STREAM_BYTES_PER_EDGE))
    num_workers = min(crew.budget.private_arrays(private_bytes), max(1, len(pieces)))
    return [pieces[number::num_workers] for number in range(num_workers)]


def add_up(paths: list[str], path: str, *, dtype: type[np.uint32] | type[np.uint64]) -> None:
    """Write the element-wise sum of the arrays at `paths` to `path`, a piece at a time."""
    parts = [map_array(name, dtype) for name in paths]
    with open(path, "wb") as file:
        for start in range(0, len(parts[0]), _SUM_ELEMENTS):
            total = parts[0][start : start + _SUM_ELEMENTS].copy()
            for part in parts[1:]:
                total += part[start : start + _SUM_ELEMENTS]
            file.write(total.data)


def _count(task: _Task) -> None:
    in_degree = np.zeros(task.num_targets, dtype=np.uint32)
    out_degree = np.zeros(task.num_sources, dtype=np.uint32)
    for piece in task.pieces:
        if isinstance(task.view, Partition):
            _add_keys(task.view.keys(piece), in_degree, out_degree)
        else:
            edges = task.view.read(piece)
            _add_edges(edges.source, edges.target, in_degree, out_degree)
    write_array(f"{task.path}.in", in_degree)
    write_array(f"{task.path}.out", out_degree)


@kernel
def _add_edges(
    source: NDArray[np.uint32],
    target: NDArray[np.uint32],
    in_degree: NDArray[np.uint32],
    out_degree: NDArray[np.uint32],
) -> None:
    for edge in range(source.shape[0]):
        out_degree[source[edge]] += np.uint32(1)
        in_degree[target[edge]] += np.uint32(1)


@kernel
def _add_keys(keys: NDArray[np.uint64], in_degree: NDArray[np.uint32], out_degree: NDArray[np.uint32]) -> None:
    for edge in range(keys.shape[0]):
        out_degree[np.int64(keys[edge] & SOURCE_MASK)] += np.uint32(1)
        in_degree[np.int64(keys[edge] >> TARGET_SHIFT)] += np.uint32(1)
