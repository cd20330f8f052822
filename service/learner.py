"""The learner: model and optimiser of one rank, and how far they are; training and replay move it step by step."""

from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from sampling.batch import MiniBatch
from service.checkpoint import Checkpoint, restore_optimizer
from service.group import Group
from service.health import SeedStates
from service.learning_rate import learning_rate
from service.preparation import Preparation
from service.run_file import RunFile
from service.step import Gradient, build_optimizer, take_step


class Learner:
    """Everything that a step changes.

    Args:
        prepared: of the run; its model is moved to `device`, and it lets go of its `origin`.
        checkpoint: of the run, to go on from; None for its start.
    """

    def __init__(
        self,
        run: RunFile,
        prepared: Preparation,
        *,
        checkpoint: Checkpoint | None,
        group: Group,
        device: torch.device,
    ) -> None:
        self.run = run
        self.group = group
        self.steps = prepared.steps
        self.total_steps = prepared.total_steps
        self.model = prepared.model.to(device)
        self.optimizer = build_optimizer(run, self.model)
        self.done = 0
        """steps"""
        self.loss = 0.0
        """of the last one"""
        if checkpoint is not None:
            restore(self.model, self.optimizer, checkpoint)
            self.done, self.loss = checkpoint.state.step, checkpoint.state.loss
        elif (origin := prepared.take_origin()) is not None:
            restore(self.model, self.optimizer, origin)
        self.forward: nn.Module = self.model
        if group.world_size > 1:
            self.forward = DistributedDataParallel(self.model, broadcast_buffers=False)

    @property
    def next_batch(self) -> int:
        """Number of the first batch of the next step, over all epochs."""
        return self.steps.first_batch(self.done)

    @property
    def num_batches(self) -> int:
        """Batches of the next step."""
        return self.steps.num_batches(self.done)

    @property
    def learning_rate(self) -> float:
        """Of the next step."""
        return learning_rate(
            self.run.training,
            step=self.done,
            total_steps=self.total_steps,
            continued=self.run.run.continue_from is not None,
        )

    def step(self, batches: Iterator[MiniBatch], *, states: SeedStates | None = None) -> Gradient:
        """The next step, on the next `num_batches` of `batches`; raises as `take_step`."""
        for settings in self.optimizer.param_groups:
            settings["lr"] = self.learning_rate
        found = take_step(
            self.run,
            batches,
            step=self.done + 1,
            num_batches=self.num_batches,
            forward=self.forward,
            model=self.model,
            optimizer=self.optimizer,
            group=self.group,
            states=states,
        )
        self.done, self.loss = self.done + 1, found.loss
        done = 0 if self.run.training.schedule == "infinite" else self.done  # see `Objective.after_step`
        self.model.objective.after_step(self.model.encoder, done=done, total_steps=self.total_steps)
        return found


def restore(model: nn.Module, optimizer: torch.optim.Optimizer, checkpoint: Checkpoint) -> None:
    """Put a checkpoint's tensors into model and optimiser."""
    model.load_state_dict(checkpoint.model)
    restore_optimizer(model, optimizer, checkpoint.optimizer)
