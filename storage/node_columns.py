"""Columns of the ids files: what the user's node table said, in dense order, every page checked."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from storage.arrays import read_array
from storage.checked import CheckedReader
from storage.errors import BadInput
from storage.lookup import Candidates, find_candidates
from storage.npy import damaged
from storage.place import Place
from storage.schema import NodeSegment, NodeType

BATCH_ROWS = 1 << 16


@contextmanager
def open_ids(place: Place, segment: NodeSegment) -> Iterator[pq.ParquetFile]:
    """The ids file of a segment; DamagedStore for a changed page, or for another kind of file."""
    with CheckedReader(place, segment.ids) as file:
        try:
            parquet = pq.ParquetFile(file)
        except pa.ArrowInvalid as error:
            # its checksums hold, so it was written as it is, by other means than ingest
            raise damaged(place, segment.ids.name, f"not an ids file of this store: {error}") from error
        yield parquet


def read_column(place: Place, node_type: NodeType, *, column: str) -> pa.ChunkedArray:
    """The whole column [num_nodes] over all segments; DamagedStore for a changed page."""
    chunks = []
    for segment in node_type.segments:
        with open_ids(place, segment) as parquet:
            values = parquet.read([column]).column(column)
        chunks += values.chunks
        kind = values.type
    return pa.chunked_array(chunks, type=kind)


def stream_ids(place: Place, node_type: NodeType, *, rows_per_batch: int) -> Iterator[pa.Array]:
    """Ids of live nodes in dense order, at most `rows_per_batch` at a time; memory: 8 bytes a deleted node."""
    deleted, first = deleted_ids(place, node_type), 0
    for segment in node_type.segments:
        for ids in _stream_segment(place, segment, rows_per_batch):
            gone = deleted[slice(*np.searchsorted(deleted, (first, first + len(ids))))] - first
            yield ids if not len(gone) else ids.take(pa.array(np.delete(np.arange(len(ids)), gone)))
            first += len(ids)


def _stream_segment(place: Place, segment: NodeSegment, rows_per_batch: int) -> Iterator[pa.Array]:
    with open_ids(place, segment) as parquet:
        for batch in parquet.iter_batches(batch_size=rows_per_batch, columns=["id"]):
            yield batch.column(0)


def deleted_ids(place: Place, node_type: NodeType) -> NDArray[np.int64]:
    """Dense ids of the deleted nodes of a type, ascending."""
    if node_type.deleted is None:
        return np.empty(0, dtype=np.int64)
    found: NDArray[np.int64] = read_array(place, node_type.deleted)
    return found


def find_rows(place: Place, node_type: NodeType, ids: pa.Array | pa.ChunkedArray) -> NDArray[np.int64]:
    """Dense rows [n] of the user's ids [n].

    Hashes give candidates, the stored ids decide between them. Memory: one segment's lookup, 16 bytes a node.
    Raises BadInput for ids of another type, nulls, and unknown ids: the first and how many there are.
    """
    wanted = _as_stored_type(node_type, ids)
    rows = np.full(len(wanted), -1, dtype=np.int64)
    for segment in node_type.segments:
        candidates = find_candidates(read_array(place, segment.lookup), wanted)
        _confirm(place, segment, wanted, candidates, rows)
    if node_type.deleted is not None:
        rows[np.isin(rows, deleted_ids(place, node_type))] = -1
    unknown = np.flatnonzero(rows < 0)
    if unknown.size:
        raise BadInput(
            f"{node_type.name} ids, entry {int(unknown[0])}",
            f"unknown id {wanted[int(unknown[0])].as_py()!r} ({unknown.size} such ids)",
            rule=f"ids are those of the {node_type.num_live} nodes of type {node_type.name} in the store",
            remedy="remove or correct them, or ingest the missing nodes",
        )
    return rows


def _as_stored_type(node_type: NodeType, ids: pa.Array | pa.ChunkedArray) -> pa.Array:
    stored = pa.int64() if node_type.id_type == "int64" else pa.string()
    is_text = pa.types.is_string(ids.type) or pa.types.is_large_string(ids.type)
    if is_text != (node_type.id_type == "string") or not (is_text or pa.types.is_integer(ids.type)):
        raise BadInput(
            f"{node_type.name} ids",
            f"type {ids.type}",
            rule=f"ids of type {node_type.name} are {node_type.id_type}",
            remedy=f"give them as {node_type.id_type}",
        )
    if ids.null_count:
        first = pc.index(pc.is_null(ids), True).as_py()
        raise BadInput(
            f"{node_type.name} ids, entry {first}",
            f"null ({ids.null_count} such ids)",
            rule="every id is given",
            remedy="remove the empty entries",
        )
    whole = ids.combine_chunks() if isinstance(ids, pa.ChunkedArray) else ids
    return whole.cast(stored)


def _confirm(
    place: Place, segment: NodeSegment, wanted: pa.Array, candidates: Candidates, rows: NDArray[np.int64]
) -> None:
    """Enter the rows of candidates whose stored id is the wanted one; the ids are streamed past once."""
    begin = first = 0
    if candidates.row.size == 0:
        return
    for ids in _stream_segment(place, segment, BATCH_ROWS):
        end = int(np.searchsorted(candidates.row, first + len(ids)))
        row, number = candidates.row[begin:end], candidates.wanted[begin:end]
        same = pc.equal(ids.take(pa.array(row - first)), wanted.take(pa.array(number)))
        match = np.asarray(same.to_numpy(zero_copy_only=False), dtype=np.bool_)
        rows[number[match]] = segment.first_id + row[match]
        begin, first = end, first + len(ids)
