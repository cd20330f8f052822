"""New features of stored nodes: read once into runs by range of dense ids, and laid over the stored rows.

part of a table -> dense id, row, features [n, dim]      checked as in ingest, in runs by range of dense ids
a range         -> stored rows with the new ones in place
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from storage import columns
from storage.errors import BadInput
from storage.feature_columns import FeatureColumns
from storage.feature_rows import convert_batch
from storage.offences import Offences
from storage.place import Place
from storage.schema import NodeSegment, NodeType
from storage.stages.crew import Crew
from storage.stages.id_map import UNKNOWN, IdMap
from storage.stages.runs import Run, RunWriter, read_bucket
from storage.stored_nodes import stored_features
from storage.tables import Table, TablePart

_READ_ROWS = 1 << 16


@dataclass(frozen=True)
class Overlay:
    """New rows: runs with columns dense uint32, row of the table uint32, features [dim]; ranges of dense ids."""

    runs: list[Run]
    rows_per_range: int
    num_zeroed: int


@dataclass(frozen=True)
class _Task:
    table: Table
    part: TablePart
    columns: FeatureColumns
    kind: NodeType
    ids: IdMap
    nan: Literal["refuse", "zero"]
    rows_per_range: int
    run_rows: int
    path: str


@dataclass(frozen=True)
class _Read:
    runs: list[Run]
    offences: Offences
    num_zeroed: int


def read_overlay(
    folder: str,
    *,
    table: Table,
    columns: FeatureColumns,
    kind: NodeType,
    ids: IdMap,
    nan: Literal["refuse", "zero"],
    crew: Crew,
) -> Overlay:
    """Read the ids and features of a table.

    Args:
        folder: for the runs.
        table: columns `id` and the features.
        columns: the feature columns.
        kind: the stored type.
        ids: of its live nodes.
        nan: whether NaN and infinite values are refused or become 0.
        crew: told the number of rows done.

    Raises:
        BadInput: an unknown id, or features that break a rule.
    """
    row_bytes = columns.dim * np.dtype(columns.dtype).itemsize
    # a range stands in memory as stored, and as the rows of its runs
    rows_per_range = crew.budget.sort_rows(3 * row_bytes + 32)
    run_rows = crew.budget.rows(2 * row_bytes + 8 * columns.dim + 256)
    tasks = [
        _Task(table, part, columns, kind, ids, nan, rows_per_range, run_rows, f"{folder}/{number}")
        for number, part in enumerate(table.parts(min_rows=run_rows))
    ]
    offences, runs, num_zeroed = Offences(), list[Run](), 0
    for task, found in zip(tasks, crew.executor.map(_read_part, tasks), strict=True):
        offences.merge(found.offences)
        runs += found.runs
        num_zeroed += found.num_zeroed
        crew.advance(task.part.num_rows)
    offences.refuse(table)
    return Overlay(runs=runs, rows_per_range=rows_per_range, num_zeroed=num_zeroed)


def _read_part(task: _Task) -> _Read:
    offences, num_zeroed = Offences(), 0
    num_ranges = -(-task.kind.num_nodes // task.rows_per_range)
    scale = None if task.kind.feature_scale is None else np.array(task.kind.feature_scale, dtype=np.float32)
    writer = RunWriter(task.path, num_buckets=num_ranges, run_rows=task.run_rows)
    names = ["id", *task.columns.names]
    for first_row, batch in task.table.read_part(task.part, names, max_rows=min(_READ_ROWS, task.run_rows)):
        dense = _dense_ids(task, batch, offences, first_row=first_row)
        done = convert_batch(
            batch.select(list(task.columns.names)),
            columns=task.columns, scale=scale, nan=task.nan, offences=offences, first_row=first_row,
        )  # fmt: skip
        if done is None or dense is None or not batch.num_rows:
            continue
        num_zeroed += done.num_zeroed
        row = np.arange(first_row, first_row + len(dense), dtype=np.uint32)
        known = dense != UNKNOWN
        buckets = (dense[known] // task.rows_per_range).astype(np.uint32)
        writer.add([dense[known], row[known], done.rows[known]], buckets=buckets)
    return _Read(runs=writer.finish(), offences=offences, num_zeroed=num_zeroed)


def _dense_ids(task: _Task, batch: pa.RecordBatch, offences: Offences, *, first_row: int) -> NDArray[np.uint32] | None:
    """Dense id of each row; unknown ids are noted."""
    column = pa.chunked_array([batch.column("id")])
    if columns.refuse_nulls(offences, column, name="id", first_row=first_row):
        return None
    dense = task.ids.positions(columns.ids(column, kind=task.ids.kind).combine_chunks())
    unknown = np.flatnonzero(dense == UNKNOWN)
    if len(unknown):
        offences.add(
            unknown + first_row,
            column="id",
            found=f"unknown {task.kind.name} {column[int(unknown[0])].as_py()!r}",
            rule="features are replaced of nodes that the store has",
            remedy="remove the rows, or add the nodes with `hopstream ingest --append`",
        )
    return dense


def touched_segments(kind: NodeType, overlay: Overlay, table: Table) -> list[NodeSegment]:
    """The segments that hold new rows; BadInput for an id that is given twice."""
    ends = np.cumsum([segment.num_nodes for segment in kind.segments])
    touched = np.zeros(len(kind.segments), dtype=np.bool_)
    for number in range(-(-kind.num_nodes // overlay.rows_per_range)):
        dense, row = read_bucket(overlay.runs, number, columns=[(np.dtype(np.uint32), 1)] * 2)
        touched[np.unique(np.searchsorted(ends, dense, side="right"))] = True
        order = np.lexsort((row, dense))
        again = np.flatnonzero(dense[order][1:] == dense[order][:-1]) + 1
        if len(again):
            first = int(row[order][again].min())
            raise BadInput(
                table.place(first, "id"),
                f"id {table.value(first, 'id')!r} again",
                rule="an id must be unique in the table",
                remedy="remove the repeated rows, or check that the glob does not match files twice",
            )
    return [segment for segment, is_touched in zip(kind.segments, touched, strict=True) if is_touched]


def ranges(segment: NodeSegment, overlay: Overlay) -> Iterator[tuple[int, int, int]]:
    """(range, first, last) dense ids of the segment in each range."""
    first, end = segment.first_id, segment.first_id + segment.num_nodes
    while first < end:
        number = first // overlay.rows_per_range
        last = min(end, (number + 1) * overlay.rows_per_range)
        yield number, first, last
        first = last


@dataclass(frozen=True)
class RangeTask:
    """Dense ids [first, last) of one segment, all in range `number`."""

    place: Place
    kind: NodeType
    segment: NodeSegment
    overlay: Overlay
    number: int
    first: int
    last: int


def overlaid(task: RangeTask) -> NDArray[Any]:
    """The rows of some dense ids of one segment as they are to be."""
    count, kind = task.last - task.first, task.kind
    assert kind.feature_dim is not None
    first = task.first - task.segment.first_id
    (rows,) = stored_features(task.place, kind, task.segment, first, count, max_rows=count)
    dtypes = [(np.dtype(np.uint32), 1), (np.dtype(np.uint32), 1), (np.dtype(kind.feature_dtype), kind.feature_dim)]
    dense, _, new = read_bucket(task.overlay.runs, task.number, columns=dtypes)
    inside = (dense >= task.first) & (dense < task.last)
    rows[dense[inside] - np.uint32(task.first)] = new.reshape(len(dense), kind.feature_dim)[inside]
    return rows
