"""The message-passing primitives every encoder is made of: mean, sum, maximum, attention-weighted sum.

DGL's fused kernels run them where DGL runs on the device and plain torch elsewhere; a test holds both equal in
value and gradient. Nothing outside this package knows which.

Shapes: S sources, T targets, E edges, D columns, H heads. Low-precision inputs (autocast) are summed in float32.
"""

import torch
from torch import Tensor

from service.message_passing import dgl_kernels, torch_kernels
from service.message_passing.neighbors import Kernels, Neighbors

__all__ = [
    "Kernels",
    "Neighbors",
    "attend",
    "edge_softmax",
    "maximum",
    "mean",
    "score_edges",
    "sum_neighbors",
]


def sum_neighbors(neighbors: Neighbors, x_SD: Tensor, *, weight_E: Tensor | None = None) -> Tensor:
    """[T, D]: sum over in-edges of weight times the source's row; 0 where a target has no edge.

    Args:
        weight_E: replaces the edges' own weights; not differentiated.
    """
    x_SD = _wide(x_SD)
    weight_E = neighbors.weight if weight_E is None else weight_E
    if neighbors.num_edges == 0:
        return _nothing(neighbors, x_SD)
    if weight_E is not None:
        weight_E = weight_E.detach().to(x_SD.dtype)
    if neighbors.runs_dgl and weight_E is None:
        return dgl_kernels.sum_rows(neighbors.block, x_SD)
    if neighbors.runs_dgl and weight_E is not None and neighbors.kernels == "dgl":
        return dgl_kernels.weighted_sum_rows(neighbors.block, x_SD, weight_E)
    return torch_kernels.sum_rows(neighbors, x_SD, weight_E)  # twice as fast as DGL's weighted sum


def mean(neighbors: Neighbors, x_SD: Tensor) -> Tensor:
    """[T, D]: weighted mean of the sources' rows; 0 where a target has no edge or only weights of 0."""
    x_SD = _wide(x_SD)
    if neighbors.weight is None:
        total_T = neighbors.num_in_edges.to(x_SD.dtype)
    else:
        weight_E = neighbors.weight.to(x_SD.dtype)
        total_T = x_SD.new_zeros(neighbors.num_targets).index_add(0, neighbors.target, weight_E)
    share_T = torch.where(total_T > 0, 1.0 / total_T, 0.0)
    return sum_neighbors(neighbors, x_SD) * share_T[:, None]


def maximum(neighbors: Neighbors, x_SD: Tensor) -> Tensor:
    """[T, D]: maximum over the sources' rows, weights ignored; 0 where a target has no edge."""
    x_SD = _wide(x_SD)
    if neighbors.num_edges == 0:
        return _nothing(neighbors, x_SD)
    if neighbors.runs_dgl:
        top = dgl_kernels.max_rows(neighbors.block, x_SD)  # minus infinity without edges
        return top.masked_fill((neighbors.num_in_edges == 0)[:, None], 0.0)
    return torch_kernels.max_rows(neighbors, x_SD)


def attend(neighbors: Neighbors, x_SHD: Tensor, *, attention_EH: Tensor) -> Tensor:
    """[T, H, D]: sum over in-edges of attention times the source's row, head by head; 0 without edges."""
    x_SHD = _wide(x_SHD)
    if neighbors.num_edges == 0:
        return _nothing(neighbors, x_SHD) + attention_EH.sum() * 0.0
    attention_EH = attention_EH.to(x_SHD.dtype)
    if neighbors.runs_dgl:
        return dgl_kernels.attend_rows(neighbors.block, x_SHD, attention_EH)
    return torch_kernels.attend_rows(neighbors, x_SHD, attention_EH)


def score_edges(neighbors: Neighbors, source_SH: Tensor, *, target_TH: Tensor) -> Tensor:
    """[E, H]: the source's score plus the target's, for each edge."""
    source_SH, target_TH = _wide(source_SH), _wide(target_TH)
    if neighbors.runs_dgl:
        return dgl_kernels.score_edges(neighbors.block, source_SH, target_TH)
    return torch_kernels.score_edges(neighbors, source_SH, target_TH)


def edge_softmax(neighbors: Neighbors, logits_EH: Tensor) -> Tensor:
    """[E, H]: softmax over the edges into each target, column by column."""
    softmax = torch_kernels.EdgeSoftmax.apply
    share: Tensor = softmax(_wide(logits_EH), neighbors.target, neighbors.num_targets)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return share


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _nothing(neighbors: Neighbors, x: Tensor) -> Tensor:
    """Zeros that still hang on x, so that its parameters get gradients of 0 rather than none."""
    return x.new_zeros((neighbors.num_targets, *x.shape[1:])) + x[:0].sum(0)
