"""A store rewritten as one segment each, hottest first, without deleted nodes: the bytes of a fresh ingest.

    positions   input position of every live node [n], counted over live nodes      from the ids files
    edges       dense ids of live nodes [e], in spills                              storage.stages.stored_edges
    the rest    as an ingest does it, with the stored nodes for a table             storage.ingest, stages 1, 4 to 10

The files are those of an ingest of all tables that were ever put in, less what was deleted: ties go by input
position, equal edges keep their order. (A scale of quantised features stays what it is.)
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from storage.append_settings import stored_settings
from storage.change import change_store
from storage.claim import Claim
from storage.feature_columns import FeatureColumns
from storage.fitting import refuse_in_place
from storage.ingest_settings import IngestResources
from storage.node_columns import deleted_ids
from storage.npy import damaged
from storage.progress import Progress
from storage.schema import Generation, NodeType, Relation, RelationInfo
from storage.segments import WrittenEdges
from storage.stages.context import Context, open_context
from storage.stages.edge_spill import ReadEdges
from storage.stages.edge_stages import CountedView, count_isolated, count_views, order_nodes, write_edges
from storage.stages.executor import Executor
from storage.stages.means import Means
from storage.stages.node_input import NodeInput
from storage.stages.node_stages import WrittenNodes, map_ids, write_nodes
from storage.stages.space import edge_bytes
from storage.stages.stored_edges import Renumbered, spill_stored
from storage.store import Store
from storage.stored_nodes import FEATURES, StoredNodes

_POSITION_BYTES = 12
_BATCH_ROWS = 1 << 16


def compact(
    url: str,
    *,
    resources: IngestResources | None = None,
    executor: Executor | None = None,
    progress: Progress | None = None,
) -> Generation:
    """Rewrite the store at `url` as its next generation; arguments, result and errors as `storage.append.append`.

    Raises:
        BadInput: features of a type stay in the user's files, or memory or disk are below what is needed.
    """
    return change_store(url, partial(_prepare, means=Means.given(resources, executor, progress)))


@dataclass(frozen=True)
class _Compaction:
    means: Means

    @property
    def inputs(self) -> Any:
        return ["compact"]

    def write(self, store: Store, claim: Claim, fingerprint: str) -> Generation:
        tables = {kind.name: StoredNodes(store.place, kind, live_only=True) for kind in store.node_types}
        plain = stored_settings(store).model_copy(update={"quantize": False, "nan": "refuse", "undirected": False})
        context = open_context(
            plain,
            [_node_input(kind, tables[kind.name]) for kind in store.node_types],
            {},
            claim=claim,
            fingerprint=fingerprint,
            means=self.means,
            more_bytes=edge_bytes(store.relations) + _POSITION_BYTES * sum(k.num_nodes for k in store.node_types),
        )
        context = _with_positions(context, store, tables)
        maps = map_ids(context)
        counted = count_views(context, _stored_edges(context, store))
        orders = order_nodes(context, counted)
        nodes = write_nodes(context, maps, orders)
        segments = {info.relation: info.next_segment for info in store.relations}
        edges = write_edges(context, counted, orders, segments=segments)
        context.stages.begin("commit", total=1, unit="store")
        report = _report(context, counted, edges)
        context.stages.end()
        return store.generation.model_copy(
            update={
                "generation": store.generation.generation + 1,
                "node_types": tuple(_compact_type(kind, nodes[kind.name]) for kind in store.node_types),
                "relations": tuple(
                    info.model_copy(update={"segments": (done.segment,)})
                    for info, done in zip(store.relations, edges, strict=True)
                ),
                "report": {**report, "seconds": context.stages.seconds},
            }
        )


def _prepare(store: Store, *, means: Means) -> _Compaction:
    stored_settings(store)
    refuse_in_place(store, store.node_types, what="compact")
    return _Compaction(means)


def _node_input(kind: NodeType, table: StoredNodes) -> NodeInput:
    features = None
    if kind.feature_dim is not None and kind.feature_dtype is not None:
        features = FeatureColumns((FEATURES,), True, kind.feature_dim, kind.feature_dtype, converts=False)
    return NodeInput(name=kind.name, table=table, known=table, base=0, segment=kind.next_segment, features=features)


def _with_positions(context: Context, store: Store, tables: dict[str, StoredNodes]) -> Context:
    """The context with the input position of every node."""
    context.stages.begin("read positions", total=sum(context.num_nodes.values()), unit="nodes")
    nodes = list[NodeInput]()
    for node, kind in zip(context.nodes, store.node_types, strict=True):
        do = partial(_write_positions, store=store, kind=kind, table=tables[kind.name], context=context)
        nodes.append(replace(node, positions=context.work.stage(f"positions.{kind.name}", str, do)))
    return replace(context, nodes=nodes)


def _write_positions(folder: str, *, store: Store, kind: NodeType, table: StoredNodes, context: Context) -> str:
    """A file of uint32: the position of each live node among those of all live nodes. Memory: 5 bytes a node."""
    place, first = store.place, kind.segments[0].ids.name
    is_live = np.zeros(kind.num_nodes, dtype=np.bool_)
    for _, batch in table.batches(["position"], max_rows=_BATCH_ROWS):
        position = batch.column(0).to_numpy()
        if position.min(initial=0) < 0 or position.max(initial=0) >= kind.num_nodes:
            raise damaged(place, first, f"input positions beyond the {kind.num_nodes} nodes of the type")
        is_live[position] = True
    if np.count_nonzero(is_live) != table.num_rows:
        raise damaged(place, first, "two nodes with one input position")
    number = np.cumsum(is_live, dtype=np.uint32)
    path = f"{folder}/positions"
    with open(path, "wb") as file:
        for _, batch in table.batches(["position"], max_rows=_BATCH_ROWS):
            file.write((number[batch.column(0).to_numpy()] - np.uint32(1)).data)
            context.stages.advance(batch.num_rows)
    return path


def _stored_edges(context: Context, store: Store) -> dict[Relation, ReadEdges]:
    context.stages.begin("read edges", total=sum(info.num_edges for info in store.relations), unit="edges")
    found = dict[Relation, ReadEdges]()
    for info in store.relations:
        ends = [store.node_type(name) for name in (info.relation.source, info.relation.target)]
        do = partial(
            _spill,
            store=store,
            info=info,
            change=Renumbered(*(deleted_ids(store.place, kind) for kind in ends)),
            context=context,
        )
        found[info.relation] = context.work.stage(f"spill.{info.relation.folder}", ReadEdges, do)
    return found


def _spill(folder: str, *, store: Store, info: RelationInfo, change: Renumbered, context: Context) -> ReadEdges:
    spill = spill_stored(
        folder,
        place=store.place,
        info=info,
        num_targets=store.num_nodes(info.relation.target),
        change=change,
        crew=context.crew,
    )
    return ReadEdges(spill=spill, partitions=[])


def _compact_type(kind: NodeType, written: WrittenNodes) -> NodeType:
    return kind.model_copy(
        update={
            "num_nodes": written.segment.num_nodes,
            "segments": (written.segment,),
            "num_deleted": 0,
            "deleted": None,
        }
    )


def _report(context: Context, counted: list[CountedView], edges: list[WrittenEdges]) -> dict[str, Any]:
    isolated = count_isolated(context, counted)
    return {
        "change": "compact",
        "nodes": {name: {"rows": count, "isolated": isolated[name]} for name, count in context.num_nodes.items()},
        "edges": {
            str(found.view.relation): {"rows": found.view.num_edges, "parallel_edges": done.num_parallel}
            for found, done in zip(counted, edges, strict=True)
        },
    }
