"""The loop of finetuning: rounds of steps on labelled seeds, each round judged on the validation nodes.

    order of rounds -> batches        service.finetune_nodes, the same source as pretraining's (service.streaming)
    batch -> logits -> step           service.finetune_model
    round -> best weights, end        service.finetune_rounds

Validation reads sampled neighbourhoods of the same fan-outs, in the same stream; test nodes are not looked at here.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from sampling.batch import MiniBatch
from sampling.device_tier import on_device
from sampling.keys import step_key, subkey
from service.errors import TrainingFailed
from service.finetune_model import Classifier, finetune_optimizer
from service.finetune_nodes import LabelledNodes, RoundOrder
from service.finetune_rounds import Round
from service.group import Group
from service.judged_rounds import JudgedRounds, RoundLimits
from service.noise import Noise
from service.preparation import Preparation
from service.run_file import RunFile
from service.step import autocast
from service.streaming import open_batches
from storage.place import Place
from storage.progress import Progress

FINETUNE_TAG = 0xF17E
"""keeps the keys of finetuning apart from those of pretraining under the same seed"""
NOISE_TAG = 0xF17E_5E
"""and those of its dropout from those of its sampling"""


@dataclass(frozen=True)
class Finetuned:
    """What the loop ends with."""

    rounds: tuple[Round, ...]
    best: dict[str, Tensor]
    """weights after the best round, on the CPU"""


def finetune_seed(run: RunFile) -> int:
    """The seed of everything drawn in finetuning, below 2**31."""
    return int(subkey(np.uint64(FINETUNE_TAG), run.run.seed, run.finetune.seed)) >> 33


def batch_settings(run: RunFile, *, num_layers: int) -> RunFile:
    """The run file by which batches of finetuning are made: a hop a layer, its own seeds and keys."""
    sampling = run.sampling.model_copy(
        update={"fanouts": run.sampling.fanouts[:num_layers], "seeds_per_step": run.finetune.seeds_per_step}
    )
    named = run.run.model_copy(update={"seed": finetune_seed(run)})
    return run.model_copy(update={"sampling": sampling, "run": named})


def finetune_rounds(
    run: RunFile,
    classifier: Classifier,
    *,
    nodes: LabelledNodes,
    prepared: Preparation,
    place: Place,
    binding: dict[str, object],
    check: Callable[[], None],
    device: torch.device,
    name: str,
    progress: Progress,
) -> Finetuned:
    """Train from where `place` stands to the end.

    Args:
        run: of `batch_settings`.
        classifier: on `device`, with its first weights; it ends with those of the last round.
        prepared: the store, and the rounds' order and number of batches.
        check: asked before anything is written; raises when this process may no longer work in `place`.
        name: of this work, for the progress bar.

    Raises BadInput when `place` holds rounds of another `binding`, TrainingFailed when a loss is not finite.
    """
    section, order = run.finetune, prepared.order
    assert isinstance(order, RoundOrder)
    optimizer = finetune_optimizer(classifier, section)
    limits = RoundLimits(section.num_rounds, section.patience, section.checkpoint_every)
    rounds = JudgedRounds(
        place, section="finetune", binding=binding, limits=limits, model=classifier, optimizer=optimizer, check=check
    )
    if not rounds.over:
        with ExitStack() as opened:
            source, tier = open_batches(run, prepared, group=Group(), device=device, opened=opened, progress=progress)
            batches = source.batches(
                first_step=len(rounds.rounds) * order.steps_per_epoch,
                last_step=section.num_rounds * order.steps_per_epoch,
            )
            if tier is not None:
                batches = on_device(batches, tier)
            opened.enter_context(closing(batches))
            rounds.train(
                lambda _: one_round(run, classifier, optimizer, batches, nodes=nodes, order=order),
                name=name,
                unit="rounds",
                progress=progress,
            )
    return Finetuned(tuple(rounds.rounds), rounds.best)


def one_round(
    run: RunFile,
    classifier: Classifier,
    optimizer: torch.optim.Optimizer,
    batches: Iterator[MiniBatch],
    *,
    nodes: LabelledNodes,
    order: RoundOrder,
) -> Round:
    """The passes over the training nodes, then the one over the validation nodes."""
    classifier.train()
    losses = []
    for _ in range(order.train_steps):
        batch = next(batches)
        key = subkey(step_key(seed=run.run.seed, epoch=batch.epoch, step=batch.step), NOISE_TAG)
        with autocast(run, batch):
            logits_SC = classifier(batch, Noise(int(key)))
        loss = cross_entropy(logits_SC, classes_of(batch, nodes))
        losses.append(float(loss.detach()))
        if not math.isfinite(losses[-1]):
            raise TrainingFailed(
                f"loss is {losses[-1]} at batch {batch.step} of round {batch.epoch}: finetuning has diverged; lower "
                "finetune.learning_rate and finetune.encoder_learning_rate under another finetune.name"
            )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    classifier.eval()
    loss_sum, right = 0.0, 0
    with torch.no_grad():
        for _ in range(order.steps_per_epoch - order.train_steps):
            batch = next(batches)
            with autocast(run, batch):
                logits_SC = classifier(batch, None)
            wanted_S = classes_of(batch, nodes)
            loss_sum += float(cross_entropy(logits_SC, wanted_S, reduction="sum"))
            right += int((logits_SC.argmax(1) == wanted_S).sum())
    count = order.val.shape[0]
    return Round(loss=sum(losses) / len(losses), val_loss=loss_sum / count, val_accuracy=100.0 * right / count)


def classes_of(batch: MiniBatch, nodes: LabelledNodes) -> Tensor:
    """int64 [S]: number of each seed's class, on the batch's device."""
    ids = batch.node_id[: batch.num_seeds].cpu().numpy()
    return torch.from_numpy(nodes.class_of(ids)).to(batch.node_id.device)
