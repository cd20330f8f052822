"""Adaptive fan-out: grows when the metric stalls, never otherwise, and is the same after a checkpoint."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sampling.adaptive import AdaptiveFanout, Growth
from storage.errors import BadInput


def observed(state: AdaptiveFanout, *metrics: float) -> AdaptiveFanout:
    for metric in metrics:
        state = state.observe(metric)
    return state


def test_fan_outs_grow_after_as_many_stalls_as_patience_allows() -> None:
    start = AdaptiveFanout(Growth(patience=2), (4, 2))
    assert observed(start, 0.5, 0.6, 0.7).fanouts == (4, 2)
    assert observed(start, 0.5, 0.5).fanouts == (4, 2)
    assert observed(start, 0.5, 0.5, 0.4).fanouts == (6, 3)
    # a gain in between forgives; a growth begins the count anew
    assert observed(start, 0.5, 0.5, 0.6, 0.6).fanouts == (4, 2)
    assert observed(start, 0.5, 0.5, 0.5, 0.5).fanouts == (6, 3)
    assert observed(start, 0.5, 0.5, 0.5, 0.5, 0.5).fanouts == (9, 5)


def test_a_gain_must_be_larger_than_the_least_one_and_in_the_right_direction() -> None:
    assert observed(AdaptiveFanout(Growth(least_gain=0.1), (4,)), 0.5, 0.59).fanouts == (6,)
    assert observed(AdaptiveFanout(Growth(least_gain=0.1), (4,)), 0.5, 0.61).fanouts == (4,)
    assert observed(AdaptiveFanout(Growth(higher_is_better=False), (4,)), 2.0, 1.5, 1.4).fanouts == (4,)
    assert observed(AdaptiveFanout(Growth(higher_is_better=False), (4,)), 2.0, 2.5).fanouts == (6,)


def test_a_metric_that_is_not_a_number_is_no_gain() -> None:
    state = observed(AdaptiveFanout(Growth(), (4,)), math.nan)
    assert (state.fanouts, state.best) == ((6,), None)
    assert observed(state, 0.5).best == 0.5


def test_fan_outs_stay_at_the_largest_and_all_and_none_as_they_are() -> None:
    state = AdaptiveFanout(Growth(largest=7, factor=10), (5, -1, 9, {"a:b:c": 1, "c:d:e": 0, "e:f:g": -1}))
    grown = observed(state, 1.0, 1.0)
    assert grown.fanouts == (7, -1, 9, {"a:b:c": 7, "c:d:e": 0, "e:f:g": -1})
    assert observed(grown, 1.0).fanouts == grown.fanouts


def test_a_small_factor_still_grows_by_one() -> None:
    assert observed(AdaptiveFanout(Growth(factor=1.01), (1, 3)), 1.0, 1.0).fanouts == (2, 4)


@given(st.lists(st.floats(-2, 2) | st.just(math.nan), max_size=20), st.integers(0, 20), st.integers(1, 3))
def test_a_checkpoint_anywhere_changes_nothing(metrics: list[float], at: int, patience: int) -> None:
    growth = Growth(patience=patience)
    start = AdaptiveFanout(growth, (4, {"a:b:c": 2}))
    halfway = observed(start, *metrics[:at])
    resumed = AdaptiveFanout.from_json(json.loads(json.dumps(halfway.as_json())), growth=growth)
    assert resumed == halfway
    assert observed(resumed, *metrics[at:]) == observed(start, *metrics)


def test_what_means_nothing_is_refused() -> None:
    for wrong in ({"factor": 1.0}, {"factor": math.nan}, {"patience": 0}, {"largest": 0}, {"least_gain": -0.1}):
        with pytest.raises(BadInput, match="adaptive fan-out"):
            Growth(**wrong)
    with pytest.raises(BadInput, match="version 7"):
        AdaptiveFanout.from_json({"version": 7}, growth=Growth())
