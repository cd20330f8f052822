"""Reading node tables once: their columns are checked, their ids hashed and partitioned.

part of a table -> ids, label, split, timestamp      checked against the rules of `storage.columns`
ids [n]         -> hash [n] uint64 (+ check [n])     runs by the top bits of the hash, for `storage.stages.id_map`
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from storage import columns
from storage.errors import BadInput
from storage.lookup import check_strings, hash_ids
from storage.offences import Offences
from storage.schema import IdType
from storage.stages.crew import Crew
from storage.stages.runs import Run, RunWriter
from storage.tables import Table, TablePart

MAX_NODES = (1 << 32) - 1
"""of one type: positions are uint32, the largest of which means unknown"""
_BYTES_PER_ROW = 160
"""ids as read and cast, hashes, positions, and the run's copy of them"""
_BUCKET_ROWS = 1 << 22


@dataclass(frozen=True)
class NodeScan:
    """What one pass over a node table found.

    Attributes:
        kind: type of its ids.
        num_rows: nodes.
        ids_are_rows: whether every id is the number of its row, so that no map is needed.
        bucket_bits: runs are partitioned by this many top bits of the hash.
        runs: columns hash uint64, check uint32 (strings only), row uint32.
    """

    kind: IdType
    num_rows: int
    ids_are_rows: bool
    bucket_bits: int
    runs: list[Run]


@dataclass(frozen=True)
class _Task:
    table: Table
    part: TablePart
    kind: IdType
    bucket_bits: int
    path: str
    max_rows: int


@dataclass(frozen=True)
class _Scanned:
    runs: list[Run]
    ids_are_rows: bool
    offences: Offences
    num_rows: int


def scan_nodes(folder: str, *, table: Table, crew: Crew) -> NodeScan:
    """Check ids, labels, splits and times of a node table, and write its ids' hashes as runs into `folder`.

    Raises:
        BadInput: more nodes than fit, a null, a label below -1, an unknown split, a wrong type.
    """
    if table.num_rows > MAX_NODES:
        raise BadInput(
            table.where("id"),
            f"{table.num_rows:,} nodes",
            rule=f"a node type has at most {MAX_NODES:,} nodes",
            remedy="divide the nodes among several types",
        )
    kind = columns.id_type(table, "id")
    bucket_bits = max(1, (table.num_rows // _BUCKET_ROWS).bit_length())
    max_rows = crew.budget.rows(_BYTES_PER_ROW)
    tasks = [
        _Task(table, part, kind, bucket_bits, f"{folder}/{number}", max_rows)
        for number, part in enumerate(table.parts(min_rows=max_rows))
    ]
    offences, runs, ids_are_rows = Offences(), list[Run](), kind == "int64"
    for found in crew.executor.map(_scan_part, tasks):
        offences.merge(found.offences)
        runs += found.runs
        ids_are_rows &= found.ids_are_rows
        crew.advance(found.num_rows)
    offences.refuse(table)
    return NodeScan(kind=kind, num_rows=table.num_rows, ids_are_rows=ids_are_rows, bucket_bits=bucket_bits, runs=runs)


def hash_column(ids: pa.Array, kind: IdType) -> list[NDArray[Any]]:
    """What identifies ids [n]: their hashes (uint64), and for strings a second, 32-bit one."""
    return [hash_ids(ids)] if kind == "int64" else [hash_ids(ids), check_strings(ids)]


def _scan_part(task: _Task) -> _Scanned:
    names = [name for name in ("id", "label", "split", "timestamp") if name in task.table.schema.names]
    writer = RunWriter(task.path, num_buckets=1 << task.bucket_bits, run_rows=task.max_rows)
    offences, ids_are_rows = Offences(), True
    for first_row, batch in task.table.read_part(task.part, names, max_rows=task.max_rows):
        rows = pa.Table.from_batches([batch])
        nulls = [columns.refuse_nulls(offences, rows[name], name=name, first_row=first_row) for name in names]
        if any(nulls):
            continue
        if "label" in names:
            columns.labels(offences, rows["label"], first_row=first_row)
        if "split" in names:
            columns.splits(offences, rows["split"], first_row=first_row)
        ids = columns.ids(rows["id"], kind=task.kind).combine_chunks()
        if isinstance(ids, pa.ChunkedArray):  # Arrow keeps an empty column chunked
            continue
        row = np.arange(first_row, first_row + len(ids), dtype=np.uint32)
        ids_are_rows = ids_are_rows and task.kind == "int64" and bool((ids.to_numpy() == row).all())
        hashes = hash_column(ids, task.kind)
        buckets = (hashes[0] >> np.uint64(64 - task.bucket_bits)).astype(np.uint16)
        writer.add([*hashes, row], buckets=buckets)
    return _Scanned(runs=writer.finish(), ids_are_rows=ids_are_rows, offences=offences, num_rows=task.part.num_rows)
