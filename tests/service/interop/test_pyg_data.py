"""Stores and PyG objects turn into each other without loss; what a store cannot hold is refused by name."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from storage.errors import BadInput
from storage.ingest import IngestResources
from storage.schema import Relation
from storage.store import Store
from tests.data import ROOT
from tests.processes import environment
from tests.service.interop.graphs import all_features, assert_equal_graphs, write_store

pytest.importorskip("torch_geometric", reason="the extra pyg is not installed")

from torch_geometric.data import Data, HeteroData

from service.interop.graph_columns import ColumnNames
from service.interop.pyg_data import PYG_NAMES, ingest_pyg, pyg_data
from service.interop.pyg_stores import HopstreamFeatureStore


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return write_store(tmp_path_factory.mktemp("graph"))


def small(**attributes: Any) -> Data:
    """Three nodes with an edge 0 -> 1, 1 -> 2, 2 -> 1."""
    return Data(
        **{"x": torch.arange(6.0).reshape(3, 2), "edge_index": torch.tensor([[0, 1, 2], [1, 2, 1]]), **attributes}
    )


def test_a_hetero_data_of_a_store_equals_the_store(store: Store) -> None:
    data = pyg_data(store)
    data.validate()
    assert set(data.node_types) == {"paper", "author"}
    for csc in store.topology().relations:
        edges = data[tuple(csc.relation)]
        target = np.repeat(np.arange(len(csc.indptr) - 1), np.diff(csc.indptr))
        assert edges.edge_index.tolist() == [csc.indices.tolist(), target.tolist()]
        if csc.weight is not None:
            assert edges.edge_weight.tolist() == csc.weight.tolist()
        if csc.timestamp is not None:
            assert edges.edge_time.tolist() == csc.timestamp.tolist()
    np.testing.assert_array_equal(data["paper"].x.numpy(), all_features(store, "paper"))
    assert data["paper"].y.tolist() == store.node_column("paper", "label").to_pylist()
    assert data["author"].num_nodes == 150
    assert data["author"].time.tolist() == store.node_column("author", "timestamp").to_pylist()
    assert "x" not in pyg_data(store, features=False)["paper"]


def test_a_store_that_goes_through_pyg_comes_back_equal(store: Store, tmp_path: Path) -> None:
    ingest_pyg(pyg_data(store), out=str(tmp_path / "back"))
    assert_equal_graphs(store, Store.open(str(tmp_path / "back")))
    assert [path.name for path in tmp_path.iterdir()] == ["back"]


def test_a_data_becomes_node_to_node(tmp_path: Path) -> None:
    data = small(
        y=torch.tensor([0, 1, -1]),
        train_mask=torch.tensor([True, False, False]),
        test_mask=torch.tensor([False, True, False]),
        time=torch.tensor([5, 6, 7]),
        edge_weight=torch.tensor([0.5, 1.0, 2.0]),
    )
    generation = ingest_pyg(data, out=str(tmp_path / "s"), names=ColumnNames(**vars(PYG_NAMES)))
    assert generation.relations[0].relation == Relation("node", "to", "node")
    found = Store.open(str(tmp_path / "s"))
    node = found.node_column("node", "id").to_pylist()
    assert sorted(node) == [0, 1, 2]
    for column, values in (
        ("label", [0, 1, -1]),
        ("split", ["train", "test", "none"]),
        ("timestamp", [5, 6, 7]),
    ):
        assert found.node_column("node", column).to_pylist() == [values[each] for each in node]  # type: ignore[arg-type]
    np.testing.assert_array_equal(all_features(found, "node"), data.x.numpy()[node])
    csc = found.topology().relations[0]
    target = np.repeat(np.arange(3), np.diff(csc.indptr))
    assert csc.weight is not None
    edges = {(node[s], node[t]): w for s, t, w in zip(csc.indices, target, csc.weight, strict=True)}
    assert edges == {(0, 1): 0.5, (1, 2): 1.0, (2, 1): 2.0}


def hetero_without_count() -> HeteroData:
    data = HeteroData()
    data["a"].x = torch.zeros(2, 1)
    data["a", "to", "b"].edge_index = torch.tensor([[0, 1], [0, 3]])
    data["b"].name = "no column of nodes"
    return data


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: small(y=torch.zeros(3, 4)), r"node type node, y: shape \(3, 4\)"),
        (lambda: small(y=torch.zeros(4)), r"node type node, y: shape \(4,\)"),
        (lambda: small(x=torch.zeros(3, 2, dtype=torch.int64)), "torch.int64: features are stored as float32"),
        (lambda: small(x=torch.zeros(3, 2).to_sparse()), "columns are dense tensors"),
        (lambda: small(train_mask=torch.ones(3, 2, dtype=torch.bool)), r"train_mask: shape \(3, 2\)"),
        (
            lambda: small(train_mask=torch.ones(3, dtype=torch.bool), val_mask=torch.ones(3, dtype=torch.bool)),
            "val_mask: 3 nodes that are in another mask too",
        ),
        (lambda: small(edge_weight=torch.zeros(3, 2)), r"edge_weight: shape \(3, 2\)"),
        (lambda: small(edge_index=torch.tensor([[0], [3]])), "relation node:to:node, dst: node 3"),
        (lambda: small(edge_index=None), "edge_index: none"),
        (lambda: Data(edge_index=torch.tensor([[0], [1]])), "node type node: no num_nodes"),
        (hetero_without_count, "node type b: no num_nodes"),
        (lambda: [1, 2], "data: list: it is a Data or a HeteroData"),
    ],
)
def test_what_a_store_cannot_hold_is_refused(make: Callable[[], Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=message) as caught:
        ingest_pyg(make(), out=str(tmp_path / "s"))
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("module", ["pyg_data", "pyg_stores"])
def test_a_missing_pyg_is_named_with_its_remedy(module: str) -> None:
    script = (
        "import sys; sys.modules['torch_geometric'] = None\n"
        f"try: import service.interop.{module}\n"
        "except ValueError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=environment(), capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("package torch_geometric: it does not load here")
    assert 'pip install "hopstream[pyg]"' in done.stdout


def test_quantised_features_are_served_as_numbers(tmp_path: Path) -> None:
    rows = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
    ingest_pyg(small(x=rows), out=str(tmp_path / "s"), quantize=True, resources=IngestResources(num_workers=1))
    found = Store.open(str(tmp_path / "s"))
    assert found.node_type("node").feature_dtype == "int8"
    x = pyg_data(found)["node"].x
    assert x.dtype == torch.float32
    order = found.node_column("node", "id").to_pylist()
    assert torch.allclose(x, rows[order], atol=float(rows.abs().max()) / 127)
    features = HopstreamFeatureStore(found)
    assert torch.equal(features.get_tensor("node", "x", None), x)
    features.close()
