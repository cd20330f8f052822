"""Stores and DGL graphs turn into each other without loss; what a store cannot hold is refused by name."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from service.interop.dgl_graphs import DGL_NAMES, dgl_graph, ingest_dgl
from service.interop.graph_columns import ColumnNames
from service.interop.packages import load_dgl
from storage.claim import lock_folder
from storage.errors import BadInput
from storage.ingest import IngestSettings
from storage.place import Place
from storage.schema import Relation
from storage.store import Store
from tests.data import ROOT
from tests.processes import environment
from tests.service.interop.graphs import all_features, assert_equal_graphs, write_store

pytest.importorskip("dgl", reason="dgl has no wheel for this Python")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return write_store(tmp_path_factory.mktemp("graph"))


def homogeneous() -> Any:
    """Three nodes with an edge 0 -> 1, 1 -> 2, 2 -> 1."""
    graph = load_dgl().graph((torch.tensor([0, 1, 2]), torch.tensor([1, 2, 1])), num_nodes=3)
    graph.ndata["feat"] = torch.arange(6.0).reshape(3, 2)
    return graph


def test_a_dgl_graph_of_a_store_equals_the_store(store: Store) -> None:
    graph = dgl_graph(store)
    for csc in store.topology().relations:
        source, target, edge = graph.edges(form="all", etype=tuple(csc.relation))
        order = edge.argsort()
        assert source[order].tolist() == csc.indices.tolist()
        assert target[order].tolist() == np.repeat(np.arange(len(csc.indptr) - 1), np.diff(csc.indptr)).tolist()
        assert graph.idtype == torch.int64
        if csc.weight is not None:
            assert graph.edges[tuple(csc.relation)].data["weight"].tolist() == csc.weight.tolist()
        if csc.timestamp is not None:
            assert graph.edges[tuple(csc.relation)].data["timestamp"].tolist() == csc.timestamp.tolist()
    papers, authors = graph.nodes["paper"].data, graph.nodes["author"].data
    np.testing.assert_array_equal(papers["feat"].numpy(), all_features(store, "paper"))
    assert papers["label"].tolist() == store.node_column("paper", "label").to_pylist()
    assert papers["id"].tolist() == store.node_column("paper", "id").to_pylist()
    split = store.node_column("paper", "split").to_pylist()
    for name in ("train", "val", "test"):
        assert papers[f"{name}_mask"].tolist() == [each == name for each in split]
    assert authors["timestamp"].tolist() == store.node_column("author", "timestamp").to_pylist()
    assert set(authors) == {"timestamp"}
    assert "feat" not in dgl_graph(store, features=False).nodes["paper"].data


def test_dgl_computes_on_it(store: Store) -> None:
    dgl = load_dgl()
    graph = dgl_graph(store)[("author", "writes", "paper")]
    graph.nodes["author"].data["one"] = torch.ones(graph.num_nodes("author"), 1)
    graph.update_all(dgl.function.copy_u("one", "m"), dgl.function.sum("m", "sum"))
    csc = next(each for each in store.topology().relations if each.relation.name == "writes")
    assert graph.nodes["paper"].data["sum"][:, 0].tolist() == np.diff(csc.indptr).tolist()


@pytest.mark.parametrize("formats", [["coo", "csr", "csc"], "csc", "csr", "coo"])
def test_a_store_that_goes_through_dgl_comes_back_equal(store: Store, tmp_path: Path, formats: Any) -> None:
    graph = dgl_graph(store).formats(formats)
    ingest_dgl(graph, out=str(tmp_path / "back"))
    assert_equal_graphs(store, Store.open(str(tmp_path / "back")))
    assert [path.name for path in tmp_path.iterdir()] == ["back"]


def test_the_same_graph_gives_the_same_bytes_and_keeps_ids_by_name(store: Store, tmp_path: Path) -> None:
    names = ColumnNames(**{**vars(DGL_NAMES), "ids": "id"})
    graph = dgl_graph(store)
    ingest_dgl(graph, out=str(tmp_path / "back"), names=names)
    first = {path.name: path.read_bytes() for path in (tmp_path / "back").rglob("*") if path.is_file()}
    back = Store.open(str(tmp_path / "back"))
    assert back.node_column("paper", "id").to_pylist() == store.node_column("paper", "id").to_pylist()
    assert back.node_type("author").id_type == "int64"
    (tmp_path / "back").rename(tmp_path / "first")
    ingest_dgl(graph, out=str(tmp_path / "back"), names=names)
    again = {path.name: path.read_bytes() for path in (tmp_path / "back").rglob("*") if path.is_file()}
    assert again == first


def test_a_graph_without_names_becomes_node_to_node(tmp_path: Path) -> None:
    generation = ingest_dgl(homogeneous(), out=str(tmp_path / "s"), undirected=True, feature_dtype="float16")
    assert [kind.name for kind in generation.node_types] == ["node"]
    assert generation.relations[0].relation == Relation("node", "to", "node")
    assert generation.relations[0].num_edges == 6
    assert generation.node_types[0].feature_dtype == "float16"
    IngestSettings.model_validate(generation.settings)


def with_data(name: str, value: torch.Tensor) -> Any:
    graph = homogeneous()
    graph.ndata[name] = value
    return graph


def test_whole_float_labels_and_one_column_labels_are_taken(tmp_path: Path) -> None:
    ingest_dgl(with_data("label", torch.tensor([[1.0], [float("nan")], [3.0]])), out=str(tmp_path / "s"))
    found = Store.open(str(tmp_path / "s"))
    labels = dict(
        zip(found.node_column("node", "id").to_pylist(), found.node_column("node", "label").to_pylist(), strict=True)
    )
    assert labels == {0: 1, 1: -1, 2: 3}


def overlapping() -> Any:
    graph = with_data("train_mask", torch.tensor([True, True, False]))
    graph.ndata["test_mask"] = torch.tensor([False, True, True])
    return graph


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: with_data("label", torch.zeros(3, 2)), r"node type node, label: shape \(3, 2\)"),
        (lambda: with_data("label", torch.tensor([0.5, 1, 2])), "with fractions"),
        (lambda: with_data("feat", torch.zeros(3, 2, 2)), r"node type node, feat: shape \(3, 2, 2\)"),
        (lambda: with_data("feat", torch.zeros(3, 2, dtype=torch.float64)), r'feature_dtype="float32"'),
        (lambda: with_data("timestamp", torch.zeros(3)), "values are integers"),
        (overlapping, "test_mask: 1 nodes that are in another mask too"),
        (lambda: load_dgl().graph(([], []), num_nodes=2), "relation node:to:node: no edges"),
        (lambda: "a graph", "graph: str: it is a dgl.DGLGraph"),
    ],
)
def test_what_a_store_cannot_hold_is_refused(make: Callable[[], Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=message) as caught:
        ingest_dgl(make(), out=str(tmp_path / "s"))
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_unknown_names_and_settings_are_refused(tmp_path: Path) -> None:
    names = ColumnNames(**{**vars(DGL_NAMES), "features": "features"})
    with pytest.raises(BadInput, match=r"features='features': in no node or edge type: the object holds feat"):
        ingest_dgl(homogeneous(), out=str(tmp_path / "s"), names=names)
    with pytest.raises(BadInput, match="setting undirect"):
        ingest_dgl(homogeneous(), out=str(tmp_path / "s"), undirect=True)
    with pytest.raises(BadInput, match="setting dangling"):
        ingest_dgl(homogeneous(), out=str(tmp_path / "s"), dangling="keep")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "s.tables").mkdir()
    (tmp_path / "s.tables" / "mine").write_text("mine")
    with pytest.raises(BadInput, match="no folder of ours"):
        ingest_dgl(homogeneous(), out=str(tmp_path / "s"))
    assert (tmp_path / "s.tables" / "mine").read_text() == "mine"


def test_an_empty_folder_that_a_killed_ingest_left_is_taken_over(tmp_path: Path) -> None:
    (tmp_path / "s.tables").mkdir()
    ingest_dgl(homogeneous(), out=str(tmp_path / "s"))
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_a_store_has_one_writer_of_tables_however_its_place_is_spelled(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "s")
    lock = lock_folder(str(tmp_path / "s.tables"), Place(str(tmp_path / "s")))
    for spelling in ("s", "link"):
        with pytest.raises(BadInput, match="another ingest is writing there"):
            ingest_dgl(homogeneous(), out=str(tmp_path / spelling))
    assert list((tmp_path / "s").iterdir()) == []
    os.close(lock)
    ingest_dgl(homogeneous(), out=str(tmp_path / "link"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "s"]
    assert Store.open(str(tmp_path / "s")).num_nodes("node") == 3


def test_a_store_may_be_written_elsewhere() -> None:
    ingest_dgl(homogeneous(), out="memory://from-dgl")
    assert Store.open("memory://from-dgl").num_nodes("node") == 3


def test_a_missing_dgl_is_named_with_its_remedy() -> None:
    script = (
        "import sys; sys.modules['dgl'] = None\n"
        "from service.interop.packages import load_dgl\n"
        "try: load_dgl()\n"
        "except ValueError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=environment(), capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("package dgl: it does not load here")
    assert 'pip install "hopstream[pyg]"' in done.stdout
