"""Edges in positions, as the later stages of an ingest see them: a spill on disk, and views of it as relations.

A spill holds plain columns in input order; it is streamed as often as needed. A view is one relation of the store:
the spill's edges as they stand, turned round, or both ways.
"""

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from storage.jit import kernel
from storage.schema import Relation
from storage.stages.runs import read_array

Turn: TypeAlias = Literal["as-is", "turned", "both"]
COLUMN_DTYPES = {"source": np.uint32, "target": np.uint32, "timestamp": np.int64, "weight": np.float32}


@dataclass(frozen=True)
class SpillPart:
    """Files `<path>.<column>` with `num_edges` values each."""

    path: str
    num_edges: int


@dataclass(frozen=True)
class Spill:
    """One edge table in positions, in input order, and what its pass counted.

    Attributes:
        parts: in input order.
        has_weight, has_timestamp: which columns there are beside source and target.
        num_rows: rows of the table.
        num_dangling: rows dropped because an end is unknown.
        num_loops: edges from a node to itself.
    """

    parts: list[SpillPart]
    has_weight: bool
    has_timestamp: bool
    num_rows: int
    num_dangling: int
    num_loops: int

    @property
    def num_edges(self) -> int:
        """Edges kept."""
        return sum(part.num_edges for part in self.parts)


@dataclass(frozen=True)
class EdgeChunk:
    """Consecutive edges of a view: source, target [n] uint32 positions, timestamp int64, weight float32 or None."""

    source: NDArray[np.uint32]
    target: NDArray[np.uint32]
    timestamp: NDArray[np.int64] | None
    weight: NDArray[np.float32] | None

    def where(self, kept: NDArray[np.bool_]) -> "EdgeChunk":
        """Those edges that `kept` [n] tells."""
        return EdgeChunk(
            source=self.source[kept],
            target=self.target[kept],
            timestamp=None if self.timestamp is None else self.timestamp[kept],
            weight=None if self.weight is None else self.weight[kept],
        )

    def seen(self, turn: Turn) -> "EdgeChunk":
        """The edges as a view has them."""
        if turn == "turned":
            return EdgeChunk(source=self.target, target=self.source, timestamp=self.timestamp, weight=self.weight)
        if turn == "both":
            row, turned = _both(self.source, self.target)
            return EdgeChunk(
                source=np.where(turned, self.target[row], self.source[row]),
                target=np.where(turned, self.source[row], self.target[row]),
                timestamp=None if self.timestamp is None else self.timestamp[row],
                weight=None if self.weight is None else self.weight[row],
            )
        return self


@dataclass(frozen=True)
class Slice:
    """Edges [start, start + count) of one part of a spill."""

    part: SpillPart
    start: int
    count: int


@dataclass(frozen=True)
class EdgeView:
    """One relation of the store, seen in a spill.

    Attributes:
        relation: its types and name.
        reverse_of: the relation these edges are the reverse of; None when there is none.
        spill: where they are.
        turn: as they stand; turned round; or both, an edge's reverse right behind it and a loop once.
    """

    relation: Relation
    reverse_of: Relation | None
    spill: Spill
    turn: Turn

    @property
    def num_edges(self) -> int:
        """Edges of the relation."""
        if self.turn == "both":
            return 2 * self.spill.num_edges - self.spill.num_loops
        return self.spill.num_edges

    def slices(self, *, max_edges: int) -> list[Slice]:
        """The spill cut into slices of at most `max_edges`, in order."""
        return [
            Slice(part, start, min(max_edges, part.num_edges - start))
            for part in self.spill.parts
            for start in range(0, part.num_edges, max_edges)
        ]

    def read(self, piece: Slice) -> EdgeChunk:
        """The view's edges in a slice; twice as many as its count at most."""
        read = {name: self._column(piece, name) for name in COLUMN_DTYPES}
        source, target, timestamp, weight = read["source"], read["target"], read["timestamp"], read["weight"]
        assert source is not None
        assert target is not None
        return EdgeChunk(source=source, target=target, timestamp=timestamp, weight=weight).seen(self.turn)

    def _column(self, piece: Slice, name: str) -> NDArray[Any] | None:
        if (name == "weight" and not self.spill.has_weight) or (name == "timestamp" and not self.spill.has_timestamp):
            return None
        return read_array(f"{piece.part.path}.{name}", COLUMN_DTYPES[name], start=piece.start, count=piece.count)


def reversed_name(relation: Relation) -> Relation:
    """The relation that `--undirected` adds beside one between two node types."""
    return Relation(relation.target, f"rev_{relation.name}", relation.source)


def turns(relation: Relation, *, undirected: bool) -> tuple[Turn, ...]:
    """How the views of an edge table see its edges."""
    if not undirected:
        return ("as-is",)
    return ("both",) if relation.source == relation.target else ("as-is", "turned")


def views(relation: Relation, spill: Spill, *, undirected: bool) -> list[EdgeView]:
    """The relations that an edge table becomes: itself, both ways in one, or itself and its reverse."""
    if not undirected:
        return [EdgeView(relation, None, spill, "as-is")]
    if relation.source == relation.target:
        return [EdgeView(relation, relation, spill, "both")]
    back = reversed_name(relation)
    return [EdgeView(relation, back, spill, "as-is"), EdgeView(back, relation, spill, "turned")]


@kernel
def _both(source: NDArray[np.uint32], target: NDArray[np.uint32]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """(row, turned) of each edge and its reverse, which stands right behind it; loops once."""
    row = np.empty(2 * source.shape[0], dtype=np.int64)
    turned = np.empty(2 * source.shape[0], dtype=np.bool_)
    at = 0
    for edge in range(source.shape[0]):
        row[at], turned[at] = edge, False
        at += 1
        if source[edge] != target[edge]:
            row[at], turned[at] = edge, True
            at += 1
    return row[:at], turned[:at]
