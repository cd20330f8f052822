"""Nodes and edges taken out of a store, as its next generation.

    ids    -> a byte a node: deleted or not                        storage.stages.gone_nodes
    pairs  -> keys sorted by target                                storage.stages.pair_keys
    edges  -> those that stay, one new segment a relation          storage.stages.stored_edges, and as an ingest does it

Dense ids change only by `compact`: until then a deleted node keeps its row, and the generation names the deleted ids
of each type. Nothing leads to such a node any more, and nothing that enumerates nodes shows it.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from storage.append_settings import known_relation, stored_settings
from storage.arrays import ArrayWriter
from storage.change import change_store
from storage.claim import Claim
from storage.delete_edges import count_missing, find_pairs, staying_edges
from storage.errors import BadInput
from storage.fitting import refuse_other_ids
from storage.ingest_settings import IngestResources
from storage.place import Place
from storage.progress import Progress
from storage.schema import FileInfo, Generation, NodeType, Relation, RelationInfo
from storage.segments import WrittenEdges
from storage.stages.context import Context, open_context
from storage.stages.edge_spill import KnownEnds
from storage.stages.edge_stages import count_views, read_edges, write_edges
from storage.stages.executor import Executor
from storage.stages.gone_nodes import GoneNodes, mark_gone
from storage.stages.hot_order import HotOrder
from storage.stages.id_map import IdMap
from storage.stages.live_ids import live_maps, only_known
from storage.stages.means import Means
from storage.stages.node_stages import map_ids
from storage.stages.pair_keys import PairKeys
from storage.stages.runs import map_array
from storage.stages.space import edge_bytes
from storage.store import Store
from storage.tables import Table, file_states, open_table

_PIECE = 1 << 20


class DeleteSettings(BaseModel):
    """What to take out of a store."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    nodes: dict[str, str] = Field(default_factory=dict, description="node type -> URL of a table with column id")
    edges: dict[str, str] = Field(default_factory=dict, description="relation -> URL of a table with src and dst")
    missing: Literal["refuse", "ignore"] = Field(
        default="refuse", description="nodes and pairs that the store does not have: refuse, or leave aside and count"
    )


def delete(
    settings: DeleteSettings,
    *,
    out: str,
    resources: IngestResources | None = None,
    executor: Executor | None = None,
    progress: Progress | None = None,
) -> Generation:
    """Delete nodes with all their edges, and all edges between pairs of nodes, in a relation and its reverse.

    Arguments and result as `storage.append.append`.

    Raises:
        BadInput: a node or pair that the store does not have (under `refuse`), or all nodes of a type.
        OSError: the disk is full or fails; the same command goes on from what is there.
    """
    prepare = partial(_prepare, settings, means=Means.given(resources, executor, progress))
    return change_store(out, prepare)


def _prepare(
    given: DeleteSettings,
    store: Store,
    *,
    means: Means,
) -> "_Deletion":
    if not given.nodes and not given.edges:
        raise BadInput(
            "delete", "neither --nodes nor --edges", rule="there is something to delete", remedy="name a table"
        )
    nodes = dict[str, Table]()
    for name, url in given.nodes.items():
        nodes[name] = open_table(url, required=("id",))
        refuse_other_ids(store.node_type(name), nodes[name])
    edges = {
        known_relation(store, text).relation: open_table(url, required=("src", "dst"))
        for text, url in given.edges.items()
    }
    return _Deletion(given, nodes, edges, means)


@dataclass(frozen=True)
class _Deletion:
    settings: DeleteSettings
    nodes: dict[str, Table]
    edges: dict[Relation, Table]
    means: Means

    @property
    def inputs(self) -> Any:
        tables = [*self.nodes.values(), *self.edges.values()]
        return ["delete", self.settings.model_dump(mode="json"), [file_states(table) for table in tables]]

    def write(self, store: Store, claim: Claim, fingerprint: str) -> Generation:
        settings = stored_settings(store).model_copy(
            update={
                "undirected": False,
                "order": "hotness",  # pairs are spilled, not placed at once
                "dangling": "refuse" if self.settings.missing == "refuse" else "drop",
            }
        )
        context = open_context(
            settings,
            [only_known(store.place, kind) for kind in store.node_types],
            self.edges,
            claim=claim,
            fingerprint=fingerprint,
            means=self.means,
            more_bytes=edge_bytes(store.relations) + 2 * sum(kind.num_nodes for kind in store.node_types),
        )
        maps = self._maps(context, store)
        gone = self._gone(context, store, maps)
        pairs = self._pairs(context, store, maps)
        spills = staying_edges(context, store, gone, pairs)
        missing = {
            relation: count_missing(store, relation, pairs[relation], table, missing=self.settings.missing)
            for relation, table in self.edges.items()
        }
        counted = count_views(context, spills)
        segments = {info.relation: info.next_segment for info in store.relations}
        orders: dict[str, HotOrder | None] = {kind.name: None for kind in store.node_types}
        done = write_edges(context, counted, orders, segments=segments)
        edges = {found.view.relation: written for found, written in zip(counted, done, strict=True)}
        context.stages.begin("commit", total=1, unit="store")
        number = store.generation.generation + 1
        node_types = tuple(_fewer_nodes(context, kind, gone.get(kind.name), number) for kind in store.node_types)
        relations = tuple(_fewer_edges(info, edges.get(info.relation)) for info in store.relations)
        context.stages.end()
        return store.generation.model_copy(
            update={
                "generation": number,
                "node_types": node_types,
                "relations": relations,
                "report": {
                    "change": "delete",
                    "deleted": {
                        "nodes": {
                            name: {"rows": found.num_new, "missing": found.num_unknown} for name, found in gone.items()
                        },
                        "pairs_missing": {str(relation): count for relation, count in missing.items()},
                        "edges": {
                            str(old.relation): old.num_edges - new.num_edges
                            for old, new in zip(store.relations, relations, strict=True)
                        },
                    },
                    "seconds": context.stages.seconds,
                },
            }
        )

    def _maps(self, context: Context, store: Store) -> dict[str, IdMap]:
        """The live ids of the types that the tables name."""
        named = set(self.nodes) | {end for relation in self.edges for end in (relation.source, relation.target)}
        found = map_ids(replace(context, nodes=[node for node in context.nodes if node.name in named]))
        return live_maps(context, store.node_types, found)

    def _gone(self, context: Context, store: Store, maps: dict[str, IdMap]) -> dict[str, GoneNodes]:
        total = sum(table.num_rows for table in self.nodes.values())
        context.stages.begin("find nodes", total=total, unit="nodes")
        gone = dict[str, GoneNodes]()
        for name, table in self.nodes.items():
            mark = partial(
                mark_gone,
                kind=store.node_type(name),
                table=table,
                ids=maps[name],
                deleted=store.deleted(name),
                missing=self.settings.missing,
                advance=context.stages.advance,
            )
            gone[name] = context.work.stage(f"gone.{name}", GoneNodes, mark)
        return gone

    def _pairs(self, context: Context, store: Store, maps: dict[str, IdMap]) -> dict[Relation, PairKeys]:
        """The pairs as edges of every relation that may hold them."""
        known = KnownEnds(
            rule="pairs are of nodes that the store has",
            remedy="remove the rows, or leave them aside with --missing ignore",
        )
        return find_pairs(context, store, read_edges(context, self.edges, maps, known=known))


def _fewer_nodes(context: Context, kind: NodeType, gone: GoneNodes | None, generation: int) -> NodeType:
    if gone is None or not gone.num_new:
        return kind
    name, count = f"nodes/{kind.name}/deleted.{generation}.npy", kind.num_deleted + gone.num_new
    write = partial(_write_deleted, place=context.place, name=name, gone=gone, count=count)
    info = context.work.stage(f"tombstones.{kind.name}", FileInfo, write)
    return kind.model_copy(update={"num_deleted": count, "deleted": info})


def _write_deleted(_: str, *, place: Place, name: str, gone: GoneNodes, count: int) -> FileInfo:
    marks: NDArray[np.uint8] = map_array(gone.path, np.uint8)
    with ArrayWriter(place, name, dtype=np.int64, shape=(count,)) as writer:
        for start in range(0, len(marks), _PIECE):
            writer.write(np.flatnonzero(marks[start : start + _PIECE]) + start)
    return writer.info


def _fewer_edges(info: RelationInfo, written: WrittenEdges | None) -> RelationInfo:
    if written is None:
        return info
    segment = written.segment
    return info.model_copy(update={"num_edges": segment.num_edges, "segments": (segment,)})
