"""Node tables of the ingest: everything but the features in memory, checked."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from storage import columns
from storage.feature_columns import FeatureColumns, find_feature_columns
from storage.ids import NodeIds, refuse_duplicates
from storage.schema import Dtype
from storage.tables import Offences, Table, open_table

NODE_COLUMNS = ("id", "label", "split", "timestamp", "features")
"""what a node table may hold besides named feature columns"""


@dataclass(frozen=True)
class NodeTable:
    """One node type in input order; row i of every column belongs to id i.

    Attributes:
        table: the files, for the features and for messages.
        ids: [n].
        label: [n] int64, -1 unknown; None without labels.
        split: [n] string; None without splits.
        timestamp: [n] int64; None without times.
        features: which columns are features; None without features.
    """

    table: Table
    ids: NodeIds
    label: NDArray[np.int64] | None
    split: pa.ChunkedArray | None
    timestamp: NDArray[np.int64] | None
    features: FeatureColumns | None

    @property
    def name(self) -> str:
        """The node type."""
        return self.ids.node_type

    def __len__(self) -> int:
        """Return the number of nodes."""
        return len(self.ids)


def open_node_table(url: str, *, feature_columns: tuple[str, ...] | None) -> Table:
    """Open the node table at `url`; BadInput as in `open_table`."""
    features = ("features",) if feature_columns is None else ("features", *feature_columns)
    return open_table(url, required=("id",), optional=("label", "split", "timestamp", *features))


def read_nodes(
    table: Table,
    *,
    node_type: str,
    feature_columns: tuple[str, ...] | None,
    feature_dtype: Dtype | None,
) -> NodeTable:
    """Read and check ids, labels, splits and times, and the schema of the features.

    Raises:
        BadInput: a null, a repeated id, a label below -1, an unknown split, a wrong type.
    """
    kind = columns.id_type(table, "id")
    if "label" in table.schema.names:
        columns.check_integer(table, "label")
    if "timestamp" in table.schema.names:
        columns.check_integer(table, "timestamp")
    if "split" in table.schema.names:
        columns.check_split(table)
    features = find_feature_columns(table, named=feature_columns, dtype=feature_dtype)
    names = [name for name in ("id", "label", "split", "timestamp") if name in table.schema.names]
    rows = table.read(names)
    offences = Offences(table)
    for name in names:
        columns.refuse_nulls(offences, rows[name], name=name, first_row=0)
    offences.refuse()
    ids = columns.ids(rows["id"], kind=kind)
    refuse_duplicates(table, ids)
    label = columns.labels(offences, rows["label"], first_row=0) if "label" in names else None
    split = columns.splits(offences, rows["split"], first_row=0) if "split" in names else None
    timestamp = rows["timestamp"].cast(pa.int64()).to_numpy() if "timestamp" in names else None
    offences.refuse()
    return NodeTable(
        table=table,
        ids=NodeIds(node_type=node_type, kind=kind, values=ids),
        label=label,
        split=split,
        timestamp=timestamp,
        features=features,
    )
