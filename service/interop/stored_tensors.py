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

from storage.features import Features
from storage.graph import RelationCSC
from storage.store import Store

SPLITS = ("train", "val", "test")
GATHER_ROWS = 1 << 16


@dataclass(frozen=True)
class EdgeTensors:
    """The edges of one relation: node v's in-neighbours are `indices[indptr[v]:indptr[v + 1]]`."""

    edge_type: tuple[str, str, str]
    num_sources: int
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
        num_sources=store.num_nodes(csc.relation.source),
        num_targets=store.num_nodes(csc.relation.target),
        indptr=torch.from_numpy(csc.indptr.astype(np.int64, copy=False)),
        indices=torch.from_numpy(csc.indices.astype(np.int64, copy=False)),
        weight=None if csc.weight is None else torch.from_numpy(csc.weight),
        timestamp=None if csc.timestamp is None else torch.from_numpy(csc.timestamp),
    )


def feature_tensor(store: Store, node_type: str) -> Tensor | None:
    """All features of a type [N, D]; None when it has none."""
    features = store.features(node_type)
    if features is None:
        return None
    try:
        return gathered(features, np.arange(features.num_rows), scale=scale_tensor(store, node_type))
    finally:
        features.close()


def scale_tensor(store: Store, node_type: str) -> Tensor | None:
    """What a step of each column of quantised features is worth, float32 [D]; None for others."""
    scale = store.node_type(node_type).feature_scale
    return None if scale is None else torch.tensor(scale, dtype=torch.float32)


def gathered(features: Features, rows: NDArray[np.int64], *, scale: Tensor | None) -> Tensor:
    """Rows [n] of a feature table as [n, D]: as stored, or as float32 where they are steps of a scale."""
    out: NDArray[Any] = np.empty((rows.shape[0], features.dim), dtype=features.dtype)
    for start in range(0, rows.shape[0], GATHER_ROWS):
        features.gather(rows[start : start + GATHER_ROWS], out[start : start + GATHER_ROWS])
    found = torch.from_numpy(out)
    return found if scale is None else found * scale


def label_tensor(store: Store, node_type: str) -> Tensor:
    """Labels int64 [N], -1 unknown."""
    return _integers(store, node_type, "label")


def time_tensor(store: Store, node_type: str) -> Tensor:
    """Times int64 [N]."""
    return _integers(store, node_type, "timestamp")


def id_tensor(store: Store, node_type: str) -> Tensor | None:
    """The user's ids int64 [N]; None where they are strings."""
    return _integers(store, node_type, "id") if store.node_type(node_type).id_type == "int64" else None


def mask_tensors(store: Store, node_type: str) -> dict[str, Tensor]:
    """Which nodes are in each of train, val and test: bool [N] each."""
    split = store.node_column(node_type, "split").dictionary_encode().combine_chunks()
    names = split.dictionary.to_pylist()
    codes = split.indices.to_numpy()
    return {
        name: torch.from_numpy(codes == names.index(name) if name in names else np.zeros(len(codes), dtype=np.bool_))
        for name in SPLITS
    }


def _integers(store: Store, node_type: str, column: Any) -> Tensor:
    # torch wants memory that it may write to
    return torch.from_numpy(np.array(store.node_column(node_type, column).to_numpy(), dtype=np.int64))
