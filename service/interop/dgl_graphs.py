"""DGL graphs from a store, and stores from DGL graphs."""

from typing import Any

import torch

from service.interop.graph_columns import ColumnNames, are_converted, check_names, edge_columns, node_columns
from service.interop.graph_tables import ingest_columns
from service.interop.packages import load_dgl
from service.interop.stored_tensors import edge_tensors, node_tensors
from storage.errors import BadInput
from storage.ingest import IngestResources
from storage.progress import Progress
from storage.schema import DEFAULT_NODE_TYPE, DEFAULT_RELATION, Generation, Relation
from storage.store import Store

DGL_NAMES = ColumnNames(
    features="feat",
    label="label",
    train="train_mask",
    val="val_mask",
    test="test_mask",
    node_time="timestamp",
    edge_time="timestamp",
    weight="weight",
)
"""names that DGL's own datasets use"""
UNNAMED = {"_N": DEFAULT_NODE_TYPE, "_E": DEFAULT_RELATION.name}
"""what `dgl.graph` calls the types of a graph that names none, and what a store calls them"""


def dgl_graph(store: Store, *, features: bool = True) -> Any:
    """The store as a `dgl.DGLGraph` in memory: CSC, int64, dense ids, node and edge types under their names.

    Node data: `feat` (unless `features` is False), `label`, `train_mask`, `val_mask`, `test_mask`, `timestamp`,
    and `id`, the user's ids where they are integers. Edge data: `weight`, `timestamp`. Edge e of a relation is
    edge e of its CSC. A store of one type and one relation gives a homogeneous graph.

    Raises BadInput where DGL does not load.
    """
    dgl = load_dgl()
    relations = list(edge_tensors(store))
    no_ids = torch.empty(0, dtype=torch.int64)
    graph = dgl.heterograph(
        {edges.edge_type: ("csc", (edges.indptr, edges.indices, no_ids)) for edges in relations},
        num_nodes_dict={kind.name: kind.num_nodes for kind in store.node_types},
    )
    for edges in relations:
        data = graph.edges[edges.edge_type].data
        if edges.weight is not None:
            data[DGL_NAMES.weight] = edges.weight
        if edges.timestamp is not None:
            data[DGL_NAMES.edge_time] = edges.timestamp
    for kind in store.node_types:
        graph.nodes[kind.name].data.update(node_tensors(store, kind, DGL_NAMES, features=features))
    return graph


def ingest_dgl(
    graph: Any,
    *,
    out: str,
    names: ColumnNames = DGL_NAMES,
    progress: Progress | None = None,
    resources: IngestResources | None = None,
    **settings: Any,
) -> Generation:
    """Write a DGL graph as a new store at `out`.

    Args:
        graph: a `dgl.DGLGraph`, homogeneous or not. Types that it does not name become node and node:to:node.
        out: a new or empty folder at any fsspec URL.
        names: which node and edge data are features, labels, masks, times, weights and ids; nodes are numbered
            as in the graph unless `names.ids` says otherwise.
        progress: told about the stages.
        resources: memory, workers and temporary files of the ingest.
        settings: fields of `IngestSettings`, e.g. undirected=True, feature_dtype="float16", fanout=(10, 5).

    Memory beside the graph: the ends of one relation's edges in order, 24 bytes an edge.

    Raises BadInput for what a store cannot hold, before anything is written; as `ingest` otherwise.
    """
    dgl = load_dgl()
    if not isinstance(graph, dgl.DGLGraph) or graph.is_block:
        raise BadInput("graph", type(graph).__name__, rule="it is a dgl.DGLGraph", remedy="build one with dgl.graph")
    found: set[str] = set()
    converts = are_converted(settings)
    nodes, edges = [], []
    for name in graph.ntypes:
        data = dict(graph.nodes[name].data)
        found |= set(data)
        nodes.append(node_columns(UNNAMED.get(name, name), graph.num_nodes(name), data, names, converts=converts))
    for edge_type in graph.canonical_etypes:
        data = dict(graph.edges[edge_type].data)
        found |= set(data)
        relation = Relation(*(UNNAMED.get(part, part) for part in edge_type)).checked()
        source, target = _ends(graph, edge_type)
        edges.append(edge_columns(relation, source, target, data, names))
    check_names(names, DGL_NAMES, found)
    return ingest_columns(nodes, edges, out=out, progress=progress, settings=settings, resources=resources)


def _ends(graph: Any, edge_type: tuple[str, str, str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Sources and targets by edge id, whatever formats the graph holds."""
    # asked for edges by id, a graph that may only be CSC or CSR fails
    source, target, edge = graph.edges(form="all", order=None, etype=edge_type)
    # a CSC that was built without edge ids gives none: they are consecutive
    if edge.shape[0] and bool((edge[1:] < edge[:-1]).any()):
        order = torch.argsort(edge)
        source, target = source[order], target[order]
    return source, target
