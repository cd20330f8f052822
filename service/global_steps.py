"""Global steps: which batches one step of the optimiser is made of.

A step takes `training.accumulate` consecutive batches of one epoch; the last step of an epoch takes what is left. So
its seeds are those of one batch that many times as large.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class GlobalSteps:
    """Steps and batches, both counted from 0 over all epochs."""

    batches_per_epoch: int
    accumulate: int = 1
    """batches of a step"""

    @property
    def per_epoch(self) -> int:
        """Steps of one epoch."""
        return -(-self.batches_per_epoch // self.accumulate)

    def epoch_of(self, step: int) -> int:
        """The epoch of step `step`."""
        return step // self.per_epoch

    def first_batch(self, step: int) -> int:
        """The first batch of step `step`, which is also the number of batches before it."""
        epoch, within = divmod(step, self.per_epoch)
        return epoch * self.batches_per_epoch + within * self.accumulate

    def num_batches(self, step: int) -> int:
        """Batches of step `step`."""
        return self.first_batch(step + 1) - self.first_batch(step)
