"""The coordinator owns a run: its state, its checkpoint ledger, and the decisions that every rank obeys.

One interface, `Coordinator`, two homes: in the process that trains when there is one worker, in a named Ray actor
when there are several (`service.ray_workers`). Ranks ask it what to do and tell it what they did; it alone writes
the run's `state.json` and `metrics.jsonl`.
"""

import json
import time
from dataclasses import asdict, dataclass, field
from typing import Protocol

from service.checkpoint import list_checkpoints, newest_whole, remove_old_checkpoints
from service.early_stop import EarlyStopState, observe
from service.errors import TrainingFailed
from service.health import Health, collapse_warning
from service.learning_rate import branch_step
from service.metrics_log import MetricsLog
from service.run_file import RunFile, harmful_differences
from service.run_folder import refuse_changes, run_place, store_run, stored_run
from service.run_status import STATE, RunState, RunStatus, StepReport, TrainingSummary, read_status

FLUSH_SECONDS = 5.0


@dataclass(frozen=True)
class Decision:
    """What every rank does after a step."""

    save: bool
    stop: bool
    early_stop: EarlyStopState = field(default_factory=EarlyStopState)
    """for the checkpoint, so that a resumed run stops where this one does"""


class Coordinator(Protocol):
    """What ranks may ask and tell."""

    def begin(self, *, world_size: int) -> None:
        """Rank 0 says that a group of ranks starts; the others wait for it before they go on."""

    def resume_point(self) -> str | None:
        """The checkpoint that every rank of the group resumes from, None for the start."""

    def plan(self, *, total_steps: int) -> None:
        """The number of steps that the run will take."""

    def decide(self, step: int, *, loss: float, accuracy: float | None = None) -> Decision:
        """What to do when `step` steps are done, the last with `loss`; the same for every rank that asks.

        `accuracy` is that of the validation probe whose figure arrived with the step.
        """

    def report(self, step: StepReport) -> None:
        """Rank 0 finished a step."""

    def saved(self, name: str) -> None:
        """Rank 0 has written a checkpoint."""

    def summarise(self, summary: TrainingSummary) -> None:
        """Rank 0 has finished and says what it did."""

    def end(self, state: RunState) -> None:
        """The attempt is over."""

    def abort(self, reason: str) -> None:
        """The run is another's now: nothing more is written, and every further decision fails with `reason`."""

    def status(self) -> RunStatus:
        """The run as it stands."""


class RunCoordinator:
    """The coordinator's one implementation.

    Args:
        run: the resolved run file; when the run has a checkpoint, a harmful difference is refused (BadInput).
    """

    def __init__(self, run: RunFile) -> None:
        self._run = run
        self._place = run_place(run)
        self._status = RunStatus(name=run.run.name)
        self._metrics = MetricsLog(self._place)
        self._seconds_before = 0.0
        self._began = time.monotonic()
        self._flushed = 0.0
        self._resume_from: str | None = None
        self._aborted: str | None = None
        self._early_stop = EarlyStopState()
        self._adopt()

    def begin(self, *, world_size: int) -> None:
        """See `Coordinator`; damaged checkpoints are passed over and noted in the status."""
        self._status.world_size = world_size
        self._status.total_steps = 0  # until `plan`, when every rank has read the graph
        self._status.attempts += 1
        self._status.state = "running"
        whole, damaged = newest_whole(self._place)
        self._status.skipped_checkpoints += damaged
        self._resume_from = None if whole is None else whole.name
        step = 0 if whole is None else whole.state.step
        self._early_stop = EarlyStopState() if whole is None else whole.state.early_stop
        self._status.step = step
        self._status.stopped_early = self._early_stop.stopped
        self._metrics.resume(step)
        self._warn_of_workers(world_size)
        self._flush()

    def resume_point(self) -> str | None:
        """See `Coordinator`."""
        return self._resume_from

    def plan(self, *, total_steps: int) -> None:
        """See `Coordinator`."""
        self._status.total_steps = total_steps

    def decide(self, step: int, *, loss: float, accuracy: float | None = None) -> Decision:
        """See `Coordinator`. Of the ranks that ask, the first tells the loss; no rank asks for the next step before."""
        if self._aborted is not None:
            raise TrainingFailed(self._aborted)
        return self._decision(step, loss=loss, accuracy=accuracy)

    def _decision(self, step: int, *, loss: float, accuracy: float | None) -> Decision:
        training = self._run.training
        self._early_stop = observe(self._early_stop, training.early_stop, step=step, loss=loss, accuracy=accuracy)
        early = self._early_stop.stopped
        last = early or step >= self._status.total_steps
        self._status.stopped_early = early
        return Decision(
            save=last or step % training.checkpoint_every_steps == 0 or step == self._branch_step(),
            stop=last,
            early_stop=self._early_stop,
        )

    def _branch_step(self) -> int | None:
        return branch_step(self._run.training, total_steps=self._status.total_steps)

    def report(self, step: StepReport) -> None:
        """See `Coordinator`."""
        self._status.step = step.step
        self._status.loss = step.loss
        decision = self._decision(step.step, loss=step.loss, accuracy=step.probe_accuracy)
        if step.probe_accuracy is not None:
            self._status.probe_accuracy = step.probe_accuracy
        if step.step % self._run.training.log_every_steps == 0 or decision.stop or step.probe_step is not None:
            self._metrics.add(asdict(step))
        self._look_at(step)
        if decision.save and self._aborted is None:
            self._metrics.flush(to_disk=True)  # the lines up to a checkpoint are there when it is
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self._flush()

    def saved(self, name: str) -> None:
        """See `Coordinator`; damaged checkpoints, and older ones beyond the run's limit, are removed."""
        if self._aborted is not None:
            return
        assert name in list_checkpoints(self._place)
        keep = self._run.training.keep_checkpoints
        remove_old_checkpoints(self._place, saved=name, keep=keep, always=self._branch_step())
        self._flush()

    def summarise(self, summary: TrainingSummary) -> None:
        """See `Coordinator`."""
        self._status.summary = summary

    def end(self, state: RunState) -> None:
        """See `Coordinator`."""
        self._status.state = state
        self._flush()

    def abort(self, reason: str) -> None:
        """See `Coordinator`; may be called from any thread."""
        self._aborted = reason

    def status(self) -> RunStatus:
        """See `Coordinator`."""
        self._status.seconds = self._seconds_before + time.monotonic() - self._began
        return self._status

    def _look_at(self, step: StepReport) -> None:
        """Keep the health of a step; the first step that shows a collapse is a warning."""
        health = Health(step.std_mean, step.std_min, step.effective_rank, step.alignment, step.uniformity)
        if health == Health():
            return
        self._status.health, training = health, self._run.training
        trouble = collapse_warning(health, min_std=training.warn_std, min_rank=training.warn_rank)
        if trouble is not None and not any(told.startswith("step ") for told in self._status.warnings):
            self._status.warnings.append(f"step {step.step}: {trouble}")

    def _warn_of_workers(self, world_size: int) -> None:
        """A setting whose result depends on the number of workers is a warning where there are several."""
        encoder, objective = self._run.encoder, self._run.objective
        settings = {
            f"encoder {encoder.name}": encoder.varies_with_workers,
            f"objective {objective.name}": getattr(objective, "varies_with_workers", None),
        }
        for named, setting in settings.items():
            warning = f"{named}, {setting}: {world_size} workers train another model than one does"
            if world_size > 1 and setting is not None and warning not in self._status.warnings:
                self._status.warnings.append(warning)

    def _adopt(self) -> None:
        """Start the run's folder, or take over the one that is there.

        A run file without a checkpoint binds nobody: nothing has been trained with it.
        """
        stored = stored_run(self._place)
        if stored is not None and list_checkpoints(self._place):
            refuse_changes(stored, self._run)
        store_run(self._run)
        if stored is None or harmful_differences(stored, self._run):
            return
        status = read_status(self._place)
        if status is not None:
            self._status = status
            self._seconds_before = status.seconds

    def _flush(self) -> None:
        if self._aborted is not None:
            return
        self._flushed = time.monotonic()
        self._metrics.flush()
        self._place.write_bytes(STATE, json.dumps(asdict(self.status())).encode())
