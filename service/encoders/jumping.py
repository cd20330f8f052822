"""Jumping knowledge: the encoder's output from the states of all its layers.

Source: Xu et al., "Representation learning on graphs with jumping knowledge networks", ICML 2018, section 4
(concatenation and max-pooling); the mean is the same with equal weights.

Shapes: n nodes, D columns, L layers.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

JumpingName = Literal["none", "concat", "max", "mean"]


def join_states(jumping: JumpingName, states: Sequence[Tensor]) -> Tensor:
    """[n, D] or, concatenated, [n, L * D] from the states of the layers, first to last, each [n, D]."""
    match jumping:
        case "none":
            return states[-1]
        case "concat":
            return torch.cat(list(states), dim=1)
        case "max":
            return torch.stack(list(states)).amax(0)
        case "mean":
            return torch.stack(list(states)).mean(0)


def joined_dim(jumping: JumpingName, dim: int, *, num_layers: int) -> int:
    """Columns of the joined states of `num_layers` layers of `dim` columns each."""
    return dim * num_layers if jumping == "concat" else dim
