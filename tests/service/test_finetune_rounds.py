"""Which nodes are seeds in which round, which round is the best, and when it is over."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from service.checkpoint import restore_optimizer
from service.finetune_nodes import RoundOrder, read_nodes
from service.finetune_rounds import (
    Round,
    best_round,
    copy_state,
    drop_tensors,
    has_stopped,
    load_rounds,
    read_rounds,
    save_rounds,
)
from service.finetune_section import FinetuneSection
from storage.errors import BadInput
from storage.place import Place
from storage.store import Store
from tests.service.batches import heterogeneous
from tests.service.finetuned import planted
from tests.service.stores import ingested, storable


def test_every_round_passes_over_training_nodes_then_over_validation_nodes() -> None:
    train, val = np.arange(0, 46, 2), np.arange(1, 24, 2)
    order = RoundOrder(seeds=train, num_nodes=60, seeds_per_step=5, seed=3, val=val, passes=2)
    assert order.steps_per_epoch == 2 * 5 + 3
    passes = []
    for number in range(4):
        batches = [order.global_batch(epoch=number, step=step) for step in range(order.steps_per_epoch)]
        assert [len(batch) for batch in batches] == [order.num_in_step(step=step) for step in range(13)]
        for first in (0, 5):
            passes.append(np.concatenate(batches[first : first + 5]))
            assert sorted(passes[-1].tolist()) == train.tolist()
        assert np.concatenate(batches[10:]).tolist() == val.tolist()
    assert len({tuple(found.tolist()) for found in passes}) == 8


def labelled_store(folder: Path) -> Store:
    graph, labels = planted()
    return ingested(graph, folder, columns={"node": {"label": labels}})


def test_labels_a_class_are_drawn_from_the_training_nodes_and_fewer_are_a_part_of_more(tmp_path: Path) -> None:
    store = labelled_store(tmp_path)

    def drawn(number: int | None, *, seed: int = 0) -> set[int]:
        section = FinetuneSection(labels_per_class=number, seed=seed, train_fraction=0.5)
        nodes = read_nodes(store, section, split_seed=7)
        if number is not None:
            assert np.bincount(nodes.class_of(nodes.train)).tolist() == [number] * 3
        assert not {*nodes.train} & {*nodes.val} | {*nodes.train} & {*nodes.test}
        return {*nodes.train.tolist()}

    assert drawn(2) < drawn(5) < drawn(9) < drawn(None)
    assert drawn(5) != drawn(5, seed=1)


def test_the_majority_is_that_of_the_training_nodes(tmp_path: Path) -> None:
    store = labelled_store(tmp_path)
    nodes = read_nodes(store, FinetuneSection(train_fraction=0.3), split_seed=7)
    labels = nodes.kind.labels
    values, counts = np.unique(labels[nodes.train], return_counts=True)
    expected = 100.0 * np.mean(labels[nodes.test] == values[counts.argmax()])
    assert nodes.majority_accuracy == pytest.approx(expected)


def test_a_node_type_is_to_be_chosen_where_several_have_labels(tmp_path: Path) -> None:
    graph = storable(heterogeneous())
    columns = {
        kind.name: {"label": np.arange(count) % 2}
        for kind, count in zip(graph.schema.node_types[:2], graph.num_nodes, strict=False)
    }
    store = ingested(graph, tmp_path, columns=columns)
    with pytest.raises(BadInput, match=r"paper, author have labels.*set finetune\.node_type=paper"):
        read_nodes(store, FinetuneSection(), split_seed=0)
    assert (
        read_nodes(store, FinetuneSection(node_type="author", train_fraction=0.4), split_seed=0).kind.name == "author"
    )
    with pytest.raises(BadInput, match=r"finetune\.node_type=venue: no labels: section finetune needs"):
        read_nodes(store, FinetuneSection(node_type="venue"), split_seed=0)


def rounds(*figures: tuple[float, float | None]) -> list[Round]:
    return [Round(loss=1.0, val_loss=loss, val_accuracy=accuracy) for loss, accuracy in figures]


def test_the_best_round_is_the_most_accurate_then_the_one_of_least_loss_then_the_first() -> None:
    assert best_round(rounds((0.5, 70.0), (0.9, 80.0), (0.7, 80.0), (0.7, 80.0), (0.1, 60.0))) == 2
    assert best_round(rounds((0.5, None), (0.4, None), (0.4, None), (float("nan"), None))) == 1


def test_training_is_over_after_so_many_rounds_without_a_better_one() -> None:
    found = rounds((0.5, None), (0.4, None), (0.6, None), (0.5, None), (0.3, None))
    assert [has_stopped(found[:number], patience=2) for number in range(6)] == [False, False, False, False, True, False]


def test_saved_rounds_come_back_and_only_the_newest_are_there(tmp_path: Path) -> None:
    place = Place(str(tmp_path))
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    figures = rounds((0.5, 70.0), (0.4, 60.0))
    best = copy_state(model)
    for number in (1, 2):
        optimizer.zero_grad()
        model(torch.ones(4, 3)).square().sum().backward()
        optimizer.step()
        save_rounds(
            place, binding={"epochs": 9}, rounds=figures[:number], model=model, best=best, optimizer=optimizer
        )  # fmt: skip
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rounds-00002.safetensors", "state.json"]
    saved = load_rounds(place, binding={"epochs": 9}, section="finetune")
    assert saved is not None
    assert list(saved.rounds) == figures
    for key, value in model.state_dict().items():
        assert torch.equal(saved.model[key], value)
        assert torch.equal(saved.best[key], best[key])
    other = nn.Linear(3, 2)
    again = torch.optim.AdamW(other.parameters())
    other.load_state_dict(saved.model)
    restore_optimizer(other, again, saved.optimizer)
    for changed, steps in ((model, optimizer), (other, again)):
        steps.zero_grad()
        changed(torch.ones(4, 3)).square().sum().backward()
        steps.step()
    assert torch.equal(model.weight, other.weight)
    with pytest.raises(BadInput, match=r"epochs: 9 -> 8; seed: None -> 1: .*set distill\.name"):
        read_rounds(place, binding={"epochs": 8, "seed": 1}, section="distill")
    drop_tensors(place)
    assert read_rounds(place, binding={"epochs": 9}, section="finetune") == tuple(figures)


def test_a_folder_without_a_state_is_new(tmp_path: Path) -> None:
    assert load_rounds(Place(str(tmp_path)), binding={}, section="finetune") is None
    (tmp_path / "state.json").write_text("{")
    with pytest.raises(BadInput, match=r"state\.json: unreadable"):
        load_rounds(Place(str(tmp_path)), binding={}, section="finetune")
