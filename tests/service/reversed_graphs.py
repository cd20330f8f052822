"""Small graphs whose relations hold each other's edges turned round, parallel edges and self-loops among them."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from tests.service.batches import SmallGraph

Edges = list[tuple[int, int]]


def edges_of(graph: SmallGraph, relation: int) -> Edges:
    """(source, target) of every edge, in the order of its CSC."""
    target = np.repeat(np.arange(len(graph.indptr[relation]) - 1), graph.in_degree(relation))
    return list(zip(graph.indices[relation].tolist(), target.tolist(), strict=True))


def with_edges(graph: SmallGraph, edges: Sequence[Edges]) -> SmallGraph:
    """The graph with other edges, one list of (source, target) a relation."""
    indptrs, indices = [], []
    for found, info in zip(edges, graph.schema.relations, strict=True):
        ordered = sorted(found, key=lambda edge: (edge[1], edge[0]))
        count = np.bincount([edge[1] for edge in ordered], minlength=graph.num_nodes[info.target_type])
        indptrs.append(np.concatenate([[0], np.cumsum(count)]).astype(np.int64))
        sources: NDArray[np.int64] = np.array([edge[0] for edge in ordered], dtype=np.int64)
        indices.append(sources)
    return replace(graph, indptr=tuple(indptrs), indices=tuple(indices), weight=None)


def with_reverses(graph: SmallGraph, reverse_of: dict[int, int]) -> SmallGraph:
    """The graph in which relation k of `reverse_of` holds the edges of relation reverse_of[k] turned round.

    A relation that is its own reverse holds its edges both ways. Every third edge has a parallel one.
    """
    edges = [edges_of(graph, number) for number in range(len(graph.indptr))]
    edges = [[*found, *found[::3]] for found in edges]
    for number, other in reverse_of.items():
        turned = [(target, source) for source, target in edges[other]]
        edges[number] = [*edges[number], *turned] if number == other else turned
    relations = tuple(
        replace(info, reverse_of=reverse_of.get(number)) for number, info in enumerate(graph.schema.relations)
    )
    return replace(with_edges(graph, edges), schema=replace(graph.schema, relations=relations))
