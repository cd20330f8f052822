"""Spills that tests write themselves, and a crew to work on them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.stages.budget import Budget
from storage.stages.crew import Crew
from storage.stages.edge_view import Spill, SpillPart
from storage.stages.executor import LocalExecutor


def small_crew(*, worker_bytes: int = 1 << 20, advance: Callable[[int], None] = lambda _: None) -> Crew:
    """Two threads with so little memory that every stage works in many pieces."""
    return Crew(budget=TinyBudget(worker_bytes), executor=LocalExecutor(2), advance=advance)


class TinyBudget(Budget):
    """A budget below the floor, so that small inputs are cut into several pieces."""

    def __init__(self, worker_bytes: int) -> None:
        super().__init__(memory_bytes=worker_bytes * 3, num_workers=2, num_nodes=0)

    @property
    def worker_bytes(self) -> int:
        return int(self.memory_bytes // 3)


def write_spill(
    folder: Path,
    source: NDArray[Any],
    target: NDArray[Any],
    *,
    weight: NDArray[Any] | None = None,
    timestamp: NDArray[Any] | None = None,
    num_parts: int = 3,
) -> Spill:
    """The edges as a stage of an ingest would have left them, in several parts."""
    folder.mkdir(parents=True, exist_ok=True)
    columns = {"source": source.astype(np.uint32), "target": target.astype(np.uint32)}
    columns |= {} if weight is None else {"weight": weight.astype(np.float32)}
    columns |= {} if timestamp is None else {"timestamp": timestamp.astype(np.int64)}
    parts = []
    for number, rows in enumerate(np.array_split(np.arange(len(source)), num_parts)):
        for name, values in columns.items():
            values[rows].tofile(folder / f"{number}.{name}")
        parts.append(SpillPart(path=str(folder / str(number)), num_edges=len(rows)))
    return Spill(
        parts=parts,
        has_weight=weight is not None,
        has_timestamp=timestamp is not None,
        num_rows=len(source),
        num_dangling=0,
        num_loops=int(np.count_nonzero(source == target)),
    )
