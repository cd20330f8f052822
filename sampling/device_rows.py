"""Which feature rows the training device keeps, and the tables without them, which is what the host serves then.

Ids run hottest first, so the device keeps a prefix of each table and the host has the rows behind it: its own cache
starts where the device's ends, and no row is in both.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sampling.host_tier import share_cache_bytes
from storage.features import Features, TierCounters
from storage.pages import PAGE_BYTES

DEVICE_SHARE = 0.5
"""of the memory that a GPU has left beside the model holds feature rows where no size is given; the rest is for a step
and two batches"""


def default_cache_bytes(device: torch.device) -> int:
    """Memory for feature rows where none is given: none on the CPU, a share of what a GPU has left."""
    if device.type != "cuda":
        return 0
    free, _ = torch.cuda.mem_get_info(device)
    return int(DEVICE_SHARE * free)


def device_rows(tables: Sequence[Features | None], *, cache_bytes: int) -> list[int]:
    """Rows of each table that `cache_bytes` hold, shared by table size; whole pages of a table, or all of it."""
    rows = []
    for table, share in zip(tables, share_cache_bytes(tables, cache_bytes=cache_bytes), strict=True):
        row_bytes = 0 if table is None else table.dim * table.dtype.itemsize
        num_rows = 0 if table is None or row_bytes == 0 else share // row_bytes
        if table is not None and num_rows < table.num_rows and row_bytes:
            num_rows -= num_rows % (PAGE_BYTES // math.gcd(PAGE_BYTES, row_bytes))
        rows.append(num_rows)
    return rows


def rows_behind(rows: NDArray[Any], first: int) -> NDArray[Any]:
    """Those of a batch's rows that lie behind a prefix of `first` rows, in their order, as rows of `RowsBehind`."""
    return rows if first == 0 else rows[rows >= first] - first


class RowsBehind:
    """A feature table without its first rows: row i is row `first + i` of `below`; implements `Features`."""

    def __init__(self, below: Features, *, first: int) -> None:
        self.first = min(first, below.num_rows)
        self.num_rows = below.num_rows - self.first
        self.dim = below.dim
        self.dtype = below.dtype
        self._below = below

    @property
    def counters(self) -> TierCounters | None:
        """What was read of the whole table so far; None where it is not counted."""
        counters: TierCounters | None = getattr(self._below, "counters", None)
        return counters

    def gather(self, rows: NDArray[np.int64], out: NDArray[Any]) -> None:
        """Copy rows [n] (any order, repeats allowed) into `out` [n, dim]."""
        self._below.gather(rows + self.first, out)


def tables_behind(tables: Sequence[Features | None], num_rows: Sequence[int]) -> list[Features | None]:
    """Every table without its first rows; the table itself where that is none."""
    return [
        table if table is None or first == 0 else RowsBehind(table, first=first)
        for table, first in zip(tables, num_rows, strict=True)
    ]
