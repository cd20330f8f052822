"""How a store is written: node segments, edge segments, and the commit that makes them visible.

Every file is complete on the disk when a function returns; nothing of it counts until `commit_generation` has
replaced `manifest.json`, its last step.
"""

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
from numpy.typing import NDArray

from storage.arrays import ArrayWriter
from storage.checked import CheckedWriter
from storage.lookup import LOOKUP_DTYPE
from storage.place import Place
from storage.schema import (
    FORMAT_VERSION,
    MANIFEST_NAME,
    Dtype,
    EdgeSegment,
    FileInfo,
    Generation,
    IdType,
    Manifest,
    NodeSegment,
    Relation,
    check_name,
)

ROW_GROUP_ROWS = 1 << 17


@dataclass(frozen=True)
class SortedEdges:
    """The edges of consecutive targets, in order of targets.

    Attributes:
        degrees: [num_targets] int64 edges of each target.
        indices: [num_edges] uint32 dense source ids, each target's by (time, source, input position).
        timestamp: [num_edges] int64; None without times.
        weight: [num_edges] float32; None without weights.
        num_parallel: edges beyond the first of each (source, target) pair.
    """

    degrees: NDArray[np.int64]
    indices: NDArray[np.uint32]
    timestamp: NDArray[np.int64] | None
    weight: NDArray[np.float32] | None
    num_parallel: int


def ids_schema(kind: IdType, *, label: bool, split: bool, timestamp: bool) -> pa.Schema:
    """Columns of an ids file."""
    fields = [("id", pa.int64() if kind == "int64" else pa.string()), ("position", pa.int64())]
    fields += [("label", pa.int64())] if label else []
    fields += [("split", pa.string())] if split else []
    fields += [("timestamp", pa.int64())] if timestamp else []
    return pa.schema(fields)


def write_node_segment(
    place: Place,
    *,
    node_type: str,
    segment: int,
    first_id: int,
    num_nodes: int,
    schema: pa.Schema,
    columns: Iterable[pa.Table],
    lookup: Iterable[NDArray[Any]],
    features: Iterable[NDArray[Any]] | None,
    feature_dim: int | None,
    feature_dtype: Dtype | None,
) -> NodeSegment:
    """Write the files of one node segment; row i is the node with dense id `first_id + i`.

    Args:
        place: the store.
        node_type: name of the type.
        segment: number of the segment.
        first_id: dense id of row 0.
        num_nodes: rows.
        schema: from `ids_schema`.
        columns: tables with the columns of `schema` that make up the rows; all but the last hold a multiple of
            ROW_GROUP_ROWS rows, so that the file does not depend on how they were cut.
        lookup: arrays of LOOKUP_DTYPE that make up [num_nodes], sorted by (hash, row).
        features: arrays [k, feature_dim] of `feature_dtype` that make up the rows, or None.
        feature_dim, feature_dtype: width and element type of features, or None.

    Raises ValueError when the parts do not make up `num_nodes` rows.
    """
    check_name(node_type, place="node type")
    folder = f"nodes/{node_type}"
    ids_info = _write_table(place, f"{folder}/ids.{segment}.parquet", columns, schema)
    lookup_info = _write_parts(place, f"{folder}/lookup.{segment}.npy", lookup, dtype=LOOKUP_DTYPE, shape=(num_nodes,))
    features_info = None
    if features is not None:
        assert feature_dim is not None
        assert feature_dtype is not None
        name = f"{folder}/features.{segment}.npy"
        features_info = _write_parts(place, name, features, dtype=feature_dtype, shape=(num_nodes, feature_dim))
    return NodeSegment(
        segment=segment,
        first_id=first_id,
        num_nodes=num_nodes,
        ids=ids_info,
        lookup=lookup_info,
        features=features_info,
    )


@dataclass(frozen=True)
class WrittenEdges:
    """An edge segment in the store, and how many of its edges repeat the ends of another."""

    segment: EdgeSegment
    num_parallel: int


def write_edge_segment(
    place: Place,
    *,
    relation: Relation,
    segment: int,
    num_edges: int,
    num_sources: int,
    num_targets: int,
    ranges: Iterable[SortedEdges],
    out_degree: Iterable[NDArray[Any]],
    has_weight: bool,
    has_timestamp: bool,
    advance: Callable[[int], None] = lambda _: None,
) -> WrittenEdges:
    """Write the files of one edge segment from edges that come range by range; integers are int32 where they fit.

    Args:
        place: the store.
        relation: whose edges.
        segment: number of the segment.
        num_edges, num_sources, num_targets: of the segment; the nodes are all there are.
        ranges: edges of consecutive targets, together of all.
        out_degree: arrays that make up [num_sources], of these edges.
        has_weight, has_timestamp: columns of the relation.
        advance: told the number of edges done.
    """
    relation.checked()
    counts = _fitting(num_edges)

    def name(array: str) -> str:
        return f"edges/{relation.folder}/{array}.{segment}.npy"

    num_parallel, first = 0, 0
    with ExitStack() as stack:

        def open_array(array: str, dtype: Any, rows: int) -> ArrayWriter:
            return stack.enter_context(ArrayWriter(place, name(array), dtype=dtype, shape=(rows,)))

        indptr = open_array("indptr", counts, num_targets + 1)
        indices = open_array("indices", _fitting(num_sources - 1), num_edges)
        weight = open_array("weight", np.float32, num_edges) if has_weight else None
        timestamp = open_array("timestamp", np.int64, num_edges) if has_timestamp else None
        indptr.write(np.zeros(1, dtype=counts))
        for edges in ranges:
            ends = np.cumsum(edges.degrees) + first
            indptr.write(ends.astype(counts))
            # int32 holds them, so the same bytes say it
            indices.write(edges.indices.view(np.int32) if indices.dtype == np.int32 else edges.indices.astype(np.int64))
            if weight is not None and edges.weight is not None:
                weight.write(edges.weight)
            if timestamp is not None and edges.timestamp is not None:
                timestamp.write(edges.timestamp)
            first += len(edges.indices)
            num_parallel += edges.num_parallel
            advance(len(edges.indices))
    degrees = (part.astype(counts, copy=False) for part in out_degree)
    return WrittenEdges(
        segment=EdgeSegment(
            segment=segment,
            num_edges=num_edges,
            indptr=indptr.info,
            indices=indices.info,
            out_degree=_write_parts(place, name("out_degree"), degrees, dtype=counts, shape=(num_sources,)),
            weight=None if weight is None else weight.info,
            timestamp=None if timestamp is None else timestamp.info,
        ),
        num_parallel=num_parallel,
    )


def commit_generation(place: Place, generation: Generation) -> None:
    """Make a generation the current one: its file, its own manifest (so that it can be opened when it is no
    longer current), and `manifest.json` last.
    """
    name = f"generations/{generation.generation}.json"
    data = generation.model_dump_json(indent=1).encode()
    place.write_bytes(name, data)
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        generation=generation.generation,
        generation_file=name,
        generation_xxh64=xxhash.xxh64_hexdigest(data),
    )
    # no white space: then no byte of it can change and still say the same
    encoded = manifest.model_dump_json().encode()
    place.write_bytes(manifest_name(generation.generation), encoded)
    place.write_bytes(MANIFEST_NAME, encoded)


def manifest_name(generation: int) -> str:
    """Where the manifest that vouches for an earlier generation stays."""
    return f"generations/{generation}.manifest.json"


def _write_table(place: Place, name: str, tables: Iterable[pa.Table], schema: pa.Schema) -> FileInfo:
    with CheckedWriter(place, name) as file, pq.ParquetWriter(file, schema) as writer:
        for table in tables:
            for start in range(0, table.num_rows, ROW_GROUP_ROWS):
                # cast part by part: one string array may not hold more than 2 GiB
                part = table.slice(start, ROW_GROUP_ROWS).select(schema.names).cast(schema)
                writer.write_table(part.combine_chunks(), row_group_size=ROW_GROUP_ROWS)
    assert file.info is not None
    return file.info


def _write_parts(
    place: Place, name: str, parts: Iterable[NDArray[Any]], *, dtype: Any, shape: tuple[int, ...]
) -> FileInfo:
    with ArrayWriter(place, name, dtype=dtype, shape=shape) as writer:
        for part in parts:
            writer.write(part)
    return writer.info


def _fitting(largest: int) -> type[np.int32] | type[np.int64]:
    return np.int32 if largest <= np.iinfo(np.int32).max else np.int64
