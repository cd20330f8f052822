"""Which stored edges stay when nodes and pairs of nodes are deleted."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np

from storage.errors import BadInput
from storage.schema import Relation, RelationInfo
from storage.stages.context import Context
from storage.stages.edge_spill import ReadEdges
from storage.stages.edge_view import EdgeChunk, EdgeView, Turn
from storage.stages.gone_nodes import GoneNodes
from storage.stages.pair_keys import PairKeys, sort_pairs
from storage.stages.runs import map_array
from storage.stages.stored_edges import spill_stored
from storage.store import Store
from storage.stored_nodes import StoredNodes
from storage.tables import Table


@dataclass(frozen=True)
class Staying:
    """Edges whose ends stay and that join none of the pairs."""

    gone_sources: str | None
    gone_targets: str | None
    pairs: PairKeys | None

    def __call__(self, edges: EdgeChunk) -> EdgeChunk:
        """Those of `edges`."""
        stays = np.ones(len(edges.source), dtype=np.bool_)
        for path, ends in ((self.gone_sources, edges.source), (self.gone_targets, edges.target)):
            if path is not None:
                stays &= map_array(path, np.uint8)[ends] == 0
        if self.pairs is not None:
            stays &= ~self.pairs.match(edges)
        return edges.where(stays)


def find_pairs(context: Context, store: Store, read: dict[Relation, ReadEdges]) -> dict[Relation, PairKeys]:
    """The pairs of the tables that were read, as edges of every relation that may hold them: itself or its reverse."""
    found = dict[Relation, PairKeys]()
    for info in store.relations:
        turn: Turn
        if info.relation in read:
            named, turn = info.relation, "both" if info.reverse_of == info.relation else "as-is"
        elif info.reverse_of is not None and info.reverse_of in read:
            named, turn = info.reverse_of, "turned"
        else:
            continue
        do = partial(
            sort_pairs,
            view=EdgeView(info.relation, None, read[named].spill, turn),
            num_sources=context.num_nodes[info.relation.source],
            num_targets=context.num_nodes[info.relation.target],
            crew=replace(context.crew, advance=lambda _: None),
        )
        found[info.relation] = context.work.stage(f"pairs.{info.relation.folder}", PairKeys, do)
    for relation in read:
        context.work.drop(f"spill.{relation.folder}")
    return found


def staying_edges(
    context: Context, store: Store, gone: dict[str, GoneNodes], pairs: dict[Relation, PairKeys]
) -> dict[Relation, ReadEdges]:
    """The edges that stay, of the relations that lose some."""
    lost = {name: found.path for name, found in gone.items() if found.num_new}
    touched = [
        info
        for info in store.relations
        if {info.relation.source, info.relation.target} & set(lost) or info.relation in pairs
    ]
    context.stages.begin("read edges", total=sum(info.num_edges for info in touched), unit="edges")
    spills = dict[Relation, ReadEdges]()
    for info in touched:
        relation = info.relation
        do = partial(
            _spill,
            store=store,
            info=info,
            change=Staying(lost.get(relation.source), lost.get(relation.target), pairs.get(relation)),
            context=context,
        )
        read = context.work.stage(f"staying.{relation.folder}", ReadEdges, do)
        if read.spill.num_edges < info.num_edges:
            spills[relation] = read
    return spills


def _spill(folder: str, *, store: Store, info: RelationInfo, change: Staying, context: Context) -> ReadEdges:
    num_targets = context.num_nodes[info.relation.target]
    spill = spill_stored(
        folder, place=store.place, info=info, num_targets=num_targets, change=change, crew=context.crew
    )
    return ReadEdges(spill=spill, partitions=[])


def count_missing(
    store: Store, relation: Relation, keys: PairKeys, table: Table, *, missing: Literal["refuse", "ignore"]
) -> int:
    """How many pairs no edge joins; BadInput that names the first under `refuse`."""
    num_missing = keys.num_missing() if keys.num_keys else 0
    if num_missing and missing == "refuse":
        ends = zip((relation.source, relation.target), keys.first_missing(), strict=True)
        first, second = (
            StoredNodes(store.place, store.node_type(name), live_only=False).value(row, "id") for name, row in ends
        )
        raise BadInput(
            table.where("src"),
            f"no edge from {first!r} to {second!r} ({num_missing} such pairs)",
            rule=f"only edges that relation {relation} has are deleted",
            remedy="remove the rows, or leave them aside with --missing ignore",
        )
    return num_missing
