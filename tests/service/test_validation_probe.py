"""The validation probe: what it finds is used at a step that the step alone decides, and changes nothing else."""

import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from service.checkpoint import checkpoint_name, list_checkpoints, load_checkpoint, read_checkpoint
from service.early_stop import EarlyStopConfig, EarlyStopState, observe
from service.embedding import EmbeddingSource, embed
from service.embedding_files import read_manifest, read_parts
from service.group import Group
from service.labelled_rows import read_labelled
from service.model import build_model
from service.pretraining import pretrain
from service.probe_schedule import ProbeFigure, ValidationProbeConfig, arriving, begins
from service.run_file import RunFile, load_run_file
from service.schema import GraphSchema
from service.validation_probe import Compute, ValidationProbe
from storage.errors import BadInput
from storage.ingest import IngestSettings, ingest
from storage.place import Place
from storage.progress import NoProgress
from storage.store import Store
from tests.data import small_run, small_store, write_tables
from tests.processes import result_of
from tests.service.held_encoder import HeldEncoder
from tests.service.test_early_stop import InterruptedAt

NAMES = ("step", "loss", "probe_step", "probe_accuracy")


def run_of(folder: Path, name: str, **sections: dict[str, Any]) -> RunFile:
    """20 steps, a checkpoint every third."""
    return load_run_file(str(small_run(folder, name=name, **sections)))


def probing(folder: Path, name: str, *, every: int, **training: Any) -> RunFile:
    return run_of(folder, name, training={"probe": {"every_steps": every}, **training})


def lines_of(folder: Path, name: str) -> list[dict[str, Any]]:
    lines = (folder / "runs" / name / "metrics.jsonl").read_text().splitlines()
    return [{key: row[key] for key in NAMES} for row in map(json.loads, lines)]


def figures_of(folder: Path, name: str) -> dict[int, tuple[int, float]]:
    """By the step that they arrived with."""
    return {
        row["step"]: (row["probe_step"], row["probe_accuracy"])
        for row in lines_of(folder, name)
        if row["probe_step"] is not None
    }


def checkpoints(folder: Path, name: str) -> dict[str, dict[str, bytes]]:
    place = Place(str(folder / "runs" / name))
    return {found: read_checkpoint(place, found).contents for found in list_checkpoints(place)}


def test_a_figure_arrives_as_many_steps_after_its_weights_as_lie_between_probes() -> None:
    begun = [step for step in range(21) if begins(step, every_steps=6, total_steps=20)]
    arrived = {step: arriving(step, every_steps=6) for step in range(1, 21)}
    assert begun == [6, 12]
    assert {step: probed for step, probed in arrived.items() if probed is not None} == {12: 6, 18: 12}
    assert not begins(10, every_steps=None, total_steps=20)
    assert arriving(10, every_steps=None) is None
    # whatever the numbers, what has begun arrives before the end and nothing else does
    for every in range(1, 9):
        for total in range(25):
            steps = [step for step in range(total + 1) if begins(step, every_steps=every, total_steps=total)]
            found = [arriving(step, every_steps=every) for step in range(1, total + 1)]
            assert steps == [probed for probed in found if probed is not None]


def test_a_run_that_probes_has_the_weights_and_losses_of_one_that_does_not(tmp_path: Path) -> None:
    small_store(tmp_path)
    pretrain(run_of(tmp_path, "plain"), progress=NoProgress())
    status = pretrain(probing(tmp_path, "probing", every=4), progress=NoProgress())
    plain, probed = (checkpoints(tmp_path, name) for name in ("plain", "probing"))
    assert plain.keys() == probed.keys()
    for name in plain:
        for file in ("model.safetensors", "optimizer.safetensors"):
            assert probed[name][file] == plain[name][file]
    losses = [[row["loss"] for row in lines_of(tmp_path, name)] for name in ("plain", "probing")]
    assert losses[0] == losses[1]
    figures = figures_of(tmp_path, "probing")
    assert {step: probed for step, (probed, _) in figures.items()} == {8: 4, 12: 8, 16: 12, 20: 16}
    assert all(0.0 <= accuracy <= 1.0 for _, accuracy in figures.values())
    assert status.probe_accuracy == figures[20][1]


@pytest.mark.parametrize("every", [2, 4, 5])
def test_a_run_that_was_stopped_and_resumed_has_the_bytes_and_figures_of_a_whole_one(
    tmp_path: Path, every: int
) -> None:
    small_store(tmp_path)
    pretrain(probing(tmp_path, "whole", every=every), progress=NoProgress())
    run = probing(tmp_path, "cut", every=every)
    for number in (4, 7, 13):  # goes on from 3, 6 and 12: between a probe's weights and its figure, or at its weights
        with pytest.raises(KeyboardInterrupt):
            pretrain(run, progress=InterruptedAt(number))
    pretrain(run, progress=NoProgress())
    assert checkpoints(tmp_path, "cut") == checkpoints(tmp_path, "whole")
    assert lines_of(tmp_path, "cut") == lines_of(tmp_path, "whole")


class AtTheLastMoment(NoProgress):
    """Lets each probe pass when the step before its figure's is done."""

    def __init__(self, *, every: int) -> None:
        self._every = every
        self._done = 0
        self._training = False

    def stage(self, name: str, *, total: int, unit: str) -> None:
        self._training = name == "pretrain"

    def advance(self, amount: int) -> None:
        self._done += amount if self._training else 0
        if self._done > self._every and self._done % self._every == self._every - 1:
            HeldEncoder.permits.release()


def test_a_run_stops_at_the_same_step_with_the_same_bytes_however_long_a_probe_takes(tmp_path: Path) -> None:
    small_store(tmp_path)
    found = []
    for name in ("fast", "slow"):
        run = run_of(
            tmp_path,
            name,
            encoder={"name": "tests.service.held_encoder:HeldEncoder", "norm": "none"},
            training={
                "learning_rate": 1e-6,  # a rate at which nothing improves by the half
                "early_stop": {"by": "probe", "patience": 2, "min_improvement": 0.5},
                "probe": {"every_steps": 2},
                "checkpoint_every_steps": 2,  # at steps of probes, so that none waits
            },
        )
        HeldEncoder.permits = threading.Semaphore(100 if name == "fast" else 0)
        status = pretrain(run, progress=NoProgress() if name == "fast" else AtTheLastMoment(every=2))
        found.append((status.step, status.stopped_early, checkpoints(tmp_path, name), lines_of(tmp_path, name)))
    assert found[0][:2] == (8, True)
    assert found[0] == found[1]


@pytest.mark.soak
def test_two_workers_stop_at_the_step_where_one_does(tmp_path: Path) -> None:
    small_store(tmp_path)
    training = {
        "learning_rate": 1e-6,
        "early_stop": {"by": "probe", "patience": 2, "min_improvement": 0.5},
        "probe": {"every_steps": 2},
    }
    for name, workers in (("one", "1"), ("two", "2")):
        status = result_of("pretrain", str(small_run(tmp_path, name=name, training=training)), "--workers", workers)
        assert (status["state"], status["step"], status["stopped_early"]) == ("finished", 8, True)
    assert figures_of(tmp_path, "two") == figures_of(tmp_path, "one")


def test_accuracies_stop_a_run_when_they_have_not_risen_for_as_long_as_patience_says() -> None:
    config = EarlyStopConfig(by="probe", patience=2, min_improvement=0.1)

    def watch(accuracies: list[float | None]) -> EarlyStopState:
        state = EarlyStopState()
        for step, accuracy in enumerate(accuracies, start=1):
            state = observe(state, config, step=step, loss=float(step), accuracy=accuracy)
        return state

    assert watch([None] * 50) == EarlyStopState(step=50)
    assert watch([0.5, None, 0.54, 0.56]) == EarlyStopState(step=4, best=0.56)
    assert watch([0.5, 0.4, None, 0.54]) == EarlyStopState(step=4, best=0.5, without_improvement=2, stopped=True)
    assert not watch([0.5, 0.4, 0.56, 0.4]).stopped


def test_a_figure_has_a_line_of_its_own_where_steps_are_seldom_logged(tmp_path: Path) -> None:
    small_store(tmp_path)
    pretrain(probing(tmp_path, "seldom", every=6, log_every_steps=100), progress=NoProgress())
    assert [row["step"] for row in lines_of(tmp_path, "seldom")] == [12, 18, 20]
    assert list(figures_of(tmp_path, "seldom")) == [12, 18]


def test_the_figure_is_that_of_a_probe_on_the_embeddings_of_the_weights_at_its_step(tmp_path: Path) -> None:
    store = Store.open(str(small_store(tmp_path)))
    config = ValidationProbeConfig(every_steps=10, strengths=(1.0,))
    run = run_of(
        tmp_path,
        "whole",
        sampling={"fanouts": [-1, -1, -1]},  # all neighbours, as embedding reads them
        training={"probe": config.model_dump(), "checkpoint_every_steps": 10},
    )
    pretrain(run, progress=NoProgress())
    model = build_model(run, GraphSchema.from_store(store), group=Group())
    place = Place(str(tmp_path / "runs" / "whole"))
    model.load_state_dict(load_checkpoint(place, checkpoint_name(10)).model)
    embed(
        model.encoder,
        store=store,
        out=str(tmp_path / "out"),
        work=Place(str(tmp_path / "work")),
        source=EmbeddingSource(run="whole", step=10),
        cache_bytes=1 << 20,
        rows_per_chunk=100,
        max_edges_per_chunk=1000,
        device=torch.device("cpu"),
        progress=NoProgress(),
    )
    x = np.empty((store.num_nodes("node"), model.encoder.config.out_dim), dtype=np.float32)
    for ids, rows in read_parts(
        Place(str(tmp_path / "out")), read_manifest(Place(str(tmp_path / "out"))).node_types[0].parts
    ):
        x[store.rows_of("node", ids)] = rows
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    kind = read_labelled(
        store, "node", num_splits=1, fractions=(0.1, 0.1), sizes=config.sizes, seed=run.run.seed, source="random"
    )
    train, val = kind.splits[0].train, kind.splits[0].val
    assert train.shape[0] == val.shape[0] == 30
    classifier = LogisticRegression(C=1.0, tol=1e-6, max_iter=1000).fit(x[train], kind.labels[train])
    expected = float(np.mean(classifier.predict(x[val]) == kind.labels[val]))
    found = figures_of(tmp_path, "whole")
    assert list(found) == [20]
    assert found[20][0] == 10
    assert found[20][1] == pytest.approx(expected)


def store_with_split(folder: Path, *, test_labels: NDArray[np.int64] | None) -> None:
    """A third of the nodes in each part; the test nodes with these labels, or with their own."""
    write_tables(folder)
    table = pq.read_table(folder / "nodes.parquet")
    part = np.array(["train", "val", "test"])[np.arange(len(table)) % 3]
    label = table["label"].to_numpy().copy()
    if test_labels is not None:
        label[part == "test"] = test_labels
    table = table.set_column(2, "label", pa.array(label)).append_column("split", pa.array(part))
    pq.write_table(table, folder / "nodes.parquet")
    settings = IngestSettings(
        nodes={"node": str(folder / "nodes.parquet")}, edges={"node:to:node": str(folder / "edges.parquet")}
    )
    ingest(settings, out=str(folder / "store"))


def test_labels_of_test_nodes_are_not_looked_at(tmp_path: Path) -> None:
    found = []
    for name, labels in (("own", None), ("zero", np.zeros(100, dtype=np.int64))):
        (tmp_path / name).mkdir()
        store_with_split(tmp_path / name, test_labels=labels)
        pretrain(probing(tmp_path / name, "run", every=5), progress=NoProgress())
        found.append(figures_of(tmp_path / name, "run"))
    assert len(found[0]) == 3
    assert found[0] == found[1]


def test_an_encoder_without_neighbours_is_probed_too(tmp_path: Path) -> None:
    small_store(tmp_path)
    run = run_of(
        tmp_path,
        "mlp",
        encoder={"name": "mlp", "num_heads": 1},
        sampling={"fanouts": []},
        objective={"decoder": "mlp"},
        training={"probe": {"every_steps": 5}},
    )
    pretrain(run, progress=NoProgress())
    assert {step: probed for step, (probed, _) in figures_of(tmp_path, "mlp").items()} == {10: 5, 15: 10, 20: 15}


def test_a_store_without_labels_and_a_stop_without_probes_are_refused(tmp_path: Path) -> None:
    write_tables(tmp_path)
    table = pq.read_table(tmp_path / "nodes.parquet").drop_columns("label")
    pq.write_table(table, tmp_path / "nodes.parquet")
    settings = IngestSettings(
        nodes={"node": str(tmp_path / "nodes.parquet")}, edges={"node:to:node": str(tmp_path / "edges.parquet")}
    )
    ingest(settings, out=str(tmp_path / "store"))
    with pytest.raises(BadInput, match=r"training\.probe needs a node type with labels"):
        pretrain(probing(tmp_path, "none", every=5), progress=NoProgress())
    with pytest.raises(BadInput, match=r"probe\.every_steps unset"):
        run_of(tmp_path, "unset", training={"early_stop": {"by": "probe"}})


def probe_by(compute: Compute, *, every: int = 2, known: ProbeFigure | None = None) -> ValidationProbe:
    return ValidationProbe(
        every_steps=every, total_steps=20, compute=compute, group=Group(), device=torch.device("cpu"), known=known
    )


def test_the_weights_are_those_of_the_step_though_training_goes_on_before_they_are_read() -> None:
    trained_on = threading.Event()

    def read(weights: Mapping[str, Tensor]) -> float:
        assert trained_on.wait(60)
        return float(weights["weight"].sum())

    encoder = nn.Linear(1, 1)
    nn.init.constant_(encoder.weight, 0.25)
    probe = probe_by(read)
    probe.begin(2, encoder)
    nn.init.constant_(encoder.weight, 0.75)
    assert probe.arrive(3) is None
    trained_on.set()
    assert probe.arrive(4) == ProbeFigure(2, 0.25)
    probe.close()


def test_a_checkpoint_holds_the_figure_of_a_probe_under_way_but_not_of_its_own_weights() -> None:
    encoder = nn.Linear(1, 1)
    probe = probe_by(lambda weights: 0.5, every=3)
    assert probe.under_way(2) is None
    probe.begin(3, encoder)
    assert probe.under_way(3) is None
    assert probe.under_way(4) == ProbeFigure(3, 0.5)
    assert probe.under_way(5) == ProbeFigure(3, 0.5)
    assert probe.arrive(6) == ProbeFigure(3, 0.5)
    assert probe.under_way(6) is None
    probe.close()
    resumed = probe_by(lambda weights: 0.0, every=3, known=ProbeFigure(3, 0.5))
    resumed.begin(4, encoder)
    assert resumed.under_way(5) == ProbeFigure(3, 0.5)
    assert resumed.arrive(6) == ProbeFigure(3, 0.5)
    resumed.close()


def test_what_goes_wrong_in_a_probe_is_raised_where_its_figure_arrives() -> None:
    def fail(weights: Mapping[str, Tensor]) -> float:
        raise ValueError("broken")

    probe = probe_by(fail)
    probe.begin(2, nn.Linear(1, 1))
    with pytest.raises(ValueError, match="broken"):
        probe.arrive(4)
    probe.close()
