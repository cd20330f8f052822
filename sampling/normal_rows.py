"""Standard normal numbers from keys: the same on every rank and thread, and to rounding on every device.

Written twice, as `sampling.masks`: a numba kernel for tensors in host memory and torch for any other device.

Shapes: N nodes or edges, C columns.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sampling.keys import UNIT, draw, fold, subkey
from sampling.masks import uniform_by_torch
from sampling.normals import normal
from storage.jit import kernel


def normals(keys_N: Tensor, *, salt: int, num_columns: int) -> Tensor:
    """float64 [N, C] of mean 0 and variance 1; entry (n, c) depends on (salt, keys_N[n], c) only."""
    if keys_N.device.type != "cpu":
        return normals_by_torch(keys_N, salt=salt, num_columns=num_columns)
    out = torch.empty((keys_N.shape[0], num_columns), dtype=torch.float64)
    _normal_kernel(keys_N.contiguous().numpy().view(np.uint64), np.uint64(salt), out.numpy())
    return out


def normals_by_torch(keys_N: Tensor, *, salt: int, num_columns: int) -> Tensor:
    """`normals` on any device that has float64, equal to about 1e-14."""
    shares = [
        uniform_by_torch(keys_N, salt=int(subkey(np.uint64(salt), column))) + 0.5 * UNIT
        for column in range(num_columns)
    ]
    if not shares:
        return torch.empty((keys_N.shape[0], 0), dtype=torch.float64, device=keys_N.device)
    numbers: Tensor = torch.special.ndtri(torch.stack(shares, dim=1))
    return numbers


@kernel
def _normal_kernel(keys: NDArray[np.uint64], salt: np.uint64, out: NDArray[np.float64]) -> None:
    for column in range(out.shape[1]):
        key = fold(salt, column)
        for row in range(out.shape[0]):
            out[row, column] = normal(draw(fold(key, keys[row]), 0))
