"""Early stop: when the loss has not improved for long enough, the coordinator ends the run for all ranks.

The state is a few numbers, a pure function of the losses so far; it is in every checkpoint, so a resumed run stops
where an uninterrupted one does.
"""

from dataclasses import dataclass, replace
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class EarlyStopConfig(BaseModel):
    """The `training.early_stop` section of a run file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    by: Literal["none", "loss"] = Field("none", description="what has to improve: none (never stop early) or loss")
    every_steps: int = Field(100, ge=1, description="steps whose mean loss is compared with the best such mean so far")
    patience: int = Field(10, ge=1, description="such means in a row without improvement that end the run")
    min_improvement: float = Field(
        0.0, ge=0.0, lt=1.0, description="share of the best mean's size that counts as improvement"
    )


@dataclass(frozen=True)
class EarlyStopState:
    """What early stop knows after `step` steps."""

    step: int = 0
    loss_sum: float = 0.0
    """of the steps since the last comparison"""
    best: float | None = None
    """lowest mean so far"""
    without_improvement: int = 0
    """means since then"""
    stopped: bool = False


def observe(state: EarlyStopState, config: EarlyStopConfig, *, step: int, loss: float) -> EarlyStopState:
    """The state after the loss of step `step`, the one after `state.step`; a step that it knows changes nothing."""
    if step <= state.step or config.by == "none":
        return state
    assert step == state.step + 1, f"step {step} after {state.step}"
    state = replace(state, step=step, loss_sum=state.loss_sum + loss)
    if step % config.every_steps:
        return state
    mean = state.loss_sum / config.every_steps
    if state.best is None or mean < state.best - config.min_improvement * abs(state.best):
        return replace(state, loss_sum=0.0, best=mean, without_improvement=0)
    count = state.without_improvement + 1
    return replace(state, loss_sum=0.0, without_improvement=count, stopped=count >= config.patience)
