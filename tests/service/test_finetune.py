"""Finetuning: what is trained, what is kept, what is predicted; the same bytes however it was interrupted."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from service.checkpoint import list_checkpoints
from service.encoders.nodes import Nodes
from service.encoders.registry import make_encoder
from service.errors import TrainingFailed
from service.finetune import FinetuneReport, finetune
from service.run_file import RunFile
from service.schema import GraphSchema
from storage.errors import BadInput
from storage.place import Place
from storage.progress import NoProgress
from storage.store import Store
from tests.data import ROOT, small_run, small_store
from tests.processes import environment, hopstream, result_of
from tests.service.batches import make_batch
from tests.service.evaluations import Told
from tests.service.finetuned import SPLIT, StoppedAt, bytes_of, changed, planted, pretrained
from tests.service.stores import user_ids

SHORT = ("finetune.epochs=12", "finetune.seeds_per_step=32", "finetune.checkpoint_every=3")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFile:
    return pretrained(tmp_path_factory.mktemp("finetune"))


def done(run: RunFile, name: str, *overrides: str, from_scratch: bool = False) -> FinetuneReport:
    return finetune(
        changed(run, *SHORT, f"finetune.name={name}", *overrides), from_scratch=from_scratch, progress=NoProgress()
    )


def folder_of(report: FinetuneReport) -> Path:
    return Path(report.starts[0].out)


def checkpoint_of(run: RunFile) -> dict[str, torch.Tensor]:
    place = Path(run.run.storage) / run.run.name
    newest = list_checkpoints(Place(str(place)))[-1]
    return load_file(place / "checkpoints" / newest / "model.safetensors")


def test_a_frozen_encoder_keeps_its_bytes_and_the_head_learns(run: RunFile) -> None:
    report = done(run, "frozen", "finetune.freeze=true")
    before = {key: value for key, value in checkpoint_of(run).items() if key.startswith("encoder.")}
    after = load_file(folder_of(report) / "model.safetensors")
    assert {key for key in after if key.startswith("encoder.")} == set(before)
    for key, value in before.items():
        assert after[key].numpy().tobytes() == value.numpy().tobytes(), key
    assert report.starts[0].num_trained == sum(value.numel() for key, value in after.items() if "head." in key)
    assert report.starts[0].test_accuracy > report.majority_accuracy + 10.0


def test_a_planted_graph_is_learned_from_either_start(run: RunFile) -> None:
    report = done(run, "both", "finetune.epochs=40", from_scratch=True)
    assert [found.start for found in report.starts] == ["pretrained", "scratch"]
    for found in report.starts:
        assert found.test_accuracy > report.majority_accuracy + 15.0
        assert 0.0 < found.macro_f1 <= 100.0
    before, after = checkpoint_of(run), load_file(folder_of(report) / "model.safetensors")
    assert any(not torch.equal(before[key], after[key]) for key in before if key.startswith("encoder.layers"))


def test_predictions_are_those_of_the_saved_weights_on_the_whole_graph_at_once(run: RunFile) -> None:
    """The oracle is a batch of all nodes made in plain Python, and the head's formula."""
    graph, labels = planted()
    report = done(run, "exact")
    saved = load_file(folder_of(report) / "model.safetensors")
    encoder = make_encoder(run.encoder, schema=GraphSchema.from_store(Store.open(run.data.store)))
    encoder.load_state_dict(
        {key.removeprefix("encoder."): value for key, value in saved.items() if key.startswith("encoder.")}
    )
    encoder.eval()
    batch = make_batch(graph, graph.all_seeds(), num_hops=2, dtype=torch.float32)
    with torch.no_grad():
        h = encoder.input(batch.features, batch.node_type, batch.in_degree, batch.out_degree)
        h = encoder(h, batch.hops[::-1], Nodes.of(batch)).double().numpy()
    centred = h - h.mean(1, keepdims=True)
    normed = centred / np.sqrt(np.square(centred).mean(1, keepdims=True) + 1e-5)
    weights = {key: saved[f"head.{key}"].double().numpy() for key in ("0.weight", "0.bias", "1.weight", "1.bias")}
    logits = (normed * weights["0.weight"] + weights["0.bias"]) @ weights["1.weight"].T + weights["1.bias"]
    expected = np.exp(logits - logits.max(1, keepdims=True))
    expected /= expected.sum(1, keepdims=True)

    table = pq.read_table(folder_of(report) / "predictions.parquet")
    assert table.column_names == ["id", "prediction", "probabilities"]
    place = {name: row for row, name in enumerate(table["id"].to_pylist())}
    rows = [place[name] for name in user_ids(graph, 0)]
    assert sorted(rows) == list(range(240))
    found = np.array(table["probabilities"].to_pylist())[rows]
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-5)
    predicted = table["prediction"].to_numpy()[rows]
    assert predicted.tolist() == np.array(report.classes)[found.argmax(1)].tolist()

    test = (np.arange(240) % 6 >= 3) & (np.arange(240) % 6 <= 4) & (labels >= 0)
    assert report.test_rows == test.sum()
    assert report.starts[0].test_accuracy == pytest.approx(100.0 * np.mean(predicted[test] == labels[test]))
    scores = []
    for label in np.unique(labels[test]):
        right = np.sum((predicted == label) & (labels == label) & test)
        scores.append(2 * right / (np.sum((predicted == label) & test) + np.sum((labels == label) & test)))
    assert report.starts[0].macro_f1 == pytest.approx(100.0 * np.mean(scores))


def test_seed_edges_of_pretraining_are_none_of_finetuning_and_labels_of_test_nodes_change_no_weight(
    tmp_path: Path,
) -> None:
    _, labels = planted()
    other = np.where((SPLIT == "test") & (labels >= 0), 4, labels)
    weights = []
    for name, known in (("own", labels), ("other", other)):
        (tmp_path / name).mkdir()
        edges = pretrained(tmp_path / name, labels=known, objective={"name": "edgemask", "targets": "seeds"})
        report = done(edges, "first")
        assert 0 < report.starts[0].val_accuracy <= 100
        weights.append((folder_of(report) / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]


def test_the_best_weights_by_validation_are_kept_and_patience_ends_it(run: RunFile) -> None:
    report = done(run, "early", "finetune.epochs=300", "finetune.patience=4", "finetune.learning_rate=0.1")
    found = report.starts[0]
    assert found.stopped_early
    assert found.epochs == found.best_epoch + 4 < 300
    rounds = json.loads((folder_of(report) / "state.json").read_text())["rounds"]
    assert found.val_accuracy == max(figures["val_accuracy"] for figures in rounds)
    assert rounds[found.best_epoch - 1]["val_accuracy"] == found.val_accuracy
    shorter = done(run, "until-best", f"finetune.epochs={found.best_epoch}", "finetune.learning_rate=0.1")
    assert bytes_of(folder_of(shorter)) == bytes_of(folder_of(report))


@pytest.mark.parametrize(
    ("stage", "amount"), [("finetune, pretrained", 5), ("finetune, pretrained", 12), ("predict, layer 2 of 2", 240)]
)
def test_an_interrupted_finetuning_ends_with_the_bytes_of_a_whole_one(run: RunFile, stage: str, amount: int) -> None:
    whole = done(run, "whole")
    name = f"stopped-{stage[:7]}-{amount}"
    with pytest.raises(KeyboardInterrupt):
        finetune(
            changed(run, *SHORT, f"finetune.name={name}"), from_scratch=False, progress=StoppedAt(stage, amount)
        )  # fmt: skip
    assert not (folder_of(whole).parent / name / "report.json").exists()
    resumed = done(run, name)
    assert bytes_of(folder_of(resumed)) == bytes_of(folder_of(whole))
    assert set(bytes_of(folder_of(whole))) == {"model.safetensors", "predictions.parquet"}


def test_a_killed_finetuning_ends_with_the_bytes_of_a_whole_one(run: RunFile, tmp_path: Path) -> None:
    """SIGKILL while rounds are being written."""
    whole = done(run, "whole")
    stored = str(Path(run.run.storage) / run.run.name / "run.yaml")
    words = ["finetune", stored, *SHORT, "finetune.name=killed"]
    folder = folder_of(whole).parent / "killed"
    for event in (9, 40):
        killed = kill_at(event, folder, tmp_path / "report", words)
        assert killed == -9
    assert result_of(*words)["starts"][0]["epochs"] == 12
    assert bytes_of(folder) == bytes_of(folder_of(whole))


def kill_at(event: int, folder: Path, report: Path, words: list[str]) -> int:
    """The exit code of a command that is killed at its event number `event` about files in `folder`."""
    call = [sys.executable, "-m", "tests.killed", str(folder), str(event), str(report), *words]
    return subprocess.run(call, cwd=ROOT, env=environment(), capture_output=True, timeout=240, check=False).returncode


@pytest.mark.parametrize(
    "settings",
    [
        ("sampling.num_threads=2",),
        ("tiers.host_cache_bytes=1000", "tiers.topology=disk", "tiers.scratch_folder={scratch}"),
        ("finetune.checkpoint_every=5",),
    ],
)
def test_threads_tiers_and_checkpoints_change_nothing(run: RunFile, settings: tuple[str, ...], tmp_path: Path) -> None:
    name = settings[0].replace("=", "-")
    words = [setting.format(scratch=tmp_path / "scratch") for setting in settings]
    assert bytes_of(folder_of(done(run, name, *words))) == bytes_of(folder_of(done(run, "whole")))


def test_a_finished_finetuning_is_shown_again_without_any_work(run: RunFile) -> None:
    first = done(run, "again")
    told = Told()
    second = finetune(changed(run, *SHORT, "finetune.name=again"), from_scratch=False, progress=told)
    assert second == first
    assert [name for name, _, _ in told.stages] == ["read labels"]


def test_labels_a_class_are_all_that_is_trained_on(run: RunFile) -> None:
    report = done(run, "few", "finetune.labels_per_class=2", "finetune.epochs=2")
    assert (report.train_rows, report.classes) == (6, [4, 7, 9])
    assert report.test_rows == done(run, "whole").test_rows


def test_another_seed_is_another_finetuning(run: RunFile) -> None:
    whole, other = done(run, "whole"), done(run, "seed-1", "finetune.seed=1")
    assert bytes_of(folder_of(other))["model.safetensors"] != bytes_of(folder_of(whole))["model.safetensors"]


def test_a_result_of_other_settings_is_refused_with_the_keys(run: RunFile) -> None:
    done(run, "kept")
    with pytest.raises(BadInput, match=r"patience: 20 -> 3: .*set finetune\.name to another name"):
        done(run, "kept", "finetune.patience=3")
    done(run, "kept", "finetune.checkpoint_every=7")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("workers.count=2",), r"finetuning is done by one process; add workers\.count=1"),
        (("workers.samplers=1",), "finetuning is done by one process"),
        (("finetune.node_type=user",), "node types of this store: node"),
        (("finetune.train_fraction=0.6", "finetune.val_fraction=0.5"), "both together leave nodes to test on"),
        (("encoder.hidden_dim=32",), "run file changed: encoder.hidden_dim: 16 -> 32"),
        (("run.name=other",), r"no checkpoint.*run `hopstream pretrain`"),
    ],
)
def test_what_cannot_be_finetuned_is_refused(run: RunFile, overrides: tuple[str, ...], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        done(run, "refused", *overrides)


def test_a_loss_that_is_not_finite_fails_with_what_to_do(run: RunFile) -> None:
    with pytest.raises(TrainingFailed, match=r"finetuning has diverged; lower finetune\.learning_rate"):
        done(run, "diverged", "finetune.encoder_learning_rate=1e30")


def test_damaged_rounds_are_named(run: RunFile) -> None:
    with pytest.raises(KeyboardInterrupt):
        finetune(
            changed(run, *SHORT, "finetune.name=damaged"),
            from_scratch=False,
            progress=StoppedAt("finetune, pretrained", 4),
        )
    (file,) = (Path(run.run.storage) / run.run.name / "finetuned" / "damaged").glob("rounds-*.safetensors")
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(bytes(data))
    with pytest.raises(BadInput, match=r"rounds-00003\.safetensors: bytes changed"):
        done(run, "damaged")
    shutil.rmtree(file.parent)
    done(run, "damaged")


def test_the_command_shows_a_table_or_json(tmp_path: Path) -> None:
    small_store(tmp_path)
    path = str(small_run(tmp_path, training={"max_steps": 2}))
    assert hopstream("finetune", path).returncode == 2
    assert hopstream("pretrain", path).returncode == 0
    report = result_of("finetune", path, "finetune.epochs=2", "--from-scratch")
    assert (report["train_rows"], report["val_rows"], report["test_rows"]) == (30, 30, 240)
    assert [found["start"] for found in report["starts"]] == ["pretrained", "scratch"]
    shown = hopstream("finetune", path, "finetune.epochs=2")
    assert shown.returncode == 0
    assert "macro-F1" in shown.stdout
