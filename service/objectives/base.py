"""What an objective is: a loss on a mini-batch, as a sum and a count so that ranks can be added up."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor, nn

from sampling.batch import MiniBatch
from service.encoders.base import Encoder
from service.group import Group
from service.noise import Noise


@dataclass(frozen=True)
class LossSum:
    """One rank's part of the loss of one global batch.

    The loss is the sum of all ranks' `loss_sum` over the sum of all ranks' `count`. DDP averages gradients over
    ranks, so a rank's backward pass starts from `loss_sum * world_size / (count of all ranks)`. Of a loss that is no
    sum over seeds, such as one of statistics that every rank knows, each rank gives the whole loss times (count of
    all ranks) / world_size.
    """

    loss_sum: Tensor
    """scalar; hangs on every parameter, also when count is 0"""
    count: Tensor
    """float64 scalar: terms in loss_sum"""
    metrics: Mapping[str, Tensor] = field(default_factory=dict)
    """other sums over the same terms, scalars without gradient"""
    tasks: "tuple[LossSum, ...]" = ()
    """of an objective of several tasks: each one's loss, in the same terms (counts are equal)"""


class Objective(nn.Module, ABC):
    """A self-supervised task with its own parameters (tokens, decoders).

    All that crosses ranks goes through `group`; all that is random through `noise`.
    """

    first_passes_are_views: ClassVar[bool] = False
    """whether the first two calls of the encoder are two views of the batch, which `service.health` then compares"""

    @property
    @abstractmethod
    def reach(self) -> int:
        """Hops needed beyond the encoder's: a batch carries `encoder.num_layers + reach`."""

    @property
    def balances_gradients(self) -> bool:
        """Whether a step combines the gradients of `LossSum.tasks` (`service.task_gradients`), not that of the sum."""
        return False

    @abstractmethod
    def forward(self, encoder: Encoder, batch: MiniBatch, *, noise: Noise | None, group: Group) -> LossSum:
        """One rank's part of the loss on the batch's seeds.

        Every rank of `group` must call it, in the same order; one without seeds joins with count 0. `noise` None
        means evaluation: no dropout, and what the task itself has to choose is chosen by fixed keys.
        """

    def check_seed_types(self, seed_types: Sequence[str]) -> None:
        """Raise BadInput where seeds of these node types alone leave nothing to learn from. By default all will do."""

    def begin(self, encoder: Encoder) -> None:
        """Take what it needs of the encoder's initial weights; called once, when both are made. By default nothing."""

    def after_step(self, encoder: Encoder, *, done: int, total_steps: int) -> None:
        """Follow the weights that `done` of `total_steps` steps have made; every rank calls it, after each step.

        Under a schedule that can be continued for any number of steps (infinite) `done` stays 0, so that nothing
        depends on where the run happens to end.
        What it changes is in the objective's state, hence in checkpoints. By default nothing.
        """
