"""Edge tables of the ingest: ends mapped to input positions, policies for dangling edges, reverses."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from storage import columns
from storage.errors import BadInput
from storage.ids import NodeIds
from storage.schema import IdType, Relation
from storage.tables import Offences, Table, open_table

MIN_CHUNK_ROWS = 1 << 20  # each chunk builds a hash table of all ids of both types


@dataclass(frozen=True)
class Edges:
    """Edges of one relation in input order, ends as input positions of their nodes.

    Attributes:
        relation: (source type, name, target type).
        source: [num_edges] int32, position of the source node in its table.
        target: [num_edges] int32, position of the target node in its table.
        weight: [num_edges] float32, finite and >= 0; None without weights.
        timestamp: [num_edges] int64; None without times.
        reverse_of: the relation these edges are the reverse of; None when there is none.
    """

    relation: Relation
    source: NDArray[np.int32]
    target: NDArray[np.int32]
    weight: NDArray[np.float32] | None
    timestamp: NDArray[np.int64] | None
    reverse_of: Relation | None = None

    def __len__(self) -> int:
        """Return the number of edges."""
        return len(self.source)


@dataclass(frozen=True)
class EdgeTable:
    """What an edge table became: its edges, and how many rows were dropped because an end is unknown."""

    edges: Edges
    num_dangling: int


def open_edge_table(url: str) -> Table:
    """Open the edge table at `url` and check its types; BadInput as in `open_table`."""
    table = open_table(url, required=("src", "dst"), optional=("weight", "timestamp"))
    if "weight" in table.schema.names:
        columns.check_weight(table)
    if "timestamp" in table.schema.names:
        columns.check_integer(table, "timestamp")
    return table


def read_edges(
    table: Table,
    *,
    relation: Relation,
    source_ids: NodeIds,
    target_ids: NodeIds,
    dangling: Literal["refuse", "drop"],
    advance: Callable[[int], None],
) -> EdgeTable:
    """Read an edge table chunk by chunk and map both ends.

    Args:
        table: from `open_edge_table`.
        relation: what its rows are.
        source_ids: ids of the relation's source type.
        target_ids: ids of its target type.
        dangling: whether a row with an unknown end is refused or dropped and counted.
        advance: told the number of rows done.

    Raises:
        BadInput: ids of another type than the node table's, a null, an unknown node (under `refuse`; under
            `drop` when no row is left), a negative or non-finite weight.
    """
    ends = {"src": source_ids, "dst": target_ids}
    for name, ids in ends.items():
        _check_kind(table, name, ids)
    offences = Offences(table)
    parts: dict[str, list[NDArray[Any]]] = {name: [] for name in table.schema.names}
    num_dangling = 0
    min_rows = max(MIN_CHUNK_ROWS, 2 * len(source_ids), 2 * len(target_ids))
    for first_row, rows in table.chunks(table.schema.names, min_rows=min_rows):
        nulls = [columns.refuse_nulls(offences, rows[name], name=name, first_row=first_row) for name in parts]
        if not any(nulls):
            read: dict[str, NDArray[Any]] = {
                name: ids.positions(columns.ids(rows[name], kind=ids.kind)) for name, ids in ends.items()
            }
            known = (read["src"] >= 0) & (read["dst"] >= 0)
            if "weight" in parts:
                read["weight"] = columns.weights(offences, rows["weight"], first_row=first_row)
            if "timestamp" in parts:
                read["timestamp"] = rows["timestamp"].cast(pa.int64()).to_numpy()
            if not known.all():
                num_dangling += int(np.count_nonzero(~known))
                if dangling == "refuse":
                    _note_dangling(offences, rows, read, first_row=first_row, ends=ends)
                read = {name: values[known] for name, values in read.items()}
            for name, values in read.items():
                parts[name].append(values)
        advance(rows.num_rows)
    offences.refuse()
    if num_dangling == table.num_rows:
        raise BadInput(
            table.where("src"),
            f"no row is left after dropping {num_dangling} of {table.num_rows} rows with an unknown end",
            rule=f"an edge must join a {relation.source} and a {relation.target}",
            remedy="check that src and dst hold ids of these node tables, in this order",
        )
    whole = {name: np.concatenate(values) for name, values in parts.items()}
    edges = Edges(
        relation=relation,
        source=whole["src"],
        target=whole["dst"],
        weight=whole.get("weight"),
        timestamp=whole.get("timestamp"),
    )
    return EdgeTable(edges=edges, num_dangling=num_dangling)


def symmetric(edges: Edges) -> Edges:
    """The edges and their reverses as one relation that is its own reverse; a self-loop stays single.

    An edge's reverse has its input position, and stands right behind it.
    """
    copies = np.where(edges.source == edges.target, 1, 2)
    row = np.repeat(np.arange(len(edges)), copies)
    turned = np.zeros(len(row), dtype=np.bool_)
    turned[1:] = row[1:] == row[:-1]
    return Edges(
        relation=edges.relation,
        source=np.where(turned, edges.target[row], edges.source[row]),
        target=np.where(turned, edges.source[row], edges.target[row]),
        weight=None if edges.weight is None else edges.weight[row],
        timestamp=None if edges.timestamp is None else edges.timestamp[row],
        reverse_of=edges.relation,
    )


def reversed_name(relation: Relation) -> Relation:
    """The relation that `--undirected` adds beside one between two node types."""
    return Relation(relation.target, f"rev_{relation.name}", relation.source)


def both_ways(edges: Edges) -> tuple[Edges, Edges]:
    """The edges and their reverses as two relations that name each other; arrays are shared."""
    back = reversed_name(edges.relation)
    turned = replace(edges, relation=back, source=edges.target, target=edges.source, reverse_of=edges.relation)
    return replace(edges, reverse_of=back), turned


def _check_kind(table: Table, name: str, ids: NodeIds) -> None:
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
    positions: dict[str, NDArray[Any]],
    *,
    first_row: int,
    ends: dict[str, NodeIds],
) -> None:
    bad = np.flatnonzero((positions["src"] < 0) | (positions["dst"] < 0))
    name = "src" if positions["src"][bad[0]] < 0 else "dst"
    offences.add(
        bad + first_row,
        column=name,
        found=f"unknown {ends[name].node_type} {rows[name][int(bad[0])].as_py()!r}",
        rule="both ends of an edge must be in the node tables",
        remedy="add the nodes, remove the edges, or drop them with --dangling drop",
    )
