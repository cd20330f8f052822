"""Stores ingested from small graphs that are known as plain arrays."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from storage.ingest import IngestSettings, ingest
from storage.store import Store
from tests.service.batches import SmallGraph


def storable(graph: SmallGraph) -> SmallGraph:
    """`graph` without relations that have no edge: ingest refuses empty tables."""
    kept = [number for number, indices in enumerate(graph.indices) if indices.size]
    return replace(
        graph,
        schema=replace(graph.schema, relations=tuple(graph.schema.relations[number] for number in kept)),
        indptr=tuple(graph.indptr[number] for number in kept),
        indices=tuple(graph.indices[number] for number in kept),
        weight=None if graph.weight is None else tuple(graph.weight[number] for number in kept),
    )


def user_ids(graph: SmallGraph, node_type: int) -> list[int | str]:
    """The ids under which nodes are ingested: integers for the first type, strings for the others."""
    count = graph.num_nodes[node_type]
    if node_type == 0:
        return [7000 - 13 * node for node in range(count)]
    return [f"{graph.schema.node_types[node_type].name}-{node}é" for node in range(count)]


def write_tables(
    graph: SmallGraph, folder: Path, *, columns: Mapping[str, Mapping[str, NDArray[np.generic]]]
) -> IngestSettings:
    """Parquet tables of `graph`; `columns[type]` adds columns (label, split) to a node table."""
    folder.mkdir(parents=True, exist_ok=True)
    nodes, edges = {}, {}
    for number, kind in enumerate(graph.schema.node_types):
        table: dict[str, object] = {"id": user_ids(graph, number)}
        features = graph.features[number]
        if features is not None:
            flat = pa.array(features.astype(np.float32).reshape(-1))
            table["features"] = pa.FixedSizeListArray.from_arrays(flat, features.shape[1])
        table |= columns.get(kind.name, {})
        nodes[kind.name] = str(folder / f"{kind.name}.parquet")
        pq.write_table(pa.table(table), nodes[kind.name])
    for number, relation in enumerate(graph.schema.relations):
        sources, targets = user_ids(graph, relation.source_type), user_ids(graph, relation.target_type)
        target = np.repeat(np.arange(len(targets)), graph.in_degree(number))
        types = [pa.int64() if kind == 0 else pa.string() for kind in (relation.source_type, relation.target_type)]
        table = {
            "src": pa.array([sources[node] for node in graph.indices[number]], types[0]),
            "dst": pa.array([targets[node] for node in target], types[1]),
        }
        if graph.weight is not None:
            table["weight"] = graph.weight[number]
        edges[relation.name] = str(folder / f"edges{number}.parquet")
        pq.write_table(pa.table(table), edges[relation.name])
    return IngestSettings(nodes=nodes, edges=edges)


def ingested(
    graph: SmallGraph, folder: Path, *, columns: Mapping[str, Mapping[str, NDArray[np.generic]]] | None = None
) -> Store:
    """`graph` as an open store in `folder`/store."""
    settings = write_tables(graph, folder / "tables", columns=columns or {})
    ingest(settings, out=str(folder / "store"))
    return Store.open(str(folder / "store"))
