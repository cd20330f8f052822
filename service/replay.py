"""`hopstream replay`: one step of a run done again with a look at every layer, to see where numbers turn infinite.

    checkpoint before the step (or the start) -> the steps between, as training does them -> the step's batches
    one forward and one backward pass with torch's anomaly detection -> every module's output, every gradient

Batches, dropout and masks are keyed by the step, so they are the run's own; nothing is written and the weights that
the step would make are thrown away. One process does it, whatever the run's number of workers: with one worker on a CPU
the numbers are the run's bit for bit, otherwise to rounding.
"""

import math
import os
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sampling.batch import MiniBatch
from sampling.device_tier import on_device
from service.checkpoint import Checkpoint, checkpoint_name, list_checkpoints, load_checkpoint
from service.group import Group
from service.learner import Learner
from service.noise import Noise
from service.objectives import LossSum
from service.partition_file import give_partition
from service.preparation import pick_device, prepare
from service.results import settings_of
from service.run_file import RunFile
from service.run_folder import run_place
from service.step import Gradient, find_gradient, not_finite
from service.streaming import open_batches
from storage.errors import BadInput, DamagedStore
from storage.place import Place
from storage.progress import Progress


@dataclass(frozen=True)
class TensorCheck:
    """One tensor of the step, over all its entries."""

    name: str
    norm: float | None
    """Euclidean; None where it is no finite number"""
    num_not_finite: int

    @classmethod
    def of(cls, name: str, tensor: Tensor) -> "TensorCheck":
        """Look at `tensor`."""
        values = tensor.detach().double()
        norm = float(values.norm())
        return cls(name, norm if math.isfinite(norm) else None, int((~torch.isfinite(values)).sum()))


@dataclass(frozen=True)
class ReplayReport:
    """What a step did when it was done again."""

    run: str
    step: int
    from_step: int
    """of the checkpoint that it went on from; 0 for the start"""
    epoch: int
    batches: list[int]
    """of that epoch"""
    seeds: int
    loss: float | None
    grad_norm: float | None
    """None where it is no finite number, or was not reached"""
    trouble: str | None
    """what is not finite; None when everything is"""
    anomaly: str | None
    """what anomaly detection says, with the line of the forward pass"""
    outputs: list[TensorCheck]
    """of modules, in the order of their calls"""
    gradients: list[TensorCheck]
    """of parameters, before clipping"""


def replay(run: RunFile, *, step: int, progress: Progress) -> ReplayReport:
    """Do step `step` (from 1, as in metrics.jsonl) of a run again.

    Raises BadInput for a step that the run does not have, and for another run file than the run's.
    """
    settings = settings_of(run)
    # one worker without Ray trains on the same batches
    settings = settings.model_copy(
        update={
            "workers": settings.workers.model_copy(update={"count": 1, "samplers": 0}),
            "tiers": run.tiers,
        }
    )
    device = pick_device(settings, local_rank=0)
    torch.set_num_threads(settings.training.num_compute_threads or os.cpu_count() or 1)
    progress.stage("open store", total=1, unit="stores")
    checkpoint = checkpoint_before(run_place(settings), step)
    prepared = prepare(settings, group=Group(), state=None if checkpoint is None else checkpoint.state)
    if not 1 <= step <= prepared.total_steps:
        raise BadInput(
            f"--step {step}",
            f"the run has steps 1 to {prepared.total_steps}",
            rule="a step of the run is done again",
            remedy="take the number from the message or from metrics.jsonl",
        )
    learner = Learner(settings, prepared, checkpoint=checkpoint, group=Group(), device=device)
    from_step = learner.done
    progress.advance(1)
    give_partition(learner.model, settings, store=prepared.store, group=Group(), progress=progress, is_kept=False)
    with ExitStack() as opened:
        source, tier = open_batches(settings, prepared, group=Group(), device=device, opened=opened, progress=progress)
        last_batch = learner.steps.first_batch(step)
        batches = source.batches(first_step=learner.next_batch, last_step=last_batch)
        if tier is not None:
            batches = on_device(batches, tier)
        opened.enter_context(closing(batches))
        progress.stage("replay", total=step - from_step, unit="steps")
        while learner.done < step - 1:
            learner.step(batches)
            progress.advance(1)
        report = look(settings, learner, batches, from_step=from_step)
        progress.advance(1)
    return report


def checkpoint_before(place: Place, step: int) -> Checkpoint | None:
    """The last whole checkpoint of a run before step `step`; None for its start."""
    for name in reversed(list_checkpoints(place)):
        if name < checkpoint_name(step):
            try:
                return load_checkpoint(place, name)
            except DamagedStore:
                continue
    return None


def look(run: RunFile, learner: Learner, batches: Iterator[MiniBatch], *, from_step: int) -> ReplayReport:
    """The forward and backward pass of the learner's next step on `batches`, with everything that can be seen of it."""
    model, steps, step = learner.model, learner.steps, learner.done
    unclipped = run.model_copy(update={"training": run.training.model_copy(update={"clip_norm": None})})
    sums = torch.zeros(2, dtype=torch.float64)
    seeds = 0

    def forward(batch: MiniBatch, noise: Noise) -> LossSum:
        nonlocal seeds
        out: LossSum = model(batch, noise)
        sums.add_(torch.stack([out.loss_sum.detach().double(), out.count.double()]).cpu())
        seeds += batch.num_seeds_global
        return out

    found: Gradient | None = None
    anomaly = None
    outputs: list[TensorCheck] = []
    with warnings.catch_warnings(record=True) as told, checking(model, outputs):
        warnings.simplefilter("always")
        try:
            with torch.autograd.detect_anomaly():
                found = find_gradient(
                    unclipped,
                    batches,
                    num_batches=learner.num_batches,
                    forward=forward,
                    model=model,
                    group=Group(),
                )
        except RuntimeError as error:
            if "returned nan values" not in str(error):
                raise
            anomaly = " ".join([str(error), *place_in_forward([str(warning.message) for warning in told])])
    loss = float(sums[0] / sums[1].clamp(min=1.0))
    first = steps.first_batch(step) - steps.epoch_of(step) * steps.batches_per_epoch
    return ReplayReport(
        run=run.run.name,
        step=step + 1,
        from_step=from_step,
        epoch=steps.epoch_of(step),
        batches=list(range(first, first + steps.num_batches(step))),
        seeds=seeds,
        loss=loss if math.isfinite(loss) else None,
        grad_norm=found.norm if found is not None and math.isfinite(found.norm) else None,
        trouble=f"gradient is nan in {anomaly.split()[1]}" if anomaly is not None else not_finite(assured(found)),
        anomaly=anomaly,
        outputs=outputs,
        gradients=[
            TensorCheck.of(name, parameter.grad)
            for name, parameter in model.named_parameters()
            if parameter.grad is not None
        ]
        + [
            TensorCheck.of(f"learned rows of {model.encoder.schema.node_types[one.node_type].name}", one.gradient)
            for one in (() if found is None else found.touched)
        ],
    )


@contextmanager
def checking(model: nn.Module, checks: list[TensorCheck]) -> Iterator[None]:
    """Inside the block, what any module of `model` puts out is looked at; a further call has its number in the name."""
    calls = Counter[str]()

    def check(name: str, output: Any) -> None:
        tensor = output.loss_sum if isinstance(output, LossSum) else output
        if isinstance(tensor, Tensor) and tensor.is_floating_point():
            calls[name] += 1
            checks.append(TensorCheck.of(name if calls[name] == 1 else f"{name} ({calls[name]})", tensor))

    hooks = [
        module.register_forward_hook(lambda _module, _arguments, output, name=name or "loss": check(name, output))
        for name, module in model.named_modules()
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def place_in_forward(told: list[str]) -> list[str]:
    """The innermost line of the forward pass out of what anomaly detection warned of; empty where it did not."""
    for message in reversed(told):
        lines = [line.strip() for line in message.splitlines()]
        files = [number for number, line in enumerate(lines) if line.startswith("File ")]
        if files:
            return ["It comes from", *lines[files[-1] : files[-1] + 2]]
    return []


def assured(found: Gradient | None) -> Gradient:
    """`found`, which is there unless an anomaly was."""
    assert found is not None
    return found
