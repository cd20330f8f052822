"""Gradients of several tasks, found one by one on each rank, and combined into one after one reduction.

Shapes: K tasks, P entries of all shared parameters (the encoder's), P_k of task k's own.
"""

import torch
from torch import Tensor, nn

from service.group import Group
from service.objectives.base import LossSum
from service.objectives.min_norm import min_norm_weights
from service.objectives.multitask import Multitask


class TaskGradients:
    """The multiple-gradient descent of a global step.

    Shared parameters get the shortest convex combination of the tasks' gradients, each over all ranks and scaled to
    length 1: it leads downhill for every task, and its length is at most 1. A task without gradient takes no part. The
    own parameters of a task get the gradient of its mean loss with weight 1: no other task is at odds with it there.
    Holds K * P float64 numbers.
    Sources: Desideri, "Multiple-gradient descent algorithm", 2012; Sener and Koltun, NeurIPS 2018, section 3; the
    scaling: ParetoGNN (Ju et al., ICLR 2023).
    """

    def __init__(self, encoder: nn.Module, objective: nn.Module) -> None:
        assert isinstance(objective, Multitask)
        self.shared = trained(encoder)
        self.own = [trained(task) for task in objective.tasks]
        self._rows: list[Tensor] | None = None

    def add(self, losses: tuple[LossSum, ...]) -> None:
        """Differentiate the losses of this rank's part of a batch; every rank must call it. Frees each one's graph."""
        rows = []
        for loss, own in zip(losses, self.own, strict=True):
            # not `backward`: what DDP hangs on parameters must not see the gradient of one task
            found = torch.autograd.grad(loss.loss_sum, [*self.shared, *own], materialize_grads=True)
            rows.append(torch.cat([gradient.reshape(-1).double() for gradient in found]))
        if self._rows is not None:
            rows = [before + row for before, row in zip(self._rows, rows, strict=True)]
        self._rows = rows

    def write(self, *, count: float, group: Group) -> None:
        """Put the combination into the parameters' `grad`; every rank must call it, and ends with the same bits.

        Args:
            count: that sums over all batches and ranks are divided by.
        """
        assert self._rows is not None
        total = group.sum(torch.cat(self._rows)) / count
        rows = total.split([row.numel() for row in self._rows])
        num_shared = sum(parameter.numel() for parameter in self.shared)
        shared_KP = torch.stack([row[:num_shared] for row in rows])
        put(combined(shared_KP, group=group), self.shared)
        for row, own in zip(rows, self.own, strict=True):
            put(row[num_shared:], own)


def combined(gradients_KP: Tensor, *, group: Group) -> Tensor:
    """[P]: the shortest convex combination of the rows, each scaled to length 1; rows of zeros are left out.

    The weights are rank 0's: processors of other kinds round otherwise, and ranks must not drift apart.
    """
    lengths_K = gradients_KP.norm(dim=1)
    unit_KP = gradients_KP[lengths_K != 0.0] / lengths_K[lengths_K != 0.0, None]
    if unit_KP.shape[0] == 0:
        return torch.zeros_like(gradients_KP[0])
    weights_K = torch.from_numpy(min_norm_weights((unit_KP @ unit_KP.T).cpu().numpy())).to(unit_KP.device)
    weights_K = group.sum(weights_K if group.rank == 0 else torch.zeros_like(weights_K))
    shortest: Tensor = (weights_K[:, None] * unit_KP).sum(0)
    return shortest


def trained(module: nn.Module) -> list[nn.Parameter]:
    """Parameters that have a gradient."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def put(gradient: Tensor, parameters: list[nn.Parameter]) -> None:
    """Cut a row of gradients into the parameters' `grad`."""
    parts = gradient.split([parameter.numel() for parameter in parameters]) if parameters else ()
    for part, parameter in zip(parts, parameters, strict=True):
        parameter.grad = part.reshape(parameter.shape).to(parameter.dtype)
