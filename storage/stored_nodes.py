"""The nodes that a store has as a table: what is read of it are stored files, every page checked.

Rows follow the dense ids. So the stages of an ingest work on a store as they work on a user's table.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from storage.checked import CheckedReader
from storage.node_columns import deleted_ids, open_ids
from storage.npy import HEADER_BYTES, damaged, npy_header
from storage.place import Place
from storage.schema import NodeSegment, NodeType
from storage.segments import ids_schema
from storage.tables import Table, TableFile, TablePart

FEATURES = "features"


class StoredNodes(Table):
    """The nodes of one type, with the columns of their table and `position`; `features` are read by themselves.

    Args:
        place: the store.
        node_type: the type.
        live_only: leave deleted nodes out; else row i is dense id i.

    Raises:
        DamagedStore: a page that is read has changed, now or in any method.
    """

    def __init__(self, place: Place, node_type: NodeType, *, live_only: bool) -> None:
        self._place = place
        self._node_type = node_type
        self._deleted = deleted_ids(place, node_type) if live_only else np.empty(0, dtype=np.int64)
        self._groups: list[list[tuple[int, int]]] = []  # of each segment: first row and rows of each row group
        files, first_row = list[TableFile](), 0
        for segment in node_type.segments:
            stored = _group_rows(place, segment)
            starts = np.cumsum([0, *stored])
            self._groups.append(list(zip(starts[:-1].tolist(), stored, strict=True)))
            dead = np.searchsorted(self._deleted, starts + segment.first_id)
            group_rows = tuple((np.array(stored, dtype=np.int64) - np.diff(dead)).tolist())
            files.append(
                TableFile(
                    name=place.full(segment.ids.name),
                    path=segment.ids.name,
                    first_row=first_row,
                    group_rows=group_rows,
                    num_bytes=segment.ids.num_bytes,
                )
            )
            first_row += sum(group_rows)
        super().__init__(place.url, fs=place.fs, files=tuple(files), schema=_schema(node_type))
        self.num_stored = self.num_rows

    def read_part(
        self, part: TablePart, columns: Sequence[str], *, max_rows: int
    ) -> Iterator[tuple[int, pa.RecordBatch]]:
        """(first row, batch) of one part: of `features` alone, or of columns of the ids files."""
        segment = self._node_type.segments[part.file]
        groups = self._groups[part.file][part.first_group : part.last_group]
        at = segment.first_id + groups[0][0]
        row = part.first_row
        for batch in self._stored(segment, part, groups, columns, max_rows):
            kept = batch
            gone = self._deleted[slice(*np.searchsorted(self._deleted, (at, at + batch.num_rows)))]
            if len(gone):
                live = np.ones(batch.num_rows, dtype=np.bool_)
                live[gone - at] = False
                kept = batch.filter(pa.array(live))
            at += batch.num_rows
            yield row, kept
            row += kept.num_rows

    def _stored(
        self,
        segment: NodeSegment,
        part: TablePart,
        groups: list[tuple[int, int]],
        columns: Sequence[str],
        max_rows: int,
    ) -> Iterator[pa.RecordBatch]:
        """Consecutive row groups as they are stored, deleted nodes included."""
        if tuple(columns) != (FEATURES,):
            with open_ids(self._place, segment) as parquet:
                for group in range(part.first_group, part.last_group):
                    yield from parquet.iter_batches(
                        batch_size=max_rows, row_groups=[group], columns=list(columns), use_threads=False
                    )
            return
        first, count = groups[0][0], sum(rows for _, rows in groups)
        for values in stored_features(self._place, self._node_type, segment, first, count, max_rows=max_rows):
            flat = pa.array(values.reshape(-1))
            yield pa.record_batch([pa.FixedSizeListArray.from_arrays(flat, values.shape[1])], names=[FEATURES])


class JoinedTable(Table):
    """The nodes of a store and the rows of a new table behind them, with the columns that both have."""

    def __init__(self, stored: Table, new: Table) -> None:
        self._parts = (stored, new)
        later = tuple(
            TableFile(file.name, file.path, file.first_row + stored.num_rows, file.group_rows, file.num_bytes)
            for file in new.files
        )
        names = [name for name in stored.schema.names if name in new.schema.names]
        schema = pa.schema([stored.schema.field(name) for name in names])
        super().__init__(new.url, fs=new.fs, files=stored.files + later, schema=schema)
        self.num_stored = stored.num_rows

    def read_part(
        self, part: TablePart, columns: Sequence[str], *, max_rows: int
    ) -> Iterator[tuple[int, pa.RecordBatch]]:
        """(first row, batch) of one part."""
        stored, new = self._parts
        if part.file < len(stored.files):
            yield from stored.read_part(part, columns, max_rows=max_rows)
            return
        theirs = part._replace(file=part.file - len(stored.files), first_row=part.first_row - stored.num_rows)
        for row, batch in new.read_part(theirs, columns, max_rows=max_rows):
            yield row + stored.num_rows, batch


def no_rows(schema: pa.Schema) -> Table:
    """A table without rows, in place of one that is not given."""
    return Table("", fs=None, files=(), schema=schema)


def stored_features(
    place: Place, node_type: NodeType, segment: NodeSegment, first: int, count: int, *, max_rows: int
) -> Iterator[NDArray[Any]]:
    """Rows [first, first + count) of a segment's feature file as they are stored, at most `max_rows` at a time."""
    assert segment.features is not None, "features in place are refused before"
    assert node_type.feature_dim is not None
    dtype, info = np.dtype(node_type.feature_dtype), segment.features
    header = npy_header(dtype, (segment.num_nodes, node_type.feature_dim))
    row_bytes = dtype.itemsize * node_type.feature_dim
    with CheckedReader(place, info) as file:
        if file.read(HEADER_BYTES) != header or info.num_bytes != HEADER_BYTES + segment.num_nodes * row_bytes:
            raise damaged(place, info.name, f"not an array of {segment.num_nodes} rows of features")
        file.seek(HEADER_BYTES + first * row_bytes)
        for start in range(0, count, max_rows):
            rows = np.empty((min(max_rows, count - start), node_type.feature_dim), dtype=dtype)
            file.readinto(rows.reshape(-1).view(np.uint8))
            yield rows


def _group_rows(place: Place, segment: NodeSegment) -> list[int]:
    with open_ids(place, segment) as parquet:
        metadata = parquet.metadata
        rows = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
    if sum(rows) != segment.num_nodes:
        raise damaged(place, segment.ids.name, f"{sum(rows)} rows where {segment.num_nodes} were written")
    return rows


def _schema(node_type: NodeType) -> pa.Schema:
    schema = ids_schema(node_type.id_type, **node_type.columns)
    schema = schema.remove(schema.get_field_index("position"))
    if node_type.feature_dim is None:
        return schema
    element = pa.from_numpy_dtype(np.dtype(node_type.feature_dtype))
    return schema.append(pa.field(FEATURES, pa.list_(element, node_type.feature_dim)))
