"""Global steps: their batches are those of every epoch, in order, and their seeds those of one larger batch."""

import numpy as np
import pytest

from sampling.seeds import SeedOrder
from service.global_steps import GlobalSteps


@pytest.mark.parametrize("accumulate", [1, 2, 3, 7, 20])
def test_steps_take_every_batch_once_in_order_and_none_spans_two_epochs(accumulate: int) -> None:
    steps = GlobalSteps(batches_per_epoch=7, accumulate=accumulate)
    taken: list[int] = []
    for step in range(3 * steps.per_epoch):
        first, count = steps.first_batch(step), steps.num_batches(step)
        assert 1 <= count <= accumulate
        assert {number // 7 for number in range(first, first + count)} == {steps.epoch_of(step)}
        taken += range(first, first + count)
    assert taken == list(range(21))


@pytest.mark.parametrize("accumulate", [2, 3])
def test_the_seeds_of_a_step_are_those_of_a_batch_that_many_times_as_large(accumulate: int) -> None:
    small = SeedOrder(None, num_nodes=100, seeds_per_step=16, seed=4)
    large = SeedOrder(None, num_nodes=100, seeds_per_step=16 * accumulate, seed=4)
    steps = GlobalSteps(small.steps_per_epoch, accumulate)
    assert steps.per_epoch == large.steps_per_epoch
    for step in range(2 * steps.per_epoch):
        batches = range(steps.first_batch(step), steps.first_batch(step) + steps.num_batches(step))
        seeds = [
            small.global_batch(epoch=batch // small.steps_per_epoch, step=batch % small.steps_per_epoch)
            for batch in batches
        ]
        epoch, number = divmod(step, large.steps_per_epoch)
        assert np.array_equal(np.concatenate(seeds), large.global_batch(epoch=epoch, step=number))
