"""Random graphs as plain arrays, and the topologies made of them without the code under test."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from storage.graph import RelationCSC, Topology
from storage.schema import Relation


def csc_of(
    source: NDArray[np.int64], target: NDArray[np.int64], num_targets: int
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """indptr and indices of edges sorted by (target, source)."""
    order = np.lexsort((source, target))
    counts = np.bincount(target, minlength=num_targets)
    indptr = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    return indptr, source[order].astype(np.int32)


def relation_of(
    name: str,
    *,
    source_type: int,
    target_type: int,
    sizes: tuple[int, ...],
    num_edges: int,
    rng: np.random.Generator,
    weighted: bool = False,
) -> RelationCSC:
    """A random relation with parallel edges, self-loops, isolated nodes and a few hubs."""
    source = rng.integers(0, sizes[source_type], num_edges)
    target = (rng.random(num_edges) ** 3 * sizes[target_type]).astype(np.int64)
    indptr, indices = csc_of(source, target, sizes[target_type])
    return RelationCSC(
        relation=Relation(f"t{source_type}", name, f"t{target_type}"),
        source_type=source_type,
        target_type=target_type,
        indptr=indptr,
        indices=indices,
        out_degree=np.bincount(source, minlength=sizes[source_type]).astype(np.int32),
        weight=rng.random(num_edges).astype(np.float32) if weighted else None,
        timestamp=None,
    )


def topology_of(sizes: tuple[int, ...], *relations: RelationCSC) -> Topology:
    """A topology over types t0, t1, ... of the given sizes."""
    return Topology(
        node_types=tuple(f"t{number}" for number in range(len(sizes))),
        type_offsets=np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
        relations=relations,
    )


def one_type_graph(num_nodes: int = 200, num_edges: int = 1500, *, seed: int = 0) -> Topology:
    """One node type, one relation."""
    rng = np.random.default_rng(seed)
    sizes = (num_nodes,)
    return topology_of(
        sizes,
        relation_of("to", source_type=0, target_type=0, sizes=sizes, num_edges=num_edges, rng=rng),
    )


def two_type_graph(*, seed: int = 0) -> Topology:
    """Two node types and three relations, one of them weighted."""
    rng = np.random.default_rng(seed)
    sizes = (120, 80)
    return topology_of(
        sizes,
        relation_of("a", source_type=0, target_type=1, sizes=sizes, num_edges=600, rng=rng),
        relation_of("b", source_type=1, target_type=0, sizes=sizes, num_edges=700, rng=rng, weighted=True),
        relation_of("c", source_type=0, target_type=0, sizes=sizes, num_edges=900, rng=rng),
    )


def dressed(graph: Topology, *, seed: int = 0, num_times: int = 50) -> Topology:
    """The same edges with weights, a fifth of them 0, and times in [0, num_times), sorted as a store sorts them."""
    rng = np.random.default_rng(seed)
    relations = []
    for relation in graph.relations:
        num_edges = relation.indices.size
        target = np.repeat(np.arange(relation.indptr.size - 1), np.diff(relation.indptr))
        timestamp = rng.integers(0, num_times, num_edges)
        order = np.lexsort((relation.indices, timestamp, target))
        weight = rng.exponential(size=num_edges).astype(np.float32)
        weight[rng.random(num_edges) < 0.2] = 0
        relations.append(
            replace(
                relation, indices=relation.indices[order], weight=weight, timestamp=timestamp[order].astype(np.int64)
            )
        )
    return replace(graph, relations=tuple(relations))


def rows_of_sources(lists: list[list[int]], *, num_sources: int, **columns: list[list[float]]) -> Topology:
    """A graph whose type 1 has one node for each given list of in-neighbours of type 0; `columns` are per edge."""
    source = np.array([node for row in lists for node in row], dtype=np.int32)
    indptr = np.concatenate([[0], np.cumsum([len(row) for row in lists])]).astype(np.int32)
    given = {name: np.array([value for row in rows for value in row]) for name, rows in columns.items()}
    relation = RelationCSC(
        relation=Relation("t0", "to", "t1"),
        source_type=0,
        target_type=1,
        indptr=indptr,
        indices=source,
        out_degree=np.bincount(source, minlength=num_sources).astype(np.int32),
        weight=given["weight"].astype(np.float32) if "weight" in given else None,
        timestamp=given["timestamp"].astype(np.int64) if "timestamp" in given else None,
    )
    return topology_of((num_sources, len(lists)), relation)
