"""The plainest feature table: an array."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


class ArrayTable:
    """An array as `storage.features.Features`; counts the rows asked of it."""

    def __init__(self, table: NDArray[Any]) -> None:
        self.table = table
        self.num_rows, self.dim = table.shape
        self.dtype = table.dtype
        self.num_asked = 0

    def gather(self, rows: NDArray[np.int64], out: NDArray[Any]) -> None:
        self.num_asked += rows.size
        out[...] = self.table[rows]
