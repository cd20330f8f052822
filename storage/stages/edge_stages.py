"""The stages of an ingest that concern edges: read them, order the nodes by them, sort and write them."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from storage.schema import Relation
from storage.segments import WrittenEdges, write_edge_segment
from storage.stages.context import Context
from storage.stages.degrees import Degrees, count_degrees
from storage.stages.edge_partition import Partition, Ranks, partition_edges
from storage.stages.edge_sort import sorted_ranges
from storage.stages.edge_spill import EDGES_OF_THE_TABLES, KnownEnds, ReadEdges, spill_edges
from storage.stages.edge_view import EdgeView, turns, views
from storage.stages.hot_order import HotOrder, hottest_by_position, hottest_first
from storage.stages.hotness import expected_accesses
from storage.stages.id_map import IdMap
from storage.stages.runs import map_array
from storage.tables import Table

_PIECE = 1 << 20


@dataclass(frozen=True)
class CountedView:
    """A relation of the store, its degrees, the edge table it comes from, and its edges where they are sorted out."""

    view: EdgeView
    degrees: Degrees
    table: Relation
    partition: Partition | None


def read_edges(
    context: Context,
    tables: dict[Relation, Table],
    maps: dict[str, IdMap],
    *,
    known: KnownEnds = EDGES_OF_THE_TABLES,
) -> dict[Relation, ReadEdges]:
    """Stage 3: check the edge tables and map their ends. BadInput as `spill_edges`."""
    found = dict[Relation, ReadEdges]()
    context.stages.begin("read edges", total=sum(table.num_rows for table in tables.values()), unit="edges")
    at_once = context.settings.order == "input"
    for relation, table in tables.items():
        do = partial(
            spill_edges,
            table=table,
            relation=relation,
            sources=maps[relation.source],
            targets=maps[relation.target],
            dangling=context.settings.dangling,
            partition=turns(relation, undirected=context.settings.undirected) if at_once else (),
            known=known,
            crew=context.crew,
        )
        found[relation] = context.work.stage(f"spill.{relation.folder}", ReadEdges, do)
    return found


def count_views(context: Context, read: dict[Relation, ReadEdges]) -> list[CountedView]:
    """Stage 4: the relations that the store gets, with the degrees of each."""
    seen = [
        (table, view, edges.partitions[number] if edges.partitions else None)
        for table, edges in read.items()
        for number, view in enumerate(views(table, edges.spill, undirected=context.settings.undirected))
    ]
    counted = list[CountedView]()
    context.stages.begin("count degrees", total=sum(_to_read(view, found) for _, view, found in seen), unit="edges")
    for table, view, partition in seen:
        do = partial(
            count_degrees,
            view=partition or view,
            num_sources=context.num_nodes[view.relation.source],
            num_targets=context.num_nodes[view.relation.target],
            crew=context.crew,
        )
        degrees = context.work.stage(f"degrees.{view.relation.folder}", Degrees, do)
        counted.append(CountedView(view, degrees, table, partition))
    return counted


def _to_read(view: EdgeView, partition: Partition | None) -> int:
    return view.spill.num_edges if partition is None else view.num_edges


def order_nodes(context: Context, counted: list[CountedView]) -> dict[str, HotOrder | None]:
    """Stage 5: the dense ids of every type; None where the order of input is kept."""
    if context.settings.order == "input":
        return {node.name: None for node in context.nodes}
    fanout, num_edges = context.settings.fanout, sum(found.view.spill.num_edges for found in counted)
    context.stages.begin("order nodes", total=len(fanout) * num_edges, unit="edges")
    do = partial(
        expected_accesses,
        views=[(found.view, found.degrees) for found in counted],
        num_nodes=context.num_nodes,
        fanout=fanout,
        crew=context.crew,
    )
    hotness = context.work.stage("hotness", dict[str, str], do)
    orders: dict[str, HotOrder | None] = {}
    for node in context.nodes:
        hot, budget = hotness[node.name], context.crew.budget
        if node.positions is None:
            sort = partial(hottest_first, hotness=hot, base=node.base, budget=budget)
        else:
            sort = partial(hottest_by_position, hotness=hot, positions=node.positions, budget=budget)
        orders[node.name] = context.work.stage(f"order.{node.name}", HotOrder, sort)
    context.work.drop("hotness")
    return orders


def write_edges(
    context: Context, counted: list[CountedView], orders: dict[str, HotOrder | None], *, segments: dict[Relation, int]
) -> list[WrittenEdges]:
    """Stages 8 and 9: the segment of every relation; `segments` gives its number, 0 where there is none."""
    written = list[WrittenEdges]()
    for number, found in enumerate(counted):
        view, folder = found.view, found.view.relation.folder
        is_last = all(later.table != found.table for later in counted[number + 1 :])
        source, target = (orders[name] for name in (view.relation.source, view.relation.target))
        partition = found.partition
        if partition is None:
            context.stages.begin("arrange edges", total=view.spill.num_edges, unit="edges")
            arrange = partial(
                partition_edges,
                view=view,
                ranks=Ranks(None if source is None else source.rank, None if target is None else target.rank),
                in_degree=found.degrees.in_degree,
                crew=context.crew,
            )
            partition = context.work.stage(f"partition.{folder}", Partition, arrange)
            if is_last:
                context.work.drop(f"spill.{found.table.folder}")
        context.stages.begin("write edges", total=view.num_edges, unit="edges")
        write = partial(
            _write,
            context=context,
            found=found,
            partition=partition,
            order=source,
            segment=segments.get(view.relation, 0),
        )
        written.append(context.work.stage(f"edges.{folder}", WrittenEdges, write))
        context.work.drop(f"partition.{folder}")
        if is_last:
            context.work.drop(f"spill.{found.table.folder}")
    return written


def count_isolated(context: Context, counted: list[CountedView]) -> dict[str, int]:
    """For each type the nodes without any edge, in or out, in any relation."""
    counts = dict[str, int]()
    for name, num_nodes in context.num_nodes.items():
        paths = [found.degrees.out_degree for found in counted if found.view.relation.source == name]
        paths += [found.degrees.in_degree for found in counted if found.view.relation.target == name]
        degrees = [map_array(path, np.uint32) for path in paths]
        counts[name] = 0
        for start in range(0, num_nodes, _PIECE):
            touched = np.zeros(min(_PIECE, num_nodes - start), dtype=np.bool_)
            for degree in degrees:
                touched |= degree[start : start + _PIECE] > 0
            counts[name] += int(np.count_nonzero(~touched))
    return counts


def _write(
    _: str, *, context: Context, found: CountedView, partition: Partition, order: HotOrder | None, segment: int
) -> WrittenEdges:
    view = found.view
    return write_edge_segment(
        context.place,
        relation=view.relation,
        segment=segment,
        num_edges=view.num_edges,
        num_sources=context.num_nodes[view.relation.source],
        num_targets=context.num_nodes[view.relation.target],
        ranges=sorted_ranges(partition, view, crew=context.crew),
        out_degree=_in_order(found.degrees.out_degree, order),
        has_weight=view.spill.has_weight,
        has_timestamp=view.spill.has_timestamp,
        advance=context.stages.advance,
    )


def _in_order(degrees: str, order: HotOrder | None) -> Iterator[NDArray[np.uint32]]:
    """Degrees in the order of dense ids, a piece at a time."""
    values = map_array(degrees, np.uint32)
    base = len(values) if order is None else order.base
    for start in range(0, base, _PIECE):
        yield values[start : min(start + _PIECE, base)]
    if order is not None:
        places = map_array(order.order, np.uint32)
        for start in range(0, len(places), _PIECE):
            yield values[base:][places[start : start + _PIECE]]
