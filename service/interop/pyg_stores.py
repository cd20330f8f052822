"""A store behind PyG's remote interfaces: features are read from the disk row by row, edges are held in memory.

    feature_store, graph_store = HopstreamFeatureStore(store), HopstreamGraphStore(store)
    NeighborLoader((feature_store, graph_store), input_nodes="paper", num_neighbors=[15, 10], batch_size=1024)

Groups are node types, also where there is only one; ids are dense ids.
"""

import os
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from service.feature_values import scale_tensor
from service.interop.packages import missing_pyg
from service.interop.pyg_data import PYG_NAMES
from service.interop.stored_tensors import column_tensors, edge_tensors, gathered, tensor_names
from storage.errors import BadInput
from storage.features import StoredFeatures
from storage.store import Store

try:
    from torch_geometric.data import EdgeAttr, FeatureStore, GraphStore, TensorAttr
    from torch_geometric.data.graph_store import EdgeLayout
except ImportError as error:
    raise missing_pyg(error) from error

NODE_ID = "n_id"


class HopstreamFeatureStore(FeatureStore):  # type: ignore[misc]  # PyG ships no types
    """Node tensors of a store, read-only: `x`, `y`, `train_mask`, `val_mask`, `test_mask` and `time`, as they exist.

    A type with none of them has `n_id`, its dense ids, so that PyG knows the type. Features are gathered from the
    store when asked for; the other columns are read once and kept (8 bytes a node, 1 for a mask). May be used from
    the worker processes of a loader, forked or spawned: each opens its own files, of the very store that is open
    here. `close` gives the files back.
    """

    def __init__(self, store: Store) -> None:
        super().__init__()
        self._store = store
        self._features: dict[str, StoredFeatures] = {}
        self._columns: dict[tuple[str, str], Tensor] = {}
        self._scales = {kind.name: scale_tensor(kind.feature_scale) for kind in store.node_types}
        self._process = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        """All but open files and what is quickly read again."""
        return {**self.__dict__, "_features": {}, "_columns": {}}

    def close(self) -> None:
        """Close the files; they open again when needed."""
        for features in self._features.values():
            features.close()
        self._features = {}
        self._columns = {}

    def _reader(self, node_type: str) -> StoredFeatures:
        if self._process != os.getpid():
            # a forked worker: the parent's reading threads are not here
            self._features = {}
            self._process = os.getpid()
        if node_type not in self._features:
            features = self._store.features(node_type)
            assert features is not None, "its name was checked"
            self._features[node_type] = features
        return self._features[node_type]

    def _names(self, node_type: str) -> list[str]:
        kind = self._store.node_type(node_type)
        names = [PYG_NAMES.features] if kind.feature_dim is not None else []
        for made in tensor_names(kind, PYG_NAMES).values():
            names += made
        return names or [NODE_ID]

    def get_all_tensor_attrs(self) -> list[TensorAttr]:
        """Every (node type, name) there is."""
        kinds = self._store.node_types
        return [TensorAttr(kind.name, name) for kind in kinds for name in self._names(kind.name)]

    def _check(self, attr: TensorAttr) -> None:
        """KeyError for what is not there, as PyG's own stores raise."""
        known = {kind.name for kind in self._store.node_types}
        if attr.group_name not in known or attr.attr_name not in self._names(attr.group_name):
            raise KeyError(f"no tensor {attr.attr_name!r} of {attr.group_name!r} in {self._store.place.url}")

    def _get_tensor(self, attr: TensorAttr) -> Tensor:
        self._check(attr)
        rows = _rows(attr.index, self._store.num_nodes(attr.group_name))
        if attr.attr_name == NODE_ID:
            return torch.from_numpy(rows)
        if attr.attr_name == PYG_NAMES.features:
            return gathered(self._reader(attr.group_name), rows, scale=self._scales[attr.group_name])
        return self._column(attr.group_name, attr.attr_name)[torch.from_numpy(rows)]

    def _column(self, node_type: str, name: str) -> Tensor:
        key = (node_type, name)
        if key not in self._columns:
            made = tensor_names(self._store.node_type(node_type), PYG_NAMES)
            (column,) = (column for column, names in made.items() if name in names)
            for each, tensor in column_tensors(self._store, node_type, column, PYG_NAMES).items():
                self._columns[node_type, each] = tensor
        return self._columns[key]

    def _get_tensor_size(self, attr: TensorAttr) -> tuple[int, ...]:
        self._check(attr)
        kind = self._store.node_type(attr.group_name)
        if attr.attr_name == PYG_NAMES.features:
            assert kind.feature_dim is not None
            return kind.num_nodes, kind.feature_dim
        return (kind.num_nodes,)

    def _put_tensor(self, tensor: Any, attr: TensorAttr) -> bool:
        raise _read_only("put_tensor")

    def _remove_tensor(self, attr: TensorAttr) -> bool:
        raise _read_only("remove_tensor")


class HopstreamGraphStore(GraphStore):  # type: ignore[misc]  # PyG ships no types
    """Edges of a store, read-only: one CSC a relation with int64 ids, held in memory from the first use on.

    In-neighbours of a node are sorted by (time, source), as PyG's temporal sampling wants them.
    """

    def __init__(self, store: Store) -> None:
        super().__init__()
        self._store = store
        self._edges: dict[tuple[str, str, str], tuple[Tensor, Tensor]] = {}

    def get_all_edge_attrs(self) -> list[EdgeAttr]:
        """One CSC for each relation."""
        counts = {kind.name: kind.num_nodes for kind in self._store.node_types}
        return [
            EdgeAttr(
                edge_type=tuple(info.relation),
                layout=EdgeLayout.CSC,
                size=(counts[info.relation.source], counts[info.relation.target]),
            )
            for info in self._store.relations
        ]

    def _get_edge_index(self, edge_attr: EdgeAttr) -> tuple[Tensor, Tensor] | None:
        """(sources, pointers) of a relation; None, of which PyG makes a KeyError, for others and other layouts."""
        if edge_attr.layout != EdgeLayout.CSC:
            return None
        if not self._edges:
            self._edges = {edges.edge_type: (edges.indices, edges.indptr) for edges in edge_tensors(self._store)}
        return self._edges.get(tuple(edge_attr.edge_type))

    def _put_edge_index(self, edge_index: Any, edge_attr: EdgeAttr) -> bool:
        raise _read_only("put_edge_index")

    def _remove_edge_index(self, edge_attr: EdgeAttr) -> bool:
        raise _read_only("remove_edge_index")


def _rows(index: Any, num_rows: int) -> NDArray[np.int64]:
    """Rows [n] that a PyG index means: None, a slice, a number, or a tensor or array of numbers or of bools."""
    if index is None:
        index = slice(None)
    if isinstance(index, slice):
        return np.arange(num_rows)[index]
    rows = np.atleast_1d(index.detach().cpu().numpy() if isinstance(index, Tensor) else np.asarray(index))
    if rows.dtype == np.bool_:
        if rows.shape != (num_rows,):
            raise IndexError(f"a mask of shape {rows.shape} for {num_rows} rows")
        return np.flatnonzero(rows)
    rows = rows.astype(np.int64)
    if rows.size and (rows.min() < 0 or rows.max() >= num_rows):
        raise IndexError(f"rows {rows.min()} to {rows.max()} of a table of {num_rows} rows")
    return rows


def _read_only(what: str) -> BadInput:
    return BadInput(
        what,
        "a hopstream store",
        rule="a store's files do not change",
        remedy="change the tables and ingest them again",
    )
