"""A store's columns and edges as tensors in memory, under dense ids: what both PyG and DGL hold.

Shapes: N nodes of a type, E edges of a relation, D columns.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from service.feature_values import scale_tensor, scaled
from service.interop.graph_columns import ColumnNames
from storage.features import Features
from storage.graph import RelationCSC
from storage.schema import NodeType
from storage.store import Column, Store

GATHER_ROWS = 1 << 16


@dataclass(frozen=True)
class EdgeTensors:
    """The edges of one relation: node v's in-neighbours are `indices[indptr[v]:indptr[v + 1]]`."""

    edge_type: tuple[str, str, str]
    num_targets: int
    indptr: Tensor
    """int64 [num_targets + 1]"""
    indices: Tensor
    """int64 [E]"""
    weight: Tensor | None
    """float32 [E]"""
    timestamp: Tensor | None
    """int64 [E]"""


def edge_tensors(store: Store) -> Iterator[EdgeTensors]:
    """All relations. Memory: the topology and, with int64 ids, up to twice its size again."""
    topology = store.topology()
    for csc in topology.relations:
        yield _edges(store, csc)


def _edges(store: Store, csc: RelationCSC) -> EdgeTensors:
    return EdgeTensors(
        edge_type=(csc.relation.source, csc.relation.name, csc.relation.target),
        num_targets=store.num_nodes(csc.relation.target),
        indptr=torch.from_numpy(csc.indptr.astype(np.int64, copy=False)),
        indices=torch.from_numpy(csc.indices.astype(np.int64, copy=False)),
        weight=None if csc.weight is None else torch.from_numpy(csc.weight),
        timestamp=None if csc.timestamp is None else torch.from_numpy(csc.timestamp),
    )


def node_tensors(store: Store, kind: NodeType, names: ColumnNames, *, features: bool) -> dict[str, Tensor]:
    """All that a node type has, under `names`, and `id`, the user's ids where they are integers.

    Args:
        features: whether features are among it.
    """
    found = dict[str, Tensor]()
    if features and (rows := feature_tensor(store, kind.name)) is not None:
        found[names.features] = rows
    for column in tensor_names(kind, names):
        found |= column_tensors(store, kind.name, column, names)
    if kind.id_type == "int64":
        found["id"] = _integers(store, kind.name, "id")
    return found


def tensor_names(kind: NodeType, names: ColumnNames) -> dict[Column, list[str]]:
    """Which tensors each stored column of a type makes, features apart: a split makes a mask for each part."""
    made: dict[Column, list[str]] = {
        "label": [names.label],
        "split": list(names.masks.values()),
        "timestamp": [names.node_time],
    }
    return {column: tensors for column, tensors in made.items() if kind.columns[column]}


def column_tensors(store: Store, node_type: str, column: Column, names: ColumnNames) -> dict[str, Tensor]:
    """The tensors that a column makes, by name: labels and times int64 [N], -1 an unknown label; masks bool [N]."""
    if column == "split":
        return _masks(store, node_type, names)
    (name,) = tensor_names(store.node_type(node_type), names)[column]
    return {name: _integers(store, node_type, column)}


def feature_tensor(store: Store, node_type: str) -> Tensor | None:
    """All features of a type [N, D]; None when it has none."""
    features = store.features(node_type)
    if features is None:
        return None
    try:
        return gathered(
            features, np.arange(features.num_rows), scale=scale_tensor(store.node_type(node_type).feature_scale)
        )
    finally:
        features.close()


def gathered(features: Features, rows: NDArray[np.int64], *, scale: Tensor | None) -> Tensor:
    """Rows [n] of a feature table as [n, D]: as stored, or as float32 where they are steps of a scale."""
    out: NDArray[Any] = np.empty((rows.shape[0], features.dim), dtype=features.dtype)
    for start in range(0, rows.shape[0], GATHER_ROWS):
        features.gather(rows[start : start + GATHER_ROWS], out[start : start + GATHER_ROWS])
    return scaled(torch.from_numpy(out), scale)


def _masks(store: Store, node_type: str, names: ColumnNames) -> dict[str, Tensor]:
    split = store.node_column(node_type, "split").dictionary_encode().combine_chunks()
    stored = split.dictionary.to_pylist()
    codes = split.indices.to_numpy()
    return {
        name: torch.from_numpy(codes == stored.index(part) if part in stored else np.zeros(len(codes), dtype=np.bool_))
        for part, name in names.masks.items()
    }


def _integers(store: Store, node_type: str, column: Column) -> Tensor:
    # torch wants memory that it may write to
    return torch.from_numpy(np.array(store.node_column(node_type, column).to_numpy(), dtype=np.int64))
