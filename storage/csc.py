"""From edges in input order to a relation's CSC by target, in dense ids.

Inside a target, in-neighbours are sorted by (time, source, input position); without times by (source, input
position). The sort is a least-significant-key-first chain of stable sorts: source, time, target.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.edges import Edges
from storage.jit import kernel


@dataclass(frozen=True)
class CSC:
    """In-neighbours of every target of one relation; integers are int32 where they fit, else int64.

    Attributes:
        indptr: [num_targets + 1]; target v owns edges indptr[v] to indptr[v + 1].
        indices: [num_edges] dense source ids.
        out_degree: [num_sources] edges that leave each source.
        weight: [num_edges] float32; None without weights.
        timestamp: [num_edges] int64; None without times.
    """

    indptr: NDArray[Any]
    indices: NDArray[Any]
    out_degree: NDArray[Any]
    weight: NDArray[np.float32] | None
    timestamp: NDArray[np.int64] | None


def build_csc(edges: Edges, *, source_rank: NDArray[np.int64], target_rank: NDArray[np.int64]) -> CSC:
    """Sort one relation's edges into CSC.

    Args:
        edges: ends as input positions.
        source_rank: [num_sources] dense id of each source position.
        target_rank: [num_targets] dense id of each target position.
    """
    source, target = source_rank[edges.source], target_rank[edges.target]
    order = _stable_order(np.arange(len(edges)), source, len(source_rank))
    if edges.timestamp is not None:
        order = order[np.argsort(edges.timestamp[order], kind="stable")]
    order = _stable_order(order, target, len(target_rank))
    indptr = np.zeros(len(target_rank) + 1, dtype=np.int64)
    np.cumsum(np.bincount(target, minlength=len(target_rank)), out=indptr[1:])
    out_degree = np.bincount(source, minlength=len(source_rank))
    return CSC(
        indptr=indptr.astype(_fitting(len(edges))),
        indices=source[order].astype(_fitting(len(source_rank) - 1)),
        out_degree=out_degree.astype(_fitting(len(edges))),
        weight=None if edges.weight is None else edges.weight[order],
        timestamp=None if edges.timestamp is None else edges.timestamp[order],
    )


def count_parallel(csc: CSC) -> int:
    """Edges beyond the first of each (source, target) pair."""
    return int(_count_parallel(csc.indptr, csc.indices, len(csc.out_degree)))


def _fitting(largest: int) -> type[np.int32] | type[np.int64]:
    return np.int32 if largest <= np.iinfo(np.int32).max else np.int64


@kernel
def _stable_order(order: NDArray[np.int64], keys: NDArray[np.int64], num_keys: int) -> NDArray[np.int64]:
    """`order` sorted stably by keys[order] (counting sort); keys in [0, num_keys)."""
    start = np.zeros(num_keys + 1, dtype=np.int64)
    for i in range(len(keys)):
        start[keys[i] + 1] += 1
    for key in range(num_keys):
        start[key + 1] += start[key]
    result = np.empty(len(order), dtype=np.int64)
    for i in range(len(order)):
        key = keys[order[i]]
        result[start[key]] = order[i]
        start[key] += 1
    return result


@kernel
def _count_parallel(indptr: NDArray[Any], indices: NDArray[Any], num_sources: int) -> int:
    last_target = np.full(num_sources, -1, dtype=np.int64)
    count = 0
    for v in range(len(indptr) - 1):
        for e in range(indptr[v], indptr[v + 1]):
            u = indices[e]
            if last_target[u] == v:
                count += 1
            last_target[u] = v
    return count
