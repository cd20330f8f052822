"""Cutting a graph's nodes into chunks that are computed together, within limits of rows and in-edges."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from storage.graph import Topology


@dataclass(frozen=True)
class Chunk:
    """Nodes computed together."""

    node_type: int
    ids: NDArray[np.int64]
    """[S] dense ids, ascending"""


@dataclass(frozen=True)
class ChunkLimits:
    """How large a chunk may be; a single row is always allowed."""

    rows: int
    edges: int


def plan_chunks(
    topology: Topology, *, limits: ChunkLimits, rows: Sequence[NDArray[np.int64]] | None = None
) -> Iterator[Chunk]:
    """Cut all nodes, or the ascending dense ids `rows[type]`, into chunks within `limits`, type by type."""
    for node_type in range(len(topology.node_types)):
        num_nodes = int(topology.type_offsets[node_type + 1] - topology.type_offsets[node_type])
        total = num_nodes if rows is None else rows[node_type].shape[0]
        indptrs = [r.indptr for r in topology.relations if r.target_type == node_type]
        first = 0
        while first < total:
            last = min(first + limits.rows, total)
            ids = np.arange(first, last, dtype=np.int64) if rows is None else rows[node_type][first:last]
            edges = np.zeros(ids.shape[0], dtype=np.int64)
            for indptr in indptrs:
                edges += indptr[ids + 1].astype(np.int64) - indptr[ids]
            size = max(1, int(np.searchsorted(np.cumsum(edges), limits.edges, side="right")))
            yield Chunk(node_type, ids[:size])
            first += size
