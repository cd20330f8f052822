"""What a caller gives an ingest or a change to work with; the store does not depend on it."""

from dataclasses import dataclass

from storage.ingest_settings import IngestResources
from storage.progress import NoProgress, Progress
from storage.stages.executor import Executor, LocalExecutor


@dataclass(frozen=True)
class Means:
    """Memory, workers and temporary files; who does the tasks; who is told about the stages."""

    resources: IngestResources
    executor: Executor
    progress: Progress

    @classmethod
    def given(cls, resources: IngestResources | None, executor: Executor | None, progress: Progress | None) -> "Means":
        """What is None as it is by default: threads of this process, and nobody told."""
        resources = resources or IngestResources()
        return cls(resources, executor or LocalExecutor(resources.num_workers), progress or NoProgress())
