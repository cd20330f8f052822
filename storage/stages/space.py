"""How much disk an ingest takes beside the store, stated and checked before the first byte is written."""

import os
import shutil
from collections.abc import Iterable

import numpy as np

from storage.errors import BadInput
from storage.place import Place
from storage.schema import Relation, RelationInfo
from storage.stages.node_input import NodeInput
from storage.tables import Table

ID_BYTES = 34
"""of a node: its hash, check and row in runs and sorted, its order, rank and levels"""
_EDGE_BYTES = 8
_EXTRA_BYTES = {"weight": 4, "timestamp": 8}


def temporary_bytes(nodes: Iterable[NodeInput], edges: dict[Relation, Table], *, undirected: bool) -> int:
    """An upper bound of the temporary files; text is counted as it stands compressed in the tables, thrice."""
    total = 0
    for node in nodes:
        total += ID_BYTES * node.known.num_rows + 3 * 8 * node.table.num_rows
        if node.features is not None:
            row_bytes = node.features.dim * np.dtype(node.features.dtype).itemsize
            total += (row_bytes + 4) * node.table.num_rows
        else:
            total += 3 * sum(file.num_bytes for file in node.table.files)
    for table in edges.values():
        row_bytes = _EDGE_BYTES + sum(size for name, size in _EXTRA_BYTES.items() if name in table.schema.names)
        total += (3 if undirected else 2) * row_bytes * table.num_rows
    return total


def edge_bytes(relations: tuple[RelationInfo, ...]) -> int:
    """Temporary files of the stored edges of some relations: a spill, and the same by target range."""
    return sum(2 * (8 + 4 * info.has_weight + 8 * info.has_timestamp) * info.num_edges for info in relations)


def check_space(num_bytes: int, *, folder: str, place: Place) -> None:
    """BadInput when `folder` has less room than an ingest may take for its temporary files.

    A local store on the same disk needs its own room too, about as much again at most.
    """
    existing = os.path.abspath(folder)
    while not os.path.exists(existing):
        existing = os.path.dirname(existing)
    free = shutil.disk_usage(existing).free
    if num_bytes > free:
        raise BadInput(
            folder,
            f"{free / 1e9:.2f} GB free",
            rule=f"temporary files of this ingest into {place.url} take up to {num_bytes / 1e9:.2f} GB",
            remedy="free some space, or name a folder on another disk with --work",
        )
