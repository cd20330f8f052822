"""`pretrain` as a whole: what a wrong run file leaves behind, and what starting a run again does."""

import shutil
from pathlib import Path

import pytest

from service.errors import TrainingFailed
from service.pretraining import pretrain
from service.run_file import load_run_file
from storage.errors import BadInput
from storage.progress import NoProgress
from tests.data import small_run, small_store
from tests.processes import hopstream


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("wrong", ["sampling.fanouts=[3]", "data.seed_types=[user]", "data.store=/nowhere"])
def test_a_wrong_first_run_file_leaves_nothing_and_the_corrected_one_trains(
    tmp_path: Path, wrong: str, workers: int
) -> None:
    small_store(tmp_path)
    run = small_run(tmp_path)
    with pytest.raises(BadInput):
        pretrain(load_run_file(str(run), overrides=[wrong, f"workers.count={workers}"]), progress=NoProgress())
    folder = tmp_path / "runs" / "small"
    assert list(folder.iterdir()) == []
    status = pretrain(load_run_file(str(run), overrides=["training.max_steps=1"]), progress=NoProgress())
    assert (status.state, status.attempts) == ("finished", 1)


def test_the_command_ends_with_2_and_the_corrected_command_with_0(tmp_path: Path) -> None:
    small_store(tmp_path)
    run = small_run(tmp_path, training={"max_steps": 1})
    assert hopstream("pretrain", str(run), "encoder.num_layers=3").returncode == 2
    assert hopstream("pretrain", str(run)).returncode == 0


def test_a_run_that_diverged_before_its_first_checkpoint_may_change_its_settings(tmp_path: Path) -> None:
    small_store(tmp_path)
    run = str(small_run(tmp_path))
    with pytest.raises(TrainingFailed):
        pretrain(load_run_file(run, overrides=["training.learning_rate=1e30"]), progress=NoProgress())
    assert pretrain(load_run_file(run), progress=NoProgress()).state == "finished"


class Stages(NoProgress):
    """Keeps every stage with its total and what was done of it."""

    def __init__(self) -> None:
        self.seen: list[list[str | int]] = []

    def stage(self, name: str, *, total: int, unit: str) -> None:
        self.seen.append([name, total, 0])

    def advance(self, amount: int) -> None:
        self.seen[-1][2] = int(self.seen[-1][2]) + amount


def test_every_phase_is_a_stage_that_is_complete_before_the_next_begins(tmp_path: Path) -> None:
    small_store(tmp_path)
    stages = Stages()
    pretrain(load_run_file(str(small_run(tmp_path))), progress=stages)
    assert stages.seen == [
        ["check run file", 1, 1],
        ["open store", 1, 1],
        ["read topology", 1, 1],
        ["fill host cache", 1, 1],
        ["pretrain", 20, 20],
    ]


class Hiding(NoProgress):
    """Takes a store's manifest away when training begins with it."""

    def __init__(self, store: Path) -> None:
        self.store = store

    def stage(self, name: str, *, total: int, unit: str) -> None:
        if name == "open store":
            (self.store / "manifest.json").unlink()


def test_a_new_run_opens_its_store_once(tmp_path: Path) -> None:
    store = small_store(tmp_path)
    run = load_run_file(str(small_run(tmp_path, training={"max_steps": 1})))
    assert pretrain(run, progress=Hiding(Path(store))).state == "finished"


@pytest.mark.parametrize("workers", [1, 2])
def test_a_changed_run_file_stops_a_run_before_anything_is_begun(tmp_path: Path, workers: int) -> None:
    small_store(tmp_path)
    run = str(small_run(tmp_path))
    with pytest.raises(KeyboardInterrupt):
        pretrain(load_run_file(run, overrides=["training.checkpoint_every_steps=1"]), progress=Interrupting())
    before = content(tmp_path / "runs")
    changed = load_run_file(run, overrides=["training.learning_rate=0.5", f"workers.count={workers}"])
    with pytest.raises(BadInput, match=r"training\.learning_rate"):
        pretrain(changed, progress=NoStage())
    assert content(tmp_path / "runs") == before


class Interrupting(NoProgress):
    """Ctrl-C after the first steps of training."""

    def __init__(self) -> None:
        self.training = False

    def stage(self, name: str, *, total: int, unit: str) -> None:
        self.training = name == "pretrain"
        self.steps = 0

    def advance(self, amount: int) -> None:
        self.steps += amount
        if self.training and self.steps == 2:
            raise KeyboardInterrupt


class NoStage(NoProgress):
    """Fails when any work is begun."""

    def stage(self, name: str, *, total: int, unit: str) -> None:
        raise AssertionError(name)


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("workers", [1, 2])
def test_a_finished_run_started_again_says_what_it_said_and_touches_nothing(tmp_path: Path, workers: int) -> None:
    store = small_store(tmp_path)
    run = str(small_run(tmp_path))
    first = pretrain(load_run_file(run), progress=NoProgress())
    before = content(tmp_path / "runs")
    shutil.rmtree(store)
    again = pretrain(load_run_file(run, overrides=[f"workers.count={workers}"]), progress=NoStage())
    assert again.summary == first.summary
    assert again.summary is not None
    assert again.summary.steps == again.step == 20
    assert again.attempts == 1
    assert content(tmp_path / "runs") == before
    with pytest.raises(BadInput, match=r"training\.epochs: 4 -> 5"):
        pretrain(load_run_file(run, overrides=["training.epochs=5"]), progress=NoProgress())


def test_a_finished_run_whose_last_checkpoint_is_damaged_is_finished_again(tmp_path: Path) -> None:
    small_store(tmp_path)
    run = load_run_file(str(small_run(tmp_path)))
    pretrain(run, progress=NoProgress())
    newest = max((tmp_path / "runs" / "small" / "checkpoints").iterdir())
    whole = (newest / "model.safetensors").read_bytes()
    (newest / "model.safetensors").write_bytes(whole[:-1])
    again = pretrain(run, progress=NoProgress())
    assert (again.state, again.attempts) == ("finished", 2)
    assert again.summary is not None
    assert again.summary.steps == 2
    assert (newest / "model.safetensors").read_bytes() == whole
