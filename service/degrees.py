"""How degrees are spread: quantiles and a histogram in powers of two, from a stream of degrees."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class DegreeBin:
    """Nodes with a degree in [low, high]."""

    low: int
    high: int
    nodes: int


@dataclass(frozen=True)
class DegreeReport:
    """Degrees of the nodes at one end of a relation; quantiles are degrees that occur (the lower of two)."""

    min: int
    p25: int
    p50: int
    p75: int
    p90: int
    p99: int
    max: int
    mean: float
    histogram: list[DegreeBin]
    """0, 1, 2 to 3, 4 to 7, ...: up to the largest degree"""


class DegreeCounts:
    """How many nodes have each degree. Memory: 16 bytes a distinct degree, of which E edges allow sqrt(2 E)."""

    def __init__(self) -> None:
        self._degrees = np.empty(0, dtype=np.int64)
        self._nodes = np.empty(0, dtype=np.int64)

    def add(self, degrees: NDArray[np.int64]) -> None:
        """Count the degrees of more nodes."""
        found, nodes = np.unique(degrees, return_counts=True)
        self._degrees, place = np.unique(np.concatenate([self._degrees, found]), return_inverse=True)
        merged = np.zeros(self._degrees.shape[0], dtype=np.int64)
        np.add.at(merged, place, np.concatenate([self._nodes, nodes]))
        self._nodes = merged

    def report(self) -> DegreeReport:
        """The figures; all zero without nodes."""
        if not self._degrees.size:
            return DegreeReport(0, 0, 0, 0, 0, 0, 0, 0.0, [])
        reached = np.cumsum(self._nodes)
        count = int(reached[-1])
        low, p25, p50, p75, p90, p99, high = (
            int(self._degrees[np.searchsorted(reached, int(share * (count - 1)), side="right")])
            for share in (0, 0.25, 0.5, 0.75, 0.9, 0.99, 1)
        )
        mean = float(self._degrees @ self._nodes) / count
        return DegreeReport(low, p25, p50, p75, p90, p99, high, mean, self._histogram())

    def _histogram(self) -> list[DegreeBin]:
        bins = []
        low, high = 0, 0
        while low <= int(self._degrees[-1]):
            inside = (self._degrees >= low) & (self._degrees <= high)
            bins.append(DegreeBin(low=low, high=high, nodes=int(self._nodes[inside].sum())))
            low, high = high + 1, 2 * high + 1
        return bins
