"""`hopstream pretrain`: one run from its newest checkpoint to its end, alone or on Ray."""

from service.branching import with_origin
from service.checkpoint import checkpoint_name, list_checkpoints, read_checkpoint
from service.coordinator import RunCoordinator
from service.group import Group
from service.lease import Lease
from service.preparation import Preparation, pick_device, prepare
from service.run_file import RunFile
from service.run_folder import refuse_changes, run_place, stored_run
from service.run_status import RunState, RunStatus, read_status
from service.training import train
from storage.errors import DamagedStore
from storage.progress import Progress


def pretrain(run: RunFile, *, progress: Progress) -> RunStatus:
    """Train `run`; the same call again resumes it, and returns at once when it has finished.

    Raises BadInput when another process works on the run, its run file changed, or settings cannot work; a run
    that has not begun leaves no trace then.
    """
    place = run_place(run)
    with Lease(place) as lease:
        run = with_origin(run)
        done = finished(run)
        if done is not None:
            return done
        prepared = None if list_checkpoints(place) else check(run, progress=progress)
        if prepared is None and (stored := stored_run(place)) is not None:
            refuse_changes(stored, run)
        if run.workers.count > 1 or run.workers.samplers:
            from service.ray_workers import train_on_ray  # one worker never pays for importing Ray

            prepared = None  # learned rows may be large, and every worker makes its own
            return train_on_ray(run, lease=lease, progress=progress)
        coordinator = RunCoordinator(run)
        lease.on_lost(coordinator.abort)
        state: RunState = "failed"
        try:
            train(run, coordinator=coordinator, group=Group(), progress=progress, prepared=prepared)
            state = "finished"
        except KeyboardInterrupt:
            state = "interrupted"
            raise
        finally:
            coordinator.end(state)
        return coordinator.status()


def finished(run: RunFile) -> RunStatus | None:
    """The stored status of a run that is at its end with its last checkpoint whole; None when work is left.

    Raises BadInput for a changed run file: more epochs are a change too.
    """
    place = run_place(run)
    stored, status = stored_run(place), read_status(place)
    if stored is None or status is None or status.state != "finished":
        return None
    refuse_changes(stored, run)
    try:
        read_checkpoint(place, checkpoint_name(status.step))
    except DamagedStore:
        return None
    return status


def check(run: RunFile, *, progress: Progress) -> Preparation:
    """What a new run trains with; BadInput for what would stop it, before its run file is stored, a cluster started."""
    progress.stage("check run file", total=1, unit="runs")
    if run.workers.count == 1:
        pick_device(run, local_rank=0)
    prepared = prepare(run, group=Group(), state=None)
    progress.advance(1)
    return prepared
