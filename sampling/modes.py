"""Sampling modes: which edges of a node's adjacency list a hop draws, and what a mode asks of the graph."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sampling.draw_ppr import Walks
from sampling.fanouts import used_relations
from storage.errors import BadInput
from storage.schema import Relation

ModeName = Literal["uniform", "weighted", "temporal-uniform", "temporal-latest", "labor", "ppr"]


@dataclass(frozen=True, eq=False)
class SamplingMode:
    """A mode with its settings; what does not belong to the mode is ignored.

    uniform: any edges, all alike. weighted: by edge weight. temporal-uniform, temporal-latest: any, or the last, of the
    edges before the seed's time. labor: of the sources with the smallest variates of the step. ppr: of the sources
    that personalised PageRank from the node ranks highest.
    """

    name: ModeName = "uniform"
    batch_dependency: int = 1
    """labor: steps over which variates turn into fresh ones; 1 draws them afresh in every step"""
    walks: Walks = field(default_factory=Walks)
    """ppr: the random walks that estimate scores"""
    node_times: NDArray[np.int64] | None = None
    """temporal: [num_nodes] by global id, the seed time of a node where `sample` is given none"""

    @property
    def is_temporal(self) -> bool:
        """Rows are pairs of a node and a seed time."""
        return self.name in ("temporal-uniform", "temporal-latest")


UNIFORM = SamplingMode()


def check_columns(
    mode: SamplingMode, relations: Sequence[Relation], *, timed: Sequence[bool], fanouts: Sequence[Sequence[int]]
) -> None:
    """BadInput when the mode needs times that a used relation has not.

    Args:
        relations: of the graph [R].
        timed: whether relation r has timestamps [R].
        fanouts: [H][R].
    """
    if not mode.is_temporal:
        return
    bare = [str(relations[number]) for number in used_relations(fanouts) if not timed[number]]
    if bare:
        raise BadInput(
            f"sampling.mode={mode.name}",
            f"relation {bare[0]} has no timestamps ({len(bare)} such relations)",
            rule="temporal sampling reads the time of every edge that it may draw",
            remedy="ingest edges with a column timestamp, or give the relation the fan-out 0 in every hop",
        )


def check_weights(relation: Relation, weight: NDArray[Any] | None) -> None:
    """BadInput for a weight [E] below 0, infinite or not a number; None, for all 1, passes."""
    if weight is None or not weight.shape[0]:
        return
    low, high = float(weight.min()), float(weight.max())
    if low >= 0 and np.isfinite(high):
        return
    wrong = np.flatnonzero(~((weight >= 0) & np.isfinite(weight)))
    raise BadInput(
        f"relation {relation}, weight of edge {int(wrong[0])}",
        f"{float(weight[wrong[0]])} ({wrong.shape[0]} such edges)",
        rule="weights are finite and at least 0",
        remedy="mend the weights, or choose another sampling.mode",
    )


def check_seed_times(
    mode: SamplingMode, seeds: NDArray[np.int64], times: NDArray[np.int64] | None
) -> NDArray[np.int64] | None:
    """The seeds' times [S] in a temporal mode, else None; BadInput when they are missing or of no use."""
    if not mode.is_temporal:
        if times is not None:
            raise BadInput(
                f"sampling.mode={mode.name}",
                f"times of {times.shape[0]} seeds",
                rule="only temporal modes read the times of seeds",
                remedy="set sampling.mode to temporal-uniform or temporal-latest, or give no times",
            )
        return None
    if times is None and mode.node_times is not None:
        times = mode.node_times[seeds]
    if times is None or times.shape != seeds.shape:
        raise BadInput(
            f"sampling.mode={mode.name}",
            "no seed times" if times is None else f"{times.shape[0]} times of {seeds.shape[0]} seeds",
            rule="every seed of a temporal batch has a time",
            remedy="ingest the seed nodes with a column timestamp",
        )
    return times
