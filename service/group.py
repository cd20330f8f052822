"""What crosses ranks: sums with a correct gradient, and rows gathered in rank order."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Group:
    """The ranks that share one global batch; `Group()` is one rank alone, whose sums and gathers are identities."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    """number among the ranks of the same machine, which share its GPUs"""
    handle: Any = None
    """torch process group; None when alone"""

    @classmethod
    def from_torch(cls, *, local_rank: int) -> "Group":
        """The group of all ranks of `torch.distributed`, or one rank alone when that is not initialised.

        `local_rank` is the caller's; torch does not know which ranks share a machine.

        Every rank must call it, at the same point. It opens its own process group, so that sums made inside a
        backward pass never interleave with DDP's gradient buckets in a different order on different ranks.
        """
        if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
            return cls(local_rank=local_rank)
        return cls(
            rank=dist.get_rank(),
            world_size=dist.get_world_size(),
            local_rank=local_rank,
            handle=dist.new_group(),
        )

    def sum(self, tensor: Tensor) -> Tensor:
        """`tensor` summed over ranks, on every rank.

        Its gradient is the sum of all ranks' gradients, as it must be when each rank holds a part of one loss;
        `torch.distributed.all_reduce` has no gradient at all. Every rank has to reach the backward pass too.
        """
        if self.world_size == 1:
            return tensor
        total: Tensor = _SumOverRanks.apply(tensor, self.handle)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return total

    def gather_rows(self, rows: Tensor) -> Tensor:
        """All ranks' rows [n_r, ...], one after another in rank order; n_r may differ and be 0. No gradient."""
        if self.world_size == 1:
            return rows.detach()
        length = torch.tensor([rows.shape[0]], dtype=torch.int64, device=rows.device)
        lengths = [torch.empty_like(length) for _ in range(self.world_size)]
        dist.all_gather(lengths, length, group=self.handle)
        counts = [int(length) for length in lengths]
        padded = rows.new_zeros((max(counts), *rows.shape[1:]))
        padded[: rows.shape[0]] = rows.detach()
        parts = [torch.empty_like(padded) for _ in range(self.world_size)]
        if padded.numel():
            dist.all_gather(parts, padded, group=self.handle)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    def gather(self, rows: Tensor) -> tuple[Tensor, int]:
        """All ranks' rows [n_r, D], one after another in rank order, and the place of this rank's first; n_r may be 0.

        Its gradient is the sum of all ranks' gradients of this rank's rows, as that of `sum`: every rank has to reach
        the backward pass. Source: the gathering layer of SimCLR's and VICReg's public code, with uneven ranks.
        """
        if self.world_size == 1:
            return rows, 0
        length = torch.zeros(self.world_size, dtype=torch.int64, device=rows.device)
        length[self.rank] = rows.shape[0]
        dist.all_reduce(length, group=self.handle)
        counts = length.tolist()
        first = sum(counts[: self.rank])
        # rows of zeros elsewhere: a sum puts every rank's rows in place, and its gradient is the one wanted
        above, below = (
            rows.new_zeros((first, *rows.shape[1:])),
            rows.new_zeros((sum(counts) - first - rows.shape[0], *rows.shape[1:])),
        )
        return self.sum(torch.cat([above, rows, below])), first

    def barrier(self) -> None:
        """Wait until every rank is here."""
        if self.world_size > 1:
            dist.barrier(group=self.handle)


class _SumOverRanks(torch.autograd.Function):
    """All-reduce in both directions: d(sum of all ranks' losses) / d(this rank's part)."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, handle: Any) -> Tensor:
        ctx.handle = handle
        total = tensor.detach().clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=handle)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=ctx.handle)
        return total, None
