"""The graph as link prediction sees it: held-out pairs, pairs that are no edge, edges to learn from, known targets.

A pair is (source, target) in dense ids of one relation, int64 [n, 2]. In a symmetric relation a pair and its reverse
are one, written with the smaller id first. Self-loops are no pairs where both ends are of one type. Every score gives
(u, v) and (v, u) the same where both ends are of one type: there an edge makes known its reverse too, declared or not.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sampling.keys import below, draw, fold
from sampling.seeds import permute
from storage.errors import BadInput
from storage.graph import RelationCSC
from storage.jit import kernel

MAX_ATTEMPTS = 1000
"""draws for one pair that is no edge"""


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

    def reversed_in_store(self, pairs: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which pairs [n, 2] are edges of the store the other way round, [n]; none between nodes of two types."""
        return self.in_store(pairs[:, ::-1]) if self.same_type else np.zeros(pairs.shape[0], dtype=np.bool_)

    def both_ways(self, pairs: NDArray[np.int64]) -> NDArray[np.int64]:
        """The pairs, and their reverses where both ends are of one type."""
        return np.concatenate([pairs, pairs[:, ::-1]]) if self.same_type else pairs

    def negatives(self, count: int, *, key: np.uint64) -> NDArray[np.int64]:
        """`count` pairs drawn uniformly among those that are neither edges of the store nor held out.

        Where both ends are of one type, reverses of edges are none of them either.
        Raises BadInput where the graph leaves (nearly) none.
        """
        out = np.empty((count, 2), dtype=np.int64)
        drawn = _draw_negatives(
            key,
            self.sources,
            self.targets,
            self.csc.indptr,
            self.csc.indices,
            np.sort(pair_keys(self.both_ways(self.held), num_targets=self.num_targets)),
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

    def answers(self, sources: NDArray[np.int64]) -> NDArray[np.int64]:
        """Pairs [n, 2] out of `sources` [k] (distinct) that are no wrong answers: known, held out, or the node itself.

        Where both ends are of one type, nodes with an edge to the source are known too.
        """
        indptr, known = self.known_targets(sources)
        found = [np.stack([np.repeat(sources, np.diff(indptr)), known], axis=1), self.both_ways(self.held)]
        if self.same_type:
            found.append(np.stack([sources, sources], axis=1))
            if not self.symmetric:
                into = [self.csc.indices[self.csc.indptr[node] : self.csc.indptr[node + 1]] for node in sources]
                counts = [len(nodes) for nodes in into]
                nodes = np.concatenate([*into, known[:0]]).astype(np.int64)
                found.append(np.stack([np.repeat(sources, counts), nodes], axis=1))
        return np.concatenate(found)

    def directed(self, pairs: NDArray[np.int64]) -> NDArray[np.int64]:
        """The pairs as questions "which target": in a symmetric relation each from both of its ends."""
        return np.concatenate([pairs, pairs[:, ::-1]]) if self.symmetric else pairs


def pair_keys(pairs: NDArray[np.int64], *, num_targets: int) -> NDArray[np.int64]:
    """One number for each pair [n, 2], ascending as pairs are; a graph in memory is small enough for 63 bits."""
    keys: NDArray[np.int64] = pairs[:, 0] * num_targets + pairs[:, 1]
    return keys


@kernel
def _is_edge(indptr: NDArray[Any], indices: NDArray[Any], source: int, target: int) -> bool:
    for edge in range(np.int64(indptr[target]), np.int64(indptr[target + 1])):  # noqa: SIM110 - numba compiles loops
        if indices[edge] == source:
            return True
    return False


@kernel
def _find_edges(
    indptr: NDArray[Any], indices: NDArray[Any], pairs: NDArray[np.int64], found: NDArray[np.bool_]
) -> None:
    for number in range(pairs.shape[0]):
        found[number] = _is_edge(indptr, indices, pairs[number, 0], pairs[number, 1])


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
            is_edge = _is_edge(indptr, indices, source, target)
            if same_type and not symmetric:
                is_edge = is_edge or _is_edge(indptr, indices, target, source)
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
