"""The training loop of one rank, the same for one worker and for many.

    store -> topology, feature tables        storage
    order -> loader -> mini-batch            sampling.loader
    mini-batch -> loss sum, count            service.model, one DDP forward
    loss -> gradient -> step                 here
    step -> decision, checkpoint             service.coordinator

The loss of a step is the sum over all ranks divided by the count over all ranks, so how seeds are spread over
ranks changes nothing. Nothing random is kept between steps: the state of a run is its weights and its step.
"""

import math
import os
import time
from collections.abc import Callable
from contextlib import ExitStack, closing

import torch
from torch import nn

from sampling.batch import MiniBatch
from sampling.device_tier import on_device
from sampling.keys import step_key, subkey
from service.checkpoint import (
    Checkpoint,
    TrainingState,
    load_checkpoint,
    restore_optimizer,
    save_checkpoint,
)
from service.coordinator import Coordinator, StepReport, TrainingSummary
from service.errors import TrainingFailed
from service.group import Group
from service.interrupts import Interrupts
from service.learning_rate import learning_rate
from service.model import Model
from service.noise import Noise
from service.objectives import LossSum
from service.preparation import Preparation, pick_device, prepare
from service.run_file import RunFile
from service.run_folder import run_place
from service.streaming import open_batches
from storage.progress import Progress

NOISE_TAG = 0x401_5E
"""keeps the keys of dropout and masks apart from those of sampling, which are keyed by the same step"""


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
    store, order, total_steps = prepared.store, prepared.order, prepared.total_steps
    model = prepared.model.to(device)
    progress.advance(1)
    optimizer = build_optimizer(run, model)
    first_step = 0
    if checkpoint is not None:
        restore(model, optimizer, checkpoint)
        first_step = checkpoint.state.step
    forward: nn.Module = model
    if group.world_size > 1:
        forward = nn.parallel.DistributedDataParallel(model, broadcast_buffers=False)
    num_seeds = 0
    loss = 0.0 if checkpoint is None else checkpoint.state.loss
    with ExitStack() as opened:
        source, tier = open_batches(run, prepared, group=group, device=device, opened=opened, progress=progress)
        batches = source.batches(first_step=first_step, last_step=total_steps)
        if tier is not None:
            batches = on_device(batches, tier)
        opened.enter_context(closing(batches))  # before what they are read from

        def waits() -> float:
            return source.counters.wait_seconds if tier is None else tier.counters.wait_seconds

        coordinator.plan(total_steps=total_steps)
        progress.stage("pretrain", total=total_steps, unit="steps")
        progress.advance(first_step)
        began, waited, startup = time.monotonic(), 0.0, None
        interrupts = opened.enter_context(Interrupts())
        for batch in batches:
            done = batch.epoch * order.steps_per_epoch + batch.step + 1
            rate = learning_rate(run.training, step=done - 1, total_steps=total_steps)
            for settings in optimizer.param_groups:
                settings["lr"] = rate
            step_began = time.monotonic()
            startup = step_began - began if startup is None else startup
            loss, norm = take_step(run, batch, forward=forward, model=model, optimizer=optimizer, group=group)
            model.objective.after_step(model.encoder, done=done, total_steps=total_steps)
            if group.rank == 0:
                coordinator.report(
                    StepReport(
                        step=done,
                        epoch=batch.epoch,
                        loss=loss,
                        learning_rate=rate,
                        grad_norm=norm,
                        seconds=time.monotonic() - step_began,
                        wait_seconds=waits() - waited,
                        seeds=batch.num_seeds_global,
                    )
                )
            waited = waits()
            num_seeds += batch.num_seeds_global
            decision = coordinator.decide(done)
            if decision.save and group.rank == 0:
                state = TrainingState(
                    step=done,
                    generation=store.generation.generation,
                    generation_xxh64=store.generation_xxh64,
                    seed=run.run.seed,
                    loss=loss,
                )
                coordinator.saved(save_checkpoint(run_place(run), state=state, model=model, optimizer=optimizer))
            progress.advance(1)
            if decision.stop:
                break
            interrupts.check()
        group.barrier()
    if group.rank == 0:
        hits = source.host_hits()
        coordinator.summarise(
            TrainingSummary(
                steps=total_steps - first_step,
                seconds=time.monotonic() - began,
                loss=loss,
                num_parameters=sum(parameter.numel() for parameter in model.parameters()),
                seeds=num_seeds,
                sampled_nodes=source.counters.sampled_nodes,
                sampled_edges=source.counters.sampled_edges,
                sample_seconds=source.counters.sample_seconds,
                fetch_seconds=source.counters.fetch_seconds,
                wait_seconds=waits(),
                startup_seconds=startup or 0.0,
                host_requests=hits.requests,
                host_hits=hits.hits,
            )
        )


def take_step(
    run: RunFile,
    batch: MiniBatch,
    *,
    forward: Callable[..., LossSum],
    model: Model,
    optimizer: torch.optim.Optimizer,
    group: Group,
) -> tuple[float, float]:
    """One step of the optimiser on one global batch; returns the loss over all ranks and the gradient norm.

    Raises TrainingFailed before the weights change when either is not a finite number.
    """
    device_type = batch.node_type.device.type
    bfloat16 = run.training.precision == "bfloat16" or (run.training.precision == "auto" and device_type == "cuda")
    key = subkey(step_key(seed=run.run.seed, epoch=batch.epoch, step=batch.step), NOISE_TAG)
    model.train()
    with torch.autocast(device_type, dtype=torch.bfloat16, enabled=bfloat16):
        out = forward(batch, Noise(int(key)))
    sums = group.sum(torch.stack([out.loss_sum.detach().double(), out.count.double()]))
    loss_sum, count = sums.tolist()
    # DDP averages gradients over ranks; the objective is the sum over ranks divided by the count over ranks
    loss = out.loss_sum * (group.world_size / max(count, 1.0))
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    norm = float(nn.utils.clip_grad_norm_(model.parameters(), run.training.clip_norm or math.inf))
    value = loss_sum / max(count, 1.0)
    for name, figure in (("loss", value), ("gradient norm", norm)):
        if not math.isfinite(figure):
            raise TrainingFailed(
                f"{name} is {figure} at epoch {batch.epoch}, step {batch.step}: training has diverged; lower "
                "training.learning_rate or set training.clip_norm; the last checkpoint is kept"
            )
    optimizer.step()
    return value, norm


def build_optimizer(run: RunFile, model: nn.Module) -> torch.optim.Optimizer:
    """The optimiser of the run file; its learning rate is set before every step."""
    kinds: dict[str, type[torch.optim.Adam]] = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return kinds[run.training.optimizer](trained, lr=run.training.learning_rate, weight_decay=run.training.weight_decay)


def restore(model: nn.Module, optimizer: torch.optim.Optimizer, checkpoint: Checkpoint) -> None:
    """Put a checkpoint's tensors into model and optimiser."""
    model.load_state_dict(checkpoint.model)
    restore_optimizer(model, optimizer, checkpoint.optimizer)
