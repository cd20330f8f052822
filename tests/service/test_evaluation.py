"""Evaluation: trained rows beside the baselines, joined to the store by the user's ids."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from service.embedding import EmbeddingSource, embed
from service.evaluation import EvaluationConfig
from service.evaluation_report import ROW_NAMES
from service.labelled_rows import read_labelled
from storage.errors import BadInput
from storage.place import Place
from storage.progress import NoProgress
from storage.store import Store
from tests.service.batches import heterogeneous, homogeneous
from tests.service.evaluations import (
    LIMITLESS,
    NUM_CLASSES,
    Told,
    labelled_graph,
    labels_of,
    random_encoder,
    run,
    write_embeddings,
)
from tests.service.stores import ingested, storable, user_ids


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return ingested(labelled_graph(), tmp_path_factory.mktemp("store"), columns={"node": {"label": labels_of(200)}})


@pytest.fixture
def perfect(store: Store, tmp_path: Path) -> str:
    """Embeddings that are the labels themselves."""
    write_embeddings(store, tmp_path / "perfect", np.eye(NUM_CLASSES, dtype=np.float32)[labels_of(200)])
    return str(tmp_path / "perfect")


def test_every_part_of_the_work_is_a_stage_that_ends(store: Store, perfect: str, tmp_path: Path) -> None:
    told = Told()
    run(store, perfect, tmp_path, progress=told)
    names = [name for name, _, _ in told.stages]
    assert names[:2] == ["read labels", "read edges"]
    assert names[2:6] == ["read node", "probe node, trained", "read node, raw", "probe node, raw"]
    assert [stage for stage in told.stages if stage[1] == 0 or stage[1] != stage[2]] == []


def test_rows_are_joined_by_the_users_ids(store: Store, perfect: str, tmp_path: Path) -> None:
    report = run(store, perfect, tmp_path)
    (kind,) = report.node_types
    assert [result.rows for result in kind.results] == list(ROW_NAMES)
    assert kind.accuracy("trained") == 100.0
    for name in ROW_NAMES[1:]:
        accuracy = kind.accuracy(name)
        assert accuracy is not None
        assert 15.0 < accuracy < 55.0  # chance is 33.3


def test_the_report_says_what_was_probed(store: Store, perfect: str, tmp_path: Path) -> None:
    report = run(store, perfect, tmp_path)
    labels = labels_of(200)
    (kind,) = report.node_types
    assert (report.run, report.step, report.embeddings) == ("by hand", 9, perfect)
    assert (kind.node_type, kind.num_nodes, kind.num_classes) == ("node", 200, NUM_CLASSES)
    assert (kind.split, kind.num_splits) == ("random", 3)
    assert kind.num_labelled == (labels >= 0).sum()
    assert kind.train_rows == round(0.3 * kind.num_labelled)
    assert kind.train_rows + kind.val_rows + kind.test_rows == kind.num_labelled
    trained = kind.results[0]
    assert (trained.dim, trained.deviation, len(trained.accuracies)) == (NUM_CLASSES, 0.0, 3)
    raw = kind.results[1]
    assert raw.accuracy == pytest.approx(np.mean(raw.accuracies))
    assert raw.deviation == pytest.approx(np.std(raw.accuracies, ddof=1))
    assert json.loads(json.dumps(report.to_json()))["node_types"][0]["results"][0]["accuracy"] == 100.0


def test_the_same_seed_gives_the_same_figures_and_another_seed_others(
    store: Store, perfect: str, tmp_path: Path
) -> None:
    def figures(seed: int) -> list[tuple[float, ...]]:
        (kind,) = run(store, perfect, tmp_path, seed=seed).node_types
        return [result.accuracies for result in kind.results]

    assert figures(1) == figures(1)
    assert figures(1) != figures(2)


def test_limits_of_rows_are_kept_and_reported(store: Store, perfect: str, tmp_path: Path) -> None:
    config = EvaluationConfig(
        num_splits=2, train_fraction=0.3, val_fraction=0.2, max_train_rows=20, max_val_rows=11, max_test_rows=30
    )
    (kind,) = run(store, perfect, tmp_path, config=config).node_types
    assert (kind.train_rows, kind.val_rows, kind.test_rows) == (20, 11, 30)
    assert kind.train_rows_available == round(0.3 * kind.num_labelled)


def test_the_datas_own_split_is_used_where_there_is_one(tmp_path: Path) -> None:
    labels = labels_of(200)
    split = np.array(["train", "val", "test", "none"])[np.arange(200) % 4]
    store = ingested(labelled_graph(), tmp_path, columns={"node": {"label": labels, "split": split}})
    kind = read_labelled(store, "node", num_splits=5, fractions=(0.1, 0.1), sizes=LIMITLESS, seed=0)
    assert (kind.kind, len(kind.splits)) == ("data", 1)
    names = store.node_column("node", "id").to_pylist()
    number_of = {name: number for number, name in enumerate(user_ids(labelled_graph(), 0))}
    for part, rows in (("train", kind.splits[0].train), ("val", kind.splits[0].val), ("test", kind.splits[0].test)):
        numbers = {number_of[names[row]] for row in rows}
        assert numbers == set(np.flatnonzero((split == part) & (labels >= 0)))


def test_an_incomplete_split_of_the_data_is_refused(tmp_path: Path) -> None:
    split = np.array(["train", "test"])[np.arange(200) % 2]
    store = ingested(labelled_graph(), tmp_path, columns={"node": {"label": labels_of(200), "split": split}})
    with pytest.raises(BadInput, match="0 val"):
        read_labelled(store, "node", num_splits=1, fractions=(0.1, 0.1), sizes=LIMITLESS, seed=0)


def test_test_labels_do_not_choose_the_strength(store: Store, tmp_path: Path) -> None:
    noisy = np.eye(NUM_CLASSES)[labels_of(200)] + 0.9 * np.random.default_rng(0).normal(size=(200, NUM_CLASSES))
    write_embeddings(store, tmp_path / "noisy", noisy.astype(np.float32))
    split = np.array(["train", "val", "test"])[np.arange(200) % 3]
    chosen, accuracies = [], []
    for number in range(2):
        labels = labels_of(200)
        if number:
            labels[split == "test"] = np.random.default_rng(1).permutation(labels[split == "test"])
        other = ingested(labelled_graph(), tmp_path / str(number), columns={"node": {"label": labels, "split": split}})
        (kind,) = run(other, str(tmp_path / "noisy"), tmp_path).node_types
        chosen.append([result.strengths for result in kind.results])
        accuracies.append(kind.accuracy("trained"))
    assert chosen[0] == chosen[1]
    assert accuracies[0] != accuracies[1]


def test_types_without_features_have_no_raw_and_no_sgc_rows(tmp_path: Path) -> None:
    graph = storable(heterogeneous())
    bare = replace(
        graph,
        features=(graph.features[0], None, None),
        schema=replace(
            graph.schema,
            node_types=tuple(
                replace(kind, feature_dim=kind.feature_dim if kind.name == "paper" else None)
                for kind in graph.schema.node_types
            ),
        ),
    )
    labels = {name: {"label": np.arange(count) % 2} for name, count in (("paper", 20), ("author", 15))}
    store = ingested(bare, tmp_path, columns=labels)
    embed(
        random_encoder(store),
        store=store,
        out=str(tmp_path / "out"),
        work=Place(str(tmp_path / "work")),
        source=EmbeddingSource(run="r", step=0),
        cache_bytes=0,
        rows_per_chunk=50,  # as `run` has it: other pieces round otherwise, and one node in ten may change sides
        max_edges_per_chunk=262_144,
        device=torch.device("cpu"),
        progress=NoProgress(),
    )
    report = run(store, str(tmp_path / "out"), tmp_path)
    assert [kind.node_type for kind in report.node_types] == ["paper", "author"]
    author = report.node_types[1]
    assert [result.rows for result in author.results] == list(ROW_NAMES)
    assert [result.accuracy is None for result in author.results] == [False, True, True, False]
    assert "no features" in author.results[1].note
    # the same encoder, trained for no step
    for kind in report.node_types:
        assert kind.results[0].accuracies == kind.results[3].accuracies
    only = run(
        store,
        str(tmp_path / "out"),
        tmp_path,
        config=EvaluationConfig(node_type="author", train_fraction=0.4, val_fraction=0.3),
    )
    assert [kind.node_type for kind in only.node_types] == ["author"]


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([99, *user_ids(labelled_graph(), 0)[1:]], "99"),
        ([*user_ids(labelled_graph(), 0)[:-1], 7000], "id 7000 twice"),
    ],
)
def test_embeddings_of_other_ids_are_refused(store: Store, ids: list[int | str], message: str, tmp_path: Path) -> None:
    write_embeddings(store, tmp_path / "other", np.ones((200, 4), dtype=np.float32), ids=ids)
    with pytest.raises(BadInput, match=message):
        run(store, str(tmp_path / "other"), tmp_path)


def test_missing_embeddings_are_refused_with_an_id(store: Store, tmp_path: Path) -> None:
    ids = user_ids(labelled_graph(), 0)
    write_embeddings(
        store,
        tmp_path / "fewer",
        np.ones((199, 4), dtype=np.float32),
        ids=ids[1:],
        num_nodes=200,
    )
    with pytest.raises(BadInput, match=r"no embedding of id 7000 \(1 such nodes\)"):
        run(store, str(tmp_path / "fewer"), tmp_path)


def test_embeddings_of_another_store_are_refused(store: Store, perfect: str, tmp_path: Path) -> None:
    other = ingested(homogeneous(num_nodes=30), tmp_path / "other", columns={"node": {"label": labels_of(30)}})
    with pytest.raises(BadInput, match="200 embeddings for 30 nodes"):
        run(other, perfect, tmp_path)
    (Path(perfect) / "manifest.json").write_text('{"format_version": 2}')
    with pytest.raises(BadInput, match="format_version"):
        run(store, perfect, tmp_path)


def test_a_store_without_labels_is_refused(perfect: str, tmp_path: Path) -> None:
    store = ingested(labelled_graph(), tmp_path / "plain")
    with pytest.raises(BadInput, match="no labels"):
        run(store, perfect, tmp_path)


def test_an_unknown_node_type_is_refused_with_the_choices(store: Store, perfect: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"nodes.*unknown.*node"):
        run(store, perfect, tmp_path, config=EvaluationConfig(node_type="nodes"))


def test_shares_that_leave_nothing_to_test_on_are_refused(store: Store, perfect: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"0\.5 \+ 0\.5"):
        run(store, perfect, tmp_path, config=EvaluationConfig(train_fraction=0.5, val_fraction=0.5))


def test_reading_needs_nothing_but_pyarrow(perfect: str) -> None:
    table = pq.read_table(Path(perfect) / "node")
    assert table.num_rows == 200
