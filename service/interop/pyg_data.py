"""PyG's HeteroData from a store, and stores from PyG's Data and HeteroData."""

from collections.abc import Mapping
from typing import Any

import torch

from service.interop.graph_columns import ColumnNames, are_converted, check_names, edge_columns, node_columns, tensor
from service.interop.graph_tables import ingest_columns
from service.interop.packages import missing_pyg
from service.interop.stored_tensors import edge_tensors, node_tensors
from storage.errors import BadInput
from storage.ingest import IngestResources
from storage.progress import Progress
from storage.schema import DEFAULT_NODE_TYPE, DEFAULT_RELATION, Generation, Relation
from storage.store import Store

try:
    from torch_geometric.data import Data, HeteroData
except ImportError as error:
    raise missing_pyg(error) from error

PYG_NAMES = ColumnNames(
    features="x",
    label="y",
    train="train_mask",
    val="val_mask",
    test="test_mask",
    node_time="time",
    edge_time="edge_time",
    weight="edge_weight",
)
"""names that PyG's own datasets and samplers use"""


def pyg_data(store: Store, *, features: bool = True) -> HeteroData:
    """The store as a HeteroData in memory, int64 edge indices sorted by target, under dense ids.

    Nodes: `x` (unless `features` is False), `y`, `train_mask`, `val_mask`, `test_mask`, `time`, `num_nodes`, and
    `id`, the user's ids where they are integers. Edges: `edge_index`, `edge_weight`, `edge_time`. For graphs
    larger than memory use `pyg_stores`.
    """
    data = HeteroData()
    for kind in store.node_types:
        part = data[kind.name]
        part.num_nodes = kind.num_nodes
        for name, values in node_tensors(store, kind, PYG_NAMES, features=features).items():
            part[name] = values
    for edges in edge_tensors(store):
        part = data[edges.edge_type]
        target = torch.repeat_interleave(torch.arange(edges.num_targets), edges.indptr.diff())
        part.edge_index = torch.stack([edges.indices, target])
        if edges.weight is not None:
            part[PYG_NAMES.weight] = edges.weight
        if edges.timestamp is not None:
            part[PYG_NAMES.edge_time] = edges.timestamp
    return data


def ingest_pyg(
    data: Data | HeteroData,
    *,
    out: str,
    names: ColumnNames = PYG_NAMES,
    progress: Progress | None = None,
    resources: IngestResources | None = None,
    **settings: Any,
) -> Generation:
    """Write a PyG graph as a new store at `out`.

    Args:
        data: a Data, which becomes type node and relation node:to:node, or a HeteroData.
        out: a new or empty folder at any fsspec URL.
        names: which attributes are features, labels, masks, times, weights and ids; nodes are numbered as in the
            object unless `names.ids` says otherwise.
        progress: told about the stages.
        resources: memory, workers and temporary files of the ingest.
        settings: fields of `IngestSettings`, e.g. undirected=True, feature_dtype="float16", fanout=(10, 5).

    Memory beside the object: a few columns of 8 bytes a row.

    Raises BadInput for what a store cannot hold, before anything is written; as `ingest` otherwise.
    """
    if isinstance(data, HeteroData):
        node_stores = {name: data[name] for name in data.node_types}
        edge_stores = {Relation(*edge_type).checked(): data[edge_type] for edge_type in data.edge_types}
    elif isinstance(data, Data):
        node_stores = {DEFAULT_NODE_TYPE: data}
        edge_stores = {DEFAULT_RELATION: data}
    else:
        raise BadInput("data", type(data).__name__, rule="it is a Data or a HeteroData", remedy="build one of them")
    converts = are_converted(settings)
    nodes, edges = [], []
    found: set[str] = set()
    for name, part in node_stores.items():
        values = dict(part.to_dict())
        found |= set(values)
        nodes.append(node_columns(name, _num_nodes(name, part, values, names), values, names, converts=converts))
    for relation, part in edge_stores.items():
        values = dict(part.to_dict())
        found |= set(values)
        source, target = _ends(relation, values)
        edges.append(edge_columns(relation, source, target, values, names))
    check_names(names, PYG_NAMES, found)
    return ingest_columns(nodes, edges, out=out, progress=progress, settings=settings, resources=resources)


def _num_nodes(name: str, part: Any, values: Mapping[str, Any], names: ColumnNames) -> int:
    """As stated, or the rows of a column; PyG's own guess from the edges would lose nodes without any."""
    if values.get("num_nodes") is not None:
        return int(values["num_nodes"])
    for key in (names.features, names.label, names.train, names.val, names.test, names.node_time, names.ids):
        if key is not None and hasattr(values.get(key), "shape") and len(values[key].shape):
            return int(values[key].shape[0])
    raise BadInput(
        f"node type {name}",
        "no num_nodes and no column of the nodes",
        rule="the number of nodes is stated, because nodes without edges count too",
        remedy="set num_nodes",
    )


def _ends(relation: Relation, values: Mapping[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    place = f"relation {relation}, edge_index"
    if values.get("edge_index") is None:
        raise BadInput(
            place,
            "none" + (" (adj_t)" if "adj_t" in values else ""),
            rule="edges are given as edge_index",
            remedy="set edge_index; torch_geometric.utils.to_edge_index turns an adjacency matrix into one",
        )
    ends = tensor(values["edge_index"], place, rows=2)
    if ends.dim() != 2:
        raise BadInput(
            place, f"shape {tuple(ends.shape)}", rule="edge_index is [2, edges]", remedy="give sources and targets"
        )
    return ends[0], ends[1]
