"""Many workers: the same training loop under Ray Train, with the coordinator in a named actor.

One worker never comes here, so it never pays for starting Ray. The driver watches the coordinator and draws the
progress bar; workers only train.
"""

import os
import signal
import threading
from typing import Any

import ray
import ray.train
import xxhash
from ray.exceptions import RayActorError, RayTaskError
from ray.train.torch import TorchConfig, TorchTrainer

from service.coordinator import Coordinator, Decision, RunCoordinator
from service.errors import TrainingFailed
from service.group import Group
from service.lease import Lease
from service.process import THREAD_SETTINGS, keep_freed_memory
from service.ray_cluster import NAMESPACE, ray_cluster
from service.run_file import RunFile
from service.run_folder import run_place
from service.run_status import RunState, RunStatus, StepReport, TrainingSummary
from service.training import train
from storage.errors import BadInput
from storage.progress import NoProgress, Progress

POLL_SECONDS = 0.5


class RemoteCoordinator:
    """The coordinator's interface over an actor."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def begin(self, *, world_size: int) -> None:
        """See `Coordinator`."""
        ray.get(self._actor.begin.remote(world_size=world_size))

    def resume_point(self) -> str | None:
        """See `Coordinator`."""
        name: str | None = ray.get(self._actor.resume_point.remote())
        return name

    def plan(self, *, total_steps: int) -> None:
        """See `Coordinator`."""
        ray.get(self._actor.plan.remote(total_steps=total_steps))

    def decide(self, step: int, *, loss: float, accuracy: float | None = None) -> Decision:
        """See `Coordinator`."""
        decision: Decision = ray.get(self._actor.decide.remote(step, loss=loss, accuracy=accuracy))
        return decision

    def report(self, step: StepReport) -> None:
        """See `Coordinator`; not waited for."""
        self._actor.report.remote(step)

    def saved(self, name: str) -> None:
        """See `Coordinator`."""
        ray.get(self._actor.saved.remote(name))

    def summarise(self, summary: TrainingSummary) -> None:
        """See `Coordinator`."""
        ray.get(self._actor.summarise.remote(summary))

    def end(self, state: RunState) -> None:
        """See `Coordinator`."""
        ray.get(self._actor.end.remote(state))

    def abort(self, reason: str) -> None:
        """See `Coordinator`; not waited for."""
        self._actor.abort.remote(reason)

    def status(self) -> RunStatus:
        """See `Coordinator`."""
        status: RunStatus = ray.get(self._actor.status.remote())
        return status


def train_worker(config: dict[str, Any]) -> None:
    """What Ray Train runs on every worker; `config` holds the run file and the coordinator's name."""
    keep_freed_memory()
    run = RunFile.model_validate(config["run"])
    actor = ray.get_actor(config["coordinator"], namespace=NAMESPACE)
    group = Group.from_torch(local_rank=ray.train.get_context().get_local_rank())
    train(run, coordinator=RemoteCoordinator(actor), group=group, progress=NoProgress())


def train_on_ray(run: RunFile, *, lease: Lease, progress: Progress) -> RunStatus:
    """Train with `run.workers.count` workers on the Ray cluster at hand, or one started on this machine.

    The caller holds `lease` on the run; training stops when it is lost. Raises what Ray Train raises when a worker
    fails for good, with the coordinator's state set to failed.
    """
    progress.stage("start Ray", total=1, unit="clusters")
    with ray_cluster(num_cpus=max(os.cpu_count() or 1, run.workers.count * (1 + run.workers.samplers))):
        name = coordinator_name(run)
        actor = ray.remote(num_cpus=0)(RunCoordinator).options(name=name, namespace=NAMESPACE).remote(run)
        coordinator: Coordinator = RemoteCoordinator(actor)
        lease.on_lost(coordinator.abort)
        progress.advance(1)
        progress.stage("start workers, read graph", total=run.workers.count, unit="workers")
        watcher = Watcher(coordinator, progress)
        state: RunState = "failed"
        answer = signal.getsignal(signal.SIGINT)
        try:
            TorchTrainer(
                train_worker,
                train_loop_config={"run": run.model_dump(mode="json"), "coordinator": name},
                torch_config=TorchConfig(),
                scaling_config=ray.train.ScalingConfig(
                    num_workers=run.workers.count, use_gpu=run.training.device != "cpu" and has_gpu()
                ),
                run_config=ray.train.RunConfig(  # type: ignore[call-arg]  # typed as version 1 of Ray Train has it
                    name="ray",
                    storage_path=run_place(run).url,
                    worker_runtime_env={"env_vars": THREAD_SETTINGS},
                ),
            ).fit()
            state = "finished"
        except ray.train.WorkerGroupError as error:
            raise own_error(error) or error from None
        except (KeyboardInterrupt, SystemExit):
            state = "interrupted"
            raise KeyboardInterrupt from None  # Ray Train answers Ctrl-C by leaving the process
        finally:
            watcher.stop()
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGINT, answer)  # Ray Train leaves its own behind
            status = end(coordinator, run=run, lease=lease, state=state)
        return status


def coordinator_name(run: RunFile) -> str:
    """The actor's name: one a run on a cluster, also where runs in several places have the same name."""
    return f"coordinator-{run.run.name}-{xxhash.xxh64_hexdigest(run_place(run).url.encode())}"


def end(coordinator: Coordinator, *, run: RunFile, lease: Lease, state: RunState) -> RunStatus:
    """Say that the attempt is over. When the actor is gone, nobody but this process writes the run's state."""
    try:
        coordinator.end(state)
        return coordinator.status()
    except RayActorError:
        here = RunCoordinator(run)
        lease.on_lost(here.abort)
        here.end(state)
        return here.status()


def own_error(error: ray.train.WorkerGroupError) -> Exception | None:
    """The error of ours that stopped a worker, out of what Ray wraps it in; None for any other failure.

    That the coordinator is gone counts as ours, unless there is a better reason.
    """
    pending: list[object] = list(error.worker_failures.values())
    gone: RayActorError | None = None
    while pending:
        failure = pending.pop(0)
        if isinstance(failure, BadInput | TrainingFailed) and not isinstance(failure, RayTaskError):
            return failure
        if isinstance(failure, RayActorError):
            gone = failure
        pending += [
            inner
            for name in ("cause", "_base_exc", "__cause__")
            if isinstance(inner := getattr(failure, name, None), BaseException)
        ]
    if gone is None:
        return None
    reason = " ".join(str(gone).split())
    return TrainingFailed(
        f"the run's coordinator is gone ({reason}); the same command goes on from the last checkpoint"
    )


def has_gpu() -> bool:
    """Whether the cluster offers GPUs."""
    return bool(ray.cluster_resources().get("GPU", 0))


class Watcher:
    """Draws a run's progress from its coordinator while Ray Train blocks the driver."""

    def __init__(self, coordinator: Coordinator, progress: Progress) -> None:
        self._coordinator = coordinator
        self._progress = progress
        self._stop = threading.Event()
        self._attempts = coordinator.status().attempts
        self._shown = 0
        self._staged = False
        self._thread = threading.Thread(target=self._watch, name="hopstream-watch", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Show the last state and stop."""
        self._stop.set()
        self._thread.join()
        self._show()

    def _watch(self) -> None:
        while not self._stop.wait(POLL_SECONDS):
            self._show()

    def _show(self) -> None:
        try:
            status = self._coordinator.status()
        except RayActorError:
            return  # the workers notice too, and end the run
        if status.attempts > self._attempts and status.total_steps and not self._staged:
            self._progress.advance(status.world_size)  # they are there, and have said how many steps lie ahead
            self._progress.stage("pretrain", total=status.total_steps, unit="steps")
            self._staged = True
        if self._staged and status.step > self._shown:
            self._progress.advance(status.step - self._shown)
            self._shown = status.step
