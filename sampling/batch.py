"""The mini-batch contract: frozen, seeds first, then each hop's new nodes.

Shapes: S seeds, N nodes, R relations, T node types; n_h nodes known before hop h (n_0 = S), E_h edges of hop h.
Hop h has a row for every node known before it, so the nodes of the batch are one list and every hop reads and
extends a prefix of it: rows [0, n_h) are its targets, [0, n_{h+1}) its sources.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Hop:
    """The sampled in-neighbours of every node known before this hop, relation by relation.

    Relation r's edges into target row v are `source[indptr[r, v]:indptr[r, v + 1]]`; relations follow each
    other in `source`, so `indptr[r, -1] == indptr[r + 1, 0]`.
    """

    num_targets: int
    """n_h: rows [0, num_targets) of the batch are targets."""
    num_sources: int
    """n_{h+1}: rows [0, num_sources) of the batch may be sources."""
    indptr: Tensor
    """int32 [R, n_h + 1]"""
    source: Tensor
    """int32 [E_h]: row of the source in the batch"""
    position: Tensor
    """int64 [E_h]: place of the edge in its relation's CSC"""
    weight: Tensor | None
    """float32 [E_h]: 1 where the relation has no weights; None when no relation has any"""


@dataclass(frozen=True)
class SeedPairs:
    """One rank's share of the P seed edges of a global batch, with K negatives each.

    Ends are places among the seeds of the global batch: rank 0's, then rank 1's, and so on. So an end may be a seed of
    another rank.
    """

    source: Tensor
    """int64 [p]: place of each seed edge's source"""
    target: Tensor
    """int64 [p]: place of its target"""
    negative: Tensor
    """int64 [p, K]: places of what takes the place of one of its ends"""
    position: Tensor
    """int64 [p]: place of the edge in its relation's CSC"""
    relation: int
    """number of the edges' relation"""
    replaces_source: bool
    """whether negatives take the source's place, not the target's"""


@dataclass(frozen=True)
class MiniBatch:
    """One rank's slice of one global batch, with all that the encoder reads."""

    epoch: int
    step: int
    num_seeds: int
    """S: rows [0, S) are this rank's seed nodes"""
    num_seeds_global: int
    """seeds of the global batch over all ranks"""
    hops: tuple[Hop, ...]
    """from the seeds outward"""
    node_type: Tensor
    """int64 [N]"""
    node_id: Tensor
    """int64 [N]: dense id inside the type"""
    in_degree: Tensor
    """int32 [R, N]: in the whole graph; 0 where the node's type is not the relation's target"""
    out_degree: Tensor
    """int32 [R, N]: in the whole graph; 0 where the node's type is not the relation's source"""
    features: tuple[Tensor | None, ...]
    """one per type: [N_t, F_t] in the store's dtype, rows in batch order; None where the type has no features"""
    pairs: SeedPairs | None = None
    """where seeds are edges; seed nodes are then their ends, and those of their negatives"""
    learned: tuple[Tensor | None, ...] = ()
    """one per type: [N_t, C] rows that a model has learned by id, in batch order; None or empty where there are none"""

    def to(self, device: torch.device) -> "MiniBatch":
        """The same batch on `device`; copies overlap with computation where the memory is page-locked."""
        if device.type == "cpu":
            return self

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=True)

        return replace(
            self,
            hops=tuple(
                replace(
                    hop,
                    indptr=move(hop.indptr),
                    source=move(hop.source),
                    position=move(hop.position),
                    weight=None if hop.weight is None else move(hop.weight),
                )
                for hop in self.hops
            ),
            node_type=move(self.node_type),
            node_id=move(self.node_id),
            in_degree=move(self.in_degree),
            out_degree=move(self.out_degree),
            features=tuple(None if table is None else move(table) for table in self.features),
            pairs=None
            if self.pairs is None
            else replace(
                self.pairs,
                source=move(self.pairs.source),
                target=move(self.pairs.target),
                negative=move(self.pairs.negative),
                position=move(self.pairs.position),
            ),
        )
