"""Turn sampled arrays into the tensors of a mini-batch: node types, degrees in the whole graph, edge weights."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sampling.batch import Hop, MiniBatch
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


def edge_weights(topology: Topology, hop: SampledHop) -> torch.Tensor | None:
    """float32 [E_h]: weights of the hop's edges, 1 in relations without; None when no relation has weights."""
    if all(relation.weight is None for relation in topology.relations):
        return None
    weights = np.ones(hop.position.shape[0], dtype=np.float32)
    for index, relation in enumerate(topology.relations):
        if relation.weight is not None:
            span = slice(int(hop.indptr[index, 0]), int(hop.indptr[index, -1]))
            weights[span] = relation.weight[hop.position[span]]
    return torch.from_numpy(weights)


def assemble(
    topology: Topology,
    sample: Sample,
    *,
    epoch: int,
    step: int,
    num_seeds: int,
    num_seeds_global: int,
    features: tuple[torch.Tensor | None, ...],
) -> MiniBatch:
    """The mini-batch of `sample`; `features` as `sampling.loader.fetch_features` returns them."""
    nodes = sample.nodes
    offsets = topology.type_offsets
    node_type = np.searchsorted(offsets[1:], nodes, side="right").astype(np.int64)
    in_degree = np.empty((len(topology.relations), nodes.shape[0]), dtype=np.int32)
    out_degree = np.empty_like(in_degree)
    for index, relation in enumerate(topology.relations):
        target, source = relation.target_type, relation.source_type
        in_degrees(relation.indptr, nodes, int(offsets[target]), int(offsets[target + 1]), in_degree[index])
        out_degrees(relation.out_degree, nodes, int(offsets[source]), int(offsets[source + 1]), out_degree[index])
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
                weight=edge_weights(topology, hop),
            )
            for hop in sample.hops
        ),
        node_type=torch.from_numpy(node_type),
        node_id=torch.from_numpy(nodes - offsets[node_type]),
        in_degree=torch.from_numpy(in_degree),
        out_degree=torch.from_numpy(out_degree),
        features=features,
    )
