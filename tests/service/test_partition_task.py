"""The pretext task `partition`: its loss against the formula, and the partition that a run keeps beside it."""

import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch.nn.functional import log_softmax

from service.encoders import EncoderConfig, Nodes, make_encoder
from service.forecast import forecast
from service.group import Group
from service.model import Model
from service.noise import Noise
from service.objectives import make_objective
from service.objectives.partition_task import NodeParts, PartitionTask
from service.objectives.pretext import PretextConfig
from service.partition_file import FOLDER, give_partition
from service.pretraining import pretrain
from service.replay import replay
from service.run_file import load_run_file
from service.schema import GraphSchema
from storage.append import append
from storage.append_settings import AppendSettings
from storage.progress import NoProgress
from storage.store import Store
from tests.data import small_run, small_store
from tests.service.batches import SmallGraph, heterogeneous, homogeneous, make_batch
from tests.service.steps import losses_of_one_batch
from tests.storage.damage import flipped_byte

NUM_PARTS = 5


def build(graph: SmallGraph) -> tuple[Model, list[int]]:
    """A model that knows parts of the graph's nodes, and these; every sixth node is in none."""
    torch.manual_seed(0)
    config = EncoderConfig(name="sage", hidden_dim=8)
    objective = PretextConfig(tasks=("partition",), num_parts=NUM_PARTS)
    model = Model(
        make_encoder(config, schema=graph.schema),
        make_objective(objective, schema=graph.schema, encoder_config=config),
        group=Group(),
    ).double()
    parts = [-1 if node % 6 == 5 else (3 * node) % NUM_PARTS for node in range(sum(graph.num_nodes))]
    offsets = torch.from_numpy(np.cumsum([0, *graph.num_nodes]))
    task_of(model).parts = NodeParts(part=torch.tensor(parts, dtype=torch.int32), type_offsets=offsets)
    return model, parts


def task_of(model: Model) -> PartitionTask:
    (task,) = (module for module in model.modules() if isinstance(module, PartitionTask))
    return task


@pytest.mark.parametrize("graph", [homogeneous(), heterogeneous()], ids=["one type", "several types"])
def test_the_loss_is_the_mean_cross_entropy_of_seeds_that_are_in_a_part(graph: SmallGraph) -> None:
    model, parts = build(graph)
    nodes = graph.all_seeds()
    seeds = [nodes[number] for number in torch.randperm(len(nodes))[:23].tolist()]
    batch = make_batch(graph, seeds, num_hops=2)
    h = model.encoder.input(batch.features, batch.node_type, batch.in_degree, batch.out_degree)
    h = model.encoder(h, batch.hops[::-1], Nodes.of(batch))
    losses = [
        -log_softmax(task_of(model).head(state), 0)[parts[nodes.index(seed)]]
        for seed, state in zip(seeds, h, strict=False)
        if parts[nodes.index(seed)] >= 0
    ]
    assert 0 < len(losses) < len(seeds)
    out = model(batch, Noise(1))
    assert out.count == len(seeds)
    assert (out.loss_sum / out.count).item() == pytest.approx(torch.stack(losses).mean().item(), rel=1e-12)


def test_seeds_in_no_part_have_no_loss_and_a_gradient_of_zero() -> None:
    graph = homogeneous()
    model, _ = build(graph)
    for seeds in ([], [(0, 5), (0, 11)]):
        out = model(make_batch(graph, seeds, num_hops=2, num_seeds_global=2), Noise(1))
        model.zero_grad()
        out.loss_sum.backward()
        assert out.loss_sum.item() == 0.0
        assert all(parameter.grad is not None and not parameter.grad.any() for parameter in model.parameters())


def test_training_lowers_the_loss_and_parts_are_no_state_of_the_model() -> None:
    graph = homogeneous()
    model, _ = build(graph)
    assert not [name for name in model.state_dict() if "parts" in name]
    batch = make_batch(graph, graph.all_seeds(), num_hops=2)
    losses = losses_of_one_batch(model, batch, noise=Noise(1), learning_rate=0.02)
    assert losses[-1] < 0.7 * losses[0] < math.inf


class Told(NoProgress):
    """Remembers the stages, and what was noted."""

    def __init__(self) -> None:
        self.stages: list[str] = []
        self.notes: list[str] = []

    def stage(self, name: str, *, total: int, unit: str) -> None:
        self.stages.append(name)

    def note(self, text: str) -> None:
        self.notes.append(text)

    @property
    def has_partitioned(self) -> bool:
        return any(stage.startswith("partition, parts") for stage in self.stages)


def pretext_run(folder: Path, *, name: str = "small") -> Path:
    path = small_run(folder, name=name, sampling={"fanouts": [4, 4]})
    text = path.read_text().replace("mask_rate: 0.5", "num_parts: 6").replace("replace_rate: 0.1", "tasks: [partition]")
    path.write_text(text.replace("name: graphmae", "name: pretext"))
    return path


def test_a_run_finds_its_partition_once_and_keeps_it_until_its_store_or_the_file_changes(tmp_path: Path) -> None:
    small_store(tmp_path)
    run = load_run_file(str(pretext_run(tmp_path)), overrides=())
    told = Told()
    assert pretrain(run, progress=told).step == 20
    assert told.has_partitioned
    (note,) = (note for note in told.notes if note.startswith("partition"))
    assert note.startswith("partition: 6 parts of ")
    folder = tmp_path / "runs" / "small" / FOLDER
    assert sorted(path.name for path in folder.iterdir()) == ["6.json", "6.npy", "6.sums.npy"]

    def given() -> tuple[Told, torch.Tensor]:
        store = Store.open(str(tmp_path / "store"))
        schema, config = GraphSchema.from_store(store), EncoderConfig(hidden_dim=8)
        objective = make_objective(run.objective, schema=schema, encoder_config=config)
        model = Model(make_encoder(config, schema=schema), objective, group=Group())
        told = Told()
        give_partition(model, run, store=store, group=Group(), progress=told)
        parts = task_of(model).parts
        assert parts is not None
        assert parts.type_offsets.tolist() == store.type_offsets.tolist()
        return told, parts.part

    told, first = given()
    assert not told.stages
    assert first.shape == (300,)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with flipped_byte(folder / "6.npy", 4096 + 17):
        told, again = given()
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before  # written anew
    assert told.has_partitioned
    assert torch.equal(again, first)
    (folder / "6.json").write_text((folder / "6.json").read_text().replace('"version": ', '"version": 9'))
    told, again = given()
    assert told.has_partitioned
    assert torch.equal(again, first)
    pq.write_table(pa.table({"src": [0, 10, 20], "dst": [30, 40, 50]}), tmp_path / "more.parquet")
    append(AppendSettings(edges={"node:to:node": str(tmp_path / "more.parquet")}), out=str(tmp_path / "store"))
    told, _ = given()
    assert told.has_partitioned
    told, _ = given()
    assert not told.stages


def test_replay_and_plan_know_the_partition_and_write_none(tmp_path: Path) -> None:
    small_store(tmp_path)
    run = load_run_file(str(pretext_run(tmp_path)), overrides=())
    told = Told()
    forecast(run, progress=told)
    assert told.has_partitioned
    assert not (tmp_path / "runs").exists()
    pretrain(run, progress=NoProgress())
    told = Told()
    found = replay(run, step=20, progress=told)
    assert found.trouble is None
    assert not told.has_partitioned
