"""One step of the optimiser: the gradient of one global step, checked, clipped and taken.

A global step is one global batch, or `training.accumulate` of them one after another. Its loss is the sum over all its
batches and all ranks divided by the count over all of these, so neither how seeds are spread over ranks nor how they
are cut into batches changes a loss that is a sum over seeds. Gradients of all batches but the last stay on their rank;
one reduction is made per global step.
Source: gradient accumulation with local gradients, Borisyuk et al., "LiGNN", KDD 2024.
"""

import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from sampling.batch import MiniBatch
from sampling.keys import step_key, subkey
from service.errors import TrainingFailed
from service.group import Group
from service.health import SeedStates
from service.model import Model
from service.noise import Noise
from service.objectives import LossSum
from service.row_adagrad import RowGradients, TouchedRows, step_rows
from service.run_file import RunFile
from service.run_folder import replay_command
from service.task_gradients import TaskGradients

NOISE_TAG = 0x401_5E
"""keeps the keys of dropout and masks apart from those of sampling, which are keyed by the same step"""


@dataclass(frozen=True)
class Gradient:
    """What the backward passes of a global step found; the gradients themselves are the parameters' `grad`."""

    loss: float
    """over all batches and ranks"""
    norm: float
    """of the gradient, before clipping"""
    batch_losses: tuple[float, ...]
    """sum of each batch's loss over all ranks"""
    places: tuple[tuple[int, int], ...]
    """(epoch, batch of the epoch) of each"""
    touched: tuple[TouchedRows, ...] = ()
    """learned rows that it read, with their gradients"""


def take_step(
    run: RunFile,
    batches: Iterable[MiniBatch],
    *,
    step: int,
    num_batches: int = 1,
    forward: Callable[..., LossSum],
    model: Model,
    optimizer: torch.optim.Optimizer,
    group: Group,
    states: SeedStates | None = None,
) -> Gradient:
    """Step `step` (from 1) of the optimiser on `num_batches` global batches; `states` listens to the last of them.

    Raises TrainingFailed before the weights change when loss or gradient is not finite, with the batch that did it and
    the command that replays it.
    """
    found = find_gradient(
        run, batches, num_batches=num_batches, forward=forward, model=model, group=group, states=states
    )
    trouble = not_finite(found)
    if trouble is not None:
        raise TrainingFailed(
            f"{trouble}, step {step} of the run: training has diverged; {replay_command(run, step=step)} shows where; "
            "lower training.learning_rate or set training.clip_norm; the last checkpoint is kept"
        )
    optimizer.step()
    if model.encoder.ids is not None:
        share = optimizer.param_groups[0]["lr"] / run.training.learning_rate  # what the schedule leaves of the peak
        step_rows(model.encoder.ids, found.touched, learning_rate=run.training.embedding_learning_rate * share)
    return found


def find_gradient(
    run: RunFile,
    batches: Iterable[MiniBatch],
    *,
    num_batches: int,
    forward: Callable[..., LossSum],
    model: Model,
    group: Group,
    states: SeedStates | None = None,
) -> Gradient:
    """Forward and backward over `num_batches` batches, drawn one by one; leaves clipped gradients in `model`."""
    model.train()
    model.zero_grad(set_to_none=True)
    parts: list[torch.Tensor] = []
    places: list[tuple[int, int]] = []
    unit = 1.0
    # those of an objective that balances its tasks' gradients, which are then reduced there and not by DDP
    tasks = TaskGradients(model.encoder, model.objective) if model.objective.balances_gradients else None
    rows = RowGradients(model.encoder.ids)
    drawn = iter(batches)
    for number in range(num_batches):
        batch = model.encoder.look_up(next(drawn))
        last = number == num_batches - 1
        places.append((batch.epoch, batch.step))
        key = subkey(step_key(seed=run.run.seed, epoch=batch.epoch, step=batch.step), NOISE_TAG)
        with nullcontext() if last and tasks is None else local_gradients(forward):
            listening = states.listening(model.encoder, batch) if states is not None and last else nullcontext()
            with listening, autocast(run, batch):
                out = forward(batch, Noise(int(key)))
            parts.append(torch.stack([out.loss_sum.detach().double(), out.count.double()]))
            if last:
                sums = group.sum(torch.stack(parts))
                loss_sum, count = sums.sum(0).tolist()
            if number == 0:
                # a batch alone is divided by its count; of several the count is not known yet, the size is near it
                unit = max(count, 1.0) if last else float(max(batch.num_seeds_global, 1))
            if tasks is not None:
                tasks.add(out.tasks)
                continue
            # DDP averages gradients over ranks; the objective is the sum over ranks divided by the count over ranks
            (out.loss_sum * (group.world_size / unit)).backward()
            rows.add(batch)
    if tasks is not None:
        tasks.write(count=max(count, 1.0), group=group)
    elif num_batches > 1:
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(unit / max(count, 1.0))
    touched = rows.touched(scale=(unit / max(count, 1.0) if num_batches > 1 else 1.0) / group.world_size, group=group)
    trained = [*model.parameters(), *(one.holder for one in touched)]
    norm = float(nn.utils.clip_grad_norm_(trained, run.training.clip_norm or math.inf))
    return Gradient(
        loss=loss_sum / max(count, 1.0),
        norm=norm,
        batch_losses=tuple(sums[:, 0].tolist()),
        places=tuple(places),
        touched=touched,
    )


def not_finite(found: Gradient) -> str | None:
    """Which figure of which batch is not finite; None when all are."""
    for loss, (epoch, batch) in zip(found.batch_losses, found.places, strict=True):
        if not math.isfinite(loss):
            return f"loss is {loss} at epoch {epoch}, batch {batch}"
    if not math.isfinite(found.loss):
        return f"loss is {found.loss} at epoch {found.places[0][0]}, batch {found.places[0][1]}"
    if not math.isfinite(found.norm):
        (epoch, first), (_, last) = found.places[0], found.places[-1]
        which = f"batch {first}" if first == last else f"batches {first} to {last}"
        return f"gradient norm is {found.norm} at epoch {epoch}, {which}"
    return None


def local_gradients(forward: Callable[..., LossSum]) -> AbstractContextManager[None]:
    """Inside the block, gradients are added up on their rank and not reduced."""
    context: AbstractContextManager[None] = nullcontext()
    if isinstance(forward, DistributedDataParallel):
        context = forward.no_sync()
    return context


def autocast(run: RunFile, batch: MiniBatch) -> torch.autocast:
    """bfloat16 where the run file asks for it, or by itself on GPUs."""
    device_type = batch.node_type.device.type
    bfloat16 = run.training.precision == "bfloat16" or (run.training.precision == "auto" and device_type == "cuda")
    return torch.autocast(device_type, dtype=torch.bfloat16, enabled=bfloat16)


def build_optimizer(run: RunFile, model: nn.Module) -> torch.optim.Optimizer:
    """The optimiser of the run file; its learning rate is set before every step."""
    kinds: dict[str, type[torch.optim.Adam]] = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return kinds[run.training.optimizer](trained, lr=run.training.learning_rate, weight_decay=run.training.weight_decay)
