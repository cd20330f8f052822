"""Nodes to be deleted, found by their ids: a byte a node, marked from a table that is read once."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from storage import columns
from storage.errors import BadInput
from storage.offences import Offences
from storage.schema import NodeType
from storage.stages.id_map import UNKNOWN, IdMap
from storage.stages.runs import write_array
from storage.tables import Table

_BATCH_ROWS = 1 << 18


@dataclass(frozen=True)
class GoneNodes:
    """A file of uint8 [num_nodes], 1 for each node that is deleted now or was before.

    Attributes:
        path: the file.
        num_new: nodes that are deleted now.
        num_unknown: rows of the table whose id no live node has.
    """

    path: str
    num_new: int
    num_unknown: int


def mark_gone(
    folder: str,
    *,
    kind: NodeType,
    table: Table,
    ids: IdMap,
    deleted: NDArray[np.int64],
    missing: Literal["refuse", "ignore"],
    advance: Callable[[int], None],
) -> GoneNodes:
    """Mark the nodes whose ids are in `table`.

    Args:
        folder: for the file.
        kind: their type.
        table: column `id`.
        ids: of the live nodes.
        deleted: dense ids of nodes that are deleted already.
        missing: whether an unknown id is refused, or left aside and counted.
        advance: told the number of rows done.

    Raises:
        BadInput: a null, an unknown id (under `refuse`), or no node would be left.
    """
    gone = np.zeros(kind.num_nodes, dtype=np.uint8)
    gone[deleted] = 1
    offences, num_unknown = Offences(), 0
    for first_row, batch in table.batches(["id"], max_rows=_BATCH_ROWS):
        rows = pa.Table.from_batches([batch])
        advance(batch.num_rows)
        if columns.refuse_nulls(offences, rows["id"], name="id", first_row=first_row) or not batch.num_rows:
            continue
        found = ids.positions(columns.ids(rows["id"], kind=ids.kind).combine_chunks())
        unknown = np.flatnonzero(found == UNKNOWN)
        num_unknown += len(unknown)
        if len(unknown) and missing == "refuse":
            offences.add(
                unknown + first_row,
                column="id",
                found=f"unknown {kind.name} {rows['id'][int(unknown[0])].as_py()!r}",
                rule="only nodes that the store has are deleted",
                remedy="remove the rows, or leave them aside with --missing ignore",
            )
        gone[found[found != UNKNOWN]] = 1
    offences.refuse(table)
    num_gone = int(np.count_nonzero(gone))
    if num_gone == kind.num_nodes:
        raise BadInput(
            table.where("id"),
            f"all {kind.num_live} nodes of type {kind.name}",
            rule="a node type keeps at least one node",
            remedy="ingest the other tables as a new store",
        )
    path = f"{folder}/gone"
    write_array(path, gone)
    return GoneNodes(path=path, num_new=num_gone - kind.num_deleted, num_unknown=num_unknown)
