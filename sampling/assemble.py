"""Turn sampled arrays into the tensors of a mini-batch: node types, degrees in the whole graph, edge weights."""

from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from sampling.batch import Hop, MiniBatch, SeedPairs
from sampling.neighbors import Sample, SampledHop
from storage.graph import Topology
from storage.jit import kernel


@kernel
def in_degrees(indptr: NDArray[Any], nodes: NDArray[np.int64], first: int, last: int, out: NDArray[np.int32]) -> None:
    """`out[i]` = in-neighbours of node i where it lies in [first, last), else 0."""
    for row in range(nodes.shape[0]):
        node = nodes[row]
        inside = first <= node < last
        out[row] = np.int32(indptr[node - first + 1] - indptr[node - first]) if inside else np.int32(0)


@kernel
def out_degrees(degree: NDArray[Any], nodes: NDArray[np.int64], first: int, last: int, out: NDArray[np.int32]) -> None:
    """`out[i]` = out-neighbours of node i where it lies in [first, last), else 0."""
    for row in range(nodes.shape[0]):
        node = nodes[row]
        out[row] = np.int32(degree[node - first]) if first <= node < last else np.int32(0)


class Surroundings(Protocol):
    """What a mini-batch is told of the graph around its sample."""

    @property
    def type_offsets(self) -> NDArray[np.int64]:
        """[T + 1]: global ids of type t are [type_offsets[t], type_offsets[t + 1])."""

    def degrees(self, nodes: NDArray[np.int64]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """In- and out-degrees [R, N] of the batch's nodes in the whole graph; 0 where the type is another."""

    def edge_weights(self, hop: int, sampled: SampledHop) -> NDArray[np.float32] | None:
        """Weights [E_h] of hop number `hop`, 1 in relations without; None when no relation has any."""


class TopologySurroundings:
    """Read from a topology in memory."""

    def __init__(self, topology: Topology) -> None:
        self._topology = topology

    @property
    def type_offsets(self) -> NDArray[np.int64]:
        """See `Surroundings`."""
        return self._topology.type_offsets

    def degrees(self, nodes: NDArray[np.int64]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """See `Surroundings`."""
        topology, offsets = self._topology, self._topology.type_offsets
        inward = np.empty((len(topology.relations), nodes.shape[0]), dtype=np.int32)
        outward = np.empty_like(inward)
        for index, relation in enumerate(topology.relations):
            target, source = relation.target_type, relation.source_type
            in_degrees(relation.indptr, nodes, int(offsets[target]), int(offsets[target + 1]), inward[index])
            out_degrees(relation.out_degree, nodes, int(offsets[source]), int(offsets[source + 1]), outward[index])
        return inward, outward

    def edge_weights(self, hop: int, sampled: SampledHop) -> NDArray[np.float32] | None:
        """See `Surroundings`."""
        relations = self._topology.relations
        if all(relation.weight is None for relation in relations):
            return None
        weights = np.ones(sampled.position.shape[0], dtype=np.float32)
        for index, relation in enumerate(relations):
            if relation.weight is not None:
                span = slice(int(sampled.indptr[index, 0]), int(sampled.indptr[index, -1]))
                weights[span] = relation.weight[sampled.position[span]]
        return weights


def assemble(
    graph: Topology | Surroundings,
    sample: Sample,
    *,
    epoch: int,
    step: int,
    num_seeds: int,
    num_seeds_global: int,
    features: tuple[torch.Tensor | None, ...],
    pairs: SeedPairs | None = None,
) -> MiniBatch:
    """The mini-batch of `sample`, drawn from `graph`; `features` as `sampling.loader.fetch_features` returns them."""
    around = TopologySurroundings(graph) if isinstance(graph, Topology) else graph
    nodes = sample.nodes
    offsets = around.type_offsets
    node_type = np.searchsorted(offsets[1:], nodes, side="right").astype(np.int64)
    in_degree, out_degree = around.degrees(nodes)
    weights = [around.edge_weights(number, hop) for number, hop in enumerate(sample.hops)]
    return MiniBatch(
        epoch=epoch,
        step=step,
        num_seeds=num_seeds,
        num_seeds_global=num_seeds_global,
        hops=tuple(
            Hop(
                num_targets=hop.num_targets,
                num_sources=hop.num_sources,
                indptr=torch.from_numpy(hop.indptr),
                source=torch.from_numpy(hop.source),
                position=torch.from_numpy(hop.position),
                weight=None if weight is None else torch.from_numpy(weight),
            )
            for hop, weight in zip(sample.hops, weights, strict=True)
        ),
        node_type=torch.from_numpy(node_type),
        node_id=torch.from_numpy(nodes - offsets[node_type]),
        in_degree=torch.from_numpy(in_degree),
        out_degree=torch.from_numpy(out_degree),
        features=features,
        pairs=pairs,
    )
