"""Mini-batches made in plain numpy from a small random graph, for tests: nothing of the real sampler is used."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from sampling.batch import Hop, MiniBatch
from service.schema import GraphSchema, NodeTypeSchema, RelationSchema


@dataclass(frozen=True)
class SmallGraph:
    """A random graph held as CSC arrays by target, one pair a relation."""

    schema: GraphSchema
    num_nodes: tuple[int, ...]
    indptr: tuple[NDArray[np.int64], ...]
    indices: tuple[NDArray[np.int64], ...]
    weight: tuple[NDArray[np.float32], ...] | None
    features: tuple[NDArray[np.float64] | None, ...]

    def in_degree(self, relation: int) -> NDArray[np.int64]:
        return np.diff(self.indptr[relation])

    def out_degree(self, relation: int) -> NDArray[np.int64]:
        source_type = self.schema.relations[relation].source_type
        return np.bincount(self.indices[relation], minlength=self.num_nodes[source_type])

    def adjacency(self, relation: int) -> torch.Tensor:
        """float64 [targets, sources]: summed weights of the edges."""
        info = self.schema.relations[relation]
        dense = np.zeros((self.num_nodes[info.target_type], self.num_nodes[info.source_type]))
        target = np.repeat(np.arange(dense.shape[0]), self.in_degree(relation))
        weight = np.ones(len(target)) if self.weight is None else self.weight[relation]
        np.add.at(dense, (target, self.indices[relation]), weight)
        return torch.from_numpy(dense)

    def all_seeds(self) -> list[tuple[int, int]]:
        return [(kind, node) for kind, count in enumerate(self.num_nodes) for node in range(count)]


def homogeneous(*, num_nodes: int = 40, dim: int = 6, degree: float = 3.0, weighted: bool = False) -> SmallGraph:
    """One type `node`, one relation; some nodes have no neighbours."""
    return _graph([("node", num_nodes, dim)], [("links", 0, 0)], degree=degree, weighted=weighted)


def heterogeneous(*, weighted: bool = False) -> SmallGraph:
    """Three types, one of them without features, and five relations, one of them empty."""
    return _graph(
        [("paper", 20, 6), ("author", 15, 4), ("venue", 5, None)],
        [
            ("cites", 0, 0),
            ("writes", 1, 0),
            ("written_by", 0, 1),
            ("prints", 2, 0),
            ("printed_in", 0, 2),
            ("none", 1, 1),
        ],
        degree=2.5,
        weighted=weighted,
    )


def featureless() -> SmallGraph:
    """Two types without features, one with, and four relations."""
    return _graph(
        [("user", 18, None), ("item", 14, None), ("tag", 6, 4)],
        [("reads", 0, 1), ("read_by", 1, 0), ("tagged", 2, 1), ("tags", 1, 2)],
        degree=2.0,
        weighted=False,
    )


def _graph(
    types: Sequence[tuple[str, int, int | None]],
    relations: Sequence[tuple[str, int, int]],
    *,
    degree: float,
    weighted: bool,
) -> SmallGraph:
    rng = np.random.default_rng(7)
    indptrs, indices, weights = [], [], []
    for name, source, target in relations:
        count = rng.poisson(0.0 if name == "none" else degree, types[target][1])
        indptrs.append(np.concatenate([[0], np.cumsum(count)]).astype(np.int64))
        indices.append(rng.integers(0, types[source][1], count.sum()))
        weights.append(rng.uniform(0.2, 2.0, count.sum()).astype(np.float32))
    return SmallGraph(
        schema=GraphSchema(
            node_types=tuple(
                NodeTypeSchema(
                    name=name, feature_dim=dim, feature_dtype=None if dim is None else "float32", num_nodes=count
                )
                for name, count, dim in types
            ),
            relations=tuple(
                RelationSchema(name=f"{types[s][0]}:{name}:{types[t][0]}", source_type=s, target_type=t)
                for name, s, t in relations
            ),
        ),
        num_nodes=tuple(count for _, count, _ in types),
        indptr=tuple(indptrs),
        indices=tuple(indices),
        weight=tuple(weights) if weighted else None,
        features=tuple(None if dim is None else rng.normal(size=(count, dim)) for _, count, dim in types),
    )


def make_batch(
    graph: SmallGraph,
    seeds: Sequence[tuple[int, int]],
    *,
    num_hops: int,
    fanout: int | None = None,
    num_seeds_global: int | None = None,
    dtype: torch.dtype = torch.float64,
) -> MiniBatch:
    """The batch of `seeds` [(type, id)], with full neighbourhoods or up to `fanout` edges of each (hop, node)."""
    known = list(seeds)
    place = {node: row for row, node in enumerate(known)}
    hops = []
    for number in range(num_hops):
        targets = list(known)
        indptr = np.zeros((len(graph.indptr), len(targets) + 1), dtype=np.int32)
        sources: list[int] = []
        positions: list[int] = []
        weights: list[float] = []
        for relation, info in enumerate(graph.schema.relations):
            indptr[relation, 0] = len(sources)
            for row, (kind, node) in enumerate(targets):
                for position in _edges_into(graph, relation, kind, node, hop=number, fanout=fanout):
                    source = (info.source_type, int(graph.indices[relation][position]))
                    if source not in place:
                        place[source] = len(known)
                        known.append(source)
                    sources.append(place[source])
                    positions.append(position)
                    weights.append(1.0 if graph.weight is None else float(graph.weight[relation][position]))
                indptr[relation, row + 1] = len(sources)
        hops.append(
            Hop(
                num_targets=len(targets),
                num_sources=len(known),
                indptr=torch.from_numpy(indptr),
                source=torch.tensor(sources, dtype=torch.int32),
                position=torch.tensor(positions, dtype=torch.int64),
                weight=None if graph.weight is None else torch.tensor(weights, dtype=torch.float32),
            )
        )
    node_type = np.array([kind for kind, _ in known], dtype=np.int64)
    node_id = np.array([node for _, node in known], dtype=np.int64)
    in_degree = np.zeros((len(graph.indptr), len(known)), dtype=np.int32)
    out_degree = np.zeros_like(in_degree)
    for relation, info in enumerate(graph.schema.relations):
        is_target, is_source = node_type == info.target_type, node_type == info.source_type
        in_degree[relation, is_target] = graph.in_degree(relation)[node_id[is_target]]
        out_degree[relation, is_source] = graph.out_degree(relation)[node_id[is_source]]
    return MiniBatch(
        epoch=0,
        step=0,
        num_seeds=len(seeds),
        num_seeds_global=len(seeds) if num_seeds_global is None else num_seeds_global,
        hops=tuple(hops),
        node_type=torch.from_numpy(node_type),
        node_id=torch.from_numpy(node_id),
        in_degree=torch.from_numpy(in_degree),
        out_degree=torch.from_numpy(out_degree),
        features=tuple(
            None if table is None else torch.from_numpy(table[node_id[node_type == kind]]).to(dtype)
            for kind, table in enumerate(graph.features)
        ),
    )


def _edges_into(graph: SmallGraph, relation: int, kind: int, node: int, *, hop: int, fanout: int | None) -> list[int]:
    """Positions of the edges drawn for one node in one hop, from a generator keyed by both."""
    if kind != graph.schema.relations[relation].target_type:
        return []
    positions = np.arange(graph.indptr[relation][node], graph.indptr[relation][node + 1])
    if fanout is None or len(positions) <= fanout:
        return [int(position) for position in positions]
    rng = np.random.default_rng([hop, relation, kind, node])
    return [int(position) for position in np.sort(rng.choice(positions, fanout, replace=False))]
