"""When a run looks at validation accuracy, and at what: the `training.probe` section, pure functions of the step.

A probe of the weights after step s is computed while training goes on, and its figure is used at step s + n, where n is
`every_steps`. When it arrives depends on the step alone, so nothing that a run does depends on how fast a probe is.
"""

from dataclasses import dataclass
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from service.labelled_rows import SplitSource
from service.probe import SplitSizes


class ValidationProbeConfig(BaseModel):
    """The `training.probe` section of a run file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    every_steps: int | None = Field(
        None,
        ge=1,
        description="steps between linear probes of validation accuracy, computed while training goes on; each figure "
        "is logged and used so many steps later, where training waits for it if need be; unset for none",
    )
    node_type: str | None = Field(None, description="node type that is probed; unset for the one with labels")
    split: SplitSource = Field(
        "auto", description="the data's own split, or a random one; auto: the data's where it has one"
    )
    train_fraction: float = Field(0.1, gt=0, lt=1, description="share of labelled nodes a random split trains on")
    val_fraction: float = Field(0.1, gt=0, lt=1, description="share of labelled nodes that are predicted")
    max_train_rows: int = Field(1000, ge=2, description="training nodes used at most, drawn by the seed")
    max_val_rows: int = Field(
        1000,
        ge=1,
        description="validation nodes used at most; features of all probed nodes and of their sampled neighbours are "
        "copied to tiers.scratch_folder once",
    )
    strengths: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (0.25, 4.0, 64.0, 1024.0), min_length=1, description="values of C (inverse L2 penalty) tried; the best counts"
    )

    @property
    def sizes(self) -> SplitSizes:
        """The limits of rows; the test part is left as it is, for nothing looks at it."""
        return SplitSizes(train=self.max_train_rows, val=self.max_val_rows, test=1)


@dataclass(frozen=True)
class ProbeFigure:
    """What a probe found."""

    step: int
    """steps that its weights have taken"""
    accuracy: float
    """share of the validation nodes that it predicted"""


def begins(step: int, *, every_steps: int | None, total_steps: int) -> bool:
    """Whether a probe of the weights after `step` steps begins: its figure arrives before the run's end."""
    return every_steps is not None and step > 0 and step % every_steps == 0 and step + every_steps <= total_steps


def arriving(step: int, *, every_steps: int | None) -> int | None:
    """The step whose probe's figure arrives when `step` steps are done; None where none does."""
    if every_steps is None or step % every_steps or step < 2 * every_steps:
        return None
    return step - every_steps
