"""The stages of an ingest that concern nodes: read and map their ids, arrange and write their rows.

A node type may have nodes in the store already: positions are then the old dense ids, followed by the new rows.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.arrays import ArrayWriter
from storage.in_place import describe_in_place, validate_in_place
from storage.lookup import lookup_entries
from storage.schema import NodeSegment
from storage.segments import ids_schema, write_node_segment
from storage.stages.context import Context
from storage.stages.hot_order import HotOrder
from storage.stages.id_map import IdMap, build_id_map
from storage.stages.node_input import NodeInput
from storage.stages.node_rows import Runs, columns_in_order, features_in_order, partition_columns, partition_features
from storage.stages.node_scan import NodeScan, scan_nodes
from storage.stages.quantize import column_scales
from storage.stages.runs import map_array

_PIECE = 1 << 20


@dataclass(frozen=True)
class WrittenNodes:
    """A node segment, how many feature values became 0, and the scale of quantised features."""

    segment: NodeSegment
    id_type: str
    num_zeroed: int
    scale: tuple[float, ...] | None


@dataclass(frozen=True)
class _Arranged:
    columns: Runs
    features: Runs | None
    num_zeroed: int
    scale: tuple[float, ...] | None


def map_ids(context: Context) -> dict[str, IdMap]:
    """Stages 1 and 2: check the node tables, map the ids of every type. BadInput as these stages raise."""
    work, scans, maps = context.work, dict[str, NodeScan](), dict[str, IdMap]()
    total = sum(context.num_nodes.values())
    context.stages.begin("read nodes", total=total, unit="nodes")
    for node in context.nodes:
        do = partial(scan_nodes, table=node.known, crew=context.crew)
        scans[node.name] = work.stage(f"scan.{node.name}", NodeScan, do)
    context.stages.begin("map ids", total=total, unit="nodes")
    for node in context.nodes:
        build = partial(build_id_map, scan=scans[node.name], node_type=node.name, table=node.known, crew=context.crew)
        maps[node.name] = work.stage(f"ids.{node.name}", IdMap, build)
        work.drop(f"scan.{node.name}")
    return maps


def write_nodes(
    context: Context, maps: dict[str, IdMap], orders: dict[str, HotOrder | None]
) -> dict[str, WrittenNodes]:
    """Stages 6 and 7: the segment of every type that has rows. BadInput for features that break a rule."""
    work, nodes = context.work, [node for node in context.nodes if node.table.num_rows]
    total = sum(node.table.num_rows for node in nodes)
    context.stages.begin("arrange nodes", total=total, unit="nodes")
    arranged = {node.name: _arrange(context, node, orders[node.name]) for node in nodes}
    context.stages.begin("write nodes", total=total, unit="nodes")
    written = dict[str, WrittenNodes]()
    for node in nodes:
        write = partial(_write, context=context, node=node, ids=maps[node.name], order=orders[node.name])
        found = arranged[node.name]
        segment = work.stage(f"nodes.{node.name}", NodeSegment, partial(write, arranged=found))
        written[node.name] = WrittenNodes(segment, maps[node.name].kind, found.num_zeroed, found.scale)
        work.drop(f"features.{node.name}")
        work.drop(f"columns.{node.name}")
    return written


def _arrange(context: Context, node: NodeInput, order: HotOrder | None) -> _Arranged:
    work, crew, rank = context.work, context.crew, None if order is None else order.new_rank
    take = partial(partition_columns, table=node.table, rank=rank, base=node.base, positions=node.positions, crew=crew)
    columns = work.stage(f"columns.{node.name}", Runs, take)
    if node.features is None:
        context.stages.advance(node.table.num_rows)
        return _Arranged(columns, None, 0, None)
    if context.settings.features == "in-place":
        num_zeroed = work.stage(f"check.{node.name}", int, partial(_check_in_place, context=context, node=node))
        return _Arranged(columns, None, num_zeroed, None)
    scale = node.scale
    if context.settings.quantize and scale is None:
        find = partial(_find_scale, context=context, node=node)
        scale = tuple(work.stage(f"scale.{node.name}", list[float], find))
    do = partial(
        partition_features,
        table=node.table,
        columns=node.features,
        scale=None if scale is None else np.array(scale, dtype=np.float32),
        nan=context.settings.nan,
        rank=rank,
        crew=crew,
    )
    features = work.stage(f"features.{node.name}", Runs, do)
    return _Arranged(columns, features, features.num_zeroed, scale)


def _check_in_place(_: str, *, context: Context, node: NodeInput) -> int:
    assert node.features is not None
    return validate_in_place(node.table, node.features, nan=context.settings.nan, advance=context.stages.advance)


def _find_scale(_: str, *, context: Context, node: NodeInput) -> list[float]:
    assert node.features is not None
    return column_scales(node.table, columns=node.features, crew=context.crew)


def _write(
    _: str, *, context: Context, node: NodeInput, ids: IdMap, order: HotOrder | None, arranged: _Arranged
) -> NodeSegment:
    chosen, names, count = node.features, node.table.schema.names, node.table.num_rows
    features = None
    if arranged.features is not None and chosen is not None:
        features = features_in_order(
            arranged.features, num_nodes=count, dim=chosen.dim, dtype=chosen.dtype, crew=context.crew
        )
    else:
        context.stages.advance(count)
    segment = write_node_segment(
        context.place,
        node_type=node.name,
        segment=node.segment,
        first_id=node.base,
        num_nodes=count,
        schema=ids_schema(ids.kind, label="label" in names, split="split" in names, timestamp="timestamp" in names),
        columns=columns_in_order(arranged.columns, num_nodes=count, crew=context.crew),
        lookup=_lookup(ids, base=node.base, rank=None if order is None else order.new_rank),
        features=features,
        feature_dim=None if chosen is None else chosen.dim,
        feature_dtype=None if chosen is None else chosen.dtype,
    )
    if chosen is None or context.settings.features == "copy":
        return segment
    name = f"nodes/{node.name}/positions.{node.segment}.npy"
    with ArrayWriter(context.place, name, dtype=np.int64, shape=(count,)) as writer:
        for rows in _rows_in_order(count, order):
            writer.write(rows)
    in_place = describe_in_place(node.table, chosen, nan=context.settings.nan, positions=writer.info)
    return segment.model_copy(update={"in_place": in_place})


def _rows_in_order(count: int, order: HotOrder | None) -> Iterator[NDArray[np.int64]]:
    """Row of the table of each dense id of the segment, a piece at a time."""
    places = None if order is None else map_array(order.order, np.uint32)
    for start in range(0, count, _PIECE):
        stop = min(start + _PIECE, count)
        yield np.arange(start, stop) if places is None else places[start:stop].astype(np.int64)


def _lookup(ids: IdMap, *, base: int, rank: str | None) -> Iterator[NDArray[Any]]:
    """Entries of the new nodes' lookup, a piece at a time; a piece never ends between equal hashes."""
    hashes, positions = ids.array("hash"), ids.array("row")
    ranks = None if rank is None else map_array(rank, np.uint32)
    start = 0
    while start < len(hashes):
        stop = min(start + _PIECE, len(hashes))
        while stop < len(hashes) and hashes[stop] == hashes[stop - 1]:
            stop += 1
        inside = positions[start:stop] >= base
        new = positions[start:stop][inside] - np.uint32(base)
        rows = (new if ranks is None else ranks[new]).astype(np.int64)
        yield lookup_entries(hashes[start:stop][inside], rows)
        start = stop
