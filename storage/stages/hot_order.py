"""From hotness to dense ids: nodes by descending hotness, ties by input order, sorted a range of values at a time."""

import os
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from storage.stages.budget import Budget
from storage.stages.runs import map_array, write_array

_BYTES_PER_ROW = 48
"""values, positions, and the sort of both"""
_SAMPLE = 1 << 16
_PIECE = 1 << 20


@dataclass(frozen=True)
class HotOrder:
    """Files of uint32 about a type whose first `base` nodes are in the store already and keep their ids.

    Attributes:
        base: nodes in the store.
        rank: [base + new] dense id of each position.
        new_rank: [new] `rank - base` of the new nodes.
        order: [new] the reverse of `new_rank`.
    """

    base: int
    rank: str
    new_rank: str
    order: str


def hottest_first(folder: str, *, hotness: str, base: int, budget: Budget) -> HotOrder:
    """Order the new nodes of a type by a file of uint64 hotness of all; the files are written into `folder`."""
    values = map_array(hotness, np.uint64)[base:]
    rank = np.empty(len(values), dtype=np.uint32)
    done = 0
    with open(f"{folder}/order", "wb") as file:
        for low, high in _ranges(values, max_rows=budget.sort_rows(_BYTES_PER_ROW)):
            rows = _rows_between(values, low, high)
            if low != high:
                rows = rows[np.argsort(~values[rows], kind="stable")]
            file.write(rows.data)
            rank[rows] = np.arange(done, done + len(rows), dtype=np.uint32)
            done += len(rows)
    write_array(f"{folder}/new_rank", rank)
    if base == 0:
        return HotOrder(base=0, rank=f"{folder}/new_rank", new_rank=f"{folder}/new_rank", order=f"{folder}/order")
    with open(f"{folder}/rank", "wb") as file:
        for start in range(0, base, _PIECE):
            file.write(np.arange(start, min(start + _PIECE, base), dtype=np.uint32).data)
        for start in range(0, len(rank), _PIECE):
            file.write((rank[start : start + _PIECE] + np.uint32(base)).data)
    return HotOrder(base=base, rank=f"{folder}/rank", new_rank=f"{folder}/new_rank", order=f"{folder}/order")


def hottest_by_position(folder: str, *, hotness: str, positions: str, budget: Budget) -> HotOrder:
    """As `hottest_first` for nodes that do not stand in input order: `positions` says where each one stood.

    Args:
        folder: for the files.
        hotness: file of uint64, of each node.
        positions: file of uint32, a permutation: the input position of each node. Ties are broken by it.
        budget: memory; 12 bytes a node of it are used.
    """
    position = map_array(positions, np.uint32)
    by_position = np.empty(len(position), dtype=np.uint64)
    by_position[position] = map_array(hotness, np.uint64)
    write_array(f"{folder}/by_position", by_position)
    del by_position
    os.mkdir(f"{folder}/sorted")
    found = hottest_first(f"{folder}/sorted", hotness=f"{folder}/by_position", base=0, budget=budget)
    rank = map_array(found.rank, np.uint32)[position]
    write_array(f"{folder}/rank", rank)
    order = np.empty(len(rank), dtype=np.uint32)
    order[rank] = np.arange(len(rank), dtype=np.uint32)
    write_array(f"{folder}/order", order)
    return HotOrder(base=0, rank=f"{folder}/rank", new_rank=f"{folder}/rank", order=f"{folder}/order")


def _ranges(values: NDArray[np.uint64], *, max_rows: int) -> list[tuple[int, int]]:
    """Ranges (low, high) of values, both inclusive, hottest first, that cover all; a common value has its own."""
    largest = (1 << 64) - 1
    if len(values) <= max_rows:
        return [(0, largest)]
    sample = np.sort(values[:: max(1, len(values) // _SAMPLE)])
    step = max(1, len(sample) * max_rows // (2 * len(values)))
    cuts = sample[::step]
    common = set(cuts[1:][cuts[1:] == cuts[:-1]].tolist())
    bounds = sorted(set(cuts.tolist()))
    ranges, low = list[tuple[int, int]](), 0
    for bound in bounds:
        if bound > low:
            ranges.append((low, bound - 1))
        if bound in common:
            ranges.append((bound, bound))
            low = bound + 1
        else:
            low = bound
    ranges.append((low, largest))
    return ranges[::-1]


def _rows_between(values: NDArray[np.uint64], low: int, high: int) -> NDArray[np.uint32]:
    found = [np.empty(0, dtype=np.uint32)]
    for start in range(0, len(values), _PIECE):
        piece = values[start : start + _PIECE]
        inside = np.flatnonzero((piece >= np.uint64(low)) & (piece <= np.uint64(high)))
        found.append((inside + start).astype(np.uint32))
    return np.concatenate(found)
