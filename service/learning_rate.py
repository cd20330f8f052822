"""The learning rate as a pure function of the step, so that resuming needs no scheduler state."""

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from service.training_section import TrainingSection


def learning_rate(training: "TrainingSection", *, step: int, total_steps: int, continued: bool = False) -> float:
    """Learning rate of step `step` (from 0): linear warm-up, then one of three shapes.

    constant   the peak
    cosine     from the peak to zero, at the last step
    infinite   cosine over `cooldown_steps` from the peak to the constant rate (`constant_share` of the peak), that
               rate, and over the last `anneal_steps` exponentially down to `final_share` of it. Only the last phase
               depends on the number of steps, so a checkpoint before it can be continued from for any number more.

    Args:
        continued: the run began with another's weights: the infinite schedule is then in its constant phase at once.

    Sources: Loshchilov and Hutter, "SGDR", ICLR 2017, equation 5, without restarts; Ibrahim et al., "Simple and
    scalable strategies to continually pre-train large language models", TMLR 2024, infinite learning rate schedules.
    """
    peak = training.learning_rate
    if training.schedule == "infinite":
        return _infinite(training, step=step, total_steps=total_steps, continued=continued)
    if step < training.warmup_steps:
        return peak * (step + 1) / training.warmup_steps
    if training.schedule == "constant":
        return peak
    return peak * _half_cosine(step - training.warmup_steps, total_steps - training.warmup_steps)


def branch_step(training: "TrainingSection", *, total_steps: int) -> int | None:
    """Steps done where the constant phase of an infinite schedule ends; None for schedules that have none.

    The checkpoint of this step is the one to continue from: what follows it is annealed.
    """
    return max(0, total_steps - training.anneal_steps) if training.schedule == "infinite" else None


def _infinite(training: "TrainingSection", *, step: int, total_steps: int, continued: bool) -> float:
    warmup, cooldown = (0, 0) if continued else (training.warmup_steps, training.cooldown_steps)
    constant = training.learning_rate * training.constant_share
    if step < warmup:
        rate = training.learning_rate * (step + 1) / warmup
    else:
        rate = constant + (training.learning_rate - constant) * _half_cosine(step - warmup, cooldown)
    into = step + 1 - max(0, total_steps - training.anneal_steps)
    if into > 0:  # a run that ends before its constant phase anneals from where it stands
        rate *= training.final_share ** (into / training.anneal_steps)
    return rate


def _half_cosine(step: int, steps: int) -> float:
    """1 at step 0, 0 from step `steps` on."""
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, step / steps))) if steps > 0 else 0.0
