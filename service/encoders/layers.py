"""One layer around a convolution: its norm, activation, dropout and residual, in one of two orders.

Shapes: n rows of a hop's sources, the first of which are its n_h targets, D columns.
"""

from collections.abc import Callable

from torch import Tensor, nn

from service.encoders.config import ActivationName, EncoderConfig
from service.encoders.convolution import linear
from service.group import Group
from service.norm import make_norm


class EncoderLayer(nn.Module):
    """One convolution (or a linear map) with its residual, norm and activation.

    none, post: activation(norm(convolution(dropout(h)) + residual(h))), without the residual for none. pre: h +
    convolution(dropout(activation(norm(h)))), the first layer convolution(dropout(h)) alone, and behind the last
    an `Ending`.
    Source of pre: Li et al., "DeeperGCN: all you need to train deeper GCNs", 2020, the "res+" block.
    """

    def __init__(
        self, convolution: nn.Module, *, in_dim: int, out_dim: int, config: EncoderConfig, is_first: bool
    ) -> None:
        super().__init__()
        self.convolution = convolution
        self.is_pre = config.residual == "pre"
        self.is_bare = self.is_pre and is_first
        self.residual = None
        if config.residual != "none" and not self.is_bare:
            self.residual = nn.Identity() if in_dim == out_dim else linear(in_dim, out_dim)
        if not self.is_bare:
            self.norm = make_norm(config.norm, in_dim if self.is_pre else out_dim)
            self.activation = make_activation(config.activation)

    def forward(
        self,
        h: Tensor,
        *,
        num_targets: int,
        dropout: Callable[[Tensor], Tensor],
        convolve: Callable[[Tensor], Tensor],
        num_seeds: int,
        group: Group,
    ) -> Tensor:
        """[n_h, D'] from h [n, D].

        Args:
            convolve: [n, D] -> [n_h, D'], by way of `self.convolution`.
            num_seeds: the first rows of h that are this rank's seeds.
        """
        x = h
        if self.is_pre and not self.is_bare:
            x = self.activation(self.norm(h, num_seeds=num_seeds, group=group))
        out = convolve(dropout(x))
        if self.residual is not None:
            out = out + self.residual(h[:num_targets])
        if not self.is_pre:
            out = self.activation(self.norm(out, num_seeds=num_seeds, group=group))
        return out


class Ending(nn.Module):
    """Norm and activation of what a stack of pre-activation layers puts out."""

    def __init__(self, dim: int, *, config: EncoderConfig) -> None:
        super().__init__()
        self.norm = make_norm(config.norm, dim)
        self.activation = make_activation(config.activation)

    def forward(self, h: Tensor, *, num_seeds: int, group: Group) -> Tensor:
        """[n, D]; rows [0, num_seeds) of h are this rank's seeds."""
        out: Tensor = self.activation(self.norm(h, num_seeds=num_seeds, group=group))
        return out


def make_activation(name: ActivationName) -> nn.Module:
    """The activation called `name`; prelu learns one slope, from 0.25."""
    match name:
        case "prelu":
            return nn.PReLU()
        case "relu":
            return nn.ReLU()
        case "elu":
            return nn.ELU()
        case "gelu":
            return nn.GELU()
        case "none":
            return nn.Identity()
