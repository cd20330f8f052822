"""Several objectives at once on one batch and one encoder, their losses weighted or their gradients balanced.

Shapes: K tasks, N nodes.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Literal, Self

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from sampling.batch import MiniBatch
from sampling.keys import subkey
from service.encoders.base import Encoder
from service.group import Group
from service.noise import Noise
from service.objectives.base import LossSum, Objective
from service.objectives.decorr import DecorrConfig
from service.objectives.registry import SingleConfig

TASK_TAG = 0x7A_5C
"""keeps the keys of tasks apart from each other's, and from those of an objective alone"""


class MultitaskConfig(BaseModel):
    """The `objective` section of a run file for multitask."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["multitask"] = Field("multitask", description="several objectives on one batch and one encoder")
    tasks: tuple[Annotated[SingleConfig, Field(discriminator="name")], ...] = Field(
        description="list of two or more objectives, each with the keys of its own section, such as [{name: graphmae}, "
        "{name: decorr, loss: barlow}]; fan-outs are for the one that reaches farthest",
    )
    balance: Literal["fixed", "uncertainty", "mgda"] = Field(
        "fixed",
        description="fixed: the sum of the tasks' mean losses by `weights`; uncertainty: by learned variances; mgda: "
        "the shortest convex combination of the gradients that tasks, each scaled to length 1, give the encoder, which "
        "makes no task worse, at the cost of a backward pass a task",
    )
    weights: tuple[float, ...] = Field((), description="of fixed: of the tasks, in their order; empty for 1 each")

    @property
    def reach(self) -> int:
        """Hops beyond the encoder's."""
        return max(task.reach for task in self.tasks)

    @property
    def varies_with_workers(self) -> str | None:
        """Which setting makes the loss depend on the number of workers; of the first task that has one."""
        found = (getattr(task, "varies_with_workers", None) for task in self.tasks)
        return next((setting for setting in found if setting is not None), None)

    @model_validator(mode="after")
    def _settings_have_an_effect(self) -> Self:
        if len(self.tasks) < 2:
            raise ValueError("multitask holds two tasks or more; write one alone as the objective itself")
        if self.weights and self.balance != "fixed":
            raise ValueError(f"balance={self.balance} finds the weights itself; leave weights out")
        if self.weights and len(self.weights) != len(self.tasks):
            raise ValueError(
                f"weights={list(self.weights)}: {len(self.tasks)} tasks have as many weights, or none is given"
            )
        if any(not weight > 0.0 for weight in self.weights):
            raise ValueError(f"weights={list(self.weights)}: weights are above 0; leave out a task that has none")
        if self.balance == "uncertainty" and any(
            isinstance(task, DecorrConfig) and task.loss == "cca" for task in self.tasks
        ):
            raise ValueError(
                "balance=uncertainty divides losses by variances, and that of decorr with loss=cca falls below 0, "
                "where no variance is best; set loss=barlow, or another balance"
            )
        return self


class Multitask(Objective):
    """One forward pass of each task, with noise of its own, over the hops that it reads.

    A task's loss is the mean over its own terms of the global batch. The loss is, of `fixed`, sum_k w_k loss_k; of
    `uncertainty`, sum_k (exp(-s_k) loss_k + s_k) / 2 with learned s_k; of `mgda`, the plain sum, which is reported
    while `service.task_gradients` combines the gradients. Terms are counted by seeds.
    Sources: Kendall et al., "Multi-task learning using uncertainty to weigh losses", CVPR 2018, eq. 7; Ju et al.,
    "Multi-task self-supervised graph neural networks enable stronger task generalization" (ParetoGNN), ICLR 2023.
    """

    def __init__(self, config: MultitaskConfig, tasks: Sequence[Objective]) -> None:
        """`tasks`: made of `config.tasks`, in their order."""
        super().__init__()
        self.config = config
        self.tasks = nn.ModuleList(tasks)
        self.weights = config.weights or (1.0,) * len(tasks)
        self.log_variance: nn.Parameter | None = None
        if config.balance == "uncertainty":
            self.log_variance = nn.Parameter(torch.zeros(len(tasks)))

    @property
    def reach(self) -> int:
        """Of the task that reaches farthest."""
        return self.config.reach

    @property
    def balances_gradients(self) -> bool:
        """Of mgda."""
        return self.config.balance == "mgda"

    def forward(self, encoder: Encoder, batch: MiniBatch, *, noise: Noise | None, group: Group) -> LossSum:
        """Part of the loss that is this rank's; see `Objective.forward`."""
        found: list[LossSum] = []
        for number, task in enumerate(self.tasks):
            assert isinstance(task, Objective)
            own = None if noise is None else Noise(int(subkey(np.uint64(noise.step_key), TASK_TAG, number)))
            found.append(
                task(encoder, first_hops(batch, encoder.num_layers + task.reach), noise=own, group=group),
            )
        seeds = float(batch.num_seeds_global)
        counts = group.sum(torch.stack([one.count for one in found]))
        # each task is a mean over its own terms once the loss is divided by seeds
        scales = (seeds / counts.clamp(min=1.0)).unbind()
        losses = [one.loss_sum * scale.to(one.loss_sum.dtype) for one, scale in zip(found, scales, strict=True)]
        count = torch.tensor(float(batch.num_seeds), dtype=torch.float64, device=batch.node_type.device)
        return LossSum(
            loss_sum=self._together(torch.stack(losses), share=seeds / group.world_size),
            count=count,
            metrics={
                f"{number}_{task.name}": loss.detach()
                for number, (task, loss) in enumerate(zip(self.config.tasks, losses, strict=True))
            },
            tasks=tuple(LossSum(loss_sum=loss, count=count) for loss in losses),
        )

    def begin(self, encoder: Encoder) -> None:
        """As each task does."""
        for task in self.tasks:
            assert isinstance(task, Objective)
            task.begin(encoder)

    def after_step(self, encoder: Encoder, *, done: int, total_steps: int) -> None:
        """As each task does."""
        for task in self.tasks:
            assert isinstance(task, Objective)
            task.after_step(encoder, done=done, total_steps=total_steps)

    def _together(self, losses_K: Tensor, *, share: float) -> Tensor:
        """Scalar; `share` is what a rank gives of a term that every rank knows."""
        if self.log_variance is not None:
            s_K = self.log_variance.to(losses_K.dtype)
            return ((-s_K).exp() * losses_K + s_K * share).sum() / 2.0
        return (losses_K * losses_K.new_tensor(self.weights)).sum()


def first_hops(batch: MiniBatch, num_hops: int) -> MiniBatch:
    """The batch as it would be with `num_hops` hops, which are its first; nodes that only later hops read are gone."""
    if num_hops >= len(batch.hops):
        return batch
    num_nodes = batch.hops[num_hops].num_targets
    node_type = batch.node_type[:num_nodes]
    return replace(
        batch,
        hops=batch.hops[:num_hops],
        node_type=node_type,
        node_id=batch.node_id[:num_nodes],
        in_degree=batch.in_degree[:, :num_nodes],
        out_degree=batch.out_degree[:, :num_nodes],
        features=tuple(
            None if table is None else table[: int((node_type == kind).sum())]
            for kind, table in enumerate(batch.features)
        ),
        learned=tuple(
            None if table is None else table[: int((node_type == kind).sum())]
            for kind, table in enumerate(batch.learned)
        ),
    )
