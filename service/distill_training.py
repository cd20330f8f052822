"""The loop of distillation: epochs over the teacher's rows, each judged on rows that are never learned from."""

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from service.distill_rows import DistillRows, buffers, held_out_places, steps_of_buffer
from service.distill_section import DistillSection
from service.distill_student import StudentLoss
from service.errors import TrainingFailed
from service.finetune_rounds import Round
from service.judged_rounds import JudgedRounds, RoundLimits
from storage.place import Place
from storage.progress import Progress

EVALUATION_ROWS = 8192
"""computed at once where nothing is learned"""


def distill_rounds(
    loss: StudentLoss,
    rows: DistillRows,
    *,
    section: DistillSection,
    place: Place,
    binding: dict[str, object],
    check: Callable[[], None],
    device: torch.device,
    progress: Progress,
) -> tuple[list[Round], dict[str, Tensor]]:
    """Train the student from where `place` stands to the end; returns the epochs' figures and the best weights.

    Args:
        loss: on `device`, with the student's first weights.
        check: asked before anything is written; raises when this process may no longer work in `place`.

    Raises BadInput when `place` holds rounds of another `binding`, TrainingFailed when a loss is not finite.
    """
    student = loss.student
    optimizer = torch.optim.AdamW(
        student.parameters(), lr=section.learning_rate, weight_decay=section.weight_decay
    )  # fmt: skip
    limits = RoundLimits(section.epochs, section.patience, section.checkpoint_every)
    rounds = JudgedRounds(
        place, section="distill", binding=binding, limits=limits, model=student, optimizer=optimizer, check=check
    )
    held_out = held_out_places(rows.ids.shape[0], section)
    judged = rows.read(held_out)

    def one_round(epoch: int) -> Round:
        for settings in optimizer.param_groups:
            settings["lr"] = section.learning_rate * 0.5 * (1.0 + math.cos(math.pi * epoch / section.epochs))
        mean_loss = one_epoch(loss, rows, optimizer, section=section, held_out=held_out, epoch=epoch, device=device)
        return judge(loss, judged, mean_loss=mean_loss, device=device)

    rounds.train(one_round, name="distill", unit="epochs", progress=progress)
    return rounds.rounds, rounds.best


def one_epoch(
    loss: StudentLoss,
    rows: DistillRows,
    optimizer: torch.optim.Optimizer,
    *,
    section: DistillSection,
    held_out: NDArray[np.int64],
    epoch: int,
    device: torch.device,
) -> float:
    """One pass over the rows that are not held out; returns the mean loss of its steps."""
    losses = []
    for number, places in enumerate(buffers(rows.ids.shape[0], section, held_out=held_out, epoch=epoch)):
        x_NF, y_ND = rows.read(places)
        for chosen in steps_of_buffer(places.shape[0], section, epoch=epoch, number=number):
            found, _ = loss(x_NF[chosen].to(device), y_ND[chosen].to(device))
            losses.append(float(found.detach()))
            if not math.isfinite(losses[-1]):
                raise TrainingFailed(
                    f"loss is {losses[-1]} in epoch {epoch}: distillation has diverged; lower distill.learning_rate "
                    "under another distill.name"
                )
            optimizer.zero_grad(set_to_none=True)
            found.backward()
            optimizer.step()
    return sum(losses) / len(losses)


def judge(loss: StudentLoss, judged: tuple[Tensor, Tensor], *, mean_loss: float, device: torch.device) -> Round:
    """The figures of an epoch: loss on the held-out rows, and of classes also the share in which both agree."""
    total, agreed, count = 0.0, 0, judged[0].shape[0]
    with torch.no_grad():
        for x_NF, y_ND in zip(*(table.split(EVALUATION_ROWS) for table in judged), strict=True):
            found, same = loss(x_NF.to(device), y_ND.to(device))
            total += float(found) * x_NF.shape[0]
            agreed += int(same)
    accuracy = 100.0 * agreed / count if loss.loss == "labels" else None
    return Round(loss=mean_loss, val_loss=total / count, val_accuracy=accuracy)
