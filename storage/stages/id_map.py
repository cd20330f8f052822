"""From the user's ids to input positions: hashes sorted on disk, found by their top bits.

    runs by top bits of the hash -> each bucket sorted -> hash [n], check [n] (strings), row [n], start [2^bits + 1]

An int64 id and its hash determine each other. A string is known by 96 bits of two hashes; two different strings
that share them are told apart from a repeated id, and refused. The files are mapped, not read: workers share them
through the page cache, 13 bytes a node (17 for strings).
"""

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from storage.errors import BadInput
from storage.jit import kernel
from storage.schema import IdType
from storage.stages.crew import Crew
from storage.stages.node_scan import NodeScan, hash_column
from storage.stages.runs import Run, map_array, read_bucket
from storage.tables import Table

UNKNOWN = np.uint32((1 << 32) - 1)
_NO_CHECKS = np.empty(0, dtype=np.uint32)

_COLUMNS: dict[str, tuple[np.dtype[Any], int]] = {
    "hash": (np.dtype(np.uint64), 1),
    "check": (np.dtype(np.uint32), 1),
    "row": (np.dtype(np.uint32), 1),
}


@dataclass(frozen=True)
class IdMap:
    """The ids of one node type, in files under `folder`.

    Attributes:
        node_type: its name.
        kind: int64 or string.
        num_nodes: ids.
        ids_are_rows: whether id i is row i; no file is needed then.
        index_bits: `start` has an entry for each value of this many top bits of a hash.
    """

    node_type: str
    kind: IdType
    num_nodes: int
    ids_are_rows: bool
    index_bits: int
    folder: str

    def positions(self, ids: pa.Array) -> NDArray[np.uint32]:
        """Input position of each id [n] uint32, UNKNOWN where no node has it; `ids` are int64 or large_string."""
        found = np.empty(len(ids), dtype=np.uint32)
        if self.ids_are_rows:
            _as_rows(ids.to_numpy(), np.int64(self.num_nodes), found)
            return found
        wanted = hash_column(ids, self.kind)
        shift = np.uint64(64 - self.index_bits)
        checks = [wanted[1], self.array("check")] if self.kind == "string" else [_NO_CHECKS, _NO_CHECKS]
        _find(self.array("hash"), checks[1], self.array("row"), self.array("start"), shift, wanted[0], checks[0], found)
        return found

    def array(self, name: str) -> NDArray[Any]:
        """A mapped file: hash [n] uint64 ascending, check, row [n] uint32, start uint32."""
        dtype = np.dtype(np.uint32) if name == "start" else _COLUMNS[name][0]
        return map_array(os.path.join(self.folder, name), dtype)


@dataclass(frozen=True)
class _Task:
    runs: list[Run]
    bucket: int
    bucket_bits: int
    index_bits: int
    first: int
    names: tuple[str, ...]
    folder: str


@dataclass(frozen=True)
class _Repeats:
    """Rows whose id stands in an earlier row, and the first of them with the row that it repeats."""

    count: int
    row: int
    first_seen: int


def build_id_map(folder: str, *, scan: NodeScan, node_type: str, table: Table, crew: Crew) -> IdMap:
    """Sort the runs of a scan into the files of a map.

    Raises:
        BadInput: a repeated id, or two strings with the same 96 bits of hash.
    """
    names = ("hash", "row") if scan.kind == "int64" else ("hash", "check", "row")
    index_bits = max(scan.bucket_bits, scan.num_rows.bit_length() - 2)
    for name in names:
        _create(f"{folder}/{name}", scan.num_rows * _COLUMNS[name][0].itemsize)
    _create(f"{folder}/start", ((1 << index_bits) + 1) * 4)
    tasks, first = list[_Task](), 0
    for bucket in range(1 << scan.bucket_bits):
        tasks.append(_Task(scan.runs, bucket, scan.bucket_bits, index_bits, first, names, folder))
        first += sum(run.start[bucket + 1] - run.start[bucket] for run in scan.runs)
    _put(f"{folder}/start", np.array([scan.num_rows], dtype=np.uint32), 1 << index_bits)
    repeats = list[_Repeats]()
    for task, found in zip(tasks, crew.executor.map(_sort_bucket, tasks), strict=True):
        if found is not None:
            repeats.append(found)
        crew.advance(sum(run.start[task.bucket + 1] - run.start[task.bucket] for run in scan.runs))
    if repeats:
        _refuse_repeats(repeats, table=table, node_type=node_type)
    return IdMap(
        node_type=node_type,
        kind=scan.kind,
        num_nodes=scan.num_rows,
        ids_are_rows=scan.ids_are_rows,
        index_bits=index_bits,
        folder=folder,
    )


def _sort_bucket(task: _Task) -> _Repeats | None:
    columns = read_bucket(task.runs, task.bucket, columns=[_COLUMNS[name] for name in task.names])
    row = columns[-1]
    # runs are in the order of rows, which decides between equal ids which one repeats the other
    order = np.argsort(columns[0], kind="stable")
    if len(columns) == 3 and (np.diff(columns[0][order]) == 0).any():
        order = np.lexsort((row, columns[1], columns[0]))
    columns = [column[order] for column in columns]
    for name, column in zip(task.names, columns, strict=True):
        _put(f"{task.folder}/{name}", column, task.first)
    hashes, row = columns[0], columns[-1]
    width = 1 << (task.index_bits - task.bucket_bits)
    slots = (np.arange(width, dtype=np.uint64) + np.uint64(task.bucket * width)) << np.uint64(64 - task.index_bits)
    start = np.searchsorted(hashes, slots).astype(np.uint32) + np.uint32(task.first)
    _put(f"{task.folder}/start", start, task.bucket * width)
    same = np.ones(max(0, len(row) - 1), dtype=np.bool_)
    for column in columns[:-1]:
        same &= column[1:] == column[:-1]
    repeated = np.flatnonzero(same) + 1
    if not len(repeated):
        return None
    earliest = repeated[np.argmin(row[repeated])]
    begin = earliest
    while begin > 0 and same[begin - 1]:
        begin -= 1
    return _Repeats(count=len(repeated), row=int(row[earliest]), first_seen=int(row[begin]))


def _refuse_repeats(repeats: list[_Repeats], *, table: Table, node_type: str) -> None:
    first = min(repeats, key=lambda found: found.row)
    again, before = (table.value(row, "id") for row in (first.row, first.first_seen))
    if again != before:
        raise BadInput(
            table.place(first.row, "id"),
            f"id {again!r} has the hash of {before!r} at {table.place(first.first_seen, 'id')}",
            rule=f"ids of node type {node_type} must differ in 96 bits of hash",
            remedy="rename one of them",
        )
    raise BadInput(
        table.place(first.row, "id"),
        f"id {again!r} again, first at {table.place(first.first_seen, 'id')} "
        f"({sum(found.count for found in repeats)} of {table.num_rows} rows repeat an id)",
        rule="an id must be unique in its node type",
        remedy="remove the repeated rows, or check that the glob does not match files twice"
        if first.first_seen >= table.num_stored
        else "append new nodes only: `refresh` replaces features, a deleted id is free again after `compact`",
    )


def _create(path: str, num_bytes: int) -> None:
    with open(path, "wb") as file:
        file.truncate(num_bytes)


def _put(path: str, array: NDArray[Any], first: int) -> None:
    with open(path, "r+b") as file:
        file.seek(first * array.itemsize)
        file.write(np.ascontiguousarray(array).data)


@kernel
def _as_rows(ids: NDArray[np.int64], num_nodes: np.int64, found: NDArray[np.uint32]) -> None:
    for index in range(ids.shape[0]):
        known = 0 <= ids[index] < num_nodes
        found[index] = np.uint32(ids[index]) if known else UNKNOWN


@kernel
def _find(
    hashes: NDArray[np.uint64],
    checks: NDArray[np.uint32],
    rows: NDArray[np.uint32],
    start: NDArray[np.uint32],
    shift: np.uint64,
    wanted: NDArray[np.uint64],
    wanted_checks: NDArray[np.uint32],
    found: NDArray[np.uint32],
) -> None:
    """Fill `found`; where there are no `checks` [n], a hash alone tells the id."""
    hash_decides = checks.shape[0] == 0
    for index in range(wanted.shape[0]):
        hash_ = wanted[index]
        slot = np.int64(hash_ >> shift)
        found[index] = UNKNOWN
        for at in range(start[slot], start[slot + 1]):
            if hashes[at] == hash_ and (hash_decides or checks[at] == wanted_checks[index]):
                found[index] = rows[at]
                break
