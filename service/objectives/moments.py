"""Means and covariances of the seeds of a global batch, with their gradient, the same on W ranks as on one.

Shapes: V views, S seeds of this rank, G of the global batch, D columns.
"""

import torch
from torch import Tensor

from service.group import Group


def centre(z_VSD: Tensor, *, group: Group) -> tuple[Tensor, Tensor]:
    """`z_VSD` minus each view's mean over the global batch, and G as a scalar of its dtype, at least 1.

    Every rank of `group` must call it, one without seeds too. Moments are taken of centred rows, in a second pass:
    sums of raw squares would lose the digits that a mean far from 0 takes up.
    """
    num_views, num_seeds, dim = z_VSD.shape
    sums = group.sum(torch.cat([z_VSD.sum(1).reshape(-1), z_VSD.new_full((1,), float(num_seeds))]))
    count = sums[-1].detach().clamp(min=1.0)
    return z_VSD - (sums[:-1] / count).reshape(num_views, 1, dim), count


def sum_together(*parts: Tensor, group: Group) -> list[Tensor]:
    """Every tensor of `parts` summed over ranks, by one exchange."""
    total = group.sum(torch.cat([part.reshape(-1) for part in parts]))
    pieces = total.split([part.numel() for part in parts])
    return [piece.reshape(part.shape) for piece, part in zip(pieces, parts, strict=True)]
