"""Pairs of nodes sorted on disk, to be looked up while edges stream past: pairs of any number, little memory.

A key is target << 32 | source, in dense ids; keys are ascending and distinct, so edges that come in order of targets
look at neighbouring keys.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from storage.stages.crew import Crew
from storage.stages.degrees import count_degrees
from storage.stages.edge_partition import Ranks, partition_edges
from storage.stages.edge_sort import sorted_ranges
from storage.stages.edge_view import EdgeChunk, EdgeView
from storage.stages.runs import map_array

_PIECE = 1 << 20


@dataclass(frozen=True)
class PairKeys:
    """Files: `keys` uint64 [num_keys], `hits` uint8 [num_keys], 1 where an edge has been seen."""

    keys: str
    hits: str
    num_keys: int

    def match(self, edges: EdgeChunk) -> NDArray[np.bool_]:
        """Which of the edges [n] join a pair; notes that these pairs have been seen."""
        found = np.zeros(len(edges.source), dtype=np.bool_)
        if not self.num_keys:
            return found
        keys = map_array(self.keys, np.uint64)
        wanted = (edges.target.astype(np.uint64) << np.uint64(32)) | edges.source
        at = np.minimum(np.searchsorted(keys, wanted), self.num_keys - 1)
        found[:] = keys[at] == wanted
        if found.any():
            np.memmap(self.hits, dtype=np.uint8, mode="r+")[at[found]] = 1
        return found

    def num_missing(self) -> int:
        """Pairs that no edge joins."""
        return self.num_keys - int(np.count_nonzero(map_array(self.hits, np.uint8)))

    def first_missing(self) -> tuple[int, int]:
        """Source and target of the first pair that no edge joins; there is one."""
        first = int(np.flatnonzero(map_array(self.hits, np.uint8) == 0)[0])
        key = int(map_array(self.keys, np.uint64)[first])
        return key & ((1 << 32) - 1), key >> 32


def sort_pairs(folder: str, *, view: EdgeView, num_sources: int, num_targets: int, crew: Crew) -> PairKeys:
    """Write the pairs of a view of a spill, as edges of its relation, into files in `folder`."""
    degrees = count_degrees(folder, view=view, num_sources=num_sources, num_targets=num_targets, crew=crew)
    ranks = Ranks(source=None, target=None)
    partition = partition_edges(folder, view=view, ranks=ranks, in_degree=degrees.in_degree, crew=crew)
    num_keys, first = 0, 0
    with open(f"{folder}/keys", "wb") as file:
        for edges in sorted_ranges(partition, view, crew=crew):
            targets = np.arange(first, first + len(edges.degrees), dtype=np.uint64)
            keys = np.unique((np.repeat(targets, edges.degrees) << np.uint64(32)) | edges.indices)
            file.write(keys.data)
            num_keys += len(keys)
            first += len(edges.degrees)
    with open(f"{folder}/hits", "wb") as file:
        file.truncate(num_keys)
    return PairKeys(keys=f"{folder}/keys", hits=f"{folder}/hits", num_keys=num_keys)
