"""From the user's ids to positions where some nodes of the store are deleted: these are unknown."""

import dataclasses
from dataclasses import dataclass
from functools import partial
from typing import Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from storage.node_columns import deleted_ids
from storage.place import Place
from storage.schema import NodeType
from storage.stages.context import Context
from storage.stages.id_map import UNKNOWN, IdMap
from storage.stages.node_input import NodeInput
from storage.stages.runs import map_array, write_array
from storage.stored_nodes import StoredNodes, no_rows


@dataclass(frozen=True)
class LiveIdMap(IdMap):
    """An id map and a file of uint8 [num_nodes], 1 for each deleted position."""

    deleted: str

    @classmethod
    def of(cls, ids: IdMap, *, deleted: str) -> Self:
        """The map without the deleted nodes."""
        return cls(**{field.name: getattr(ids, field.name) for field in dataclasses.fields(IdMap)}, deleted=deleted)

    def positions(self, ids: pa.Array) -> NDArray[np.uint32]:
        """As `IdMap.positions`; a deleted node is UNKNOWN."""
        found = super().positions(ids)
        known = np.flatnonzero(found != UNKNOWN)
        gone = map_array(self.deleted, np.uint8)[found[known]] > 0
        found[known[gone]] = UNKNOWN
        return found


def mark_deleted(folder: str, *, place: Place, node_type: NodeType, num_nodes: int) -> str:
    """Write a file of uint8 [num_nodes], 1 for each deleted node of the type; returns its path."""
    gone = np.zeros(num_nodes, dtype=np.uint8)
    gone[deleted_ids(place, node_type)] = 1
    path = f"{folder}/deleted"
    write_array(path, gone)
    return path


def live_maps(context: Context, kinds: tuple[NodeType, ...], maps: dict[str, IdMap]) -> dict[str, IdMap]:
    """The maps without the deleted nodes of `kinds`."""
    live = dict(maps)
    for kind in kinds:
        if kind.name in maps and kind.deleted is not None:
            num_nodes = context.num_nodes[kind.name]
            mark = partial(mark_deleted, place=context.place, node_type=kind, num_nodes=num_nodes)
            live[kind.name] = LiveIdMap.of(
                maps[kind.name], deleted=context.work.stage(f"deleted.{kind.name}", str, mark)
            )
    return live


def only_known(place: Place, kind: NodeType) -> NodeInput:
    """The stored nodes of a type to which none is added."""
    stored = StoredNodes(place, kind, live_only=False)
    none = no_rows(stored.schema)
    return NodeInput(name=kind.name, table=none, known=stored, base=kind.num_nodes, segment=0, features=None)
