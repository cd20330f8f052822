"""Parquet tables in, a store out, in a stated memory: one generation with one segment per node type and relation.

Stages, with what they leave (n nodes of a type, e edges of a relation; files, never in memory at once):

1. read nodes      every column but the features checked; hash of every id [n], in runs     storage.stages.node_scan
2. map ids         hash, row [n] sorted by hash                                             storage.stages.id_map
3. read edges      source, target [e] as input positions, weight, timestamp                 storage.stages.edge_spill
4. count degrees   in- and out-degree [n]                                                   storage.stages.degrees
5. order nodes     hotness [n] uint64, order and rank [n]                                   storage.stages.hotness
6. arrange nodes   columns and features [n, dim] in runs by range of dense ids              storage.stages.node_rows
7. write nodes     the node segments                                                        storage.segments
8. arrange edges   (target, source) [e] in runs by range of targets                         storage.stages.edge_sort
9. write edges     the edge segments, range by range                                        storage.segments
10. commit         the generation, then the manifest

A stage is a set of independent tasks for an executor; what it leaves does not depend on who did which. An ingest
that was killed goes on behind its last finished stage. Everything that can be refused without reading features is
refused before the store's first byte is written.
"""

import json
from functools import partial
from typing import Any

import xxhash

from storage.change import full_disk_explained
from storage.claim import claimed, left_by, refuse_occupied
from storage.feature_columns import find_feature_columns
from storage.ingest_settings import (
    IngestResources,
    IngestSettings,
    check_feature_columns,
    check_settings,
    find_feature_columns_in,
)
from storage.nodes import open_node_table
from storage.place import Place
from storage.progress import Progress
from storage.schema import MANIFEST_NAME, Generation, NodeType, Relation, RelationInfo
from storage.segments import WrittenEdges, commit_generation
from storage.stages.context import Context, open_context
from storage.stages.edge_spill import open_edge_table
from storage.stages.edge_stages import CountedView, count_isolated, count_views, order_nodes, read_edges, write_edges
from storage.stages.executor import Executor
from storage.stages.means import Means
from storage.stages.node_input import NodeInput
from storage.stages.node_stages import WrittenNodes, map_ids, write_nodes
from storage.store import Store
from storage.tables import Table, file_states

__all__ = ["IngestResources", "IngestSettings", "ingest"]


def ingest(
    settings: IngestSettings,
    *,
    out: str,
    resources: IngestResources | None = None,
    executor: Executor | None = None,
    progress: Progress | None = None,
) -> Generation:
    """Write the tables as a new store at `out`; the same tables and settings give the same bytes.

    Args:
        settings: tables and policies.
        out: a new or empty folder at any fsspec URL, or one where the same ingest was killed.
        resources: memory, workers and temporary files; the store does not depend on them.
        executor: does the tasks; by default threads of this process.
        progress: told about the stages.

    Returns:
        The committed generation. Its report also has `seconds` by stage, which the stored one has not.

    Raises:
        BadInput: a table breaks a rule, `out` is occupied, or the memory or disk is below what is needed. Nothing
            is left at `out` then.
        OSError: the disk is full or fails; the same ingest goes on from what is there.
    """
    place = Place(out)
    means = Means.given(resources, executor, progress)
    refuse_occupied(place)
    relations = check_settings(settings)
    check_feature_columns(settings.feature_columns)
    node_tables = {
        name: open_node_table(url, feature_columns=settings.feature_columns) for name, url in settings.nodes.items()
    }
    find_feature_columns_in(settings.feature_columns, node_tables)
    edge_tables = {relation: open_edge_table(url) for relation, url in relations.items()}
    nodes = [_node_input(settings, name, table) for name, table in node_tables.items()]
    fingerprint = _fingerprint(settings, [*node_tables.values(), *edge_tables.values()])
    finished = partial(_finished, place, settings, fingerprint, work_folder=means.resources.work_folder)
    check = partial(refuse_occupied, place, is_own=lambda: finished() is not None)
    with claimed(place, work_folder=means.resources.work_folder, check=check) as claim:
        if (generation := finished()) is not None:
            return generation
        context = open_context(settings, nodes, edge_tables, claim=claim, fingerprint=fingerprint, means=means)
        with full_disk_explained(claim):
            return _run(context, edge_tables)


def _finished(
    place: Place, settings: IngestSettings, fingerprint: str, *, work_folder: str | None
) -> Generation | None:
    """What the same ingest has committed, if it was killed before it had removed its temporary files."""
    if not place.exists(MANIFEST_NAME) or left_by(place, work_folder=work_folder) not in (fingerprint, None):
        return None
    found = Store.open(place.url).generation
    is_own = found.generation == 0 and found.settings == settings.model_dump(mode="json")
    return found if is_own else None


def _run(context: Context, edge_tables: dict[Relation, Table]) -> Generation:
    maps = map_ids(context)
    spills = read_edges(context, edge_tables, maps)
    counted = count_views(context, spills)
    orders = order_nodes(context, counted)
    nodes = write_nodes(context, maps, orders)
    edges = write_edges(context, counted, orders, segments={})
    context.stages.begin("commit", total=1, unit="store")
    report = _report(context, counted, nodes, edges)
    generation = Generation(
        format_version=1,
        generation=0,
        node_types=tuple(_node_type(node, nodes[node.name]) for node in context.nodes),
        relations=tuple(_relation(found, done) for found, done in zip(counted, edges, strict=True)),
        settings=context.settings.model_dump(mode="json"),
        report=report,
    )
    commit_generation(context.place, generation)
    context.stages.advance(1)
    context.stages.end()
    return generation.model_copy(update={"report": {**report, "seconds": context.stages.seconds}})


def _node_input(settings: IngestSettings, name: str, table: Table) -> NodeInput:
    dtype = "float32" if settings.quantize else settings.feature_dtype
    features = find_feature_columns(table, named=settings.feature_columns, dtype=dtype)
    if features is not None and settings.quantize:
        features = features.quantised()
    return NodeInput(name=name, table=table, known=table, base=0, segment=0, features=features)


def _node_type(node: NodeInput, written: WrittenNodes) -> NodeType:
    names = node.table.schema.names
    return NodeType(
        name=node.name,
        num_nodes=node.table.num_rows,
        id_type=written.id_type,
        feature_dim=None if node.features is None else node.features.dim,
        feature_dtype=None if node.features is None else node.features.dtype,
        feature_scale=written.scale,
        has_label="label" in names,
        has_split="split" in names,
        has_timestamp="timestamp" in names,
        segments=(written.segment,),
    )


def _relation(found: CountedView, written: WrittenEdges) -> RelationInfo:
    view = found.view
    return RelationInfo(
        relation=view.relation,
        reverse_of=view.reverse_of,
        num_edges=view.num_edges,
        has_weight=view.spill.has_weight,
        has_timestamp=view.spill.has_timestamp,
        segments=(written.segment,),
    )


def _report(
    context: Context, counted: list[CountedView], nodes: dict[str, WrittenNodes], edges: list[WrittenEdges]
) -> dict[str, Any]:
    isolated = count_isolated(context, counted)
    report: dict[str, Any] = {"nodes": {}, "edges": {}}
    for node in context.nodes:
        report["nodes"][node.name] = {
            "rows": node.table.num_rows,
            "isolated": isolated[node.name],
            "nan_zeroed": nodes[node.name].num_zeroed,
        }
    for found, written in zip(counted, edges, strict=True):
        spill, name = found.view.spill, str(found.table)
        entry = report["edges"].setdefault(
            name,
            {
                "rows": spill.num_rows,
                "dangling_dropped": spill.num_dangling,
                "self_loops": spill.num_loops,
                "reverse_edges_added": -spill.num_edges,
            },
        )
        entry["reverse_edges_added"] += found.view.num_edges
        if str(found.view.relation) == name:
            entry["parallel_edges"] = written.num_parallel
    return report


def _fingerprint(settings: IngestSettings, tables: list[Table]) -> str:
    """What the stages of an ingest depend on: settings, and the state of every file."""
    files = [state for table in tables for state in file_states(table)]
    return xxhash.xxh64_hexdigest(json.dumps([settings.model_dump(mode="json"), files], default=str).encode())
