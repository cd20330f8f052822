"""Node tables as an ingest opens them: which columns there are, and that their types are those of the contract."""

from storage import columns
from storage.tables import Table, open_table

NODE_COLUMNS = ("id", "label", "split", "timestamp", "features")
"""what a node table may hold besides named feature columns"""


def open_node_table(url: str, *, feature_columns: tuple[str, ...] | None) -> Table:
    """Open the node table at `url` and check the types of its columns but the features; BadInput as in `open_table`."""
    features = ("features",) if feature_columns is None else ("features", *feature_columns)
    table = open_table(url, required=("id",), optional=("label", "split", "timestamp", *features))
    columns.id_type(table, "id")
    if "label" in table.schema.names:
        columns.check_integer(table, "label")
    if "timestamp" in table.schema.names:
        columns.check_integer(table, "timestamp")
    if "split" in table.schema.names:
        columns.check_split(table)
    return table
