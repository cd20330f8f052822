"""Edge tables, read once: ends mapped to input positions and written as plain columns, the spill.

    part of a table -> src, dst ids, weight, timestamp          checked against the rules of `storage.columns`
    ids             -> source, target [n] uint32 positions      dangling rows refused, or dropped and counted
    all             -> source, target (, timestamp, weight)     files of the part, in input order

What later stages make of it: `storage.build.edge_view`.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from storage import columns
from storage.build.crew import Crew
from storage.build.edge_view import COLUMN_DTYPES, Spill, SpillPart
from storage.build.id_map import UNKNOWN, IdMap
from storage.errors import BadInput
from storage.offences import Offences
from storage.schema import IdType, Relation
from storage.tables import Table, TablePart, open_table

BYTES_PER_ROW = 192
"""working memory of a row: ids as read and cast, hashes, positions, columns kept"""


@dataclass(frozen=True)
class _Task:
    table: Table
    part: TablePart
    ends: dict[str, IdMap]
    dangling: Literal["refuse", "drop"]
    path: str
    max_rows: int


@dataclass(frozen=True)
class _Mapped:
    part: SpillPart
    offences: Offences
    num_rows: int
    num_dangling: int
    num_loops: int


def open_edge_table(url: str) -> Table:
    """Open the edge table at `url` and check its types; BadInput as in `open_table`."""
    table = open_table(url, required=("src", "dst"), optional=("weight", "timestamp"))
    if "weight" in table.schema.names:
        columns.check_weight(table)
    if "timestamp" in table.schema.names:
        columns.check_integer(table, "timestamp")
    return table


def spill_edges(
    folder: str,
    *,
    table: Table,
    relation: Relation,
    sources: IdMap,
    targets: IdMap,
    dangling: Literal["refuse", "drop"],
    crew: Crew,
) -> Spill:
    """Check an edge table, map both ends of its rows to positions, and write them into `folder`.

    Raises:
        BadInput: ids of another type than the node table's, a null, an unknown node (under `refuse`; under
            `drop` when no row is left), a negative or non-finite weight.
    """
    ends = {"src": sources, "dst": targets}
    for name, ids in ends.items():
        _check_kind(table, name, ids)
    max_rows = crew.budget.rows(BYTES_PER_ROW)
    tasks = [
        _Task(table, part, ends, dangling, f"{folder}/{number}", max_rows)
        for number, part in enumerate(table.parts(min_rows=max_rows))
    ]
    offences, done = Offences(), list[_Mapped]()
    for found in crew.executor.map(_map_part, tasks):
        offences.merge(found.offences)
        done.append(found)
        crew.advance(found.num_rows)
    offences.refuse(table)
    num_dangling = sum(found.num_dangling for found in done)
    if num_dangling == table.num_rows:
        raise BadInput(
            table.where("src"),
            f"no row is left after dropping {num_dangling} of {table.num_rows} rows with an unknown end",
            rule=f"an edge must join a {relation.source} and a {relation.target}",
            remedy="check that src and dst hold ids of these node tables, in this order",
        )
    return Spill(
        parts=[found.part for found in done],
        has_weight="weight" in table.schema.names,
        has_timestamp="timestamp" in table.schema.names,
        num_rows=table.num_rows,
        num_dangling=num_dangling,
        num_loops=sum(found.num_loops for found in done) if relation.source == relation.target else 0,
    )


def _map_part(task: _Task) -> _Mapped:
    names = task.table.schema.names
    offences = Offences()
    num_edges = num_dangling = num_loops = 0
    with _Columns(task.path, names) as files:
        for first_row, batch in task.table.read_part(task.part, names, max_rows=task.max_rows):
            rows = pa.Table.from_batches([batch])
            nulls = [columns.refuse_nulls(offences, rows[name], name=name, first_row=first_row) for name in names]
            if any(nulls) or not batch.num_rows:
                continue
            source, target = (
                ids.positions(columns.ids(rows[name], kind=ids.kind).combine_chunks())
                for name, ids in task.ends.items()
            )
            read: dict[str, NDArray[Any]] = {"source": source, "target": target}
            if "weight" in names:
                read["weight"] = columns.weights(offences, rows["weight"], first_row=first_row)
            if "timestamp" in names:
                read["timestamp"] = rows["timestamp"].cast(pa.int64()).to_numpy()
            known = (source != UNKNOWN) & (target != UNKNOWN)
            if not known.all():
                num_dangling += int(np.count_nonzero(~known))
                if task.dangling == "refuse":
                    _note_dangling(offences, rows, source, target, first_row=first_row, ends=task.ends)
                read = {name: values[known] for name, values in read.items()}
            files.write(read)
            num_edges += len(read["source"])
            num_loops += int(np.count_nonzero(read["source"] == read["target"]))
    return _Mapped(SpillPart(task.path, num_edges), offences, task.part.num_rows, num_dangling, num_loops)


class _Columns:
    """The files of one part, open for writing."""

    def __init__(self, path: str, names: list[str]) -> None:
        kept = ["source", "target", *(name for name in ("timestamp", "weight") if name in names)]
        self._files = {name: open(f"{path}.{name}", "wb", buffering=0) for name in kept}  # noqa: SIM115  # closed below

    def __enter__(self) -> "_Columns":
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            file.close()

    def write(self, values: dict[str, NDArray[Any]]) -> None:
        for name, file in self._files.items():
            data = np.ascontiguousarray(values[name], dtype=COLUMN_DTYPES[name]).view(np.uint8).data
            while len(data):
                data = data[file.write(data) :]


def _check_kind(table: Table, name: str, ids: IdMap) -> None:
    kind: IdType = columns.id_type(table, name)
    if kind != ids.kind:
        raise BadInput(
            table.where(name),
            f"type {table.schema.field(name).type} ({table.num_rows} rows)",
            rule=f"column {name} must be {ids.kind} as the ids of node type {ids.node_type}",
            remedy=f"cast {name} to {ids.kind}, or write the node table's id as {kind}",
        )


def _note_dangling(
    offences: Offences,
    rows: pa.Table,
    source: NDArray[np.uint32],
    target: NDArray[np.uint32],
    *,
    first_row: int,
    ends: dict[str, IdMap],
) -> None:
    bad = np.flatnonzero((source == UNKNOWN) | (target == UNKNOWN))
    name = "src" if source[bad[0]] == UNKNOWN else "dst"
    offences.add(
        bad + first_row,
        column=name,
        found=f"unknown {ends[name].node_type} {rows[name][int(bad[0])].as_py()!r}",
        rule="both ends of an edge must be in the node tables",
        remedy="add the nodes, remove the edges, or drop them with --dangling drop",
    )
