"""Everything random inside a forward pass, drawn by key: (step, view, layer, site, node or edge, column).

So W ranks draw what one rank draws, and a step that is run again draws the same. A forward pass that is given
no `Noise` (None) is deterministic: that is evaluation.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sampling.keys import subkey
from sampling.masks import LANE_RANGE, integers, keep, kept_of_range, uniform
from sampling.normal_rows import normals


class Site(IntEnum):
    """What a draw is for; draws of different sites are independent. Numbers are part of a run's determinism."""

    FEATURE = 1
    ATTENTION = 2
    EDGE = 3
    MASK = 4
    REPLACE = 5
    PARTNER = 6
    VIEW_EDGE = 7
    VIEW_COLUMN = 8
    SHUFFLE = 9
    NEGATIVE = 10
    PAIR = 11
    LATENT = 12
    REMASK = 13


@dataclass(frozen=True)
class Noise:
    """The random numbers of one training step.

    Args of all methods: `keys` int64 [N] name the rows (`sampling.masks.node_keys`, `edge_keys`); `view` numbers
    the augmented copies of a batch, `layer` the encoder layers (a decoder is the layer after the last).
    """

    step_key: int
    """`sampling.keys.step_key(seed=, epoch=, step=)`"""

    def salt(self, *, view: int, layer: int, site: Site) -> int:
        """The key of one mask in this step."""
        return int(subkey(np.uint64(self.step_key), view, layer, int(site)))

    def dropout(
        self,
        x: Tensor,
        keys: Tensor,
        rate: float,
        *,
        view: int = 0,
        layer: int = 0,
        site: Site = Site.FEATURE,
    ) -> Tensor:
        """Inverted dropout of x [N, C]: an entry is zeroed with probability `rate`, the others scaled by 1/(1-rate).

        Attention dropout is the same with edges as rows and heads as columns.
        Source: Srivastava et al., JMLR 2014, section 10 (the scaling).
        """
        if rate == 0.0:
            return x
        kept = keep(keys, salt=self.salt(view=view, layer=layer, site=site), num_columns=x.shape[1], rate=rate)
        scale = LANE_RANGE / max(kept_of_range(rate), 1)
        dropped: Tensor = _KeepScaled.apply(x, kept, scale)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return dropped

    def select(self, keys: Tensor, rate: float, *, view: int = 0, layer: int = 0, site: Site = Site.MASK) -> Tensor:
        """Bool [N], True with probability `rate`."""
        return uniform(keys, salt=self.salt(view=view, layer=layer, site=site)) < rate

    def partners(
        self, keys: Tensor, num_choices: int, *, view: int = 0, layer: int = 0, site: Site = Site.PARTNER
    ) -> Tensor:
        """int64 [N] in [0, num_choices): one choice for each row; num_choices >= 1."""
        return integers(keys, salt=self.salt(view=view, layer=layer, site=site), bound=num_choices)

    def normals(
        self, keys: Tensor, num_columns: int, *, view: int = 0, layer: int = 0, site: Site = Site.LATENT
    ) -> Tensor:
        """float64 [N, num_columns]: standard normal numbers."""
        return normals(keys, salt=self.salt(view=view, layer=layer, site=site), num_columns=num_columns)


class _KeepScaled(torch.autograd.Function):
    """x * kept * scale, remembering one byte an entry."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kept: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(kept)
        ctx.scale = scale
        return (x * kept).mul_(scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (kept,) = ctx.saved_tensors
        return (gradient * kept).mul_(ctx.scale), None, None
