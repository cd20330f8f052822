"""Masked node pairs: the edges that a batch hides from the encoder, and those among them that are targets.

What is drawn is the pair, not the edge: parallel edges, the relation and its reverse, and the same edge in another hop
go together. The draw's key is (step, both end nodes in no order, family of relations), so every rank hides the same
pairs of the global batch without a word to the others.

Shapes: R relations, E edges of a hop, P target edges of this rank.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sampling.batch import Hop, MiniBatch
from sampling.masks import node_keys
from service.encoders.nodes import edge_relations, keep_edges
from service.noise import Noise, Site
from service.schema import GraphSchema


@dataclass(frozen=True, eq=False)
class EdgeRows:
    """Edges of one hop by their ends."""

    source: Tensor
    """int64 [E]: row of the batch"""
    target: Tensor
    """int64 [E]: row of the batch"""
    family: Tensor
    """int64 [E]: see `relation_families`"""
    keys: Tensor
    """int64 [E]: key of the pair, the same for every edge between it"""


@dataclass(frozen=True, eq=False)
class MaskedBatch:
    """A batch without the edges of masked pairs."""

    hops: tuple[Hop, ...]
    """from the seeds outward; of the first only its targets are read"""
    source: Tensor
    """int64 [P]: row of the source of each target edge"""
    target: Tensor
    """int64 [P]: row of its seed"""
    family: Tensor
    """int64 [P]"""
    position: Tensor
    """int64 [P]: place of the edge in its relation's CSC"""
    relation: Tensor
    """int64 [P]"""


def relation_families(schema: GraphSchema) -> tuple[int, ...]:
    """For every relation [R] the least number among those that are its reverse, or the reverse's reverse, and so on."""
    family = list(range(len(schema.relations)))
    for number, relation in enumerate(schema.relations):
        if relation.reverse_of is not None:
            joined = {family[number], family[relation.reverse_of]}
            family = [min(joined) if other in joined else other for other in family]
    return tuple(family)


def edge_rows(batch: MiniBatch, hop: Hop, *, families: tuple[int, ...], keys: Tensor) -> EdgeRows:
    """The ends of a hop's edges, and the keys of their pairs.

    Args:
        keys: int64 [N] of the batch's nodes (`Nodes.keys`).
    """
    source = hop.source.long()
    count = (hop.indptr[:, 1:] - hop.indptr[:, :-1]).reshape(-1).long()
    rows = torch.arange(hop.num_targets, device=source.device).repeat(hop.indptr.shape[0])
    target = torch.repeat_interleave(rows, count, output_size=source.shape[0])
    family = torch.tensor(families, dtype=torch.int64, device=source.device)[edge_relations(hop)]
    lower, higher = torch.minimum(keys[source], keys[target]), torch.maximum(keys[source], keys[target])
    return EdgeRows(source, target, family, node_keys(family, node_keys(lower, higher)))


def mask_pairs(
    batch: MiniBatch,
    *,
    rate: float,
    families: tuple[int, ...],
    keys: Tensor,
    noise: Noise,
    num_read: int,
    ends: Tensor | None = None,
) -> MaskedBatch:
    """Hide pairs with probability `rate`; targets are the hidden edges of the first hop, into this rank's seeds.

    At rate 0 nothing is hidden and every edge of the first hop is a target. An edge from a node to itself is neither
    hidden nor a target: it says nothing of two nodes.

    Args:
        families: of every relation (`relation_families`).
        keys: int64 [N] of the batch's nodes (`Nodes.keys`).
        num_read: hops that the encoder reads, from the second on; the others are returned as they are.
        ends: bool [N]: pairs that none of these nodes is an end of stay; None for all nodes. For W ranks to equal one,
            it names the same nodes on each.

    Source: MaskGAE (Li et al., KDD 2023), section 4.2, edge-wise masking, with pairs drawn by key.
    """
    first = batch.hops[0]
    edges = edge_rows(batch, first, families=families, keys=keys)
    is_target = _is_masked(edges, ends, rate=rate, noise=noise) if rate > 0.0 else edges.source != edges.target
    hops = list(batch.hops)
    if rate > 0.0:
        for number in range(1, 1 + num_read):
            hop_edges = edge_rows(batch, hops[number], families=families, keys=keys)
            hops[number] = keep_edges(hops[number], ~_is_masked(hop_edges, ends, rate=rate, noise=noise))
    return MaskedBatch(
        hops=tuple(hops),
        source=edges.source[is_target],
        target=edges.target[is_target],
        family=edges.family[is_target],
        position=first.position[is_target],
        relation=edge_relations(first)[is_target],
    )


def _is_masked(edges: EdgeRows, ends: Tensor | None, *, rate: float, noise: Noise) -> Tensor:
    """Bool [E]."""
    masked = noise.select(edges.keys, rate, site=Site.PAIR) & (edges.source != edges.target)
    return masked if ends is None else masked & (ends[edges.source] | ends[edges.target])
