"""The coordinator: resumption, decisions, the ledger and metrics."""

import json
from pathlib import Path

import pytest

from service.checkpoint import FOLDER, TrainingState, list_checkpoints, save_checkpoint
from service.coordinator import RunCoordinator
from service.errors import TrainingFailed
from service.run_file import RunFile, parse_run_text
from service.run_status import StepReport, read_status
from storage.errors import BadInput, DamagedStore
from storage.place import Place
from tests.service.test_checkpoint import trained

TEXT = """
run: {{name: r, storage: {storage}}}
data: {{store: s}}
objective: {{name: graphmae}}
training: {{checkpoint_every_steps: 5, keep_checkpoints: 2, log_every_steps: 1}}
"""


def run_of(folder: Path, *overrides: str) -> RunFile:
    return parse_run_text(TEXT.format(storage=folder), place="run.yaml", overrides=overrides)


def step(number: int) -> StepReport:
    return StepReport(
        step=number, epoch=0, loss=1.0 / number, learning_rate=0.1, grad_norm=1.0, seconds=0.1, wait_seconds=0.0,
        seeds=8,
    )  # fmt: skip


def save(folder: Path, number: int) -> str:
    model, optimizer = trained()
    state = TrainingState(step=number, generation=1, generation_xxh64="0" * 16, seed=0, loss=0.1)
    return save_checkpoint(Place(str(folder / "r")), state=state, model=model, optimizer=optimizer)


def metric_steps(folder: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (folder / "r" / "metrics.jsonl").read_text().splitlines()]


def test_decisions_follow_from_the_step_alone(tmp_path: Path) -> None:
    coordinator = RunCoordinator(run_of(tmp_path))
    coordinator.plan(total_steps=12)
    decisions = [coordinator.decide(number, loss=1.0) for number in range(1, 13)]
    assert [number + 1 for number, decision in enumerate(decisions) if decision.save] == [5, 10, 12]
    assert [number + 1 for number, decision in enumerate(decisions) if decision.stop] == [12]


def test_a_decision_writes_nothing_and_a_report_puts_the_lines_up_to_a_checkpoint_on_the_disk(tmp_path: Path) -> None:
    coordinator = RunCoordinator(run_of(tmp_path))
    coordinator.begin(world_size=1)
    coordinator.plan(total_steps=12)
    for number in range(1, 5):
        coordinator.report(step(number))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert coordinator.decide(5, loss=0.2).save
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    coordinator.report(step(5))
    assert metric_steps(tmp_path) == [1, 2, 3, 4, 5]


def test_a_run_resumes_from_its_newest_whole_checkpoint_and_keeps_metrics_up_to_it(tmp_path: Path) -> None:
    first = RunCoordinator(run_of(tmp_path))
    first.begin(world_size=1)
    assert first.resume_point() is None
    first.plan(total_steps=20)
    names = {}
    for number in range(1, 18):
        first.report(step(number))
        if number in (5, 10, 15):
            names[number] = save(tmp_path, number)
            first.saved(names[number])
    first.end("failed")
    assert list_checkpoints(Place(str(tmp_path / "r"))) == [names[10], names[15]]
    damaged = tmp_path / "r" / FOLDER / names[15] / "model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])

    second = RunCoordinator(run_of(tmp_path))
    second.begin(world_size=2)
    assert second.resume_point() == names[10]
    assert metric_steps(tmp_path) == list(range(1, 11))
    status = read_status(Place(str(tmp_path / "r")))
    assert status is not None
    assert (status.attempts, status.world_size, status.step) == (2, 2, 10)
    assert "model.safetensors" in status.skipped_checkpoints[0]


def test_damaged_checkpoints_never_push_out_the_one_just_saved(tmp_path: Path) -> None:
    names = [save(tmp_path, number) for number in (10, 15, 20)]
    for name in names[1:]:
        (tmp_path / "r" / FOLDER / name / "model.safetensors").write_bytes(b"")
    coordinator = RunCoordinator(run_of(tmp_path))
    coordinator.begin(world_size=1)
    assert coordinator.resume_point() == names[0]
    assert list_checkpoints(Place(str(tmp_path / "r"))) == names  # evidence, until there is a whole one after them
    coordinator.plan(total_steps=100)
    saved = save(tmp_path, 12)
    coordinator.saved(saved)
    assert list_checkpoints(Place(str(tmp_path / "r"))) == [names[0], saved]
    rewritten = save(tmp_path, 15)
    coordinator.saved(rewritten)
    assert list_checkpoints(Place(str(tmp_path / "r"))) == [saved, rewritten]


def test_a_changed_run_file_is_refused_with_the_keys_and_nothing_is_overwritten(tmp_path: Path) -> None:
    RunCoordinator(run_of(tmp_path))
    save(tmp_path, 5)
    stored = (tmp_path / "r" / "run.yaml").read_bytes()
    with pytest.raises(BadInput, match=r"training\.epochs: 10 -> 3"):
        RunCoordinator(run_of(tmp_path, "training.epochs=3"))
    assert (tmp_path / "r" / "run.yaml").read_bytes() == stored
    RunCoordinator(run_of(tmp_path, "workers.count=4"))


def test_a_run_file_without_a_checkpoint_is_replaced_and_its_attempts_are_forgotten(tmp_path: Path) -> None:
    first = RunCoordinator(run_of(tmp_path, "training.learning_rate=1e9"))
    first.begin(world_size=1)
    first.plan(total_steps=20)
    first.report(step(1))
    first.end("failed")
    second = RunCoordinator(run_of(tmp_path))
    second.begin(world_size=1)
    assert "learning_rate: 0.001" in (tmp_path / "r" / "run.yaml").read_text()
    assert (second.status().attempts, second.status().step) == (1, 0)
    second.plan(total_steps=20)
    second.report(step(1))
    second.end("failed")
    assert metric_steps(tmp_path) == [1]


def test_a_broken_state_file_is_named(tmp_path: Path) -> None:
    RunCoordinator(run_of(tmp_path)).end("failed")
    (tmp_path / "r" / "state.json").write_text("{")
    with pytest.raises(DamagedStore, match=r"state\.json"):
        RunCoordinator(run_of(tmp_path))


def test_an_aborted_run_decides_nothing_and_leaves_the_folder_to_the_other(tmp_path: Path) -> None:
    coordinator = RunCoordinator(run_of(tmp_path))
    coordinator.begin(world_size=1)
    coordinator.plan(total_steps=20)
    coordinator.report(step(1))
    names = [save(tmp_path, number) for number in (5, 10, 15)]
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    coordinator.abort("the lease is another's")
    with pytest.raises(TrainingFailed, match="the lease is another's"):
        coordinator.decide(1, loss=1.0)
    coordinator.saved(names[0])
    coordinator.end("failed")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_the_metrics_up_to_a_checkpoint_are_there_before_it_is_written(tmp_path: Path) -> None:
    coordinator = RunCoordinator(run_of(tmp_path))
    coordinator.begin(world_size=1)
    coordinator.plan(total_steps=20)
    for number in range(1, 6):
        coordinator.report(step(number))
        coordinator.decide(number, loss=1.0 / number)
    assert metric_steps(tmp_path) == [1, 2, 3, 4, 5]  # as a kill after the checkpoint's last byte leaves it


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (("objective.name=infonce", "objective.negatives=local"), "objective infonce, negatives=local: 3 workers"),
        (("encoder.norm=local-batch",), "norm=local-batch: 3 workers"),
    ],
)
def test_a_setting_whose_result_depends_on_the_number_of_workers_is_a_warning(
    tmp_path: Path, settings: tuple[str, ...], named: str
) -> None:
    run = run_of(tmp_path, *settings)
    for world_size, expected in ((1, 0), (3, 1), (3, 1)):
        coordinator = RunCoordinator(run)
        coordinator.begin(world_size=world_size)
        assert len(coordinator.status().warnings) == expected
    assert named in coordinator.status().warnings[0]
