"""Normalisation of hidden states, the same on W ranks as on one but for `LocalBatchNorm`.

Shapes: n rows of which the first S are seeds, D columns.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from service.group import Group

HeadNorm = Literal["none", "layer", "batch"]
NormName = Literal["none", "layer", "batch", "local-batch"]


class NoNorm(nn.Module):
    """The identity."""

    def forward(self, h: Tensor, *, num_seeds: int, group: Group) -> Tensor:
        return h


class LayerNorm(nn.LayerNorm):
    """Each row by its own mean and variance (Ba et al., 2016); nothing crosses rows or ranks."""

    def forward(self, h: Tensor, *, num_seeds: int, group: Group) -> Tensor:  # type: ignore[override]  # one signature for all norms
        return super().forward(h)


class SeedBatchNorm(nn.Module):
    """Batch norm whose statistics come from the seed rows of the global batch only and apply to all rows.

    Seed rows are the same rows however the batch is split over ranks, whereas the other rows of a block overlap
    between ranks; so W ranks normalise as one. Statistics are summed over ranks with their gradient, in two passes
    (mean, then squared deviations) for precision. Evaluation uses running statistics.
    Source: Ioffe and Szegedy, ICML 2015, algorithm 1.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, dim: int, *, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.eps = eps
        self.momentum = momentum
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))
        self.register_buffer("running_mean", torch.zeros(dim))
        self.register_buffer("running_var", torch.ones(dim))

    def forward(self, h: Tensor, *, num_seeds: int, group: Group) -> Tensor:
        """[n, D]; rows [0, num_seeds) of h are this rank's seeds. In training every rank of `group` must call it."""
        h = h.to(self.weight.dtype)  # statistics of low-precision rows (autocast) are taken in the parameters' type
        if not self.training:
            return self._apply_statistics(h, self.running_mean, self.running_var)
        seeds = h[:num_seeds]
        sums = group.sum(torch.cat([seeds.sum(0), seeds.new_full((1,), float(num_seeds))]))
        count = sums[-1].detach()
        mean = sums[:-1] / count.clamp(min=1.0)
        var = group.sum((seeds - mean).square().sum(0)) / count.clamp(min=1.0)
        with torch.no_grad():
            unbiased = var * (count / (count - 1.0).clamp(min=1.0))
            share = self.momentum * (count > 0).to(h.dtype)
            self.running_mean += share * (mean - self.running_mean)
            self.running_var += share * (unbiased - self.running_var)
        return self._apply_statistics(h, mean, var)

    def _apply_statistics(self, h: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        scale = self.weight * (var + self.eps).rsqrt()
        return h * scale + (self.bias - mean * scale)


class LocalBatchNorm(SeedBatchNorm):
    """Batch norm by the seeds of this rank alone: nothing crosses ranks, and W ranks do not normalise as one.

    A rank with fewer than two seeds has no variance and takes its running statistics. Those of rank 0 are what a
    checkpoint keeps. On one rank with two seeds or more it is `SeedBatchNorm`.
    """

    def forward(self, h: Tensor, *, num_seeds: int, group: Group) -> Tensor:
        """As `SeedBatchNorm.forward`, whatever the other ranks do."""
        if self.training and num_seeds < 2:
            return self._apply_statistics(h.to(self.weight.dtype), self.running_mean, self.running_var)
        return super().forward(h, num_seeds=num_seeds, group=Group())


Norm = NoNorm | LayerNorm | SeedBatchNorm


def make_norm(name: NormName, dim: int) -> Norm:
    """The norm called `name` over `dim` columns."""
    match name:
        case "none":
            return NoNorm()
        case "layer":
            return LayerNorm(dim)
        case "batch":
            return SeedBatchNorm(dim)
        case "local-batch":
            return LocalBatchNorm(dim)
