"""How often a node's row is expected to be read: the order of ids inside a segment.

A walk of the sampler from uniformly drawn seeds reaches node u in hop l + 1 with expected multiplicity
`p_{l+1}(u) = sum over v with u in N(v) of p_l(v) * min(1, k_l / deg v)`, over all relations, where `deg v` is
the in-degree of v in the relation and k_l the fan-out of hop l; p_0 is the same for all nodes of all types.
The hotness of u is the sum of its p_l. This is the expectation of neighbour sampling with a fan-out per hop
(GraphSAGE, NeurIPS 2017, section 3.1).

All arithmetic is in unsigned 64-bit fixed point: integer sums do not depend on the order of edges, threads or
files, so neither does the order of the nodes. Each level has as many fraction bits as cannot overflow: a node
gathers at most (its out-edges) x (the largest p_l), both known exactly before the level is summed.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from storage.edges import Edges
from storage.jit import kernel

ALL_NEIGHBOURS = -1
MAX_UINT64 = (1 << 64) - 1


def expected_accesses(
    edges: Sequence[Edges],
    *,
    num_nodes: Mapping[str, int],
    fanout: Sequence[int],
    advance: Callable[[int], None],
) -> dict[str, NDArray[np.uint64]]:
    """Hotness of every node in fixed point, comparable over all types; the scale is arbitrary.

    Args:
        edges: all relations as they will be sampled, reverses included.
        num_nodes: nodes of each type.
        fanout: neighbours drawn per node and relation in each hop, from the seeds outward; -1 for all.
        advance: told the number of edges done; each is visited once a hop.

    Returns:
        For each type [num_nodes] uint64 by input position.
    """
    in_degree = [np.bincount(e.target, minlength=num_nodes[e.relation.target]) for e in edges]
    max_out_edges = _max_out_edges(edges, num_nodes=num_nodes)
    limit = MAX_UINT64 // (len(fanout) + 1)  # of one level, so that the sum over levels fits too
    first = 1 << ((limit // max_out_edges).bit_length() - 1)
    level = {name: np.full(n, first, dtype=np.uint64) for name, n in num_nodes.items()}
    total = {name: values.copy() for name, values in level.items()}
    for k in fanout:
        reached = {name: np.zeros(n, dtype=np.uint64) for name, n in num_nodes.items()}
        for e, degree in zip(edges, in_degree, strict=True):
            share = _shares(level[e.relation.target], degree, k)
            _gather(reached[e.relation.source], share, e.source, e.target)
            advance(len(e))
        largest = max(int(values.max()) for values in reached.values())
        shift = np.uint64(0)
        while (largest >> int(shift)) * max_out_edges > limit:
            shift += np.uint64(1)
        for name in num_nodes:
            total[name] = (total[name] + reached[name]) >> shift
            level[name] = reached[name] >> shift
    return total


def hottest_first(hotness: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Input positions [num_nodes] by descending hotness, ties by input order."""
    order: NDArray[np.int64] = np.argsort(MAX_UINT64 - hotness, kind="stable")
    return order


def _max_out_edges(edges: Sequence[Edges], *, num_nodes: Mapping[str, int]) -> int:
    """The most out-edges a node has over all relations, at least 1."""
    out_edges = {name: np.zeros(n, dtype=np.int64) for name, n in num_nodes.items()}
    for e in edges:
        out_edges[e.relation.source] += np.bincount(e.source, minlength=num_nodes[e.relation.source])
    return max(1, *(int(counts.max()) for counts in out_edges.values()))


@kernel
def _shares(level: NDArray[np.uint64], degree: NDArray[np.int64], k: int) -> NDArray[np.uint64]:
    """What each target hands to each of its in-edges: floor(level * min(1, k / degree)), [num_targets]."""
    share = level.copy()
    if k == ALL_NEIGHBOURS:
        return share
    for v in range(len(level)):
        if degree[v] > k:
            # quotient and remainder apart: level * k would not fit
            d = np.uint64(degree[v])
            quotient = level[v] // d
            rest = level[v] - quotient * d
            share[v] = quotient * np.uint64(k) + rest * np.uint64(k) // d
    return share


@kernel
def _gather(
    reached: NDArray[np.uint64],
    share: NDArray[np.uint64],
    source: NDArray[np.int32],
    target: NDArray[np.int32],
) -> None:
    for i in range(len(source)):
        reached[source[i]] += share[target[i]]
