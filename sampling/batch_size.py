"""How large batches are, learned from a few real ones before memory is divided."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sampling.device_rows import rows_behind
from sampling.kept import Shelf
from sampling.memory_split import TableNeeds
from sampling.sample_space import SampleSpace
from sampling.sources import SampleSource
from storage.features import Features

NUM_LOOKED_AT = 3
"""batches that are sampled"""


@dataclass(frozen=True)
class BatchSize:
    """A batch, as a mean over some, of all ranks served."""

    num_nodes: float
    num_edges: float
    rows: tuple[float, ...]
    """[T] of each node type"""
    seen: tuple[NDArray[np.int64], ...]
    """[T] dense ids of the nodes of all of them, ascending"""
    nodes_by_hop: tuple[float, ...]
    """[H + 1] nodes known before each hop, and behind the last"""

    def behind(self, num_rows: Sequence[int]) -> "BatchSize":
        """The same without the first rows [T] of each table: what is left to serve."""
        seen = tuple(rows_behind(part, first) for part, first in zip(self.seen, num_rows, strict=True))
        return replace(self, seen=seen, rows=tuple(part.shape[0] / NUM_LOOKED_AT for part in seen))


def batch_size(source: SampleSource, *, num_hops: int, type_offsets: NDArray[np.int64]) -> BatchSize:
    """Sample the first batches of a source; means over them."""
    nodes, edges = 0.0, 0.0
    seen = []
    by_hop = np.zeros(num_hops + 1)
    shelf = Shelf(SampleSpace(memory_bytes=0, folder=None))
    for drawn in source.samples(0, NUM_LOOKED_AT):
        for batch in drawn:
            nodes += batch.nodes.shape[0]
            edges += batch.num_edges
            seen.append(batch.nodes.astype(np.int64))
            sample, _ = batch.keep(shelf).take()
            by_hop += [*(hop.num_targets for hop in sample.hops), sample.nodes.shape[0]]
    everything = np.sort(np.concatenate(seen))
    cut = np.split(everything, np.searchsorted(everything, type_offsets[1:-1]))
    parts = [part - first for part, first in zip(cut, type_offsets[:-1], strict=True)]
    return BatchSize(
        num_nodes=nodes / NUM_LOOKED_AT,
        num_edges=edges / NUM_LOOKED_AT,
        rows=tuple(part.shape[0] / NUM_LOOKED_AT for part in parts),
        seen=tuple(parts),
        nodes_by_hop=tuple((by_hop / NUM_LOOKED_AT).tolist()),
    )


def table_needs(table: Features | None, seen: NDArray[np.int64]) -> TableNeeds | None:
    """What a table's share of the memory is decided by; `seen` [n] are its rows in the batches looked at, ascending."""
    if table is None:
        return None
    return TableNeeds(
        num_rows=table.num_rows,
        row_bytes=table.dim * table.dtype.itemsize,
        batch_rows=seen.shape[0] // NUM_LOOKED_AT + 1,
        seen_rows=seen,
    )


def batch_bytes(batch: BatchSize, tables: Sequence[Features | None], *, num_relations: int) -> int:
    """A mini-batch in memory: features; ids, types and degrees of nodes; source, position and weight of edges."""
    features = sum(
        rows * table.dim * table.dtype.itemsize
        for table, rows in zip(tables, batch.rows, strict=True)
        if table is not None
    )
    return int(features + batch.num_nodes * (24 + 8 * num_relations) + batch.num_edges * 16)
