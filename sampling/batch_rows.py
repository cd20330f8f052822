"""Which row of a batch each node has: seeds first, then nodes in the order they are first drawn.

`NodeRows` gives a node one row. `TimedRows`, for temporal sampling, gives a row to every pair of a node and the time
of the seed that it was reached from. Both hold scratch for one batch at a time; each thread has its own.
"""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sampling.keys import fold
from sampling.row_kernels import clear, enter_seeds, relabel
from storage.jit import kernel

FIRST_ROOM = 1024


class BatchRows(Protocol):
    """The rows of the batch that is being drawn."""

    @property
    def num_rows(self) -> int:
        """Rows so far."""

    @property
    def nodes(self) -> NDArray[np.int64]:
        """[>= num_rows] global ids."""

    @property
    def times(self) -> NDArray[np.int64] | None:
        """[>= num_rows] seed times; None where rows have none."""

    def enter(self, seeds: NDArray[np.int64], times: NDArray[np.int64] | None) -> int:
        """Give seeds the first rows; returns how many were entered before the first repeated one."""

    def extend(self, ids: NDArray[np.int64], indptr: NDArray[np.int32], source: NDArray[np.int32]) -> None:
        """Write the rows of sources `ids` [E] into `source` [E], appending those not seen before.

        `indptr` [R, n + 1] says which of the first n rows each edge leads into, relation by relation.
        """

    def reset(self) -> None:
        """Forget the batch."""


class NodeRows:
    """A row for every node; scratch costs 4 bytes a node of the graph."""

    def __init__(self, num_nodes: int) -> None:
        self.num_rows = 0
        self.nodes = np.empty(FIRST_ROOM, dtype=np.int64)
        self.times: NDArray[np.int64] | None = None
        self._slot = np.full(num_nodes, -1, dtype=np.int32)

    def enter(self, seeds: NDArray[np.int64], times: NDArray[np.int64] | None) -> int:
        """As `BatchRows`; there are no times."""
        assert times is None
        self.nodes = grown(self.nodes, 0, seeds.shape[0])
        self.num_rows = enter_seeds(seeds, self._slot, self.nodes)
        return self.num_rows

    def extend(self, ids: NDArray[np.int64], indptr: NDArray[np.int32], source: NDArray[np.int32]) -> None:
        """As `BatchRows`."""
        self.nodes = grown(self.nodes, self.num_rows, ids.shape[0])
        self.num_rows = relabel(ids, self._slot, self.nodes, self.num_rows, source)

    def reset(self) -> None:
        """As `BatchRows`; costs as much as the batch has nodes."""
        clear(self._slot, self.nodes, self.num_rows)
        self.num_rows = 0


class TimedRows:
    """A row for every pair of node and seed time; scratch grows with the batch, not with the graph."""

    def __init__(self) -> None:
        self.num_rows = 0
        self.nodes = np.empty(FIRST_ROOM, dtype=np.int64)
        self.times: NDArray[np.int64] = np.empty(FIRST_ROOM, dtype=np.int64)
        self._table = np.full(2 * FIRST_ROOM, -1, dtype=np.int32)

    def enter(self, seeds: NDArray[np.int64], times: NDArray[np.int64] | None) -> int:
        """As `BatchRows`; a seed is repeated when node and time are."""
        assert times is not None
        self._reserve(seeds.shape[0])
        self.num_rows = enter_timed(seeds, times, self._table, self.nodes, self.times)
        return self.num_rows

    def extend(self, ids: NDArray[np.int64], indptr: NDArray[np.int32], source: NDArray[np.int32]) -> None:
        """As `BatchRows`; a source takes the time of the row that it leads into."""
        self._reserve(ids.shape[0])
        for rows in indptr:
            self.num_rows = relabel_timed(ids, rows, self._table, self.nodes, self.times, self.num_rows, source)

    def reset(self) -> None:
        """As `BatchRows`."""
        self._table.fill(-1)
        self.num_rows = 0

    def _reserve(self, num_more: int) -> None:
        """Make room for `num_more` rows, with the table at most half full."""
        self.nodes = grown(self.nodes, self.num_rows, num_more)
        self.times = grown(self.times, self.num_rows, num_more)
        size = self._table.shape[0]
        while size < 2 * (self.num_rows + num_more):
            size *= 2
        if size > self._table.shape[0]:
            self._table = np.full(size, -1, dtype=np.int32)
            enter_again(self.nodes, self.times, self.num_rows, self._table)


def grown(nodes: NDArray[np.int64], num_known: int, num_more: int) -> NDArray[np.int64]:
    """`nodes` with room for `num_more` entries; `relabel` writes one place past the last node it keeps."""
    needed = num_known + num_more + 1
    if needed <= nodes.shape[0]:
        return nodes
    larger = np.empty(max(needed, 2 * nodes.shape[0]), dtype=np.int64)
    larger[:num_known] = nodes[:num_known]
    return larger


@kernel
def place_of(node: int, time: int, table: NDArray[np.int32], nodes: NDArray[np.int64], times: NDArray[np.int64]) -> int:
    """Where the row of (node, time) is in the open-addressed table of rows, or the empty place where it would be."""
    last = table.shape[0] - 1
    place = np.int64(fold(np.uint64(time), node) & np.uint64(last))
    while table[place] >= 0 and (nodes[table[place]] != node or times[table[place]] != time):
        place = (place + 1) & last
    return int(place)


@kernel
def enter_timed(
    seeds: NDArray[np.int64],
    seed_times: NDArray[np.int64],
    table: NDArray[np.int32],
    nodes: NDArray[np.int64],
    times: NDArray[np.int64],
) -> int:
    """Give seeds the first rows; returns the number entered before the first repeated one."""
    for row in range(seeds.shape[0]):
        place = place_of(seeds[row], seed_times[row], table, nodes, times)
        if table[place] >= 0:
            return row
        table[place] = row
        nodes[row] = seeds[row]
        times[row] = seed_times[row]
    return int(seeds.shape[0])


@kernel
def enter_again(nodes: NDArray[np.int64], times: NDArray[np.int64], num_rows: int, table: NDArray[np.int32]) -> None:
    """Enter rows that are all distinct into an empty table."""
    for row in range(num_rows):
        table[place_of(nodes[row], times[row], table, nodes, times)] = row


@kernel
def relabel_timed(
    ids: NDArray[np.int64],
    indptr: NDArray[np.int32],
    table: NDArray[np.int32],
    nodes: NDArray[np.int64],
    times: NDArray[np.int64],
    num_rows: int,
    source: NDArray[np.int32],
) -> int:
    """Rows of one relation's sources; edge e of target row v has v's time. Returns the new number of rows."""
    for target in range(indptr.shape[0] - 1):
        time = times[target]
        for edge in range(indptr[target], indptr[target + 1]):
            place = place_of(ids[edge], time, table, nodes, times)
            row = table[place]
            if row < 0:
                row = np.int32(num_rows)
                table[place] = row
                nodes[num_rows] = ids[edge]
                times[num_rows] = time
                num_rows += 1
            source[edge] = row
    return num_rows
