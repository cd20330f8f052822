"""Node columns and features from input order to dense order, in two bounded passes.

    parts of the table -> runs by range of dense ids       partition_columns (Arrow), partition_features (rows)
    a range            -> its rows in dense order          columns_in_order, features_in_order; ranges in order

A range holds as many rows as a worker can; a part of the table is read once in each pass.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from storage import columns
from storage.feature_columns import FeatureColumns
from storage.feature_rows import FeatureScale, convert_batch
from storage.offences import Offences
from storage.schema import IdType
from storage.segments import ROW_GROUP_ROWS
from storage.stages.crew import Crew
from storage.stages.runs import Run, RunWriter, bucket_order, map_array, read_bucket
from storage.tables import Table, TablePart

COLUMN_BYTES_PER_ROW = 256
"""of ids, labels, splits and times as read, reordered and written; long string ids may need more"""
_READ_ROWS = 1 << 16


@dataclass(frozen=True)
class Runs:
    """A pass's runs: range r holds the dense ids [r * rows_per_range, (r + 1) * rows_per_range)."""

    paths: list[str]
    runs: list[Run]
    rows_per_range: int
    num_zeroed: int = 0

    def num_ranges(self, num_nodes: int) -> int:
        """Ranges that hold `num_nodes` rows."""
        return -(-num_nodes // self.rows_per_range)


@dataclass(frozen=True)
class _ColumnTask:
    table: Table
    part: TablePart
    kind: IdType
    rank: str | None
    base: int
    positions: str | None
    rows_per_range: int
    num_ranges: int
    path: str


@dataclass(frozen=True)
class _FeatureTask:
    table: Table
    part: TablePart
    columns: FeatureColumns
    scale: FeatureScale | None
    nan: Literal["refuse", "zero"]
    rank: str | None
    rows_per_range: int
    num_ranges: int
    run_rows: int
    path: str


def partition_columns(
    folder: str, *, table: Table, rank: str | None, base: int, positions: str | None, crew: Crew
) -> Runs:
    """Write id, label, split and timestamp of every node, with its dense id, as Arrow files of one batch a range.

    Args:
        folder: for the files.
        table: the nodes.
        rank: file of uint32, where each row comes in the segment; None as they stand.
        base: input position of row 0.
        positions: file of uint32, the input position of each row; None where they follow `base`.
        crew: does the work.
    """
    kind = columns.id_type(table, "id")
    rows = crew.budget.sort_rows(COLUMN_BYTES_PER_ROW)
    rows_per_range = max(ROW_GROUP_ROWS, rows // ROW_GROUP_ROWS * ROW_GROUP_ROWS)
    num_ranges = -(-table.num_rows // rows_per_range)
    tasks = [
        _ColumnTask(table, part, kind, rank, base, positions, rows_per_range, num_ranges, f"{folder}/{number}")
        for number, part in enumerate(table.parts(min_rows=crew.budget.rows(COLUMN_BYTES_PER_ROW)))
    ]
    paths = [path for found in crew.executor.map(_partition_columns, tasks) for path in found]
    return Runs(paths=paths, runs=[], rows_per_range=rows_per_range)


def columns_in_order(runs: Runs, *, num_nodes: int, crew: Crew) -> Iterator[pa.Table]:
    """The node columns and `position`, range by range in dense order."""
    tasks = [(runs.paths, number) for number in range(runs.num_ranges(num_nodes))]
    yield from crew.executor.map(_order_columns, tasks)


def partition_features(
    folder: str,
    *,
    table: Table,
    columns: FeatureColumns,
    scale: FeatureScale | None,
    nan: Literal["refuse", "zero"],
    rank: str | None,
    crew: Crew,
) -> Runs:
    """Convert and check all features, and write them with their dense ids as runs by range.

    Raises:
        BadInput: a null, another width, NaN or infinity (under `refuse`), a value the dtype cannot hold.
    """
    row_bytes = columns.dim * np.dtype(columns.dtype).itemsize
    # a range is assembled from the rows of its runs, which stands in memory twice, and finished ones wait
    rows_per_range = crew.budget.sort_rows(4 * row_bytes + 64)
    # a run is collected, joined and reordered, while a batch is decoded and converted
    run_rows = crew.budget.rows(4 * row_bytes + 16 * columns.dim + 64)
    num_ranges = -(-table.num_rows // rows_per_range)
    tasks = [
        _FeatureTask(table, part, columns, scale, nan, rank, rows_per_range, num_ranges, run_rows, f"{folder}/{number}")
        for number, part in enumerate(table.parts(min_rows=run_rows))
    ]
    offences, runs, num_zeroed = Offences(), list[Run](), 0
    for task, found in zip(tasks, crew.executor.map(_partition_features, tasks), strict=True):
        offences.merge(found.offences)
        runs += found.runs
        num_zeroed += found.num_zeroed
        crew.advance(task.part.num_rows)
    offences.refuse(table)
    return Runs(paths=[], runs=runs, rows_per_range=rows_per_range, num_zeroed=num_zeroed)


def features_in_order(runs: Runs, *, num_nodes: int, dim: int, dtype: str, crew: Crew) -> Iterator[NDArray[Any]]:
    """Feature rows [k, dim], range by range in dense order."""
    tasks = [
        _OrderTask(runs.runs, number, runs.rows_per_range, dim, dtype) for number in range(runs.num_ranges(num_nodes))
    ]
    for rows in crew.executor.map(_order_features, tasks):
        yield rows
        crew.advance(len(rows))


def _partition_columns(task: _ColumnTask) -> list[str]:
    names = [name for name in ("id", "label", "split", "timestamp") if name in task.table.schema.names]
    paths = list[str]()
    for first_row, batch in task.table.read_part(task.part, names, max_rows=1 << 20):
        dense = _dense(first_row, batch.num_rows, task.rank)
        order, start = bucket_order((dense // task.rows_per_range).astype(np.uint32), task.num_ranges)
        taken = _as_stored(batch, kind=task.kind).take(pa.array(order))
        taken = taken.append_column("dense", pa.array(dense[order].astype(np.int64)))
        position = order + (first_row + task.base)
        if task.positions is not None:
            position = _dense(first_row, batch.num_rows, task.positions)[order].astype(np.int64)
        taken = taken.append_column("position", pa.array(position)).combine_chunks()
        path = f"{task.path}.{len(paths)}"
        with pa.OSFile(path, "wb") as sink, pa.ipc.new_file(sink, taken.schema) as writer:
            for begin, end in pairwise(start):
                writer.write_batch(_one_batch(taken.slice(begin, end - begin)))
        paths.append(path)
    return paths


def _as_stored(batch: pa.RecordBatch, *, kind: IdType) -> pa.Table:
    table = pa.Table.from_batches([batch])
    stored = {"id": columns.IDS[kind], "label": pa.int64(), "split": pa.string(), "timestamp": pa.int64()}
    return pa.table({name: table[name].cast(stored[name]) for name in table.schema.names})


def _one_batch(table: pa.Table) -> pa.RecordBatch:
    arrays = [column.combine_chunks() if column.num_chunks else pa.array([], column.type) for column in table.columns]
    return pa.record_batch(arrays, schema=table.schema)


def _order_columns(task: tuple[list[str], int]) -> pa.Table:
    paths, number = task
    parts = list[pa.RecordBatch]()
    for path in paths:
        with pa.OSFile(path, "rb") as source, pa.ipc.open_file(source) as reader:
            parts.append(reader.get_batch(number))
    table = pa.Table.from_batches(parts)
    return table.take(pa.array(np.argsort(table["dense"].to_numpy()))).drop_columns(["dense"])


@dataclass(frozen=True)
class _Converted:
    runs: list[Run]
    offences: Offences
    num_zeroed: int


def _partition_features(task: _FeatureTask) -> _Converted:
    offences, num_zeroed = Offences(), 0
    writer = RunWriter(task.path, num_buckets=task.num_ranges, run_rows=task.run_rows)
    max_rows = min(_READ_ROWS, max(1, task.run_rows // 4))
    for first_row, batch in task.table.read_part(task.part, task.columns.names, max_rows=max_rows):
        done = convert_batch(
            batch, columns=task.columns, scale=task.scale, nan=task.nan, offences=offences, first_row=first_row
        )
        if done is None:
            continue
        num_zeroed += done.num_zeroed
        dense = _dense(first_row, len(done.rows), task.rank)
        writer.add([dense, done.rows], buckets=(dense // task.rows_per_range).astype(np.uint32))
    return _Converted(runs=writer.finish(), offences=offences, num_zeroed=num_zeroed)


@dataclass(frozen=True)
class _OrderTask:
    runs: list[Run]
    number: int
    rows_per_range: int
    dim: int
    dtype: str


def _order_features(task: _OrderTask) -> NDArray[Any]:
    kind = np.dtype(task.dtype)
    dense, rows = read_bucket(task.runs, task.number, columns=[(np.dtype(np.uint32), 1), (kind, task.dim)])
    ordered = np.empty((len(dense), task.dim), dtype=kind)
    ordered[dense - np.uint32(task.number * task.rows_per_range)] = rows.reshape(len(dense), task.dim)
    return ordered


def _dense(first_row: int, count: int, rank: str | None) -> NDArray[np.uint32]:
    if rank is None:
        return np.arange(first_row, first_row + count, dtype=np.uint32)
    return map_array(rank, np.uint32)[first_row : first_row + count].copy()
