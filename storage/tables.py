"""Parquet tables behind a URL: which files, in which order, with which columns, and where row i stands.

A table is the rows of its files one after another, files in the order of their paths. Rows are numbered from
0 in the table (`row`); messages number them from 0 inside their file, which is what the user can look up.
"""

import bisect
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem
from numpy.typing import NDArray

from storage.errors import BadInput

PARQUET_SUFFIXES = (".parquet", ".parq", ".pq")


@dataclass(frozen=True)
class TableFile:
    """One Parquet file of a table: `name` as messages show it, `path` inside its file system."""

    name: str
    path: str
    first_row: int
    num_rows: int
    num_row_groups: int


class Table:
    """An opened table: `schema` holds the columns asked for that exist, equal in every file."""

    def __init__(self, url: str, *, fs: Any, files: tuple[TableFile, ...], schema: pa.Schema) -> None:
        self.url = url
        self.files = files
        self.schema = schema
        self.num_rows = sum(file.num_rows for file in files)
        self._fs = fs

    def place(self, row: int, column: str) -> str:
        """Where a user finds the value: file, column, row in that file."""
        starts = [file.first_row for file in self.files]
        file = self.files[bisect.bisect_right(starts, row) - 1]
        return f"{file.name}, column {column}, row {row - file.first_row} (counted from 0)"

    def where(self, column: str) -> str:
        """The place of a rule that breaks for a whole column."""
        return f"{self.files[0].name}, column {column}"

    def batches(self, columns: Sequence[str], *, max_rows: int) -> Iterator[tuple[int, pa.RecordBatch]]:
        """(first row, batch) in row order, at most `max_rows` rows and one row group in memory at a time.

        Raises:
            BadInput: a file cannot be read, or has changed since the table was opened.
        """
        for file in self.files:
            row = file.first_row
            with _reading(file.name), _open(self._fs, file.path) as parquet:
                for group in range(file.num_row_groups):
                    for batch in parquet.iter_batches(batch_size=max_rows, row_groups=[group], columns=list(columns)):
                        yield row, batch
                        row += batch.num_rows
            if row != file.first_row + file.num_rows:
                raise BadInput(
                    file.name,
                    f"{row - file.first_row} rows read, {file.num_rows} expected",
                    rule="a file must not change while it is read",
                    remedy="ingest again when nothing writes to it",
                )

    def chunks(self, columns: Sequence[str], *, min_rows: int) -> Iterator[tuple[int, pa.Table]]:
        """(first row, rows) in row order: as `batches`, gathered until a chunk has `min_rows` rows."""
        first_row, held, num_held = 0, list[pa.RecordBatch](), 0
        for _, batch in self.batches(columns, max_rows=min_rows):
            held.append(batch)
            num_held += batch.num_rows
            if num_held >= min_rows:
                yield first_row, _join(held)
                first_row, held, num_held = first_row + num_held, [], 0
        if held:
            yield first_row, _join(held)

    def read(self, columns: Sequence[str]) -> pa.Table:
        """The named columns of all rows, in memory."""
        batches = [batch for _, batch in self.batches(columns, max_rows=1 << 20)]
        return _join(batches)


class Offences:
    """The first offending row of a pass over a table and how many rows break the same rule.

    A pass goes on to the end after the first offence, so that the message can count.
    """

    def __init__(self, table: Table) -> None:
        self._table = table
        self._first: tuple[str, str, str, str] | None = None
        self._num_rows = 0

    def add(self, rows: NDArray[Any], *, column: str, found: str, rule: str, remedy: str) -> None:
        """Note `rows` [n] (ascending, not empty) that break `rule`; rules after the first are ignored."""
        if self._first is None:
            self._first = (self._table.place(int(rows[0]), column), found, rule, remedy)
        if self._first[2] == rule:
            self._num_rows += len(np.unique(rows))

    def __bool__(self) -> bool:
        return self._first is not None

    def refuse(self) -> None:
        """Raise the BadInput of the first offence, if there was one."""
        if self._first is not None:
            place, found, rule, remedy = self._first
            raise BadInput(
                place, f"{found} ({self._num_rows} of {self._table.num_rows} rows)", rule=rule, remedy=remedy
            )


def open_table(url: str, *, required: Sequence[str], optional: Sequence[str] = ()) -> Table:
    """Find the files of `url` (a file, a glob, or a folder read recursively) and check that they agree.

    Args:
        url: any fsspec URL or a plain path.
        required: columns that every file must have.
        optional: columns that every file or none must have; all others are ignored.

    Raises:
        BadInput: no file, an unreadable file, a missing column, files that differ, or no row at all.
    """
    with _reading(url, rule="the table's storage must be reachable", remedy="check URL and credentials"):
        fs, path = fsspec.core.url_to_fs(url)
        paths = _find(fs, path)
    if not paths:
        raise BadInput(
            url,
            "no file matches",
            rule="a table is a Parquet file, a glob of them, or a folder with *.parquet files",
            remedy="check the path, and quote a glob so that the shell leaves it alone",
        )
    files = list[TableFile]()
    schema: pa.Schema | None = None
    first_row = 0
    for path in paths:
        name = _shown(url, fs, path)
        with _reading(name), _open(fs, path) as parquet:
            metadata, file_schema = parquet.metadata, parquet.schema_arrow
        found = _select(name, file_schema, required=required, optional=optional)
        if schema is None:
            schema = found
        _refuse_difference(name, found, first_name=files[0].name if files else name, first=schema)
        files.append(
            TableFile(
                name=name,
                path=path,
                first_row=first_row,
                num_rows=metadata.num_rows,
                num_row_groups=metadata.num_row_groups,
            )
        )
        first_row += metadata.num_rows
    if first_row == 0:
        raise BadInput(
            url if len(files) > 1 else files[0].name,
            f"0 rows in {len(files)} file(s)",
            rule="a table must have at least one row",
            remedy="leave the table out or write its rows",
        )
    rows = tuple(file for file in files if file.num_rows)  # empty parts of a written folder are usual
    return Table(url, fs=fs, files=rows, schema=schema)


def _find(fs: Any, path: str) -> list[str]:
    """Paths of the Parquet files that `path` stands for, sorted."""
    try:
        info = fs.info(path)
    except FileNotFoundError:
        if not any(sign in path for sign in "*?["):
            return []
        matches = fs.glob(path, detail=True)
        folders = [name for name, info in matches.items() if info["type"] == "directory"]
        plain = [name for name, info in matches.items() if info["type"] != "directory"]
        inside = [name for folder in folders for name in _find(fs, folder)]
        return sorted({*plain, *inside})
    if info["type"] != "directory":
        return [path]
    root = path.rstrip("/") + "/"
    return sorted(
        name
        for name in fs.find(path)
        if name.endswith(PARQUET_SUFFIXES)
        # writers leave _SUCCESS, _temporary/ and .crc beside the data
        and not any(part.startswith(("_", ".")) for part in name.removeprefix(root).split("/"))
    )


def _shown(url: str, fs: Any, path: str) -> str:
    """The file's name in messages: relative if the user wrote a relative path, with its scheme if remote."""
    if not isinstance(fs, LocalFileSystem):
        return str(fs.unstrip_protocol(path))
    absolute = "://" in url or os.path.isabs(os.path.expanduser(url))
    return path if absolute else os.path.relpath(path)


def _select(name: str, schema: pa.Schema, *, required: Sequence[str], optional: Sequence[str]) -> pa.Schema:
    for column in (*required, *optional):
        count = schema.names.count(column)
        if count > 1 or (count == 0 and column in required):
            raise BadInput(
                f"{name}, column {column}",
                f"{'found twice' if count else 'missing'}, the columns are {', '.join(schema.names)}",
                rule=f"the table must have one column {column}",
                remedy=f"{'remove one' if count else 'add or rename one'} and write the file again",
            )
    return pa.schema([schema.field(c) for c in (*required, *optional) if c in schema.names])


def _refuse_difference(name: str, found: pa.Schema, *, first_name: str, first: pa.Schema) -> None:
    for column in dict.fromkeys((*first.names, *found.names)):
        types = [s.field(column).type if column in s.names else None for s in (found, first)]
        if not _same_type(*types):
            here, there = ("absent" if t is None else str(t) for t in types)
            raise BadInput(
                f"{name}, column {column}",
                f"{here}, but {there} in {first_name}",
                rule="all files of a table must have the same columns, types and widths",
                remedy="write the files with one schema, or ingest them as different tables",
            )


def _same_type(a: pa.DataType | None, b: pa.DataType | None) -> bool:
    """Equal apart from the names writers give to list items."""
    if a is None or b is None:
        return a is b
    if pa.types.is_fixed_size_list(a) and pa.types.is_fixed_size_list(b):
        return bool(a.list_size == b.list_size and a.value_type == b.value_type)
    if pa.types.is_list(a) and pa.types.is_list(b):
        return bool(a.value_type == b.value_type)
    return bool(a == b)


def _join(batches: Sequence[pa.RecordBatch]) -> pa.Table:
    return pa.Table.from_batches(batches)


@contextmanager
def _open(fs: Any, path: str) -> Iterator[pq.ParquetFile]:
    if isinstance(fs, LocalFileSystem):
        with pq.ParquetFile(path) as parquet:  # Arrow's own file reads without the GIL
            yield parquet
        return
    with fs.open(path, "rb") as file, pq.ParquetFile(file) as parquet:
        yield parquet


@contextmanager
def _reading(
    name: str,
    *,
    rule: str = "the file must be readable, whole Parquet",
    remedy: str = "write the file again, or leave it out",
) -> Iterator[None]:
    """Turn whatever a file system or the Parquet reader raises into one line about `name`."""
    try:
        yield
    except (BadInput, MemoryError):
        raise
    except Exception as error:  # each fsspec backend raises its own kinds, from ValueError to botocore's
        lines = str(error).strip().splitlines() or ["no message"]
        raise BadInput(name, f"{type(error).__name__}: {lines[0][:300]}", rule=rule, remedy=remedy) from error
