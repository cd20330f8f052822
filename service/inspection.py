"""`hopstream inspect`: what a store holds, read in streams, so that the graph may be larger than memory.

1. columns   labels, splits and times of the ids files
2. degrees   pointers and out-degrees of every relation, and the times of its edges
3. accesses  the edges, once for each hop of the ingest's fan-out
"""

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.degrees import DegreeCounts, DegreeReport
from service.hotness_curve import HotRows, expected_accesses, hotness_curve, stored_fanout
from service.node_columns import ColumnReport, read_columns
from storage.csc_stream import BLOCK_TARGETS, PART_EDGES, target_blocks
from storage.known_generations import generation_numbers
from storage.npy import HEADER_BYTES
from storage.progress import Progress
from storage.schema import MANIFEST_NAME, FileInfo, NodeType, RelationInfo
from storage.segments import manifest_name
from storage.store import Store
from storage.streams import ArrayStream


@dataclass(frozen=True)
class NodeTypeReport:
    """One node type."""

    name: str
    num_nodes: int
    """that are not deleted; so in all figures"""
    num_deleted: int
    """whose rows are there until `compact`"""
    id_type: str
    feature_dim: int | None
    feature_dtype: str | None
    quantized: bool
    """features are int8 steps of a scale of each column"""
    in_place: bool
    """features stay in the user's Parquet files, at least those of one segment"""
    columns: list[str]
    """label, split, timestamp: those that are there"""
    labels: dict[str, int] | None
    """num_classes and num_labelled; None without labels"""
    splits: dict[str, int] | None
    """nodes of each split; None without splits"""
    time_range: list[int] | None
    """first and last time; None without times"""
    stored_bytes: int
    num_isolated: int
    """nodes without an edge in any relation"""
    hotness: list[HotRows]


@dataclass(frozen=True)
class RelationReport:
    """One relation."""

    relation: str
    reverse_of: str | None
    num_edges: int
    columns: list[str]
    """weight, timestamp: those that are there"""
    time_range: list[int] | None
    """first and last time; None without times or edges"""
    stored_bytes: int
    in_degree: DegreeReport
    """in-neighbours of the targets"""
    out_degree: DegreeReport
    """edges of the sources"""
    parallel_edges: int | None
    """edges beyond the first between two nodes, as ingest counted them; None where it did not"""
    self_loops: int | None
    """as ingest counted them; None where it did not"""


@dataclass(frozen=True)
class StoreReport:
    """A whole store at one generation."""

    store: str
    format_version: int
    generation: int
    generations: list[int]
    """those that can be opened"""
    fanout: list[int]
    """for which rows are ordered and `hotness` is computed"""
    node_types: list[NodeTypeReport]
    relations: list[RelationReport]
    bytes_by_kind: dict[str, int]
    """ids, lookup, features, indptr, ..., sums, generation: all files of this generation"""
    stored_bytes: int
    ingest_report: dict[str, Any]


def inspect_store(url: str, *, progress: Progress) -> StoreReport:
    """Read and describe a store; raises BadInput when it is none, or damaged.

    Memory: 26 bytes a node, 0.1 % of the largest file, and about 30 MiB.
    """
    store = Store.open(url)
    progress.stage("columns", total=sum(kind.num_nodes for kind in store.node_types), unit="nodes")
    live = [store.is_live(kind.name) for kind in store.node_types]
    columns = [
        read_columns(store.place, kind, live=live[number], progress=progress)
        for number, kind in enumerate(store.node_types)
    ]
    progress.stage("degrees", total=sum(info.num_edges for info in store.relations), unit="edges")
    touched = [np.zeros(kind.num_nodes, dtype=np.bool_) for kind in store.node_types]
    relations = []
    for info in store.relations:
        relations.append(_relation(store, info, touched, live))
        progress.advance(info.num_edges)
    fanout = stored_fanout(store)
    accesses = expected_accesses(store, fanout=fanout, progress=progress)
    for reads, is_live in zip(accesses, live, strict=True):
        reads[~is_live] = 0
    by_kind = bytes_by_kind(store)
    return StoreReport(
        store=url,
        format_version=store.generation.format_version,
        generation=store.generation.generation,
        generations=generation_numbers(store.place),
        fanout=list(fanout),
        node_types=[
            _node_type(kind, columns[number], live[number] & ~touched[number], accesses[number])
            for number, kind in enumerate(store.node_types)
        ],
        relations=relations,
        bytes_by_kind=by_kind,
        stored_bytes=sum(by_kind.values()),
        ingest_report=store.generation.report,
    )


def bytes_by_kind(store: Store) -> dict[str, int]:
    """Bytes of the files of a generation by what they hold: page sums, and what names the files, included."""
    found: dict[str, int] = {}
    for info in store.generation.files():
        kind = info.name.rpartition("/")[2].partition(".")[0]
        found[kind] = found.get(kind, 0) + info.num_bytes
        found["sums"] = found.get("sums", 0) + HEADER_BYTES + 4 * info.num_pages
    number = store.generation.generation
    names = (MANIFEST_NAME, manifest_name(number), f"generations/{number}.json")
    found["generation"] = sum(store.place.size(name) for name in names if store.place.exists(name))
    return found


def stored_bytes(*files: FileInfo | None) -> int:
    """Bytes of the files that are there."""
    return sum(file.num_bytes for file in files if file is not None)


def _node_type(
    kind: NodeType, columns: ColumnReport, isolated: NDArray[np.bool_], accesses: NDArray[np.float64]
) -> NodeTypeReport:
    return NodeTypeReport(
        name=kind.name,
        num_nodes=kind.num_live,
        num_deleted=kind.num_deleted,
        id_type=kind.id_type,
        feature_dim=kind.feature_dim,
        feature_dtype=kind.feature_dtype,
        quantized=kind.feature_scale is not None,
        in_place=any(segment.in_place is not None for segment in kind.segments),
        columns=[name for name, has in kind.columns.items() if has],
        labels=columns.labels,
        splits=columns.splits,
        time_range=columns.time_range,
        stored_bytes=sum(
            stored_bytes(
                segment.ids,
                segment.lookup,
                segment.features,
                None if segment.in_place is None else segment.in_place.positions,
            )
            for segment in kind.segments
        )
        + stored_bytes(kind.deleted),
        num_isolated=int(np.count_nonzero(isolated)),
        hotness=hotness_curve(kind, accesses),
    )


def _relation(
    store: Store, info: RelationInfo, touched: list[NDArray[np.bool_]], live: list[NDArray[np.bool_]]
) -> RelationReport:
    """Describe a relation and note in `touched` (by type, [num_nodes]) which nodes have an edge in it."""
    source, target = store.type_index(info.relation.source), store.type_index(info.relation.target)
    counted = store.generation.report.get("edges", {}).get(str(info.relation), {})
    there = {"weight": info.has_weight, "timestamp": info.has_timestamp}
    return RelationReport(
        relation=str(info.relation),
        reverse_of=None if info.reverse_of is None else str(info.reverse_of),
        num_edges=info.num_edges,
        columns=[name for name, has in there.items() if has],
        time_range=_time_range(store, info),
        stored_bytes=sum(
            stored_bytes(segment.indptr, segment.indices, segment.out_degree, segment.weight, segment.timestamp)
            for segment in info.segments
        ),
        in_degree=_in_degrees(store, info, touched[target], live[target]),
        out_degree=_out_degrees(store, info, touched[source], live[source]),
        parallel_edges=counted.get("parallel_edges"),
        self_loops=counted.get("self_loops"),
    )


def _in_degrees(store: Store, info: RelationInfo, touched: NDArray[np.bool_], live: NDArray[np.bool_]) -> DegreeReport:
    counts = DegreeCounts()
    for block in target_blocks(store.place, info, num_targets=touched.shape[0]):
        touched[block.first : block.first + block.degree.shape[0]] |= block.degree > 0
        counts.add(block.degree[live[block.first : block.first + block.degree.shape[0]]])
    return counts.report()


def _out_degrees(store: Store, info: RelationInfo, touched: NDArray[np.bool_], live: NDArray[np.bool_]) -> DegreeReport:
    """Segments count their own edges, over the sources there were when they were written."""
    counts = DegreeCounts()
    with ExitStack() as stack:
        streams = [stack.enter_context(ArrayStream(store.place, segment.out_degree)) for segment in info.segments]
        for first in range(0, touched.shape[0], BLOCK_TARGETS):
            degree = np.zeros(min(BLOCK_TARGETS, touched.shape[0] - first), dtype=np.int64)
            for stream in streams:
                part = stream.take(degree.shape[0])
                degree[: part.shape[0]] += part
            touched[first : first + degree.shape[0]] |= degree > 0
            counts.add(degree[live[first : first + degree.shape[0]]])
    return counts.report()


def _time_range(store: Store, info: RelationInfo) -> list[int] | None:
    found: list[int] = []
    for segment in info.segments:
        if segment.timestamp is None:
            continue
        with ArrayStream(store.place, segment.timestamp) as stream:
            while stream.left:
                times = stream.take(PART_EDGES)
                found += [int(times.min()), int(times.max())]
                found = [min(found), max(found)]
    return found or None
