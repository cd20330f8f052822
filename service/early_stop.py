"""Early stop: when loss or validation accuracy has not improved for long enough, the coordinator ends the run for all.

The state is a few numbers, a pure function of the losses and probes so far; it is in every checkpoint, so a resumed run
stops where an uninterrupted one does.
"""

from dataclasses import dataclass, replace
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class EarlyStopConfig(BaseModel):
    """The `training.early_stop` section of a run file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    by: Literal["none", "loss", "probe"] = Field(
        "none",
        description="what has to improve: none (never stop early), loss, or probe: the validation accuracy of "
        "training.probe",
    )
    every_steps: int = Field(
        100, ge=1, description="by loss: steps whose mean loss is compared with the best such mean so far"
    )
    patience: int = Field(
        10, ge=1, description="such means, or figures of probes, in a row without improvement that end the run"
    )
    min_improvement: float = Field(
        0.0, ge=0.0, lt=1.0, description="share of the best one's size that counts as improvement"
    )


@dataclass(frozen=True)
class EarlyStopState:
    """What early stop knows after `step` steps."""

    step: int = 0
    loss_sum: float = 0.0
    """of the steps since the last comparison"""
    best: float | None = None
    """lowest mean, or highest accuracy, so far"""
    without_improvement: int = 0
    """means, or probes, since then"""
    stopped: bool = False


def observe(
    state: EarlyStopState, config: EarlyStopConfig, *, step: int, loss: float, accuracy: float | None = None
) -> EarlyStopState:
    """The state after step `step`, the one after `state.step`; a step that it knows changes nothing.

    Args:
        loss: of the step.
        accuracy: of the probe whose figure arrived with the step; None where none did.
    """
    if step <= state.step or config.by == "none":
        return state
    assert step == state.step + 1, f"step {step} after {state.step}"
    if config.by == "probe":
        state = replace(state, step=step)
        return state if accuracy is None else _judged(state, config, accuracy, better=1)
    state = replace(state, step=step, loss_sum=state.loss_sum + loss)
    if step % config.every_steps:
        return state
    return _judged(replace(state, loss_sum=0.0), config, state.loss_sum / config.every_steps, better=-1)


def _judged(state: EarlyStopState, config: EarlyStopConfig, figure: float, *, better: int) -> EarlyStopState:
    """The state after another figure; `better` is 1 where higher ones are, -1 where lower ones are."""
    if state.best is None or better * (figure - state.best) > config.min_improvement * abs(state.best):
        return replace(state, best=figure, without_improvement=0)
    count = state.without_improvement + 1
    return replace(state, without_improvement=count, stopped=count >= config.patience)
