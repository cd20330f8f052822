"""A normal distribution in place of a state: the two heads of a variational auto-encoder.

Shapes: n rows, D columns of a state, K columns of a latent.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from service.encoders.convolution import linear
from service.noise import Noise, Site
from service.objectives.seeds import full_precision


@dataclass(frozen=True, eq=False)
class Latents:
    """What the heads make of states."""

    sample: Tensor
    """[n, K]: drawn by the key of each node, so a node has one sample wherever it occurs in a step"""
    divergence: Tensor
    """[n]: Kullback-Leibler divergence from the standard normal distribution, summed over columns"""


class LatentHeads(nn.Module):
    """Linear maps to mean and log-variance.

    Source: Kipf and Welling, "Variational graph auto-encoders", 2016, section 1, with linear heads on the states of
    an encoder in place of its last convolution; Kingma and Welling, ICLR 2014, appendix B (the divergence).
    """

    def __init__(self, in_dim: int, latent_dim: int) -> None:
        super().__init__()
        self.mean = linear(in_dim, latent_dim, bias=True)
        self.log_variance = linear(in_dim, latent_dim, bias=True)

    def forward(self, h: Tensor, keys: Tensor, *, noise: Noise | None) -> Latents:
        """Latents of states h [n, D] of the nodes `keys` [n]; without noise the sample is the mean."""
        # the divergence cancels where the variance is near 1, which half precision would not see
        mean, log_variance = full_precision(self.mean(h)), full_precision(self.log_variance(h))
        sample = mean
        if noise is not None:
            drawn = noise.normals(keys, mean.shape[1], site=Site.LATENT)
            sample = mean + torch.exp(0.5 * log_variance) * drawn.to(mean.dtype)
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance).sum(1)
        return Latents(sample=sample, divergence=divergence)
