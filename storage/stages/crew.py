"""What every stage of an ingest works with: a memory budget, workers, and somebody to tell how far it is."""

from collections.abc import Callable
from dataclasses import dataclass

from storage.stages.budget import Budget
from storage.stages.executor import Executor


@dataclass(frozen=True)
class Crew:
    """Handed to every stage.

    Attributes:
        budget: memory.
        executor: workers.
        advance: told the number of rows or edges done.
    """

    budget: Budget
    executor: Executor
    advance: Callable[[int], None]
