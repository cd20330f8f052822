"""Parquet tables behind a URL: which files, in which order, with which columns, and where row i stands.

A table is the rows of its files one after another, files in the order of their paths. Rows are numbered from
0 in the table (`row`); messages number them from 0 inside their file, which is what the user can look up.
"""

import bisect
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa
from fsspec.implementations.local import LocalFileSystem

from storage.errors import BadInput
from storage.retries import Retries, first_line, open_url
from storage.source_files import file_state, open_parquet

PARQUET_SUFFIXES = (".parquet", ".parq", ".pq")


@dataclass(frozen=True)
class TableFile:
    """One Parquet file of a table: `name` as messages show it, `path` inside its file system."""

    name: str
    path: str
    first_row: int
    group_rows: tuple[int, ...]
    """rows of each row group"""
    num_bytes: int
    """size of the file"""

    @property
    def num_rows(self) -> int:
        """Rows of the file."""
        return sum(self.group_rows)


class TablePart(NamedTuple):
    """Consecutive row groups of one file: what one task reads."""

    file: int
    """index in `Table.files`"""
    first_group: int
    last_group: int
    """exclusive"""
    first_row: int
    """row of the table"""
    num_rows: int


class Table:
    """An opened table: `schema` holds the columns asked for that exist, equal in every file."""

    num_stored = 0
    """leading rows that are nodes of a store already"""

    def __init__(self, url: str, *, fs: Any, files: tuple[TableFile, ...], schema: pa.Schema) -> None:
        self.url = url
        self.files = files
        self.schema = schema
        self.num_rows = sum(file.num_rows for file in files)
        self.fs = fs

    def place(self, row: int, column: str) -> str:
        """Where a user finds the value: file, column, row in that file."""
        starts = [file.first_row for file in self.files]
        file = self.files[bisect.bisect_right(starts, row) - 1]
        return f"{file.name}, column {column}, row {row - file.first_row} (counted from 0)"

    def where(self, column: str) -> str:
        """The place of a rule that breaks for a whole column."""
        return f"{self.files[0].name}, column {column}"

    def batches(self, columns: Sequence[str], *, max_rows: int) -> Iterator[tuple[int, pa.RecordBatch]]:
        """(first row, batch) in row order, at most `max_rows` rows at a time; pages are decoded as they come.

        Raises:
            BadInput: a file cannot be read, or has changed since the table was opened.
        """
        for part in self.parts(min_rows=self.num_rows):
            yield from self.read_part(part, columns, max_rows=max_rows)

    def parts(self, *, min_rows: int) -> list[TablePart]:
        """The table cut at row groups into parts of at least `min_rows` rows where a file has as many."""
        cut = list[TablePart]()
        for number, file in enumerate(self.files):
            first_group, first_row, num_rows = 0, file.first_row, 0
            for group, rows in enumerate(file.group_rows):
                num_rows += rows
                if num_rows >= min_rows or group == len(file.group_rows) - 1:
                    cut.append(TablePart(number, first_group, group + 1, first_row, num_rows))
                    first_group, first_row, num_rows = group + 1, first_row + num_rows, 0
        return [part for part in cut if part.num_rows]

    def read_part(
        self, part: TablePart, columns: Sequence[str], *, max_rows: int
    ) -> Iterator[tuple[int, pa.RecordBatch]]:
        """(first row, batch) of one part, as `batches`."""
        file = self.files[part.file]
        row = part.first_row
        with _reading(file.name), open_parquet(self.fs, file.path, url=file.name) as parquet:
            for group in range(part.first_group, part.last_group):
                for batch in parquet.iter_batches(
                    batch_size=max_rows, row_groups=[group], columns=list(columns), use_threads=False
                ):
                    yield row, batch
                    row += batch.num_rows
        if row != part.first_row + part.num_rows:
            raise BadInput(
                file.name,
                f"{row - part.first_row} rows read, {part.num_rows} expected",
                rule="a file must not change while it is read",
                remedy="ingest again when nothing writes to it",
            )

    def state(self, file: TableFile) -> str:
        """What changes when a file does, as `source_files.file_state` knows it.

        Raises:
            BadInput: the file is gone or out of reach.
        """
        with _reading(file.name, rule="a file must be there until it has been read", remedy="ingest again"):
            num_bytes, mark = file_state(self.fs, file.path, url=file.name, restorable=False)
        return f"{num_bytes} bytes, {mark}"

    def value(self, row: int, column: str) -> Any:
        """One value as Python knows it; reads its row group."""
        for part in self.parts(min_rows=1):
            if part.first_row <= row < part.first_row + part.num_rows:
                for first_row, batch in self.read_part(part, [column], max_rows=1 << 16):
                    if row < first_row + batch.num_rows:
                        return batch.column(0)[row - first_row].as_py()
        raise IndexError(f"row {row} of a table of {self.num_rows} rows")


def file_states(table: Table) -> list[tuple[str, int, tuple[int, ...], str]]:
    """What changes when a file of the table does: path, size, rows of its row groups, and `Table.state`."""
    return [(file.path, file.num_bytes, file.group_rows, table.state(file)) for file in table.files]


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
        fs, path = open_url(url)
        paths = Retries().call(url, _find, fs, path)
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
        with _reading(name), open_parquet(fs, path, url=name) as parquet:
            metadata, file_schema = parquet.metadata, parquet.schema_arrow
            num_bytes = int(Retries().call(name, fs.size, path))
        found = _select(name, file_schema, required=required, optional=optional)
        if schema is None:
            schema = found
        _refuse_difference(name, found, first_name=files[0].name if files else name, first=schema)
        files.append(
            TableFile(
                name=name,
                path=path,
                first_row=first_row,
                group_rows=tuple(metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)),
                num_bytes=num_bytes,
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
        raise BadInput(name, f"{type(error).__name__}: {first_line(error)}", rule=rule, remedy=remedy) from error
