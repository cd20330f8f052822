"""Which edges of one relation a hop draws: the one place that knows all modes.

Everything is a function of rows and lists, so that lists may be a whole relation in memory or a compact copy of a few
of its rows read from disk: `Rows.begin` points into whichever `EdgeLists` is given, and so do the positions drawn.
Calls, in order, for every relation of a hop:

    1. row_kernels.span_rows    -> begin, degree, room (running count of places)
    2. narrow                   temporal modes: only edges before the row's time; room is counted again
    3. choose                   -> positions in the rows' places, and how many places were filled
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sampling.draw_labor import draw_labor, draw_turning_labor, turn
from sampling.draw_temporal import draw_timed, keep_earlier, keep_latest
from sampling.draw_weighted import draw_weighted
from sampling.keys import step_key, subkey
from sampling.modes import SamplingMode
from sampling.row_kernels import count_rows, draw_positions

LABOR_TAG = 0x1AB0


@dataclass(frozen=True)
class HopMoment:
    """What the random numbers of a hop are keyed by, beside relation and node."""

    seed: int
    epoch: int
    step: int
    hop: int

    @property
    def key(self) -> np.uint64:
        """Under which this hop draws."""
        return subkey(step_key(seed=self.seed, epoch=self.epoch, step=self.step), self.hop)

    def variate_key(self, *, period: int, source_type: int) -> np.uint64:
        """Under which labor's sources of a type have their variates in a period."""
        return subkey(step_key(seed=self.seed, epoch=self.epoch, step=period), LABOR_TAG, self.hop, source_type)


@dataclass(frozen=True)
class EdgeLists:
    """Adjacency lists of one relation, all of them or a compact copy of some."""

    indices: NDArray[Any]
    """[E] dense source ids; read by labor and ppr"""
    weight: NDArray[Any] | None
    """[E]; read by weighted, None for all 1"""
    timestamp: NDArray[np.int64] | None
    """[E], ascending in every list; read by temporal modes"""


@dataclass(frozen=True)
class Rows:
    """The n rows of a hop as one relation sees them; degree 0 where the node is no target of it."""

    nodes: NDArray[np.int64]
    """[n] global ids"""
    times: NDArray[np.int64] | None
    """[n] seed times; None but in temporal modes"""
    first: int
    """global id of the relation's first target"""
    begin: NDArray[np.int64]
    """[n] where the row's list begins"""
    degree: NDArray[np.int64]
    """[n] edges that may be drawn"""
    room: NDArray[np.int32]
    """[n + 1] running count of places for drawn edges"""


def narrow(mode: SamplingMode, rows: Rows, lists: EdgeLists, *, fanout: int, base: int) -> int:
    """Restrict begin, degree and room to the edges that the row's time admits; `base` as in `span_rows`.

    Returns the end of the rows' places. Without a temporal mode it changes nothing.
    """
    if not mode.is_temporal:
        return int(rows.room[-1])
    num_rows = rows.nodes.shape[0]
    if fanout != 0:
        assert rows.times is not None
        assert lists.timestamp is not None
        keep_earlier(lists.timestamp, rows.times, num_rows, rows.begin, rows.degree)
        if mode.name == "temporal-latest":
            keep_latest(fanout, num_rows, rows.begin, rows.degree)
    return count_rows(rows.degree, num_rows, fanout, base, rows.room)


def choose(
    mode: SamplingMode,
    moment: HopMoment,
    rows: Rows,
    lists: EdgeLists,
    position: NDArray[np.int64],
    *,
    relation: int,
    source_type: int,
) -> NDArray[np.int32] | None:
    """Draw the rows' edges of relation number `relation` into their places of `position`; every mode but ppr.

    Returns how many places each row fills [n], None where all are filled.
    """
    key = subkey(moment.key, relation)
    num_rows = rows.nodes.shape[0]
    if mode.name == "weighted" and lists.weight is not None:
        count = np.empty(num_rows, dtype=np.int32)
        draw_weighted(
            key, rows.nodes, num_rows, rows.first, rows.begin, rows.degree, rows.room, lists.weight, position, count
        )
        return count
    if mode.name == "labor":
        period, phase = turn(step=moment.step, batch_dependency=mode.batch_dependency)
        own = moment.variate_key(period=period, source_type=source_type)
        if phase == 0:
            draw_labor(own, num_rows, rows.begin, rows.degree, rows.room, lists.indices, position)
        else:
            after = moment.variate_key(period=period + 1, source_type=source_type)
            draw_turning_labor(own, after, phase, num_rows, rows.begin, rows.degree, rows.room, lists.indices, position)
    elif mode.name == "temporal-uniform":
        assert rows.times is not None
        draw_timed(key, rows.nodes, rows.times, num_rows, rows.first, rows.begin, rows.degree, rows.room, position)
    else:  # uniform, temporal-latest, where the rows are narrowed to what is drawn, and weighted without weights
        draw_positions(key, rows.nodes, num_rows, rows.first, rows.begin, rows.degree, rows.room, position)
    return None
