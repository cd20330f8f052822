"""Adaptive fan-out: cheap small neighbourhoods first, larger ones when validation stops getting better.

A pure state: `observe` returns the next one, and `as_json` / `from_json` carry it in a checkpoint. Every rank that
observes the same metrics has the same fan-outs. Source: LiGNN (Borisyuk et al., KDD 2024; arXiv 2402.11139), adaptive
neighbour sampling, whose fan-out begins small and grows when the validation metric stalls.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sampling.fanouts import ALL_NEIGHBORS, UNUSED, HopFanout
from storage.errors import BadInput

STATE_VERSION = 1


@dataclass(frozen=True)
class Growth:
    """When and how fan-outs grow."""

    factor: float = 1.5
    """what a fan-out is multiplied by, rounded up"""
    largest: int = 50
    """no fan-out grows beyond this; larger ones, and -1 for all, stay as they are"""
    patience: int = 1
    """observations without a gain before fan-outs grow"""
    least_gain: float = 0.0
    """a metric is better only when it is by more than this"""
    higher_is_better: bool = True

    def __post_init__(self) -> None:
        if not self.factor > 1 or self.patience < 1 or self.largest < 1 or not self.least_gain >= 0:
            raise BadInput(
                "adaptive fan-out",
                f"factor {self.factor}, largest {self.largest}, patience {self.patience}, least gain {self.least_gain}",
                rule="the factor is above 1, the largest fan-out and patience at least 1, the least gain at least 0",
                remedy="change what breaks the rule",
            )


@dataclass(frozen=True)
class AdaptiveFanout:
    """Where the fan-outs stand."""

    growth: Growth
    fanouts: tuple[HopFanout, ...]
    """from the seeds outward, as `sampling.fanouts` reads them"""
    best: float | None = None
    """best metric so far; None before the first"""
    stalled: int = 0
    """observations since the last gain or growth"""

    def observe(self, metric: float) -> "AdaptiveFanout":
        """The state after one validation; a metric that is not a number is no gain."""
        if self._is_gain(metric):
            return replace(self, best=metric, stalled=0)
        if self.stalled + 1 < self.growth.patience:
            return replace(self, stalled=self.stalled + 1)
        return replace(self, fanouts=tuple(grow(fanout, self.growth) for fanout in self.fanouts), stalled=0)

    def _is_gain(self, metric: float) -> bool:
        if math.isnan(metric):
            return False
        if self.best is None:
            return True
        gain = metric - self.best if self.growth.higher_is_better else self.best - metric
        return gain > self.growth.least_gain

    def as_json(self) -> dict[str, Any]:
        """What a checkpoint holds; `Growth` comes from the run file."""
        return {
            "version": STATE_VERSION,
            "fanouts": [dict(fanout) if isinstance(fanout, Mapping) else fanout for fanout in self.fanouts],
            "best": self.best,
            "stalled": self.stalled,
        }

    @classmethod
    def from_json(cls, state: Mapping[str, Any], *, growth: Growth) -> "AdaptiveFanout":
        """The state that `as_json` wrote; BadInput for another version."""
        if state.get("version") != STATE_VERSION:
            raise BadInput(
                "state of the adaptive fan-out",
                f"version {state.get('version')}",
                rule=f"this program reads version {STATE_VERSION}",
                remedy="resume with the program that wrote the checkpoint",
            )
        fanouts: Sequence[HopFanout] = state["fanouts"]
        return cls(growth=growth, fanouts=tuple(fanouts), best=state["best"], stalled=state["stalled"])


def grow(fanout: HopFanout, growth: Growth) -> HopFanout:
    """One hop's fan-out after a growth: at least one more, unless it is all, unused, or as large as it gets."""
    if isinstance(fanout, Mapping):
        return {name: grown(number, growth) for name, number in fanout.items()}
    return grown(fanout, growth)


def grown(fanout: int, growth: Growth) -> int:
    """`grow` of a single number."""
    if fanout in (ALL_NEIGHBORS, UNUSED) or fanout >= growth.largest:
        return fanout
    return min(growth.largest, max(fanout + 1, math.ceil(fanout * growth.factor)))
