"""The graph as link prediction sees it: held-out pairs, pairs that are no edge, edges to learn from, known targets.

A pair is (source, target) in dense ids of one relation, int64 [n, 2]. In a symmetric relation a pair and its reverse
are one, written with the smaller id first. Self-loops are no pairs where both ends are of one type.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sampling.keys import below, draw, fold
from sampling.seeds import permute
from storage import columns
from storage.errors import BadInput
from storage.graph import RelationCSC
from storage.jit import kernel
from storage.store import Store
from storage.tables import open_table

MAX_ATTEMPTS = 1000
"""draws for one pair that is no edge"""
READ_ROWS = 1 << 18


@dataclass(frozen=True)
class LinkGraph:
    """One relation of a store with the pairs held out of it."""

    csc: RelationCSC
    symmetric: bool
    sources: NDArray[np.int64]
    """dense ids of nodes that are not deleted, ascending"""
    targets: NDArray[np.int64]
    held: NDArray[np.int64]
    """[n, 2] all held-out pairs, distinct, ascending"""

    @property
    def same_type(self) -> bool:
        """Whether both ends are of one type."""
        return self.csc.source_type == self.csc.target_type

    @property
    def num_targets(self) -> int:
        """Nodes of the target type, deleted ones included."""
        return int(self.csc.indptr.shape[0]) - 1

    def in_store(self, pairs: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which pairs [n, 2] are edges of the store, [n]."""
        found = np.zeros(pairs.shape[0], dtype=np.bool_)
        _find_edges(self.csc.indptr, self.csc.indices, pairs, found)
        return found

    def negatives(self, count: int, *, key: np.uint64) -> NDArray[np.int64]:
        """`count` pairs drawn uniformly among those that are neither edges of the store nor held out.

        Raises BadInput where the graph leaves (nearly) none.
        """
        out = np.empty((count, 2), dtype=np.int64)
        drawn = _draw_negatives(
            key,
            self.sources,
            self.targets,
            self.csc.indptr,
            self.csc.indices,
            pair_keys(self.held, num_targets=self.num_targets),
            self.same_type,
            self.symmetric,
            out,
        )
        if drawn < count:
            raise BadInput(
                f"relation {self.csc.relation}",
                f"no pair without an edge in {MAX_ATTEMPTS} draws",
                rule="link prediction tells edges from pairs that are none",
                remedy="evaluate on a sparser relation",
            )
        return out

    def edges(self, count: int, *, key: np.uint64) -> NDArray[np.int64]:
        """Up to `count` edges of the store [n, 2], drawn by `key` in random order; self-loops are left out."""
        num_edges = self.csc.indices.shape[0]
        place = np.empty(min(count, num_edges), dtype=np.int64)
        permute(np.arange(place.shape[0], dtype=np.int64), num_edges, key, place)
        target = np.searchsorted(self.csc.indptr, place, side="right") - 1
        pairs = np.stack([self.csc.indices[place].astype(np.int64), target], axis=1)
        return pairs[pairs[:, 0] != pairs[:, 1]] if self.same_type else pairs

    def known_targets(self, sources: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(indptr [n + 1], targets) of the store's edges out of `sources` [n] (distinct), duplicates included.

        Cost: one pass over the relation's edges.
        """
        place = np.full(self.csc.out_degree.shape[0], -1, dtype=np.int64)
        place[sources] = np.arange(sources.shape[0])
        indptr = np.zeros(sources.shape[0] + 1, dtype=np.int64)
        np.cumsum(self.csc.out_degree[sources], out=indptr[1:])
        targets = np.empty(int(indptr[-1]), dtype=np.int64)
        _fill_targets(self.csc.indptr, self.csc.indices, place, indptr[:-1].copy(), targets)
        return indptr, targets

    def directed(self, pairs: NDArray[np.int64]) -> NDArray[np.int64]:
        """The pairs as questions "which target": in a symmetric relation each from both of its ends."""
        return np.concatenate([pairs, pairs[:, ::-1]]) if self.symmetric else pairs


def relation_index(store: Store, name: str | None) -> int:
    """Number of the relation `name`, or of the only one there is apart from its reverse; BadInput lists them."""
    names = [str(info.relation) for info in store.relations]
    if name is None:
        first = store.relations[0]
        if all(first.relation in (info.relation, info.reverse_of) for info in store.relations):
            return 0
    elif name in names:
        return names.index(name)
    raise BadInput(
        "evaluation.link.relation",
        "not given" if name is None else f"{name} is unknown",
        rule=f"relations of this store: {', '.join(names)}",
        remedy="choose the one whose edges are held out",
    )


def is_symmetric(store: Store, index: int) -> bool:
    """Whether a relation holds the reverse of each of its edges."""
    info = store.relations[index]
    return info.reverse_of == info.relation


def read_pairs(store: Store, index: int, url: str) -> NDArray[np.int64]:
    """Distinct pairs [n, 2], ascending, of the table at `url` (columns src, dst: the user's ids) in relation `index`.

    Raises BadInput for ids that the store does not know, and for a table of self-loops only.
    """
    relation = store.relations[index].relation
    table = open_table(url, required=("src", "dst"))
    ends = []
    for column, node_type in (("src", relation.source), ("dst", relation.target)):
        kind = columns.id_type(table, column)
        chunks = [columns.ids(batch.column(0), kind=kind) for _, batch in table.batches([column], max_rows=READ_ROWS)]
        try:
            ends.append(store.rows_of(node_type, pa.chunked_array(chunks)))
        except BadInput as error:
            place = f"{table.url}, column {column}: {error.place}"
            raise BadInput(place, error.found, rule=error.rule, remedy=error.remedy) from None
    pairs = np.stack(ends, axis=1)
    if relation.source == relation.target:
        pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    if not pairs.shape[0]:
        raise BadInput(
            table.url,
            f"{table.num_rows} self-loops",
            rule="held-out edges join two nodes",
            remedy="hold out other edges",
        )
    return distinct(np.sort(pairs, axis=1) if is_symmetric(store, index) else pairs)


def pair_keys(pairs: NDArray[np.int64], *, num_targets: int) -> NDArray[np.int64]:
    """One number for each pair [n, 2], ascending as pairs are; a graph in memory is small enough for 63 bits."""
    keys: NDArray[np.int64] = pairs[:, 0] * num_targets + pairs[:, 1]
    return keys


def distinct(pairs: NDArray[np.int64]) -> NDArray[np.int64]:
    """The pairs [n, 2] without duplicates, ascending."""
    ordered = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
    is_new = np.ones(ordered.shape[0], dtype=np.bool_)
    is_new[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    return np.asarray(ordered[is_new])


@kernel
def _find_edges(
    indptr: NDArray[Any], indices: NDArray[Any], pairs: NDArray[np.int64], found: NDArray[np.bool_]
) -> None:
    for number in range(pairs.shape[0]):
        source, target = pairs[number, 0], pairs[number, 1]
        for edge in range(np.int64(indptr[target]), np.int64(indptr[target + 1])):
            if indices[edge] == source:
                found[number] = True
                break


@kernel
def _draw_negatives(
    key: np.uint64,
    sources: NDArray[np.int64],
    targets: NDArray[np.int64],
    indptr: NDArray[Any],
    indices: NDArray[Any],
    held: NDArray[np.int64],
    same_type: bool,
    symmetric: bool,
    out: NDArray[np.int64],
) -> int:
    """Fill `out` [n, 2]; returns how many pairs were found before one took too many attempts."""
    num_targets = indptr.shape[0] - 1
    for number in range(out.shape[0]):
        stream = fold(key, number)
        found = False
        for attempt in range(MAX_ATTEMPTS):
            source = sources[below(draw(stream, 2 * attempt), sources.shape[0])]
            target = targets[below(draw(stream, 2 * attempt + 1), targets.shape[0])]
            if same_type and source == target:
                continue
            if symmetric and source > target:
                source, target = target, source
            word = source * num_targets + target
            place = np.searchsorted(held, word)
            if place < held.shape[0] and held[place] == word:
                continue
            is_edge = False
            for edge in range(np.int64(indptr[target]), np.int64(indptr[target + 1])):
                if indices[edge] == source:
                    is_edge = True
                    break
            if not is_edge:
                out[number, 0], out[number, 1] = source, target
                found = True
                break
        if not found:
            return number
    return int(out.shape[0])


@kernel
def _fill_targets(
    indptr: NDArray[Any],
    indices: NDArray[Any],
    place: NDArray[np.int64],
    cursor: NDArray[np.int64],
    targets: NDArray[np.int64],
) -> None:
    """Enter every edge whose source has a place (>= 0) into that source's list, whose next free entry is `cursor`."""
    for target in range(indptr.shape[0] - 1):
        for edge in range(np.int64(indptr[target]), np.int64(indptr[target + 1])):
            number = place[indices[edge]]
            if number >= 0:
                targets[cursor[number]] = target
                cursor[number] += 1
