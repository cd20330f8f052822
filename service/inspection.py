"""`hopstream inspect`: what a store holds, read from its generation and its topology."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from storage.graph import RelationCSC
from storage.progress import Progress
from storage.schema import FileInfo
from storage.store import Store


@dataclass(frozen=True)
class NodeTypeReport:
    """One node type."""

    name: str
    num_nodes: int
    id_type: str
    feature_dim: int | None
    feature_dtype: str | None
    columns: list[str]
    """label, split, timestamp: those that are there"""
    stored_bytes: int
    num_isolated: int
    """nodes without an edge in any relation"""


@dataclass(frozen=True)
class RelationReport:
    """One relation; degrees count in-neighbours of its targets."""

    relation: str
    reverse_of: str | None
    num_edges: int
    columns: list[str]
    """weight, timestamp: those that are there"""
    stored_bytes: int
    mean_degree: float
    median_degree: int
    p99_degree: int
    max_degree: int


@dataclass(frozen=True)
class StoreReport:
    """A whole store at one generation."""

    store: str
    format_version: int
    generation: int
    node_types: list[NodeTypeReport]
    relations: list[RelationReport]
    ingest_report: dict[str, Any]


def inspect_store(url: str, *, progress: Progress) -> StoreReport:
    """Read and describe a store; raises BadInput when it is none, or damaged."""
    store = Store.open(url)
    progress.stage("read topology", total=len(store.relations), unit="relations")
    topology = store.topology()
    progress.advance(len(store.relations))
    touched = [np.zeros(store.num_nodes(kind.name), dtype=bool) for kind in store.node_types]
    for relation in topology.relations:
        touched[relation.target_type] |= np.diff(relation.indptr) > 0
        touched[relation.source_type] |= relation.out_degree > 0
    return StoreReport(
        store=url,
        format_version=store.generation.format_version,
        generation=store.generation.generation,
        node_types=[
            NodeTypeReport(
                name=kind.name,
                num_nodes=kind.num_nodes,
                id_type=kind.id_type,
                feature_dim=kind.feature_dim,
                feature_dtype=kind.feature_dtype,
                columns=[
                    name
                    for name, there in (
                        ("label", kind.has_label),
                        ("split", kind.has_split),
                        ("timestamp", kind.has_timestamp),
                    )
                    if there
                ],
                stored_bytes=sum(
                    stored_bytes(segment.ids, segment.lookup, segment.features) for segment in kind.segments
                ),
                num_isolated=int((~touched[index]).sum()),
            )
            for index, kind in enumerate(store.node_types)
        ],
        relations=[
            RelationReport(
                relation=str(info.relation),
                reverse_of=None if info.reverse_of is None else str(info.reverse_of),
                num_edges=info.num_edges,
                columns=[
                    name for name, there in (("weight", info.has_weight), ("timestamp", info.has_timestamp)) if there
                ],
                stored_bytes=sum(
                    stored_bytes(segment.indptr, segment.indices, segment.out_degree, segment.weight, segment.timestamp)
                    for segment in info.segments
                ),
                **degree_figures(csc),
            )
            for info, csc in zip(store.relations, topology.relations, strict=True)
        ],
        ingest_report=store.generation.report,
    )


def stored_bytes(*files: FileInfo | None) -> int:
    """Bytes of the files that are there."""
    return sum(file.num_bytes for file in files if file is not None)


def degree_figures(csc: RelationCSC) -> dict[str, Any]:
    """Mean, median, 99th percentile and maximum of in-degrees."""
    degrees = np.diff(csc.indptr)
    median, high = np.quantile(degrees, (0.5, 0.99), method="lower")
    return {
        "mean_degree": float(degrees.mean()),
        "median_degree": int(median),
        "p99_degree": int(high),
        "max_degree": int(degrees.max()),
    }
