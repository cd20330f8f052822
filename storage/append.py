"""Nodes and edges added to a store: new segments beside the old ones, and a new generation that names both.

The positions of a type are its dense ids, followed by the new rows; so the stages of an ingest run as they are, over
the new rows alone. New nodes stand behind the old ones, hottest first by the new edges; `compact` orders all.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

from storage.append_settings import AppendSettings, known_relation
from storage.change import change_store
from storage.claim import Claim
from storage.feature_columns import FeatureColumns
from storage.fitting import features_like, refuse_other_columns, refuse_other_ids
from storage.ingest_settings import IngestResources, IngestSettings
from storage.nodes import open_node_table
from storage.progress import Progress
from storage.schema import Generation, NodeType, Relation, RelationInfo
from storage.segments import WrittenEdges
from storage.stages.context import open_context
from storage.stages.edge_spill import open_edge_table
from storage.stages.edge_stages import CountedView, count_views, order_nodes, read_edges, write_edges
from storage.stages.executor import Executor
from storage.stages.live_ids import live_maps
from storage.stages.means import Means
from storage.stages.node_input import NodeInput
from storage.stages.node_stages import WrittenNodes, map_ids, write_nodes
from storage.store import Store
from storage.stored_nodes import JoinedTable, StoredNodes, no_rows
from storage.tables import Table, file_states


def append(
    settings: AppendSettings,
    *,
    out: str,
    resources: IngestResources | None = None,
    executor: Executor | None = None,
    progress: Progress | None = None,
) -> Generation:
    """Add the rows of tables to the store at `out`, as its next generation.

    Args:
        settings: tables, and policies where they differ from the store's.
        out: a store at any fsspec URL.
        resources: memory, workers and temporary files; the result does not depend on them.
        executor: does the tasks; by default threads of this process.
        progress: told about the stages.

    Returns:
        The committed generation. Its report counts what was appended, and also has `seconds` by stage.

    Raises:
        BadInput: a table breaks a rule or does not fit the store, or an id is there already. The store is as it was.
        OSError: the disk is full or fails; the same append goes on from what is there.
    """
    prepare = partial(_prepare, settings, means=Means.given(resources, executor, progress))
    return change_store(out, prepare)


@dataclass(frozen=True)
class _Append:
    settings: IngestSettings
    nodes: dict[str, Table]
    edges: dict[Relation, Table]
    features: dict[str, FeatureColumns | None]
    means: Means

    @property
    def inputs(self) -> Any:
        tables = [*self.nodes.values(), *self.edges.values()]
        return ["append", self.settings.model_dump(mode="json"), [file_states(table) for table in tables]]

    def write(self, store: Store, claim: Claim, fingerprint: str) -> Generation:
        touched = set(self.nodes) | {end for relation in self.edges for end in (relation.source, relation.target)}
        context = open_context(
            self.settings,
            [self._node_input(store, kind) for kind in store.node_types if kind.name in touched],
            self.edges,
            claim=claim,
            fingerprint=fingerprint,
            means=self.means,
        )
        maps = live_maps(context, store.node_types, map_ids(context))
        counted = count_views(context, read_edges(context, self.edges, maps))
        orders = order_nodes(context, counted)
        nodes = write_nodes(context, maps, orders)
        segments = {info.relation: info.next_segment for info in store.relations}
        edges = write_edges(context, counted, orders, segments=segments)
        context.stages.begin("commit", total=1, unit="store")
        context.stages.end()
        report = _report(counted, nodes)
        return store.generation.model_copy(
            update={
                "generation": store.generation.generation + 1,
                "node_types": tuple(_longer_type(kind, nodes.get(kind.name)) for kind in store.node_types),
                "relations": tuple(
                    _longer_relation(info, found, done)
                    for info, found, done in _matched(store.relations, counted, edges)
                ),
                "report": {**report, "seconds": context.stages.seconds},
            }
        )

    def _node_input(self, store: Store, kind: NodeType) -> NodeInput:
        stored = StoredNodes(store.place, kind, live_only=False)
        table = self.nodes.get(kind.name) or no_rows(stored.schema)
        return NodeInput(
            name=kind.name,
            table=table,
            known=JoinedTable(stored, table),
            base=kind.num_nodes,
            segment=kind.next_segment,
            features=self.features.get(kind.name),
            scale=kind.feature_scale,
        )


def _prepare(
    given: AppendSettings,
    store: Store,
    *,
    means: Means,
) -> _Append:
    settings = given.completed(store)
    infos = {text: known_relation(store, text) for text in settings.edges}
    nodes = dict[str, Table]()
    features = dict[str, FeatureColumns | None]()
    for name, url in settings.nodes.items():
        kind = store.node_type(name)
        nodes[name] = open_node_table(url, feature_columns=settings.feature_columns)
        refuse_other_ids(kind, nodes[name])
        features[name] = features_like(kind, nodes[name], settings)
        refuse_other_columns(nodes[name], kind.columns, what=f"nodes of type {name}")
    edges = dict[Relation, Table]()
    for text, url in settings.edges.items():
        info, table = infos[text], open_edge_table(url)
        there = {"weight": info.has_weight, "timestamp": info.has_timestamp}
        refuse_other_columns(table, there, what=f"edges of {text}")
        edges[info.relation] = table
    return _Append(settings, nodes, edges, features, means)


def _longer_type(kind: NodeType, written: WrittenNodes | None) -> NodeType:
    if written is None:
        return kind
    total = kind.num_nodes + written.segment.num_nodes
    return kind.model_copy(update={"num_nodes": total, "segments": (*kind.segments, written.segment)})


def _matched(
    stored: tuple[RelationInfo, ...], counted: list[CountedView], edges: list[WrittenEdges]
) -> list[tuple[RelationInfo, CountedView | None, WrittenEdges | None]]:
    new = {found.view.relation: (found, done) for found, done in zip(counted, edges, strict=True)}
    return [(info, *new.get(info.relation, (None, None))) for info in stored]


def _longer_relation(info: RelationInfo, found: CountedView | None, written: WrittenEdges | None) -> RelationInfo:
    if found is None or written is None:
        return info
    total = info.num_edges + found.view.num_edges
    return info.model_copy(update={"num_edges": total, "segments": (*info.segments, written.segment)})


def _report(counted: list[CountedView], nodes: dict[str, WrittenNodes]) -> dict[str, Any]:
    appended: dict[str, Any] = {"nodes": {}, "edges": {}}
    for name, written in nodes.items():
        appended["nodes"][name] = {"rows": written.segment.num_nodes, "nan_zeroed": written.num_zeroed}
    for found in counted:
        if found.view.relation == found.table:
            spill = found.view.spill
            appended["edges"][str(found.table)] = {"rows": spill.num_rows, "dangling_dropped": spill.num_dangling}
    return {"change": "append", "appended": appended}
