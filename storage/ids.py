"""The ids of one node type in memory: unique, and a map from ids to input positions."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from storage.errors import BadInput
from storage.schema import IdType
from storage.tables import Table


@dataclass(frozen=True)
class NodeIds:
    """Ids of a node type in input order.

    Attributes:
        node_type: its name.
        kind: int64 or string.
        values: [n] int64 or large_string, without nulls and duplicates.
    """

    node_type: str
    kind: IdType
    values: pa.ChunkedArray

    def __len__(self) -> int:
        """Return the number of nodes."""
        return len(self.values)

    def positions(self, keys: pa.ChunkedArray) -> NDArray[np.int32]:
        """Input position of each key [n] int32, -1 where no node has this id; keys are of type `values.type`.

        Costs one hash table of all ids per call, so ask for many keys at once.
        """
        found = pc.index_in(keys, value_set=self.values).fill_null(-1)
        positions: NDArray[np.int32] = found.to_numpy()
        return positions

    def in_order(self, order: NDArray[np.int64]) -> pa.Array:
        """Ids [n] in another order, int64 or large_string: result[i] = values[order[i]]."""
        taken = self.values.take(pa.array(order))
        return taken.combine_chunks() if isinstance(taken, pa.ChunkedArray) else taken


def refuse_duplicates(table: Table, values: pa.ChunkedArray) -> None:
    """Check that no id occurs twice in a node table.

    Raises:
        BadInput: naming the first repeated row, the row it repeats, and how many rows repeat another.
    """
    first_seen = pc.index_in(values, value_set=values).to_numpy()
    repeats = np.flatnonzero(first_seen != np.arange(len(values)))
    if len(repeats) == 0:
        return
    row = int(repeats[0])
    raise BadInput(
        table.place(row, "id"),
        f"id {values[row].as_py()!r} again, first at {table.place(int(first_seen[row]), 'id')} "
        f"({len(repeats)} of {table.num_rows} rows repeat an id)",
        rule="an id must be unique in its node type",
        remedy="remove the repeated rows, or check that the glob does not match files twice",
    )
