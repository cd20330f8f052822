"""An objective's loss beside its formula, computed plainly."""

import pytest
import torch
from torch import Tensor

from service.model import Model
from service.objectives import LossSum


def assert_formula(model: Model, out: LossSum, expected: Tensor) -> None:
    """The mean loss and its gradient are those of `expected`."""
    assert (out.loss_sum / out.count).item() == pytest.approx(expected.item(), rel=1e-11)
    parameters = list(model.parameters())
    found = torch.autograd.grad(out.loss_sum / out.count, parameters)
    wanted = torch.autograd.grad(expected, parameters, allow_unused=True)
    rows = [torch.zeros_like(one) if other is None else other for one, other in zip(found, wanted, strict=True)]
    one, other = (torch.cat([row.reshape(-1) for row in gradient]) for gradient in (found, rows))
    assert (one - other).norm() <= 1e-9 * other.norm()
