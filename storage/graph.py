"""The graph in memory: in-neighbours of every node, relation by relation.

Shapes: T node types, E edges of a relation. Dense ids count inside a type; a global id is the offset of the
type plus the dense id and exists in memory only.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.jit import kernel
from storage.schema import Relation

INT32_MAX = 2**31 - 1


@dataclass(frozen=True)
class RelationCSC:
    """Edges of one relation by target: node v's in-neighbours are `indices[indptr[v]:indptr[v + 1]]`."""

    relation: Relation
    source_type: int
    """index of the source type"""
    target_type: int
    """index of the target type"""
    indptr: NDArray[Any]
    """int32 or int64 [num_targets + 1]"""
    indices: NDArray[Any]
    """int32 or int64 [E]: dense source ids, each target's sorted by (time, source, input position)"""
    out_degree: NDArray[Any]
    """int32 or int64 [num_sources]"""
    weight: NDArray[np.float32] | None
    """[E]; None when unweighted"""
    timestamp: NDArray[np.int64] | None
    """[E]; None without times"""


@dataclass(frozen=True)
class Topology:
    """A whole graph."""

    node_types: tuple[str, ...]
    """[T]"""
    type_offsets: NDArray[np.int64]
    """[T + 1]: global ids of type t are [type_offsets[t], type_offsets[t + 1])"""
    relations: tuple[RelationCSC, ...]


@dataclass(frozen=True)
class EdgeArrays:
    """The arrays of one edge segment, or of several merged; fields as in `RelationCSC`."""

    indptr: NDArray[Any]
    indices: NDArray[Any]
    out_degree: NDArray[Any]
    weight: NDArray[np.float32] | None
    timestamp: NDArray[np.int64] | None

    def spanning(self, *, num_targets: int, num_sources: int) -> "EdgeArrays":
        """The same edges over all nodes there are now; nodes appended after the segment have none in it."""
        more_targets = num_targets + 1 - self.indptr.shape[0]
        more_sources = num_sources - self.out_degree.shape[0]
        if not more_targets and not more_sources:
            return self
        return EdgeArrays(
            indptr=np.pad(self.indptr, (0, more_targets), mode="edge"),
            indices=self.indices,
            out_degree=np.pad(self.out_degree, (0, more_sources)),
            weight=self.weight,
            timestamp=self.timestamp,
        )


@kernel
def _merge_order(
    indptr_a: NDArray[Any],
    key_a: NDArray[Any],
    source_a: NDArray[Any],
    indptr_b: NDArray[Any],
    key_b: NDArray[Any],
    source_b: NDArray[Any],
    order: NDArray[np.int64],
) -> None:
    """`order[e]` = place of merged edge e in a's edges, then b's; by (key, source), a first when equal."""
    num_a = source_a.shape[0]
    out = 0
    for target in range(indptr_a.shape[0] - 1):
        a, last_a = np.int64(indptr_a[target]), np.int64(indptr_a[target + 1])
        b, last_b = np.int64(indptr_b[target]), np.int64(indptr_b[target + 1])
        while a < last_a or b < last_b:
            from_a = b >= last_b
            if a < last_a and b < last_b:
                time_a, time_b = key_a[a], key_b[b]
                from_a = time_a < time_b or (time_a == time_b and source_a[a] <= source_b[b])
            if from_a:
                order[out] = a
                a += 1
            else:
                order[out] = num_a + b
                b += 1
            out += 1


def merge_segments(segments: Sequence[EdgeArrays]) -> EdgeArrays:
    """Edges of consecutive segments over the same nodes, each target's by (time, source, segment, position).

    Memory: 8 bytes an edge beside the arrays themselves.
    """
    merged = segments[0]
    for segment in segments[1:]:
        merged = _merge_two(merged, segment)
    return merged


def _merge_two(a: EdgeArrays, b: EdgeArrays) -> EdgeArrays:
    order = np.empty(a.indices.shape[0] + b.indices.shape[0], dtype=np.int64)
    # without times all keys are equal: the sources themselves serve as keys
    key_a = a.indices if a.timestamp is None else a.timestamp
    key_b = b.indices if b.timestamp is None else b.timestamp
    _merge_order(a.indptr, key_a, a.indices, b.indptr, key_b, b.indices, order)
    ids_fit = a.indices.dtype == b.indices.dtype == np.int32
    weight = timestamp = None
    if a.weight is not None and b.weight is not None:
        weight = np.concatenate([a.weight, b.weight])[order]
    if a.timestamp is not None and b.timestamp is not None:
        timestamp = np.concatenate([a.timestamp, b.timestamp])[order]
    return EdgeArrays(
        indptr=_add(a.indptr, b.indptr, largest=order.shape[0]),
        indices=np.concatenate([a.indices, b.indices])[order].astype(np.int32 if ids_fit else np.int64),
        out_degree=_add(a.out_degree, b.out_degree, largest=order.shape[0]),
        weight=weight,
        timestamp=timestamp,
    )


def _add(a: NDArray[Any], b: NDArray[Any], *, largest: int) -> NDArray[Any]:
    total: NDArray[np.int64] = np.add(a, b, dtype=np.int64)
    return total.astype(np.int32) if largest <= INT32_MAX else total
