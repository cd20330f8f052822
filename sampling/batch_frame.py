"""What the batches of a sampler over stored topology have in common, and the one place that knows how edges are drawn.

Shapes: R relations, H hops, n targets of a hop that are of a relation's target type.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sampling.keys import step_key, subkey
from sampling.packed_rows import select_rows
from sampling.row_kernels import count_rows, draw_positions
from storage.graph import INT32_MAX
from storage.stored_topology import StoredRelation


class Step(NamedTuple):
    """What is to be sampled: seeds are int64 [S], distinct global ids; several ranks' shares are as many steps."""

    epoch: int
    step: int
    seeds: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class BatchFrame:
    """Graph and settings."""

    seed: int
    fanouts: tuple[tuple[int, ...], ...]
    """[H][R]"""
    type_offsets: NDArray[np.int64]
    relations: tuple[StoredRelation, ...]
    node_dtype: np.dtype[Any]
    """that holds every global id"""

    def id_range(self, node_type: int) -> tuple[int, int]:
        """Global ids of a type."""
        return int(self.type_offsets[node_type]), int(self.type_offsets[node_type + 1])

    def id_dtype(self, node_type: int) -> np.dtype[Any]:
        """Of dense ids of a type that are looked up in a file."""
        first, last = self.id_range(node_type)
        return np.dtype(np.int32 if last - first <= INT32_MAX else np.int64)

    def nodes_of(self, node_type: int, nodes: NDArray[Any]) -> NDArray[Any]:
        """Those of `nodes` (global ids) that are of a type, in order."""
        if self.type_offsets.shape[0] == 2:
            return nodes
        chosen = np.empty_like(nodes)
        return chosen[: select_rows(nodes, *self.id_range(node_type), chosen)]


@dataclass(frozen=True, eq=False)
class HopShape:
    """How large a hop is, and what its random numbers are keyed by."""

    epoch: int
    step: int
    hop: int
    num_targets: int
    num_sources: int
    num_edges: int
    num_rows: tuple[int, ...]
    """[R] n"""


def room_of(degree: NDArray[Any], *, fanout: int) -> NDArray[np.int32]:
    """Running count [n + 1] of the edges that are drawn for rows of these degrees [n]."""
    room = np.empty(degree.shape[0] + 1, dtype=np.int32)
    count_rows(degree, degree.shape[0], fanout, 0, room)
    return room


def draw_edges(
    frame: BatchFrame,
    relation: int,
    *,
    epoch: int,
    step: int,
    hop: int,
    nodes: NDArray[Any],
    begin: NDArray[Any],
    degree: NDArray[Any],
    room: NDArray[np.int32],
    position: NDArray[Any],
) -> None:
    """Draw the positions of one relation's rows in a hop: `nodes` [n] with lists at `begin`, `degree` edges long.

    A mode that needs to know no more than where lists begin and how long they are belongs here: what it draws is
    drawn again when the batch is served. A mode that looks into the lists needs them read first, as a compact copy of
    those of a group of batches for `sampling.choose`, and its positions kept.
    """
    key = subkey(step_key(seed=frame.seed, epoch=epoch, step=step), hop, relation)
    first, _ = frame.id_range(frame.relations[relation].target_type)
    draw_positions(key, nodes, nodes.shape[0], first, begin, degree, room, position)
