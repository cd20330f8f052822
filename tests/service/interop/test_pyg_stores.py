"""A store behind PyG's remote interfaces: the tensor and edge contracts, and PyG's own loader over them."""

import pickle
import shutil
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch

from storage.block_cache import BlockCache
from storage.errors import BadInput, DamagedStore
from storage.store import Store
from tests.service.interop.graphs import all_features, write_store

pytest.importorskip("torch_geometric", reason="the extra pyg is not installed")

import torch_geometric.typing
from torch_geometric.data import EdgeAttr, TensorAttr, remote_backend_utils
from torch_geometric.loader import NeighborLoader, NodeLoader
from torch_geometric.sampler import BaseSampler, HeteroSamplerOutput, NodeSamplerInput
from torch_geometric.testing import MyFeatureStore, MyGraphStore

from service.interop.pyg_stores import HopstreamFeatureStore, HopstreamGraphStore

CITES = ("paper", "cites", "paper")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return write_store(tmp_path_factory.mktemp("graph"))


class WholeNeighborhoods(BaseSampler):  # type: ignore[misc]  # PyG ships no types
    """Seeds and all that cite them, over any graph store."""

    def __init__(self, graph_store: Any) -> None:
        self.row, self.colptr, _ = graph_store.csc([CITES])

    def sample_from_nodes(self, index: NodeSamplerInput, **_: Any) -> HeteroSamplerOutput:
        row, colptr = self.row[CITES], self.colptr[CITES]
        neighbors = [row[colptr[node] : colptr[node + 1]] for node in index.node]
        node, local = torch.cat([index.node, *neighbors]).unique(return_inverse=True)
        count = torch.tensor([len(each) for each in neighbors])
        return HeteroSamplerOutput(
            node={"paper": node},
            row={CITES: local[len(index.node) :]},
            col={CITES: local[: len(index.node)].repeat_interleave(count)},
            edge={CITES: None},
            metadata=(index.input_id, index.time),
        )

    def sample_from_edges(self, *_: Any, **__: Any) -> HeteroSamplerOutput:
        raise NotImplementedError

    @property
    def edge_permutation(self) -> None:
        return None


def pyg_reference(store: Store) -> tuple[Any, Any]:
    """PyG's own example stores, filled with the same tensors by hand."""
    features, graph = MyFeatureStore(), MyGraphStore()
    features.put_tensor(torch.from_numpy(all_features(store, "paper")), group_name="paper", attr_name="x", index=None)
    labels = torch.tensor(store.node_column("paper", "label").to_pylist())
    features.put_tensor(labels, group_name="paper", attr_name="y", index=None)
    for csc in store.topology().relations:
        edges = (torch.tensor(csc.indices.tolist()), torch.tensor(csc.indptr.tolist()))
        size = (store.num_nodes(csc.relation.source), store.num_nodes(csc.relation.target))
        graph.put_edge_index(edges, edge_type=tuple(csc.relation), layout="csc", size=size)
    return features, graph


def test_tensors_are_served_by_every_kind_of_index(store: Store) -> None:
    features = HopstreamFeatureStore(store)
    plain = torch.from_numpy(all_features(store, "paper"))
    rows = torch.tensor([5, 399, 5, 0])
    mask = torch.zeros(400, dtype=torch.bool)
    mask[[3, 17]] = True
    try:
        for index, expected in (
            (None, plain),
            (slice(None), plain),
            (slice(10, 50, 3), plain[10:50:3]),
            (rows, plain[rows]),
            (mask, plain[mask]),
            (7, plain[7:8]),
            (torch.empty(0, dtype=torch.int64), plain[:0]),
        ):
            assert torch.equal(features.get_tensor("paper", "x", index), expected)
        assert torch.equal(features["paper", "x", None], plain)
        assert torch.equal(features["paper"].x[rows], plain[rows])
        labels = torch.tensor(store.node_column("paper", "label").to_pylist())
        assert torch.equal(features.get_tensor("paper", "y", rows), labels[rows])
        split = store.node_column("paper", "split").to_pylist()
        for name in ("train", "val", "test"):
            assert features.get_tensor("paper", f"{name}_mask", None).tolist() == [each == name for each in split]
        times = features.get_tensor("author", "time", None)
        assert times.tolist() == store.node_column("author", "timestamp").to_pylist()
        with pytest.raises(KeyError, match="'x' of 'author'"):
            features.get_tensor("author", "x", None)
        with pytest.raises(IndexError, match="400"):
            features.get_tensor("paper", "x", torch.tensor([400]))
    finally:
        features.close()
    assert torch.equal(features.get_tensor("paper", "x", rows), plain[rows])
    features.close()


def test_attributes_and_sizes_are_known_without_reading(store: Store) -> None:
    features = HopstreamFeatureStore(store)
    attrs = [(attr.group_name, attr.attr_name) for attr in features.get_all_tensor_attrs()]
    names = ["x", "y", "train_mask", "val_mask", "test_mask"]
    assert attrs == [*(("paper", name) for name in names), ("author", "time")]
    assert features.get_tensor_size("paper", "x") == (400, 9)
    assert features.get_tensor_size(TensorAttr("author", "time")) == (150,)
    graph = HopstreamGraphStore(store)
    assert remote_backend_utils.num_nodes(features, graph, "author") == 150
    assert remote_backend_utils.size(features, graph, CITES) == (400, 400)


def test_edges_are_served_as_csc_and_converted_by_pyg(store: Store) -> None:
    graph = HopstreamGraphStore(store)
    _, reference = pyg_reference(store)
    for attr in graph.get_all_edge_attrs():
        row, colptr = graph.get_edge_index(attr)
        expected = reference.get_edge_index(attr)
        assert row.dtype == colptr.dtype == torch.int64
        assert torch.equal(row, expected[0])
        assert torch.equal(colptr, expected[1])
        assert attr.is_sorted
    for layout in ("coo", "csr", "csc"):
        found, wanted = getattr(graph, layout)(), getattr(reference, layout)()
        for ours, theirs in zip(found[:2], wanted[:2], strict=True):
            assert set(ours) == set(theirs)
            assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    with pytest.raises(KeyError):
        graph.get_edge_index(EdgeAttr(("paper", "likes", "paper"), "csc"))


def test_stores_are_read_only(store: Store) -> None:
    features, graph = HopstreamFeatureStore(store), HopstreamGraphStore(store)
    changes: list[Callable[[], Any]] = [
        lambda: features.put_tensor(torch.zeros(400, 9), "paper", "x", None),
        lambda: features.remove_tensor("paper", "x", None),
        lambda: graph.put_edge_index((torch.zeros(1), torch.zeros(1)), edge_type=CITES, layout="coo"),
        lambda: graph.remove_edge_index(edge_type=CITES, layout="csc"),
    ]
    for change in changes:
        with pytest.raises(BadInput, match="a store's files do not change"):
            change()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_pygs_loader_gives_the_batches_of_pygs_own_stores(store: Store, num_workers: int) -> None:
    features = HopstreamFeatureStore(store)
    ours = (features, HopstreamGraphStore(store))
    theirs = pyg_reference(store)
    features.get_tensor("paper", "x", torch.arange(400))  # the parent's reading threads run before it forks
    options = {"input_nodes": ("paper", torch.arange(0, 400, 3)), "batch_size": 50, "num_workers": num_workers}
    count = 0
    for found, expected in zip(
        NodeLoader(ours, WholeNeighborhoods(ours[1]), **options),
        NodeLoader(theirs, WholeNeighborhoods(theirs[1]), **options),
        strict=True,
    ):
        count += 1
        assert torch.equal(found["paper"].n_id, expected["paper"].n_id)
        assert torch.equal(found["paper"].x, expected["paper"].x)
        assert torch.equal(found["paper"].y, expected["paper"].y)
        assert torch.equal(found[CITES].edge_index, expected[CITES].edge_index)
        assert found["paper"].train_mask.dtype == torch.bool
    assert count == 3
    features.close()


@pytest.mark.skipif(
    not (torch_geometric.typing.WITH_PYG_LIB or torch_geometric.typing.WITH_TORCH_SPARSE),
    reason="PyG samples with pyg-lib or torch-sparse, which are not installed",
)
def test_pygs_sampler_draws_from_the_store(store: Store) -> None:
    ours = (HopstreamFeatureStore(store), HopstreamGraphStore(store))
    loader = NeighborLoader(ours, num_neighbors=[-1], input_nodes="paper", batch_size=64)
    plain = torch.from_numpy(all_features(store, "paper"))
    seeds = 0
    for batch in loader:
        assert torch.equal(batch["paper"].x, plain[batch["paper"].n_id])
        seeds += batch["paper"].batch_size
    assert seeds == 400


def read_here(features: HopstreamFeatureStore, graph: HopstreamGraphStore, rows: torch.Tensor) -> list[torch.Tensor]:
    """Runs in another process: rows of features, labels, and the citations."""
    try:
        found = [features.get_tensor("paper", "x", rows), features.get_tensor("paper", "y", rows)]
        return [*found, *graph.get_edge_index(EdgeAttr(CITES, "csc"))]
    finally:
        features.close()


def test_both_stores_travel_to_a_spawned_process_with_their_block_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other caches"))
    write_store(tmp_path, in_place=True)
    cache = BlockCache(str(tmp_path / "cache"), limit_bytes=1 << 20)
    store = Store.open(str(tmp_path / "store"), block_cache=cache)
    features, graph, rows = HopstreamFeatureStore(store), HopstreamGraphStore(store), torch.tensor([1, 2, 300])
    here = read_here(features, graph, rows)
    shutil.rmtree(tmp_path / "cache")
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        there = process.submit(read_here, features, graph, rows).result()
    assert all(torch.equal(a, b) for a, b in zip(here, there, strict=True))
    assert list((tmp_path / "cache").rglob("blocks/*/*"))
    assert not (tmp_path / "other caches").exists()


def test_a_feature_store_that_travelled_notices_a_replaced_store(tmp_path: Path) -> None:
    sent = pickle.dumps(HopstreamFeatureStore(write_store(tmp_path)))
    shutil.rmtree(tmp_path / "store")
    write_store(tmp_path, seed=12)
    with pytest.raises(DamagedStore):
        pickle.loads(sent).get_tensor("paper", "x", None)


def test_a_feature_store_travels_to_another_process(store: Store, tmp_path: Path) -> None:
    features = HopstreamFeatureStore(store)
    rows = torch.tensor([1, 2, 300])
    expected = features.get_tensor("paper", "x", rows)
    travelled = pickle.loads(pickle.dumps(features))
    assert torch.equal(travelled.get_tensor("paper", "x", rows), expected)
    travelled.close()
    features.close()
