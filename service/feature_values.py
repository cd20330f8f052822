"""From stored features to numbers, in one place: int8 steps of a scale become float32, everything else is a number.

Tables, tiers and batches hold features as they are stored, so they cost what stored bytes cost. A model and the
layer-wise machinery read a batch through this module first. The scale belongs to the store, not to the weights: it is
in no checkpoint, and a model reads another store by that store's scale.
"""

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sampling.batch import MiniBatch
from service.schema import GraphSchema


class FeatureValues(nn.Module):
    """What the features of one store mean: value = scale * step in quantised columns.

    The scales, one float32 [F_t] per quantised type t, are buffers that move with the module and are not saved.
    """

    def __init__(self, schema: GraphSchema) -> None:
        super().__init__()
        self._quantised = [number for number, kind in enumerate(schema.node_types) if kind.feature_scale is not None]
        for number in self._quantised:
            scale = scale_tensor(schema.node_types[number].feature_scale)
            self.register_buffer(f"scale_{number}", scale, persistent=False)

    def forward(self, batch: MiniBatch) -> MiniBatch:
        """The batch with numbers as features: float32 [N_t, F_t] where they are quantised, else as they are."""
        values = list(batch.features)
        for number in self._quantised:
            table = values[number]
            values[number] = None if table is None else scaled(table, self.get_buffer(f"scale_{number}"))
        return replace(batch, features=tuple(values))


def scale_tensor(scale: tuple[float, ...] | None) -> Tensor | None:
    """What a step of each column of quantised features is worth, float32 [F]; None for others."""
    return None if scale is None else torch.tensor(scale, dtype=torch.float32)


def scaled(rows: Tensor, scale: Tensor | None) -> Tensor:
    """Stored rows [n, F]: as stored where there is no scale, else the float32 numbers that they are steps of."""
    return rows if scale is None else rows * scale


def as_values(rows: NDArray[np.generic], *, scale: tuple[float, ...] | None) -> NDArray[np.float32]:
    """Stored rows [n, F] as float32 numbers, outside a batch."""
    values: NDArray[np.float32] = rows.astype(np.float32)
    return values if scale is None else values * np.array(scale, dtype=np.float32)
