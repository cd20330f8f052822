"""Small networks between hidden states and a loss: projectors and predictors."""

from torch import Tensor, nn

from service.encoders.base import ActivationName, make_activation
from service.encoders.convolution import linear
from service.group import Group
from service.norm import HeadNorm, make_norm


class Head(nn.Module):
    """Linear, norm, activation, linear: [n, in_dim] -> [n, out_dim], the same on W ranks as on one."""

    def __init__(
        self, in_dim: int, hidden_dim: int, out_dim: int, *, activation: ActivationName, norm: HeadNorm = "none"
    ) -> None:
        super().__init__()
        self.first = linear(in_dim, hidden_dim, bias=True)
        self.norm = make_norm(norm, hidden_dim)
        self.activation = make_activation(activation)
        self.last = linear(hidden_dim, out_dim, bias=True)

    def forward(self, h: Tensor, *, num_seeds: int, group: Group) -> Tensor:
        """Rows [0, num_seeds) of h are this rank's seeds, from which a batch norm takes its statistics."""
        h = self.norm(self.first(h), num_seeds=num_seeds, group=group)
        result: Tensor = self.last(self.activation(h))
        return result
