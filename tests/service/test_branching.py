"""Continued pretraining: a new run from another run's weights and optimiser, or a refusal that says why."""

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from service.branching import refuse_other_model, with_origin
from service.checkpoint import FOLDER, checkpoint_name, list_checkpoints, load_checkpoint
from service.group import Group
from service.learner import Learner
from service.objectives.bgrl import BgrlConfig
from service.preparation import prepare
from service.pretraining import pretrain
from service.run_file import RunFile, load_run_file
from service.run_folder import stored_run
from storage.errors import BadInput
from storage.ingest import IngestSettings, ingest
from storage.place import Place
from storage.progress import NoProgress
from tests.data import small_run, small_store, write_tables
from tests.service.test_early_stop import InterruptedAt, last_checkpoint

INFINITE = {
    "schedule": "infinite", "learning_rate": 0.01, "warmup_steps": 4, "cooldown_steps": 4, "constant_share": 0.5,
    "anneal_steps": 6, "checkpoint_every_steps": 3,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store and the finished run `first` on it, of 20 steps, the last 6 annealed."""
    folder = tmp_path_factory.mktemp("branching")
    small_store(folder)
    pretrain(load_run_file(str(small_run(folder, name="first", training=INFINITE))), progress=NoProgress())
    return folder


def second(folder: Path, name: str, *overrides: str, **sections: dict[str, Any]) -> RunFile:
    training = {**INFINITE, **sections.pop("training", {})}
    path = small_run(folder, name=name, training=training, **sections)
    origin = f"run.continue_from={folder / 'runs' / 'first'}"
    return load_run_file(str(path), overrides=[origin, *overrides])


def rows(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "runs" / name / "metrics.jsonl").read_text().splitlines()]


def test_the_end_of_the_constant_phase_is_kept_beside_the_newest(folder: Path) -> None:
    names = list_checkpoints(Place(str(folder / "runs" / "first")))
    assert names == [checkpoint_name(step) for step in (14, 18, 20)]


@pytest.mark.parametrize(("overrides", "step"), [((), 14), (("run.continue_step=18",), 18)])
def test_a_new_run_begins_with_the_others_weights_and_optimiser(
    folder: Path, overrides: tuple[str, ...], step: int
) -> None:
    run = second(folder, "unused", *overrides)
    prepared = prepare(run, group=Group(), state=None)
    learner = Learner(run, prepared, checkpoint=None, group=Group(), device=torch.device("cpu"))
    other = load_checkpoint(Place(str(folder / "runs" / "first")), checkpoint_name(step))
    assert all(torch.equal(value, other.model[name]) for name, value in learner.model.state_dict().items())
    for name, parameter in learner.model.named_parameters():
        for slot, value in learner.optimizer.state[parameter].items():
            assert torch.equal(value, other.optimizer[f"{name}/{slot}"])
    assert (learner.done, learner.learning_rate) == (0, 0.005)


def test_it_trains_at_the_constant_rate_to_an_end_of_its_own(folder: Path) -> None:
    status = pretrain(second(folder, "second"), progress=NoProgress())
    assert (status.state, status.step) == ("finished", 20)
    found = [row["learning_rate"] for row in rows(folder, "second")]
    assert found[:14] == [0.005] * 14
    assert found[-1] == pytest.approx(0.0005)
    # it goes on from where the other run was, not from the start
    assert rows(folder, "second")[0]["loss"] < rows(folder, "first")[0]["loss"]


def test_an_interrupted_one_resumes_from_its_own_checkpoints(folder: Path) -> None:
    pretrain(second(folder, "whole"), progress=NoProgress())
    for steps in (2, 5):  # before its first checkpoint, and after it
        with pytest.raises(KeyboardInterrupt):
            pretrain(second(folder, "cut"), progress=InterruptedAt(steps))
    assert pretrain(second(folder, "cut"), progress=NoProgress()).attempts == 3
    assert last_checkpoint(folder, "cut") == last_checkpoint(folder, "whole")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("encoder.hidden_dim=32",), r"another model: encoder\.hidden_dim: 16 -> 32"),
        (("objective.mask_rate=0.7",), r"objective\.mask_rate: 0\.5 -> 0\.7"),
        (("training.optimizer=adam",), r"training\.optimizer"),
        (("run.continue_step=5",), r"continue_step=5: no such checkpoint .* choose one of its steps: 14, 18, 20"),
        (("run.continue_from=/nowhere",), r"no run there"),
    ],
)
def test_what_cannot_be_continued_is_refused_before_the_run_begins(
    folder: Path, overrides: tuple[str, ...], message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        pretrain(second(folder, "refused", *overrides), progress=NoProgress())
    assert not (folder / "runs" / "refused" / FOLDER).exists()


def test_another_kind_of_objective_is_refused(folder: Path) -> None:
    run = second(folder, "refused").model_copy(update={"objective": BgrlConfig()})
    with pytest.raises(BadInput, match="another model: objective"):
        refuse_other_model(run, Place(str(folder / "runs" / "first")))


def test_other_settings_of_training_and_sampling_may_differ(folder: Path) -> None:
    run = second(folder, "other-settings", "training.weight_decay=0", "sampling.fanouts=[2,2,2]", "run.seed=9")
    assert pretrain(run, progress=NoProgress()).state == "finished"


def test_a_graph_of_another_shape_is_refused(folder: Path, tmp_path: Path) -> None:
    write_tables(tmp_path)
    columns = tmp_path / "nodes.parquet"
    table = pq.read_table(columns)
    narrow = [row[:8] for row in table["features"].to_pylist()]
    values = pa.array([value for row in narrow for value in row], pa.float32())
    narrow_column = pa.FixedSizeListArray.from_arrays(values, 8)
    pq.write_table(table.set_column(1, "features", narrow_column), columns)
    settings = IngestSettings(
        nodes={"node": str(columns)}, edges={"node:to:node": str(tmp_path / "edges.parquet")}, undirected=True
    )
    ingest(settings, out=str(tmp_path / "narrow"))
    with pytest.raises(BadInput, match=r"size mismatch.*same node types, relations and feature columns"):
        pretrain(second(folder, "refused", f"data.store={tmp_path / 'narrow'}"), progress=NoProgress())


def test_the_origin_of_an_attempt_without_a_checkpoint_stays_while_the_other_run_goes_on(
    folder: Path, tmp_path: Path
) -> None:
    origin = tmp_path / "origin"
    shutil.copytree(folder / "runs" / "first", origin)
    checkpoints = origin / FOLDER
    for step in (14, 20):
        shutil.move(checkpoints / checkpoint_name(step), tmp_path / str(step))
    run = second(folder, "early", f"run.continue_from={origin}")
    with pytest.raises(KeyboardInterrupt):
        pretrain(run, progress=InterruptedAt(2))
    shutil.move(tmp_path / "20", checkpoints / checkpoint_name(20))
    assert pretrain(run, progress=NoProgress()).state == "finished"
    stored = stored_run(Place(str(folder / "runs" / "early")))
    assert stored is not None
    assert stored.run.continue_step == 18
    assert pretrain(run, progress=NoProgress()).attempts == 2  # what is found is no change of the run file


def test_a_damaged_branch_checkpoint_is_passed_over_for_the_newest_whole_one(folder: Path, tmp_path: Path) -> None:
    origin = tmp_path / "origin"
    shutil.copytree(folder / "runs" / "first", origin)
    for step in (14, 20):
        (origin / FOLDER / checkpoint_name(step) / "model.safetensors").write_bytes(b"")
    found = with_origin(second(folder, "unused", f"run.continue_from={origin}"))
    assert found.run.continue_step == 18


def test_a_target_network_keeps_its_momentum_under_the_infinite_schedule(folder: Path) -> None:
    """With momentum 0 it is the encoder itself after every step; rising to 1 it would end apart."""
    training = {**INFINITE, "max_steps": 4}
    path = small_run(folder, name="bgrl", sampling={"fanouts": [4, 4]}, training=training)
    document = yaml.safe_load(path.read_text()) | {"objective": {"name": "bgrl", "momentum": 0.0}}
    path.write_text(yaml.safe_dump(document))
    run = load_run_file(str(path))
    pretrain(run, progress=NoProgress())
    model = load_checkpoint(Place(str(folder / "runs" / "bgrl")), checkpoint_name(4)).model
    names = [name for name in model if name.startswith("encoder.")]
    assert all(torch.equal(model[name], model[name.replace("encoder.", "objective.target.", 1)]) for name in names)


def test_a_run_without_checkpoints_cannot_be_continued(folder: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "run.yaml").write_text((folder / "runs" / "first" / "run.yaml").read_text())
    with pytest.raises(BadInput, match="no checkpoint"):
        pretrain(second(folder, "refused", f"run.continue_from={empty}"), progress=NoProgress())
