"""Seeds a second time in a batch, without their features: what an objective that generates attributes encodes.

A copy has its seed's edges and is nobody's neighbour. Copies stand behind the nodes that the last layer puts out, so
the states of those stay where they were, and every hop still extends a prefix of the list of nodes.

Shapes: N nodes, S seeds, K nodes that the last layer puts out, F_t feature columns of type t, R relations.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from sampling.batch import Hop, MiniBatch


def with_copies(
    batch: MiniBatch, hops: Sequence[Hop], *, tokens: Mapping[int, Tensor], dtype: torch.dtype
) -> MiniBatch:
    """`batch` with rows [K, K + S) for copies of the seeds, and with `hops` alone, in which copies are targets.

    A copy shows the token [F_t] of its type in place of its features; of a type without features it differs from its
    seed in nothing. Where a node is its own neighbour, so is its copy. Keys of nodes and edges are those of the seed.

    Args:
        hops: of the batch, those that the encoder reads, from the seeds outward: K is the first one's number of
            targets, N where there are none.
        tokens: of every type that has features.
        dtype: of the features that come out.
    """
    num_seeds = batch.num_seeds
    first = hops[0].num_targets if hops else batch.node_type.shape[0]
    features: list[Tensor | None] = []
    for kind, table in enumerate(batch.features):
        if table is None:
            features.append(None)
            continue
        before, copies = (int((batch.node_type[:count] == kind).sum()) for count in (first, num_seeds))
        shown, token = table.to(dtype), tokens[kind].to(dtype)
        features.append(torch.cat([shown[:before], token.expand(copies, -1), shown[before:]]))
    learned: list[Tensor | None] = []
    for kind, rows in enumerate(batch.learned):
        before, copies = (int((batch.node_type[:count] == kind).sum()) for count in (first, num_seeds))
        learned.append(None if rows is None else torch.cat([rows[:before], rows[:copies], rows[before:]]))
    return replace(
        batch,
        hops=tuple(_copy_targets(hop, first=first, num_seeds=num_seeds) for hop in hops),
        node_type=_with_seeds(batch.node_type, first=first, num_seeds=num_seeds),
        node_id=_with_seeds(batch.node_id, first=first, num_seeds=num_seeds),
        in_degree=_with_seeds(batch.in_degree, first=first, num_seeds=num_seeds),
        out_degree=_with_seeds(batch.out_degree, first=first, num_seeds=num_seeds),
        features=tuple(features),
        learned=tuple(learned),
    )


def _with_seeds(columns: Tensor, *, first: int, num_seeds: int) -> Tensor:
    """[..., n + S] from [..., n]: the first S columns once more, at `first`."""
    return torch.cat([columns[..., :first], columns[..., :num_seeds], columns[..., first:]], dim=-1)


def _copy_targets(hop: Hop, *, first: int, num_seeds: int) -> Hop:
    """`hop` with a copy of each seed among its targets, and sources numbered as copies push them on."""
    device = hop.source.device
    starts = _with_seeds(hop.indptr[:, :-1].long(), first=first, num_seeds=num_seeds)
    counts = _with_seeds((hop.indptr[:, 1:] - hop.indptr[:, :-1]).long(), first=first, num_seeds=num_seeds)
    num_relations, num_targets = counts.shape
    counts = counts.reshape(-1)
    pointers = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    num_edges = int(pointers[-1])
    shift = torch.repeat_interleave(starts.reshape(-1) - pointers[:-1], counts, output_size=num_edges)
    chosen = shift + torch.arange(num_edges, device=device)
    rows = torch.arange(num_targets, device=device)
    target = torch.repeat_interleave(rows.repeat(num_relations), counts, output_size=num_edges)
    source = hop.source.long()[chosen]
    # through a seed that is its own neighbour, its copy would see what is hidden
    is_own = (target >= first) & (target < first + num_seeds) & (source == target - first)
    source = torch.where(is_own, target, torch.where(source >= first, source + num_seeds, source))
    begin = num_targets * torch.arange(num_relations, device=device)
    return Hop(
        num_targets=num_targets,
        num_sources=hop.num_sources + num_seeds,
        indptr=pointers[begin[:, None] + torch.arange(num_targets + 1, device=device)].int(),
        source=source.int(),
        position=hop.position[chosen],
        weight=None if hop.weight is None else hop.weight[chosen],
    )
