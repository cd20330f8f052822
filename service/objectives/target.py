"""A target network: a copy of modules that trails them by an exponential moving average, without gradient."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn


def cosine_momentum(base: float, *, done: int, total_steps: int) -> float:
    """Momentum after `done` steps of `total_steps`: from `base` to 1 along half a cosine.

    Source: BYOL (Grill et al., NeurIPS 2020), section 3.2; BGRL (Thakoor et al., ICLR 2022) uses the same.
    """
    progress = min(1.0, done / max(1, total_steps))
    return 1.0 - (1.0 - base) * (math.cos(math.pi * progress) + 1.0) / 2.0


def freeze(module: nn.Module) -> None:
    """Take the parameters of a target network out of training."""
    for parameter in module.parameters():
        parameter.requires_grad_(False)


@torch.no_grad()
def follow(target: nn.Module, online: nn.Module, *, momentum: float) -> None:
    """Move `target` to momentum * target + (1 - momentum) * online: parameters and floating buffers; others are copied.

    Every rank calls it after the optimiser's step and computes the same bits, as online weights are the same.
    """
    pairs: Iterable[tuple[Tensor, Tensor]] = zip(_tensors(target), _tensors(online), strict=True)
    for old, new in pairs:
        if old.is_floating_point():
            old.lerp_(new.to(old.dtype), 1.0 - momentum)
        else:
            old.copy_(new)


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]
