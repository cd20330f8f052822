"""The learning rate as a pure function of the step, so that resuming needs no scheduler state."""

import math

from service.run_file import TrainingSection


def learning_rate(training: TrainingSection, *, step: int, total_steps: int) -> float:
    """Learning rate of step `step` (from 0): linear warm-up, then constant or cosine to zero.

    Source of the cosine: Loshchilov and Hutter, "SGDR", ICLR 2017, equation 5, without restarts.
    """
    peak = training.learning_rate
    if step < training.warmup_steps:
        return peak * (step + 1) / training.warmup_steps
    if training.schedule == "constant":
        return peak
    progress = (step - training.warmup_steps) / max(1, total_steps - training.warmup_steps)
    return peak * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
