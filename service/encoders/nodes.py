"""The nodes of one forward pass, and per relation the edges a convolution reads.

A forward pass sees one list of nodes (`MiniBatch.node_type`, `node_id`); every hidden state h is [n, D] over a
prefix of that list. Shapes: N nodes, R relations, E edges of a hop under one relation.
"""

from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from sampling.batch import Hop, MiniBatch
from sampling.masks import edge_keys, keep, node_keys
from service.message_passing import Kernels, Neighbors


@dataclass(frozen=True, eq=False)
class RelationEdges:
    """A hop's edges under one relation, narrowed to the rows that they touch."""

    neighbors: Neighbors
    source_rows: Tensor | None
    """int64 [S]: row of h behind each source; None when sources are the first rows of h, in order"""
    target_rows: Tensor | None
    """int64 [T]: row of h behind each target; None when targets are the first rows of h, in order"""
    output_rows: Tensor | None
    """int64 [T]: row of the convolution's output behind each target; None when they are the same"""
    keys: Tensor
    """int64 [E]: key of each edge; the key of the node for an edge to itself"""

    def sources_of(self, h: Tensor) -> Tensor:
        """[S, ...]: h's rows as the edges' sources."""
        return h[: self.neighbors.num_sources] if self.source_rows is None else h[self.source_rows]

    def targets_of(self, h: Tensor) -> Tensor:
        """[T, ...]: h's rows as the edges' targets."""
        return h[: self.neighbors.num_targets] if self.target_rows is None else h[self.target_rows]

    def spread(self, out: Tensor, *, num_rows: int) -> Tensor:
        """[num_rows, ...]: the targets' results at their places in the convolution's output, 0 elsewhere."""
        if self.output_rows is None:
            return out
        return out.new_zeros((num_rows, *out.shape[1:])).index_copy(0, self.output_rows, out)


@dataclass(frozen=True, eq=False)
class Nodes:
    """Types, ids and whole-graph degrees of the nodes of one forward pass, and what is derived from them once."""

    node_type: Tensor
    """int64 [N]"""
    node_id: Tensor
    """int64 [N]: dense id inside the type"""
    in_degree: Tensor
    """int32 [R, N]: in the whole graph"""
    out_degree: Tensor
    """int32 [R, N]: in the whole graph"""
    kernels: Kernels = "auto"
    _edges: dict[tuple[int, int, bool], tuple[Hop, RelationEdges]] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, batch: MiniBatch, *, kernels: Kernels = "auto") -> "Nodes":
        """The nodes of `batch`; one object serves all views and layers of a forward pass."""
        return cls(
            node_type=batch.node_type,
            node_id=batch.node_id,
            in_degree=batch.in_degree,
            out_degree=batch.out_degree,
            kernels=kernels,
        )

    @cached_property
    def keys(self) -> Tensor:
        """int64 [N]: key of each node."""
        return node_keys(self.node_type, self.node_id)

    def edges(self, hop: Hop, relation: int, *, to_itself: bool = False, rows: Tensor | None = None) -> RelationEdges:
        """The edges of `hop` under `relation`; made once for each hop, relation and flag when `rows` is None.

        Args:
            to_itself: append to each target's edges one from the node to itself.
            rows: int64, distinct rows below `hop.num_targets`: these alone are targets, in this order.
        """
        if rows is not None:
            return self._make(hop, relation, to_itself=to_itself, rows=rows)
        place = (id(hop), relation, to_itself)
        if place not in self._edges:
            # the hop is kept with its edges: its id stays taken as long as this object lives
            self._edges[place] = (hop, self._make(hop, relation, to_itself=to_itself, rows=None))
        return self._edges[place][1]

    def _make(self, hop: Hop, relation: int, *, to_itself: bool, rows: Tensor | None) -> RelationEdges:
        first, last = int(hop.indptr[relation, 0]), int(hop.indptr[relation, -1])
        indptr = (hop.indptr[relation] - first).long()
        source = hop.source[first:last].long()
        weight = None if hop.weight is None else hop.weight[first:last]
        keys = edge_keys(torch.full_like(source, relation), hop.position[first:last])
        if rows is not None:
            indptr, chosen = _select_targets(indptr, rows)
            source, keys = source[chosen], keys[chosen]
            weight = None if weight is None else weight[chosen]
        output_rows = None
        if hop.indptr.shape[0] > 1 and not to_itself:
            # many rows have no edge under one relation of many: leave them out
            count = indptr[1:] - indptr[:-1]
            output_rows = count.nonzero().squeeze(1)
            indptr = _starts(count[output_rows])
        target_rows = output_rows if rows is None else (rows if output_rows is None else rows[output_rows])
        if to_itself:
            itself = torch.arange(hop.num_targets, device=source.device) if target_rows is None else target_rows
            indptr, source, keys, weight = _append_itself(indptr, source, keys, weight, itself, self.keys)
        source_rows = None
        num_sources = hop.num_sources
        if rows is not None or hop.indptr.shape[0] > 1:
            source_rows, source = _used_sources(source, num_sources)
            num_sources = source_rows.shape[0]
        neighbors = Neighbors(
            num_sources=num_sources,
            indptr=indptr.int(),
            source=source.int(),
            weight=weight,
            kernels=self.kernels,
        )
        return RelationEdges(
            neighbors=neighbors,
            source_rows=source_rows,
            target_rows=target_rows,
            output_rows=output_rows,
            keys=keys,
        )


def drop_edges(hop: Hop, *, rate: float, salt: int) -> Hop:
    """`hop` without a keyed share `rate` of its edges; rows and nodes stay.

    Source: DropEdge (Rong et al., ICLR 2020), applied to the sampled edges.
    """
    if rate == 0.0:
        return hop
    kept = keep(edge_keys(edge_relations(hop), hop.position), salt=salt, num_columns=1, rate=rate).squeeze(1)
    return keep_edges(hop, kept)


def keep_edges(hop: Hop, kept: Tensor) -> Hop:
    """`hop` with the edges that bool [E] `kept` names alone; rows and nodes stay."""
    before = _starts(kept.long())
    return replace(
        hop,
        indptr=before[hop.indptr.long()].int(),
        source=hop.source[kept],
        position=hop.position[kept],
        weight=None if hop.weight is None else hop.weight[kept],
    )


def edge_relations(hop: Hop) -> Tensor:
    """int64 [E]: number of each edge's relation."""
    starts, ends = hop.indptr[:, 0].long(), hop.indptr[:, -1].long()
    relation = torch.arange(len(starts), device=starts.device)
    return torch.repeat_interleave(relation, ends - starts, output_size=hop.source.shape[0])


def _starts(count: Tensor) -> Tensor:
    """int64 [n + 1]: running sums of int64 [n], from 0."""
    return torch.cat([count.new_zeros(1), count.cumsum(0)])


def _select_targets(indptr: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Indptr of the targets `rows` alone, and the places of their edges."""
    count = (indptr[1:] - indptr[:-1])[rows]
    chosen_indptr = _starts(count)
    shift = torch.repeat_interleave(indptr[rows] - chosen_indptr[:-1], count)
    return chosen_indptr, shift + torch.arange(shift.shape[0], device=shift.device)


def _append_itself(
    indptr: Tensor, source: Tensor, keys: Tensor, weight: Tensor | None, itself: Tensor, all_keys: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """The edges with one more at the end of each target's: from row `itself[t]`, of weight 1."""
    target = torch.repeat_interleave(torch.arange(itself.shape[0], device=source.device), indptr[1:] - indptr[:-1])
    old = torch.arange(source.shape[0], device=source.device) + target
    new = indptr[1:] + torch.arange(itself.shape[0], device=source.device)
    num_edges = source.shape[0] + itself.shape[0]
    sources, edge_key = source.new_empty(num_edges), keys.new_empty(num_edges)
    sources[old], sources[new] = source, itself
    edge_key[old], edge_key[new] = keys, all_keys[itself]
    if weight is not None:
        weights = weight.new_ones(num_edges)
        weights[old] = weight
        weight = weights
    return indptr + torch.arange(indptr.shape[0], device=indptr.device), sources, edge_key, weight


def _used_sources(source: Tensor, num_sources: int) -> tuple[Tensor, Tensor]:
    """The rows that occur in `source`, ascending, and `source` as places among them."""
    used = torch.zeros(num_sources, dtype=torch.bool, device=source.device)
    used[source] = True
    return used.nonzero().squeeze(1), (used.cumsum(0) - 1)[source]
