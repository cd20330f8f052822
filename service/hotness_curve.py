"""How many of the sampler's reads the hottest rows of a stored type serve: what a cache of that size is worth.

The expected accesses of a row are those that ingest orders rows by (`storage/hotness.py` has the formula), here
in float64 from the stored CSC, one pass over it a hop: memory is 24 bytes a node whatever the number of edges.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.csc_stream import target_blocks
from storage.jit import kernel
from storage.progress import Progress
from storage.schema import NodeType
from storage.store import Store

ROW_SHARES = (0.01, 0.05, 0.1, 0.2)
DEFAULT_FANOUT = (15, 10, 5)
"""what ingest orders rows by unless told otherwise"""


@dataclass(frozen=True)
class HotRows:
    """The hottest rows of a type and what they serve."""

    row_share: float
    """share of the rows, those that come first in each segment"""
    access_share: float
    """share of the expected reads of this type's rows that go to them"""


def stored_fanout(store: Store) -> tuple[int, ...]:
    """The fan-out that the store was ingested for."""
    return tuple(int(k) for k in store.generation.settings.get("fanout", DEFAULT_FANOUT))


def expected_accesses(store: Store, *, fanout: Sequence[int], progress: Progress) -> list[NDArray[np.float64]]:
    """For each type [num_nodes] float64: reads a row is expected to get for one seed drawn at every node.

    `fanout` as `storage.hotness.expected_accesses` takes it: -1 for all neighbours.
    """
    counts = [kind.num_nodes for kind in store.node_types]
    level = [np.ones(count) for count in counts]
    total = [np.ones(count) for count in counts]
    reached = [np.zeros(count) for count in counts]
    num_edges = sum(info.num_edges for info in store.relations)
    for hop, k in enumerate(fanout):
        progress.stage(f"accesses, hop {hop + 1}", total=num_edges, unit="edges")
        for info in store.relations:
            target = store.type_index(info.relation.target)
            source = store.type_index(info.relation.source)
            for block in target_blocks(store.place, info, num_targets=counts[target]):
                share = _shares(level[target][block.first : block.first + block.degree.shape[0]], block.degree, k)
                for part in block.parts:
                    first_target = int(np.searchsorted(part.pointers, part.first_edge, side="right")) - 1
                    _spread(reached[source], share, part.pointers, first_target, part.first_edge, part.sources)
                    progress.advance(part.sources.shape[0])
        for number, values in enumerate(reached):
            total[number] += values
            level[number].fill(0)
        level, reached = reached, level
    return total


def hotness_curve(kind: NodeType, accesses: NDArray[np.float64]) -> list[HotRows]:
    """Shares of `accesses` [num_nodes] in the first rows of the type's segments, for each of `ROW_SHARES`."""
    whole = float(accesses.sum())
    curve = []
    for share in ROW_SHARES:
        hot = 0.0
        for segment in kind.segments:
            count = int(np.ceil(share * segment.num_nodes))
            hot += float(accesses[segment.first_id : segment.first_id + count].sum())
        curve.append(HotRows(row_share=share, access_share=hot / whole if whole else 0.0))
    return curve


@kernel
def _shares(level: NDArray[np.float64], degree: NDArray[np.int64], k: int) -> NDArray[np.float64]:
    """What each target hands to each of its in-edges: level * min(1, k / degree), [n]."""
    share = level.copy()
    for v in range(share.shape[0]):
        if 0 <= k < degree[v]:
            share[v] *= k / degree[v]
    return share


@kernel
def _spread(
    reached: NDArray[np.float64],
    share: NDArray[np.float64],
    pointers: NDArray[np.int64],
    target: int,
    first_edge: int,
    sources: NDArray[Any],
) -> None:
    """Add the share of each edge's target to its source; edge 0 of the part belongs to `target` of the block."""
    for index in range(sources.shape[0]):
        while pointers[target + 1] <= first_edge + index:
            target += 1
        reached[sources[index]] += share[target]
