"""`hopstream replay`: the run's own step, layer by layer, and nothing written."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from service.checkpoint import checkpoint_name, list_checkpoints
from service.errors import TrainingFailed
from service.pretraining import pretrain
from service.replay import replay
from service.run_file import load_run_file
from storage.errors import BadInput
from storage.place import Place
from storage.progress import NoProgress
from tests.data import small_run, small_store
from tests.processes import hopstream


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store, and finished runs on it of one batch and of two batches a step."""
    folder = tmp_path_factory.mktemp("replay")
    small_store(folder)
    for name, accumulate in (("small", 1), ("accumulated", 2)):
        training = {"accumulate": accumulate, "clip_norm": 0.01}
        pretrain(load_run_file(str(small_run(folder, name=name, training=training))), progress=NoProgress())
    return folder


def rows(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "runs" / name / "metrics.jsonl").read_text().splitlines()]


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", ["small", "accumulated"])
def test_a_step_that_is_replayed_has_the_runs_own_loss_and_gradient(folder: Path, name: str) -> None:
    before = content(folder / "runs")
    run = load_run_file(str(folder / "runs" / name / "run.yaml"))
    steps = [int(found.removeprefix("step-")) for found in list_checkpoints(Place(str(folder / "runs" / name)))]
    for step, from_step in ((1, 0), (2, 0), (steps[0] + 1, steps[0]), (steps[-1], steps[-2])):
        report = replay(run, step=step, progress=NoProgress())
        row = rows(folder, name)[step - 1]
        assert (report.loss, report.grad_norm) == (row["loss"], row["grad_norm"])
        assert (report.epoch, report.seeds, report.from_step) == (row["epoch"], row["seeds"], from_step)
        assert (report.trouble, report.anomaly) == (None, None)
    assert content(folder / "runs") == before


def test_every_layer_and_every_gradient_is_looked_at(folder: Path) -> None:
    report = replay(load_run_file(str(folder / "small.yaml"), overrides=CLIPPED), step=7, progress=NoProgress())
    outputs = [check.name for check in report.outputs]
    assert outputs[-1] == "loss"
    assert {"encoder", "objective.project"} <= set(outputs)
    assert all(check.num_not_finite == 0 and check.norm is not None for check in [*report.outputs, *report.gradients])
    squares = sum((check.norm or 0.0) ** 2 for check in report.gradients)
    assert report.grad_norm == pytest.approx(squares**0.5, rel=1e-5)
    assert report.batches == [1]


CLIPPED = ["training.clip_norm=0.01", "training.accumulate=1"]


def test_a_run_that_diverged_names_the_command_that_shows_where(tmp_path: Path) -> None:
    small_store(tmp_path)
    run = str(small_run(tmp_path, training={"learning_rate": 1e30}))
    with pytest.raises(TrainingFailed) as failed:
        pretrain(load_run_file(run), progress=NoProgress())
    message = str(failed.value)
    command = re.search(r"`hopstream (replay \S+ --step (\d+))`", message)
    assert command is not None, message
    place = re.search(r"at epoch (\d+), batch(?:es)? (\d+)", message)
    assert place is not None, message
    done = hopstream(*command[1].split(), "--json")
    assert done.returncode == 1, done.stderr
    report = json.loads(done.stdout)
    assert (report["step"], report["epoch"], report["batches"]) == (int(command[2]), int(place[1]), [int(place[2])])
    assert report["trouble"] is not None
    assert any(check["num_not_finite"] for check in [*report["outputs"], *report["gradients"]]) or report["anomaly"]
    shown = hopstream(*command[1].split())
    assert shown.returncode == 1
    assert "not finite" in shown.stdout


@pytest.mark.parametrize("step", [0, 21])
def test_a_step_that_the_run_does_not_have_is_refused(folder: Path, step: int) -> None:
    with pytest.raises(BadInput, match=f"--step {step}: the run has steps 1 to 20"):
        replay(load_run_file(str(folder / "runs" / "small" / "run.yaml")), step=step, progress=NoProgress())


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path: Path) -> None:
    small_store(tmp_path)
    run = load_run_file(str(small_run(tmp_path)))
    pretrain(run, progress=NoProgress())
    last = tmp_path / "runs" / "small" / "checkpoints" / checkpoint_name(18)
    (last / "model.safetensors").write_bytes(b"")
    report = replay(run, step=20, progress=NoProgress())
    assert (report.from_step, report.loss) == (0, rows(tmp_path, "small")[19]["loss"])
