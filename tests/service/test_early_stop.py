"""Early stop: a pure function of the losses, the same for every rank and after any resume."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from service.checkpoint import TrainingState, list_checkpoints, read_checkpoint
from service.coordinator import RunCoordinator
from service.early_stop import EarlyStopConfig, EarlyStopState, observe
from service.pretraining import pretrain
from service.run_file import RunFile, load_run_file
from service.run_status import RunStatus
from storage.place import Place
from storage.progress import NoProgress
from tests.data import small_run, small_store
from tests.service.test_coordinator import run_of, step

CONFIG = EarlyStopConfig(by="loss", every_steps=2, patience=2)


def watch(losses: list[float], config: EarlyStopConfig = CONFIG, state: EarlyStopState | None = None) -> EarlyStopState:
    state = state or EarlyStopState()
    for loss in losses:
        state = observe(state, config, step=state.step + 1, loss=loss)
    return state


def test_it_stops_when_means_have_not_improved_for_as_long_as_patience_says() -> None:
    falling = watch([4.0, 2.0, 1.0, 3.0])  # means 3, 2
    assert (falling.best, falling.without_improvement, falling.stopped) == (2.0, 0, False)
    assert watch([2.0, 2.0, 5.0], state=falling).without_improvement == 1
    assert watch([2.0, 2.0, 5.0], state=falling).stopped is False
    assert watch([2.0, 2.0, 5.0, 0.0], state=falling).stopped
    assert not watch([2.0, 2.0, 1.0, 1.0, 3.0, 3.0], state=falling).stopped


def test_an_improvement_below_the_least_is_none() -> None:
    strict = CONFIG.model_copy(update={"min_improvement": 0.1})
    assert watch([1.0, 1.0, 0.95, 0.95, 0.91, 0.91], strict).stopped
    assert not watch([1.0, 1.0, 0.89, 0.89, 0.89, 0.89], strict).stopped
    below_zero = [-1.0, -1.0, -1.2, -1.2]
    assert watch(below_zero, strict).best == -1.2


def test_without_a_criterion_nothing_is_kept() -> None:
    assert watch([1.0] * 50, EarlyStopConfig()) == EarlyStopState()


@pytest.mark.parametrize("cut", [1, 2, 3, 5])
def test_the_state_goes_through_a_checkpoint(cut: int) -> None:
    losses = [0.1, 0.7, 0.3, 0.30000000000000004, 0.2, 0.9]
    kept = TrainingState(1, 1, "0" * 16, 0, 0.5, early_stop=watch(losses[:cut]))
    read = TrainingState.from_json(json.loads(json.dumps(asdict(kept))))
    assert read == kept
    assert watch(losses[cut:], state=read.early_stop) == watch(losses)


EARLY = ("training.early_stop.by=loss", "training.early_stop.every_steps=2", "training.early_stop.patience=2")


def test_every_rank_is_told_the_same_whoever_asks_or_reports_first(tmp_path: Path) -> None:
    coordinator = RunCoordinator(run_of(tmp_path, *EARLY))
    coordinator.begin(world_size=2)
    coordinator.plan(total_steps=100)
    for number in range(1, 7):
        report = replace(step(number), loss=1.0)
        first = coordinator.decide(number, loss=1.0) if number % 2 else None
        coordinator.report(report)
        second = coordinator.decide(number, loss=1.0)
        assert first is None or first == second
        assert coordinator.decide(number, loss=1.0) == second
        assert (second.stop, second.save) == (number == 6, number in (5, 6))
    assert coordinator.status().stopped_early


class InterruptedAt(NoProgress):
    """Ctrl-C when so many steps of the run are done."""

    def __init__(self, step: int) -> None:
        self.left = step
        self.training = False

    def stage(self, name: str, *, total: int, unit: str) -> None:
        self.training = name == "pretrain"

    def advance(self, amount: int) -> None:
        self.left -= amount if self.training else 0
        if self.training and self.left == 0:
            raise KeyboardInterrupt


def stopping_run(folder: Path, name: str) -> RunFile:
    # a rate at which nothing improves by the half
    training = {
        "learning_rate": 1e-6,
        "early_stop": {"by": "loss", "every_steps": 2, "patience": 3, "min_improvement": 0.5},
    }
    return load_run_file(str(small_run(folder, name=name, training=training)))


def last_checkpoint(folder: Path, name: str) -> dict[str, bytes]:
    place = Place(str(folder / "runs" / name))
    return read_checkpoint(place, list_checkpoints(place)[-1]).contents


def test_a_run_stops_at_the_same_step_with_the_same_bytes_when_it_was_interrupted(tmp_path: Path) -> None:
    small_store(tmp_path)
    whole = pretrain(stopping_run(tmp_path, "whole"), progress=NoProgress())
    assert (whole.state, whole.step, whole.total_steps, whole.stopped_early) == ("finished", 8, 20, True)
    run = stopping_run(tmp_path, "cut")
    for number in (4, 7):  # the second attempt goes on from step 3, the third from step 6
        with pytest.raises(KeyboardInterrupt):
            pretrain(run, progress=InterruptedAt(number))
    resumed = pretrain(run, progress=NoProgress())
    assert (resumed.step, resumed.stopped_early, resumed.attempts) == (8, True, 3)
    assert last_checkpoint(tmp_path, "cut") == last_checkpoint(tmp_path, "whole")
    assert metrics(tmp_path, "cut") == metrics(tmp_path, "whole")
    again = pretrain(run, progress=NoProgress())
    assert (again.step, again.attempts) == (8, 3)


def test_a_run_killed_between_its_last_checkpoint_and_its_end_does_not_train_on(tmp_path: Path) -> None:
    small_store(tmp_path)
    run = stopping_run(tmp_path, "whole")
    first: RunStatus = pretrain(run, progress=NoProgress())
    (tmp_path / "runs" / "whole" / "state.json").unlink()
    before = last_checkpoint(tmp_path, "whole")
    again = pretrain(run, progress=NoProgress())
    assert (again.state, again.step, again.stopped_early) == ("finished", first.step, True)
    assert last_checkpoint(tmp_path, "whole") == before


def metrics(folder: Path, name: str) -> list[tuple[int, float]]:
    lines = (folder / "runs" / name / "metrics.jsonl").read_text().splitlines()
    return [(row["step"], row["loss"]) for row in map(json.loads, lines)]
