"""What a node takes of its relations: the sum, mean or attention-weighted sum of the convolutions of all of them.

Shapes: n nodes, T targets with edges under one relation, K of these over all relations, D columns.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from service.encoders.nodes import RelationEdges

RelationWeights = Literal["sum", "mean", "attention"]
ATTENTION_DIM = 128
"""width of the scores' hidden layer (HAN, section 5.3)"""


class RelationSum(nn.Module):
    """The sum of the relations' parts."""

    def forward(self, own: Tensor, parts: Sequence[tuple[RelationEdges, Tensor]]) -> Tensor:
        """[n, D]: `own` [n, D] and what joins the parts, each the edges of a relation with its result [T, D]."""
        for edges, part in parts:
            own = own + edges.spread(part, num_rows=own.shape[0])
        return own


class RelationMean(nn.Module):
    """The mean over the relations under which a node has edges in the hop; 0 for a node without any."""

    def forward(self, own: Tensor, parts: Sequence[tuple[RelationEdges, Tensor]]) -> Tensor:
        """As `RelationSum.forward`."""
        rows_K, parts_KD = _all_rows(parts)
        count_n = torch.zeros(own.shape[0], dtype=parts_KD.dtype, device=own.device)
        count_n = count_n.index_add(0, rows_K, torch.ones_like(rows_K, dtype=parts_KD.dtype))
        return own + _sum_rows(own, rows_K, parts_KD / count_n[rows_K, None])


class RelationAttention(nn.Module):
    """Semantic attention: sum over relations r of b_vr z_vr, b_vr = softmax over r of q . tanh(W z_vr + c).

    Only relations under which node v has edges in the hop take part. Source: Wang et al., "Heterogeneous graph
    attention network", WWW 2019, section 4.2, eq. 7-9, but for one thing: eq. 7 averages the scores over all nodes
    of the graph, here each node attends by its own. A mini-batch does not know the average, so with it neither W
    ranks would equal one nor layer-wise embedding the forward pass.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(dim, ATTENTION_DIM)
        self.score = nn.Linear(ATTENTION_DIM, 1, bias=False)
        nn.init.xavier_uniform_(self.hidden.weight)
        nn.init.zeros_(self.hidden.bias)
        nn.init.xavier_uniform_(self.score.weight)

    def forward(self, own: Tensor, parts: Sequence[tuple[RelationEdges, Tensor]]) -> Tensor:
        """As `RelationSum.forward`."""
        rows_K, parts_KD = _all_rows(parts)
        score_K = self.score(torch.tanh(self.hidden(parts_KD))).squeeze(1).to(parts_KD.dtype)
        top_n = score_K.new_full((own.shape[0],), -torch.inf).scatter_reduce(0, rows_K, score_K.detach(), "amax")
        power_K = (score_K - top_n[rows_K]).exp()
        total_n = power_K.new_zeros(own.shape[0]).index_add(0, rows_K, power_K)
        return own + _sum_rows(own, rows_K, parts_KD * (power_K / total_n[rows_K])[:, None])


RelationMix = RelationSum | RelationMean | RelationAttention


def make_mix(weights: RelationWeights, dim: int, *, num_relations: int) -> RelationMix:
    """What joins the parts [T, dim] of `num_relations` relations; of one relation every way is the sum."""
    if num_relations < 2 or weights == "sum":
        return RelationSum()
    return RelationMean() if weights == "mean" else RelationAttention(dim)


def _all_rows(parts: Sequence[tuple[RelationEdges, Tensor]]) -> tuple[Tensor, Tensor]:
    """int64 [K]: the row of each part's row in the output, and the parts one after another [K, D]."""
    rows = [
        torch.arange(part.shape[0], device=part.device) if edges.output_rows is None else edges.output_rows
        for edges, part in parts
    ]
    return torch.cat(rows), torch.cat([part for _, part in parts])  # cat takes the wider of the types of autocast


def _sum_rows(own: Tensor, rows_K: Tensor, parts_KD: Tensor) -> Tensor:
    return parts_KD.new_zeros((own.shape[0], parts_KD.shape[1])).index_add(0, rows_K, parts_KD)
