"""Distillation: what is saved is what was computed, and needs nothing but a node's own features."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file

from service.distill import DistillReport, distill
from service.finetune import finetune
from service.results import embed_run, evaluate_run
from service.run_file import RunFile, load_run_file
from storage.errors import BadInput
from storage.progress import NoProgress
from tests.data import small_run, small_store
from tests.processes import hopstream, result_of
from tests.service.batches import heterogeneous
from tests.service.evaluations import Told
from tests.service.finetuned import StoppedAt, bytes_of, changed, planted, pretrained
from tests.service.stores import ingested, storable, user_ids

SHORT = (
    "distill.epochs=12", "distill.rows_per_step=32", "distill.hidden_dim=24", "distill.checkpoint_every=3",
    "finetune.epochs=6",
)  # fmt: skip
LABELS = "distill.target=labels"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFile:
    """A run that is embedded and finetuned."""
    run = pretrained(tmp_path_factory.mktemp("distill"))
    finetune(changed(run, *SHORT), from_scratch=False, progress=NoProgress())
    return run


def done(run: RunFile, name: str, *overrides: str) -> DistillReport:
    return distill(changed(run, *SHORT, f"distill.name={name}", *overrides), progress=NoProgress())


def computed(folder: Path, features: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """The student's rows as `student.json` says to compute them, in numpy."""
    description = json.loads((folder / "student.json").read_text())
    weights = load_file(folder / description["weights"])
    assert set(weights) == {layer[part] for layer in description["layers"] for part in ("weight", "bias")}
    x = features.astype(np.float64)
    for layer in description["layers"]:
        x = x @ weights[layer["weight"]].T.astype(np.float64) + weights[layer["bias"]]
        x = np.maximum(x, 0.0) if layer["activation"] == "relu" else x
    return x


def planted_features() -> NDArray[np.floating[Any]]:
    features = planted()[0].features[0]
    assert features is not None
    return features.astype(np.float32)


def in_own_order(table: Any, column: str) -> NDArray[np.floating[Any]]:
    """Rows of a column joined by the user's ids, in the graph's order."""
    rows = dict(zip(table["id"].to_pylist(), table[column].to_pylist(), strict=True))
    assert len(rows) == table.num_rows == 240
    return np.array([rows[name] for name in user_ids(planted()[0], 0)])


@pytest.mark.parametrize("loss", ["mse", "cosine"])
def test_saved_weights_computed_without_us_give_the_embeddings_written(run: RunFile, loss: str) -> None:
    report = done(run, f"exact-{loss}", f"distill.loss={loss}")
    written = in_own_order(pq.read_table(Path(report.out) / "embeddings" / "node"), "embedding")
    assert written.shape == (240, 16)
    np.testing.assert_allclose(written, computed(Path(report.out), planted_features()), rtol=1e-4, atol=1e-5)
    assert report.num_parameters == sum(
        value.size for value in load_file(Path(report.out) / "student.safetensors").values()
    )


def test_saved_weights_computed_without_us_give_the_predictions_written(run: RunFile) -> None:
    report = done(run, "labels", LABELS)
    logits = computed(Path(report.out), planted_features())
    expected = np.exp(logits - logits.max(1, keepdims=True))
    expected /= expected.sum(1, keepdims=True)
    table = pq.read_table(Path(report.out) / "predictions.parquet")
    np.testing.assert_allclose(in_own_order(table, "probabilities"), expected, rtol=1e-4, atol=1e-5)
    description = json.loads((Path(report.out) / "student.json").read_text())
    assert description["output"] == {"kind": "logits", "columns": 3, "classes": [4, 7, 9]}
    predicted = in_own_order(table, "prediction")
    assert predicted.tolist() == np.array([4, 7, 9])[expected.argmax(1)].tolist()

    labels = planted()[1]
    test = (np.arange(240) % 6 >= 3) & (np.arange(240) % 6 <= 4) & (labels >= 0)
    taught = finetune(changed(run, *SHORT), from_scratch=False, progress=NoProgress())
    assert report.scored is not None
    assert report.scored.test_rows == test.sum()
    assert report.scored.teacher == pytest.approx(taught.starts[0].test_accuracy)
    assert report.scored.student == pytest.approx(100.0 * np.mean(predicted[test] == labels[test]))


def test_a_student_learns_what_it_was_not_shown(run: RunFile) -> None:
    """A planted label shows in features, so a student that reads them knows the teacher's rows of held-out nodes."""
    report = done(run, "long", "distill.epochs=60")
    assert (report.rows, report.held_out) == (228, 12)
    rounds = json.loads((Path(report.out) / "state.json").read_text())["rounds"]
    assert report.held_out_loss == min(figures["val_loss"] for figures in rounds) < rounds[0]["val_loss"]
    assert report.scored is not None
    assert report.scored.student > 100.0 / 3 + 15.0
    labels = done(run, "long-labels", LABELS, "distill.epochs=60")
    assert labels.held_out_agreement is not None
    assert labels.held_out_agreement > 100.0 / 3 + 10.0


def test_evaluate_scores_the_students_embeddings_as_the_report_does(run: RunFile) -> None:
    report = done(run, "scored")
    assert report.scored is not None
    for folder, accuracy in ((f"{report.out}/embeddings", report.scored.student), (None, report.scored.teacher)):
        found = evaluate_run(run, embeddings=folder, progress=NoProgress()).node_types[0].results
        assert found[0].accuracy == pytest.approx(accuracy)
        assert found[1].accuracy == pytest.approx(report.scored.raw)


@pytest.mark.parametrize("target", ["embeddings", "labels"])
@pytest.mark.parametrize(("stage", "amount"), [("distill", 5), ("distill", 12), ("student, all nodes", 240)])
def test_an_interrupted_distillation_ends_with_the_bytes_of_a_whole_one(
    run: RunFile, target: str, stage: str, amount: int
) -> None:
    wanted = f"distill.target={target}"
    whole = done(run, f"whole-{target}", wanted)
    name = f"stopped-{target}-{stage[:7]}-{amount}"
    with pytest.raises(KeyboardInterrupt):
        distill(changed(run, *SHORT, wanted, f"distill.name={name}"), progress=StoppedAt(stage, amount))
    assert not (Path(whole.out).parent / name / "report.json").exists()
    resumed = done(run, name, wanted)
    assert bytes_of(Path(resumed.out)) == bytes_of(Path(whole.out))
    assert {"student.safetensors", "student.json"} < set(bytes_of(Path(whole.out)))
    assert not any("work" in path or "rounds-" in path for path in bytes_of(Path(whole.out)))


def test_a_finished_distillation_is_shown_again_without_any_work(run: RunFile) -> None:
    first, told = done(run, "again"), Told()
    assert distill(changed(run, *SHORT, "distill.name=again"), progress=told) == first
    assert [name for name, _, _ in told.stages] == ["open teacher"]


def test_a_result_of_other_settings_or_another_teacher_is_refused_with_the_keys(run: RunFile) -> None:
    done(run, "kept")
    with pytest.raises(BadInput, match=r"num_layers: 3 -> 2: .*set distill\.name to another name"):
        done(run, "kept", "distill.num_layers=2")
    done(run, "kept-labels", LABELS)
    finetune(changed(run, *SHORT, "finetune.name=second", "finetune.seed=2"), from_scratch=False, progress=NoProgress())
    with pytest.raises(BadInput, match="classifier: first -> second"):
        done(run, "kept-labels", LABELS, "finetune.name=second", "finetune.seed=2")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("workers.count=2",), "distillation is done by one process"),
        (("run.name=other",), r"no manifest\.json: .*run `hopstream embed`"),
        ((LABELS, "finetune.name=none"), r"no finished classifier.*run `hopstream finetune`"),
        ((LABELS, "finetune.seed=9"), "began with others: seed: 0 -> 9"),
        (("distill.node_type=user",), "node types of this store: node"),
        (("distill.held_out=0.999",), r"distill\.held_out=0\.999: 240 of 240 nodes.*lower it"),
    ],
)
def test_what_cannot_be_distilled_is_refused(run: RunFile, overrides: tuple[str, ...], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        done(run, "refused", *overrides)


def test_a_student_needs_no_labels(tmp_path: Path) -> None:
    plain = pretrained(tmp_path, labels=np.full(240, -1))
    report = done(plain, "first")
    assert report.scored is None
    assert report.out


def test_of_several_node_types_one_with_features_is_chosen(tmp_path: Path) -> None:
    ingested(storable(heterogeneous()), tmp_path)
    path = str(small_run(tmp_path, training={"max_steps": 1}))
    for command in ("pretrain", "embed"):
        assert hopstream(command, path).returncode == 0
    run = load_run_file(path)
    with pytest.raises(BadInput, match=r"paper, author have features.*set distill\.node_type to one of paper, author"):
        done(run, "none")
    with pytest.raises(BadInput, match="node type venue: no features"):
        done(run, "none", "distill.node_type=venue")
    report = done(run, "authors", "distill.node_type=author", "distill.epochs=2")
    assert (report.rows + report.held_out, report.scored) == (15, None)
    assert pq.read_table(Path(report.out) / "embeddings" / "author").num_rows == 15


def test_the_command_shows_a_table_or_json(tmp_path: Path) -> None:
    small_store(tmp_path)
    path = str(small_run(tmp_path, training={"max_steps": 2}))
    assert hopstream("pretrain", path).returncode == 0
    embed_run(load_run_file(path), store_url=None, out=None, progress=NoProgress())
    report = result_of("distill", path, "distill.epochs=2")
    assert report["scored"]["score"] == "linear probe"
    shown = hopstream("distill", path, "distill.epochs=2")
    assert shown.returncode == 0
    assert "linear probe, student" in shown.stdout
