"""The training loop of one rank, the same for one worker and for many.

    store -> topology, feature tables        storage
    order -> loader -> mini-batch            sampling.loader
    mini-batch -> loss sum, count            service.model, one DDP forward
    loss -> gradient -> step                 service.step, service.learner
    step -> decision, checkpoint             service.coordinator
    step -> validation accuracy, later       service.validation_probe

The loss of a step is the sum over all ranks divided by the count over all ranks, so how seeds are spread over
ranks changes nothing. Nothing random is kept between steps: the state of a run is its weights and its step.
"""

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import asdict
from typing import Any

import torch

from sampling.batch import MiniBatch
from sampling.device_tier import on_device
from service.checkpoint import TrainingState, load_checkpoint, save_checkpoint
from service.coordinator import Coordinator, Decision
from service.group import Group
from service.health import Health, SeedStates, collapse_warning
from service.interrupts import Interrupts
from service.learner import Learner
from service.partition_file import give_partition
from service.preparation import Preparation, pick_device, prepare
from service.probe_schedule import ProbeFigure
from service.run_file import RunFile
from service.run_folder import run_place
from service.run_status import StepReport, TrainingSummary
from service.streaming import open_batches
from service.validation_probe import open_probe
from storage.progress import Progress


def train(
    run: RunFile,
    *,
    coordinator: Coordinator,
    group: Group,
    progress: Progress,
    prepared: Preparation | None = None,
) -> None:
    """Train from the run's newest checkpoint to its end; raises BadInput for settings that cannot work.

    Args:
        prepared: of a new run, where it was prepared already; of no use where there is a checkpoint.
    """
    device = pick_device(run, local_rank=group.local_rank)
    if device.type == "cuda":
        torch.cuda.set_device(device)  # collectives and pinned memory go by the current device
    torch.set_num_threads(run.training.num_compute_threads or max(1, (os.cpu_count() or 1) // group.world_size))
    if group.rank == 0:
        coordinator.begin(world_size=group.world_size)
    group.barrier()
    name = coordinator.resume_point()
    checkpoint = None if name is None else load_checkpoint(run_place(run), name)
    progress.stage("open store", total=1, unit="stores")
    if checkpoint is not None or prepared is None:
        prepared = prepare(run, group=group, state=None if checkpoint is None else checkpoint.state)
    learner = Learner(run, prepared, checkpoint=checkpoint, group=group, device=device)
    progress.advance(1)
    give_partition(learner.model, run, store=prepared.store, group=group, progress=progress)
    first_step, total_steps = learner.done, prepared.total_steps
    # an early stop is an end too: when it is in the checkpoint, nothing is left to do
    stopped = checkpoint is not None and checkpoint.state.early_stop.stopped
    known = None if checkpoint is None else checkpoint.state.probe
    checkpoint = None  # its tensors are as large as model and optimiser
    num_seeds = 0
    with ExitStack() as opened:
        probe = open_probe(run, prepared, known=known, group=group, device=device, opened=opened, progress=progress)
        source, tier = open_batches(run, prepared, group=group, device=device, opened=opened, progress=progress)
        last_batch = learner.next_batch if stopped else prepared.total_batches
        batches = source.batches(first_step=learner.next_batch, last_step=last_batch)
        if tier is not None:
            batches = on_device(batches, tier)
        opened.enter_context(closing(batches))  # before what they are read from

        def waits() -> float:
            return source.counters.wait_seconds if tier is None else tier.counters.wait_seconds

        coordinator.plan(total_steps=total_steps)
        progress.stage("pretrain", total=total_steps, unit="steps")
        progress.advance(first_step)
        began, waited = time.monotonic(), 0.0
        interrupts = opened.enter_context(Interrupts())
        states, warned = SeedStates(views=learner.model.objective.first_passes_are_views), False
        drawn = Drawn(batches)
        if not stopped:
            probe.begin(first_step, learner.model.encoder)
        while not stopped and learner.done < total_steps:
            rate, step = learner.learning_rate, learner.done + 1
            logged = step % run.training.log_every_steps == 0 or step == total_steps
            drawn.begin_step()
            found = learner.step(drawn, states=states if logged else None)
            drawn.end_step()
            health = states.figures(group) if logged else Health()
            seconds, figure = drawn.seconds_in_step(), probe.arrive(step)
            if group.rank == 0:
                coordinator.report(
                    StepReport(
                        step=step,
                        epoch=learner.steps.epoch_of(step - 1),
                        loss=found.loss,
                        learning_rate=rate,
                        grad_norm=found.norm,
                        seconds=seconds,
                        wait_seconds=waits() - waited,
                        seeds=drawn.seeds,
                        **asdict(health),
                        **arrived(figure, wait_seconds=probe.wait_seconds),
                    )
                )
                if not warned:
                    warned = warn(run, health, step=step, progress=progress)
            waited = waits()
            num_seeds += drawn.seeds
            decision = coordinator.decide(step, loss=found.loss, accuracy=None if figure is None else figure.accuracy)
            if not decision.stop:
                probe.begin(step, learner.model.encoder)
            if decision.save and group.rank == 0:
                known = None if decision.stop else probe.under_way(step)
                save(learner, prepared, decision=decision, probe=known, coordinator=coordinator)
            progress.advance(1)
            stopped = decision.stop
            if not stopped:
                interrupts.check()
        group.barrier()
    if group.rank == 0:
        hits = source.host_hits()
        coordinator.summarise(
            TrainingSummary(
                steps=learner.done - first_step,
                seconds=time.monotonic() - began,
                loss=learner.loss,
                num_parameters=learner.model.num_trained,
                seeds=num_seeds,
                sampled_nodes=source.counters.sampled_nodes,
                sampled_edges=source.counters.sampled_edges,
                sample_seconds=source.counters.sample_seconds,
                fetch_seconds=source.counters.fetch_seconds,
                wait_seconds=waits(),
                startup_seconds=drawn.startup_seconds,
                host_requests=hits.requests,
                host_hits=hits.hits,
                compute_seconds=drawn.compute_seconds,
                stream=source.stream_summary(),
            )
        )


class Drawn:
    """Batches as they are drawn, with the clock stopped while one is waited for."""

    def __init__(self, batches: Iterator[MiniBatch]) -> None:
        self._batches = batches
        self._waited: float | None = None
        self._began = 0.0
        self._waited_before = 0.0
        self.seeds = 0
        """of the step, over all ranks"""
        self.startup_seconds = 0.0
        """until the first batch was there"""
        self.compute_seconds = 0.0
        """of steps that ended, without waits"""

    def __iter__(self) -> Iterator[MiniBatch]:
        return self

    def __next__(self) -> MiniBatch:
        began = time.monotonic()
        batch = next(self._batches)
        seconds = time.monotonic() - began
        if self._waited is None:
            self.startup_seconds = seconds
        self._waited = (self._waited or 0.0) + seconds
        self.seeds += batch.num_seeds_global
        return batch

    def begin_step(self) -> None:
        """What follows is of a new step."""
        self.seeds, self._began, self._waited_before = 0, time.monotonic(), self._waited or 0.0

    def seconds_in_step(self) -> float:
        """Since the step began, without waits."""
        return time.monotonic() - self._began - ((self._waited or 0.0) - self._waited_before)

    def end_step(self) -> None:
        """What was begun is done."""
        self.compute_seconds += self.seconds_in_step()


def arrived(figure: ProbeFigure | None, *, wait_seconds: float) -> dict[str, Any]:
    """The fields of a step's report about the probe that arrived with it; none where none did."""
    if figure is None:
        return {}
    return {"probe_step": figure.step, "probe_accuracy": figure.accuracy, "probe_wait_seconds": wait_seconds}


def save(
    learner: Learner,
    prepared: Preparation,
    *,
    decision: Decision,
    probe: ProbeFigure | None,
    coordinator: Coordinator,
) -> None:
    """Write a checkpoint of the step just done, and tell the coordinator."""
    store = prepared.store
    state = TrainingState(
        step=learner.done,
        generation=store.generation.generation,
        generation_xxh64=store.generation_xxh64,
        seed=learner.run.run.seed,
        loss=learner.loss,
        early_stop=decision.early_stop,
        probe=probe,
    )
    place = run_place(learner.run)
    coordinator.saved(save_checkpoint(place, state=state, model=learner.model, optimizer=learner.optimizer))


def warn(run: RunFile, health: Health, *, step: int, progress: Progress) -> bool:
    """Tell of a collapse; whether there was one to tell of."""
    trouble = collapse_warning(health, min_std=run.training.warn_std, min_rank=run.training.warn_rank)
    if trouble is not None:
        progress.note(f"warning: step {step}: {trouble}")
    return trouble is not None
