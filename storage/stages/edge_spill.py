"""Edge tables, read once: ends mapped to input positions and written as plain columns, the spill.

    part of a table -> src, dst ids, weight, timestamp          checked against the rules of `storage.columns`
    ids             -> source, target [n] uint32 positions      dangling rows refused, or dropped and counted
    all             -> source, target (, timestamp, weight)     files of the part, in input order

Where dense ids are known already (the order of input is kept), edges are not spilled but partitioned at once. What
later stages make of them: `storage.stages.edge_view`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from storage import columns
from storage.errors import BadInput
from storage.offences import Offences
from storage.schema import IdType, Relation
from storage.stages.crew import Crew
from storage.stages.edge_partition import Partition, sampled_bounds, sortable_edges, write_edge_run
from storage.stages.edge_view import EdgeChunk, Spill, SpillPart, Turn
from storage.stages.id_map import UNKNOWN, IdMap
from storage.stages.runs import Run
from storage.stages.spill_files import SpillFiles
from storage.tables import Table, TablePart, open_table

BYTES_PER_ROW = 192
"""working memory of a row: ids as read and cast, hashes, positions, columns kept"""
_SAMPLE_PARTS, _SAMPLE_ROWS = 64, 1 << 14


@dataclass(frozen=True)
class KnownEnds:
    """The rule that a row with an unknown end breaks, and what to do about it."""

    rule: str
    remedy: str


EDGES_OF_THE_TABLES = KnownEnds(
    rule="both ends of an edge must be in the node tables",
    remedy="add the nodes, remove the edges, or drop them with --dangling drop",
)


@dataclass(frozen=True)
class ReadEdges:
    """One edge table in positions.

    Attributes:
        spill: its columns, or only its counts where it was partitioned at once.
        partitions: for each view of the table its edges by target range; empty where they are in the spill.
    """

    spill: Spill
    partitions: list[Partition]


@dataclass(frozen=True)
class _Direct:
    """One view to partition while reading."""

    turn: Turn
    bounds: NDArray[np.int64]


@dataclass(frozen=True)
class _Task:
    table: Table
    part: TablePart
    ends: dict[str, IdMap]
    dangling: Literal["refuse", "drop"]
    path: str
    max_rows: int
    direct: tuple[_Direct, ...]
    known: KnownEnds


@dataclass(frozen=True)
class _Mapped:
    part: SpillPart
    runs: list[list[Run]]
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
    partition: Sequence[Turn],
    known: KnownEnds,
    crew: Crew,
) -> ReadEdges:
    """Check an edge table, map both ends of its rows to positions, and write them into `folder`.

    Args:
        folder: for the columns or runs.
        table: from `open_edge_table`.
        relation: what its rows are.
        sources: ids of the relation's source type.
        targets: ids of its target type.
        dangling: whether a row with an unknown end is refused or dropped and counted.
        partition: the views to partition at once; positions are their dense ids.
        known: what a row with an unknown end breaks.
        crew: told the number of rows done.

    Raises:
        BadInput: ids of another type than the node table's, a null, an unknown node (under `refuse`; under
            `drop` when no row is left), a negative or non-finite weight.
    """
    ends = {"src": sources, "dst": targets}
    for name, ids in ends.items():
        _check_kind(table, name, ids)
    max_rows = crew.budget.rows(BYTES_PER_ROW)
    direct = _sample_bounds(table, ends, partition, crew=crew)
    tasks = [
        _Task(table, part, ends, dangling, f"{folder}/{number}", max_rows, direct, known)
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
    spill = Spill(
        parts=[found.part for found in done],
        has_weight="weight" in table.schema.names,
        has_timestamp="timestamp" in table.schema.names,
        num_rows=table.num_rows,
        num_dangling=num_dangling,
        num_loops=sum(found.num_loops for found in done) if relation.source == relation.target else 0,
    )
    partitions = [
        Partition(bounds=view.bounds.tolist(), runs=[run for found in done for run in found.runs[number]])
        for number, view in enumerate(direct)
    ]
    return ReadEdges(spill=spill, partitions=partitions)


def _sample_bounds(table: Table, ends: dict[str, IdMap], turns: Sequence[Turn], *, crew: Crew) -> tuple[_Direct, ...]:
    """Where to cut the views' targets into ranges, by the ends of rows spread over the table."""
    if not turns:
        return ()
    parts = table.parts(min_rows=1)
    chosen = parts[:: max(1, len(parts) // _SAMPLE_PARTS)]
    found = {name: [np.empty(0, dtype=np.uint32)] for name in ends}
    for part in chosen:
        _, batch = next(table.read_part(part, list(ends), max_rows=_SAMPLE_ROWS))
        for name, ids in ends.items():
            kept = batch.column(name).drop_null()
            positions = ids.positions(columns.ids(pa.chunked_array([kept]), kind=ids.kind).combine_chunks())
            found[name].append(positions[positions != UNKNOWN])
    sample = {name: np.concatenate(values) for name, values in found.items()}
    plain = not {"weight", "timestamp"} & set(table.schema.names)
    direct = list[_Direct]()
    for turn in turns:
        names = {"as-is": ["dst"], "turned": ["src"], "both": ["src", "dst"]}[turn]
        bounds = sampled_bounds(
            np.concatenate([sample[name] for name in names]),
            num_targets=ends["src" if turn == "turned" else "dst"].num_nodes,
            num_edges=table.num_rows * len(names),
            max_edges=sortable_edges(crew, table.num_rows * len(names), plain=plain),
        )
        direct.append(_Direct(turn, np.array(bounds)))
    return tuple(direct)


def _map_part(task: _Task) -> _Mapped:
    names = task.table.schema.names
    offences = Offences()
    num_edges = num_dangling = num_loops = 0
    runs: list[list[Run]] = [[] for _ in task.direct]
    kept = ["source", "target", *(name for name in ("timestamp", "weight") if name in names)]
    with SpillFiles(task.path, () if task.direct else kept) as files:
        for first_row, batch in task.table.read_part(task.part, names, max_rows=task.max_rows):
            rows = pa.Table.from_batches([batch])
            nulls = [columns.refuse_nulls(offences, rows[name], name=name, first_row=first_row) for name in names]
            if any(nulls) or not batch.num_rows:
                continue
            source, target = (
                ids.positions(columns.ids(rows[name], kind=ids.kind).combine_chunks())
                for name, ids in task.ends.items()
            )
            edges = EdgeChunk(
                source=source,
                target=target,
                timestamp=rows["timestamp"].cast(pa.int64()).to_numpy() if "timestamp" in names else None,
                weight=columns.weights(offences, rows["weight"], first_row=first_row) if "weight" in names else None,
            )
            known = (source != UNKNOWN) & (target != UNKNOWN)
            if not known.all():
                num_dangling += int(np.count_nonzero(~known))
                if task.dangling == "refuse":
                    _note_dangling(offences, rows, source, target, first_row=first_row, task=task)
                edges = edges.where(known)
            if not task.direct:
                files.write(edges)
            for view, made in zip(task.direct, runs, strict=True):
                path = f"{task.path}.{view.turn}.{len(made)}"
                made.append(write_edge_run(path, edges.seen(view.turn), bounds=view.bounds))
            num_edges += len(edges.source)
            num_loops += int(np.count_nonzero(edges.source == edges.target))
    part = SpillPart(task.path, num_edges)
    return _Mapped(part, runs, offences, task.part.num_rows, num_dangling, num_loops)


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
    task: _Task,
) -> None:
    bad = np.flatnonzero((source == UNKNOWN) | (target == UNKNOWN))
    name = "src" if source[bad[0]] == UNKNOWN else "dst"
    offences.add(
        bad + first_row,
        column=name,
        found=f"unknown {task.ends[name].node_type} {rows[name][int(bad[0])].as_py()!r}",
        rule=task.known.rule,
        remedy=task.known.remedy,
    )
