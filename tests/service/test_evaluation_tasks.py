"""Evaluation at several tasks: each kind of rows is scored at each, on labels only where a task needs them."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from service.evaluation import EvaluationConfig
from service.evaluation_report import ROW_NAMES
from service.labelled_rows import read_labelled
from service.task_tables import evaluation_tables
from storage.errors import BadInput
from storage.store import Store
from tests.service.evaluations import LIMITLESS, NUM_CLASSES, Told, labelled_graph, labels_of, run, write_embeddings
from tests.service.stores import ingested, user_ids


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return ingested(labelled_graph(), tmp_path_factory.mktemp("store"), columns={"node": {"label": labels_of(200)}})


@pytest.fixture
def perfect(store: Store, tmp_path: Path) -> str:
    """Embeddings that are the labels themselves."""
    write_embeddings(store, tmp_path / "perfect", np.eye(NUM_CLASSES, dtype=np.float32)[labels_of(200)])
    return str(tmp_path / "perfect")


def test_every_task_scores_every_kind_of_rows_and_the_report_is_json(
    store: Store, perfect: str, tmp_path: Path
) -> None:
    table = held_out(tmp_path)
    tasks = ("probe", "clustering", "knn", "few_shot", "link", "picture")
    config = EvaluationConfig.model_validate(
        {
            "tasks": tasks,
            "train_fraction": 0.3,
            "val_fraction": 0.2,
            "link": {"edges": table, "scores": ("cosine", "dot"), "in_store": "keep"},
            "picture": {"method": "pca"},
        }
    )
    told = Told()
    report = run(store, perfect, tmp_path, config=config, progress=told)
    assert [stage for stage in told.stages if stage[1] == 0 or stage[1] != stage[2]] == []
    assert report.node_types[0].accuracy("trained") == 100.0
    assert [task.task for task in report.tasks] == ["clustering", "knn", "few_shot", "link", "link", "picture"]
    for task in report.tasks:
        names = [result.rows for result in task.results]
        assert names == [*ROW_NAMES, "popularity"] if task.task == "link" else names == list(ROW_NAMES)
    clustering, knn, few_shot = report.tasks[:3]
    assert clustering.mean("trained", "nmi") == pytest.approx(1.0)
    assert (clustering.mean("raw", "nmi") or 0.0) < 0.3
    assert knn.mean("trained", "accuracy") == few_shot.mean("trained", "1_shot") == 100.0
    assert [task.settings["score"] for task in report.tasks[3:5]] == ["cosine", "dot"]
    assert (tmp_path / "pictures" / "node.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads(json.dumps(report.to_json()))["tasks"][1]["results"][0]["figures"]["accuracy"]["mean"] == 100.0
    evaluation_tables(report)


def held_out(folder: Path) -> str:
    ids = user_ids(labelled_graph(), 0)
    pq.write_table(pa.table({"src": ids[:40], "dst": ids[40:80]}), folder / "held.parquet")
    return str(folder / "held.parquet")


def test_tasks_without_labels_need_none(perfect: str, tmp_path: Path) -> None:
    store = ingested(labelled_graph(), tmp_path / "plain")
    config = EvaluationConfig.model_validate(
        {
            "tasks": ("link", "picture"),
            "link": {"edges": held_out(tmp_path), "in_store": "keep"},
            "picture": {"method": "pca"},
        }
    )
    report = run(store, perfect, tmp_path, config=config)
    assert report.node_types == ()
    assert [task.of for task in report.tasks] == ["node:links:node", "node"]
    assert report.tasks[1].settings["rows"] == 200


def test_random_splits_can_be_asked_for_where_the_data_has_a_split_and_the_datas_where_it_has_none(
    tmp_path: Path,
) -> None:
    split = np.array(["train", "val", "test"])[np.arange(200) % 3]
    columns = {"node": {"label": labels_of(200), "split": split}}
    store = ingested(labelled_graph(), tmp_path / "with", columns=columns)
    kind = read_labelled(store, "node", num_splits=20, fractions=(0.1, 0.1), sizes=LIMITLESS, seed=0, source="random")
    num_labelled = int((labels_of(200) >= 0).sum())
    assert (kind.kind, len(kind.splits)) == ("random", 20)
    assert len({tuple(part.train) for part in kind.splits}) == 20
    for part in kind.splits:
        assert sorted([*part.train, *part.val, *part.test]) == np.flatnonzero(kind.labels >= 0).tolist()
        assert len(part.train) == len(part.val) == round(0.1 * num_labelled)
    bare = ingested(labelled_graph(), tmp_path / "without", columns={"node": {"label": labels_of(200)}})
    with pytest.raises(BadInput, match=r"evaluation\.split=data"):
        read_labelled(bare, "node", num_splits=1, fractions=(0.1, 0.1), sizes=LIMITLESS, seed=0, source="data")
