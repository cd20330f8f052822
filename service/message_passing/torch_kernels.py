"""Message passing in plain torch, for any device; `embedding_bag` fuses gather and sum in both directions.

Measured on 2 cores, 178k sources x 128 columns, 200k edges, forward and backward: mean 52 ms (DGL 49),
weighted sum 55 ms (DGL 105), attention over 4 heads 147 ms (DGL 156), maximum 297 ms (DGL 70).
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from service.message_passing.neighbors import Neighbors


def sum_rows(neighbors: Neighbors, x_SD: Tensor, weight_E: Tensor | None) -> Tensor:
    """[T, D]: sum of the sources' rows, times `weight_E` where given."""
    return embedding_bag(
        neighbors.source,
        x_SD,
        neighbors.indptr,
        mode="sum",
        per_sample_weights=weight_E,
        include_last_offset=True,
    )


def max_rows(neighbors: Neighbors, x_SD: Tensor) -> Tensor:
    """[T, D]: maximum over the sources' rows, 0 where there is none."""
    return embedding_bag(neighbors.source, x_SD, neighbors.indptr, mode="max", include_last_offset=True)


def attend_rows(neighbors: Neighbors, x_SHD: Tensor, attention_EH: Tensor) -> Tensor:
    """[T, H, D]: sum of attention times the sources' rows, head by head.

    One bag per (target, head) over the rows (source, head).
    """
    num_heads = attention_EH.shape[1]
    target, count = neighbors.target, neighbors.num_in_edges
    start = neighbors.indptr[:-1].long()
    edge = torch.arange(neighbors.num_edges, device=target.device)
    head = torch.arange(num_heads, device=target.device)
    # place of (edge, head) when the entries are ordered by target, head, edge
    place_EH = (edge + start[target] * (num_heads - 1))[:, None] + count[target, None] * head
    entry = torch.empty(neighbors.num_edges * num_heads, dtype=torch.int64, device=target.device)
    entry[place_EH.reshape(-1)] = torch.arange(entry.shape[0], device=target.device)
    row = (neighbors.source.long()[:, None] * num_heads + head).reshape(-1)[entry]
    offsets = torch.cat([(start[:, None] * num_heads + count[:, None] * head).reshape(-1), row.new_tensor([len(row)])])
    out = embedding_bag(
        row,
        x_SHD.reshape(-1, x_SHD.shape[2]),
        offsets,
        mode="sum",
        per_sample_weights=attention_EH.reshape(-1)[entry],
        include_last_offset=True,
    )
    return out.view(neighbors.num_targets, num_heads, x_SHD.shape[2])


def score_edges(neighbors: Neighbors, source_SH: Tensor, target_TH: Tensor) -> Tensor:
    """[E, H]: source score plus target score of each edge."""
    return source_SH.index_select(0, neighbors.source) + target_TH.index_select(0, neighbors.target)


class EdgeSoftmax(torch.autograd.Function):
    """Softmax over the edges into each target, column by column."""

    @staticmethod
    def forward(ctx: Any, logits_EH: Tensor, target_E: Tensor, num_targets: int) -> Tensor:
        shape = (num_targets, logits_EH.shape[1])
        top = logits_EH.new_full(shape, -torch.inf)
        top.scatter_reduce_(0, target_E[:, None].expand_as(logits_EH), logits_EH, "amax")
        share = (logits_EH - top.index_select(0, target_E)).exp_()
        total = share.new_zeros(shape).index_add_(0, target_E, share)
        share.div_(total.index_select(0, target_E))
        ctx.save_for_backward(share, target_E)
        ctx.num_targets = num_targets
        return share

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        share, target_E = ctx.saved_tensors
        part = gradient * share
        total = part.new_zeros((ctx.num_targets, part.shape[1])).index_add_(0, target_E, part)
        return part.sub_(share * total.index_select(0, target_E)), None, None
