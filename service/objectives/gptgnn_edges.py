"""Edge generation: a hidden neighbour among others of its type, of this step and of steps before.

Shapes: P target edges of one relation, C candidates for a source's place, U distinct ones, Q places of a queue,
E edges of the first hop under the relation, S seeds, D columns of a state.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sampling.batch import MiniBatch
from service.encoders.convolution import linear

NOBODY = -1
"""id in a place of a queue that nothing was put in yet"""


@dataclass(frozen=True, eq=False)
class Candidates:
    """Nodes of one type that may stand in a source's place."""

    states: Tensor
    """[C, D]"""
    node_id: Tensor
    """int64 [C]; `NOBODY` where there is none"""


class SeedQueue(nn.Module):
    """States of seeds of one type from the steps before, the newest first, without gradient.

    They are buffers, so they are in checkpoints; what is put in comes from the gathered global batch, so every rank
    holds the same.
    Source: the adaptive queue of GPT-GNN (Hu et al., KDD 2020), section 3.5.
    """

    states: Tensor
    node_id: Tensor

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("states", torch.zeros(size, dim))
        self.register_buffer("node_id", torch.full((size,), NOBODY))

    @torch.no_grad()
    def push(self, newest: Candidates) -> None:
        """Put in `newest`, in their order, and let go of the oldest."""
        size = self.node_id.shape[0]
        self.states.copy_(torch.cat([newest.states.to(self.states.dtype), self.states])[:size])
        self.node_id.copy_(torch.cat([newest.node_id, self.node_id])[:size])

    def behind(self, newest: Candidates) -> Candidates:
        """`newest`, then what is in the queue; later changes of the queue do not reach it."""
        return Candidates(
            states=torch.cat([newest.states, self.states.to(newest.states.dtype)]),
            node_id=torch.cat([newest.node_id, self.node_id]),
        )


class Matcher(nn.Module):
    """Logits of (target, source): the inner product of a linear map of each, over the root of the columns.

    Source: the public code of GPT-GNN (acbull/GPT-GNN), which has one for each relation.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.target = linear(width, width, bias=True)
        self.source = linear(width, width, bias=True)
        self.scale = 1.0 / math.sqrt(width)

    def forward(self, target_PD: Tensor, source_PD: Tensor, candidates_CD: Tensor) -> tuple[Tensor, Tensor]:
        """[P]: of the pairs; [P, C]: of each target with every candidate."""
        wanted = self.target(target_PD) * self.scale
        return (wanted * self.source(source_PD)).sum(1), wanted @ self.source(candidates_CD).T


def contrast(found_P: Tensor, others_PC: Tensor, left_out_PC: Tensor) -> Tensor:
    """[P]: -log of the share that exp(found) has in itself and exp(others); a target left with no other has 0.

    Args:
        left_out_PC: bool: others that do not count.

    Source: GPT-GNN, section 3.4 (edge generation).
    """
    others = others_PC.masked_fill(left_out_PC, -torch.inf)
    return torch.cat([found_P[:, None], others], dim=1).logsumexp(1) - found_P


def linked(batch: MiniBatch, candidates: Candidates, *, relation: int, source_type: int, target_P: Tensor) -> Tensor:
    """Bool [P, C]: candidates that are no negative of a target, and places without one.

    Those are its sampled neighbours under the relation, hidden ones too, and itself.

    Args:
        source_type: of the relation, and of all candidates.
        target_P: int64: row of the seed.
    """
    num_candidates = candidates.node_id.shape[0]
    if not num_candidates:
        return torch.zeros((target_P.shape[0], 0), dtype=torch.bool, device=target_P.device)
    hop, num_seeds = batch.hops[0], batch.num_seeds
    values_U, value_C = torch.unique(candidates.node_id, return_inverse=True)
    pointers = hop.indptr[relation].long()
    rows = torch.arange(num_seeds, device=pointers.device)
    targets_E = torch.repeat_interleave(rows, pointers[1:] - pointers[:-1])
    sources_E = batch.node_id[hop.source[int(pointers[0]) : int(pointers[-1])].long()]
    own = (batch.node_type[:num_seeds] == source_type).nonzero().squeeze(1)
    ends = torch.cat([targets_E, own])
    ids = torch.cat([sources_E, batch.node_id[own]])
    place = torch.searchsorted(values_U, ids).clamp(max=values_U.shape[0] - 1)
    is_candidate = values_U[place] == ids
    known_SU = torch.zeros((num_seeds, values_U.shape[0]), dtype=torch.bool, device=pointers.device)
    known_SU[ends[is_candidate], place[is_candidate]] = True
    return known_SU[target_P][:, value_C] | (candidates.node_id == NOBODY)
