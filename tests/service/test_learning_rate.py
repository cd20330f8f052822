"""Learning rates: every shape beside its formula, and what a continued run does."""

import math

import pytest

from service.learning_rate import branch_step, learning_rate
from service.training_section import TrainingSection

TOTAL = 100


def rates(training: TrainingSection, *, total_steps: int = TOTAL, continued: bool = False) -> list[float]:
    return [
        learning_rate(training, step=step, total_steps=total_steps, continued=continued) for step in range(total_steps)
    ]


INFINITE = TrainingSection(
    schedule="infinite",
    learning_rate=1.0,
    warmup_steps=10,
    cooldown_steps=30,
    constant_share=0.4,
    anneal_steps=20,
    final_share=0.1,
)


def test_warm_up_rises_linearly_to_the_peak_and_cosine_falls_to_zero() -> None:
    found = rates(TrainingSection(schedule="cosine", learning_rate=2.0, warmup_steps=4))
    assert found[:4] == [0.5, 1.0, 1.5, 2.0]
    assert found[4:] == pytest.approx([1.0 + math.cos(math.pi * step / 96) for step in range(96)])


def test_infinite_is_warm_up_cosine_constant_and_an_exponential_end() -> None:
    found = rates(INFINITE)
    assert found[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert found[10:40] == pytest.approx([0.4 + 0.3 * (1 + math.cos(math.pi * step / 30)) for step in range(30)])
    assert found[40:80] == [0.4] * 40
    assert found[80:] == pytest.approx([0.4 * 10 ** (-step / 20) for step in range(1, 21)])
    assert found[-1] == pytest.approx(0.04)


def test_all_but_the_end_of_infinite_is_the_same_for_any_number_of_steps() -> None:
    end = branch_step(INFINITE, total_steps=TOTAL)
    assert end == 80
    assert rates(INFINITE)[:end] == rates(INFINITE, total_steps=5 * TOTAL)[:end]


def test_a_continued_infinite_run_begins_at_the_constant_rate() -> None:
    assert rates(INFINITE, continued=True)[:80] == [0.4] * 80
    assert rates(INFINITE, continued=True)[80:] == rates(INFINITE)[80:]


def test_without_warm_up_cooldown_and_end_infinite_is_constant() -> None:
    assert rates(TrainingSection(schedule="infinite", learning_rate=1.0, constant_share=0.5)) == [0.5] * TOTAL


def test_a_run_shorter_than_its_phases_has_positive_rates_all_the_same() -> None:
    found = rates(INFINITE, total_steps=15)
    assert all(0.0 < rate <= 1.0 for rate in found)
    assert branch_step(INFINITE, total_steps=15) == 0


def test_other_schedules_have_no_step_to_branch_from() -> None:
    assert branch_step(TrainingSection(schedule="cosine"), total_steps=TOTAL) is None
