"""k-means over a stream of batches: centroids that follow the seeds of each global batch, the same on every rank.

Shapes: K clusters, F columns, S rows of this rank, G of all ranks.
"""

import torch
from torch import Tensor, nn

from service.group import Group
from service.noise import Noise, Site

EMPTY = 0
"""count of a cluster that has no centroid yet"""
FRESH = -1
"""count of one whose centroid is a row of this step, which `update` has yet to count"""


class OnlineClusters(nn.Module):
    """Mini-batch k-means with one learning rate per centroid.

    Every row that a cluster was ever given weighs the same in its centroid. A cluster without a centroid takes a row of
    the global batch, chosen by key, that no other centroid equals; so all have one as soon as there were K distinct
    rows. Centroids and counts are buffers: they are in checkpoints, and every rank computes the same.
    Source: Sculley, "Web-scale k-means clustering", WWW 2010, algorithm 1, with the rows of a batch added at once.
    """

    centroids: Tensor
    counts: Tensor

    def __init__(self, num_clusters: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("centroids", torch.zeros(num_clusters, dim))
        self.register_buffer("counts", torch.zeros(num_clusters, dtype=torch.int64))

    @torch.no_grad()
    def fill(self, rows: Tensor, keys: Tensor, *, noise: Noise, group: Group) -> None:
        """Give clusters without a centroid rows [S, F] of the global batch; every rank of `group` must call it.

        The rows are counted by `update`, which follows with the same ones; a cluster that it gives none is empty again.

        Args:
            keys: int64 [S], one a row, distinct over all ranks: they decide who is chosen, not the rows' order.
        """
        empty = (self.counts == EMPTY).nonzero().squeeze(1)
        if not empty.shape[0]:
            return
        all_rows, all_keys = group.gather_rows(rows), group.gather_rows(keys)
        order = noise.partners(all_keys, 1 << 53, site=Site.SHUFFLE).argsort(stable=True)
        known = self.centroids[self.counts != EMPTY]
        rows = torch.cat([known, all_rows[order].to(self.centroids.dtype)])
        new = first_of_each(rows)
        new = new[new >= known.shape[0]][: empty.shape[0]]
        filled = empty[: new.shape[0]]
        self.centroids[filled] = rows[new]
        self.counts[filled] = FRESH

    @torch.no_grad()
    def assign(self, rows: Tensor) -> Tensor:
        """int64 [S]: the nearest centroid of rows [S, F]; the lower number of two as near."""
        rows = rows.to(self.centroids.dtype)
        with torch.autocast(
            rows.device.type, enabled=False
        ):  # of near centroids, half precision would choose by chance
            distance = self.centroids.square().sum(1) - 2.0 * rows @ self.centroids.T  # plus what all have in common
        return distance.masked_fill(self.counts == EMPTY, torch.inf).argmin(1)

    @torch.no_grad()
    def update(self, rows: Tensor, labels: Tensor, *, group: Group) -> None:
        """Move centroids towards the rows [S, F] that `labels` [S] give them; every rank of `group` must call it."""
        num_clusters, dim = self.centroids.shape
        sums = rows.new_zeros((num_clusters, dim), dtype=torch.float64).index_add_(0, labels, rows.double())
        added = torch.bincount(labels, minlength=num_clusters)
        sums, added = group.sum(sums), group.sum(added)
        self.counts.clamp_(min=0)
        self.counts += added
        # in float64, so that how rows are spread over ranks does not show after rounding
        centroids = self.centroids.double()
        centroids += (sums - added[:, None] * centroids) / self.counts.clamp(min=1)[:, None]
        self.centroids.copy_(centroids)


def first_of_each(rows: Tensor) -> Tensor:
    """int64: places of the rows [n, F] that no row before them equals, ascending."""
    if not rows.shape[0]:
        return torch.zeros(0, dtype=torch.int64, device=rows.device)
    values, value = torch.unique(rows, dim=0, return_inverse=True)
    places = torch.arange(rows.shape[0], device=rows.device)
    first = places.new_full((values.shape[0],), rows.shape[0]).scatter_reduce_(0, value, places, "amin")
    return first.sort().values
