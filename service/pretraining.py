"""`hopstream pretrain`: one run from its newest checkpoint to its end, alone or on Ray."""

from service.coordinator import RunCoordinator, RunState, RunStatus
from service.group import Group
from service.lease import Lease
from service.run_file import RunFile
from service.run_folder import run_place
from service.training import train
from storage.progress import Progress


def pretrain(run: RunFile, *, progress: Progress) -> RunStatus:
    """Train `run`; the same call again resumes it, and returns at once when it has finished.

    Raises BadInput when another process works on the run, its run file changed, or settings cannot work.
    """
    with Lease(run_place(run)):
        if run.workers.count > 1:
            from service.ray_workers import train_on_ray  # one worker never pays for importing Ray

            return train_on_ray(run, progress=progress)
        coordinator = RunCoordinator(run)
        state: RunState = "failed"
        try:
            train(run, coordinator=coordinator, group=Group(), progress=progress)
            state = "finished"
        except KeyboardInterrupt:
            state = "interrupted"
            raise
        finally:
            coordinator.end(state)
        return coordinator.status()
