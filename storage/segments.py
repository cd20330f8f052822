"""How a store is written: node segments, edge segments, and the commit that makes them visible.

Every file is complete on the disk when a function returns; nothing of it counts until `commit_generation` has
replaced `manifest.json`, its last step.
"""

from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
from numpy.typing import NDArray

from storage.arrays import ArrayWriter, write_array
from storage.checked import CheckedWriter
from storage.lookup import build_lookup
from storage.place import Place
from storage.schema import (
    FORMAT_VERSION,
    MANIFEST_NAME,
    Dtype,
    EdgeSegment,
    FileInfo,
    Generation,
    Manifest,
    NodeSegment,
    Relation,
    check_name,
)

ROW_GROUP_ROWS = 1 << 17

# a pyarrow Array or ChunkedArray or a numpy array; pyarrow has no types
Column: TypeAlias = Any


def write_node_segment(
    place: Place,
    *,
    node_type: str,
    segment: int,
    first_id: int,
    ids: pa.Array | pa.ChunkedArray,
    position: Column,
    label: Column | None,
    split: Column | None,
    timestamp: Column | None,
    features: Iterator[NDArray[Any]] | None,
    feature_dim: int | None,
    feature_dtype: Dtype | None,
) -> NodeSegment:
    """Write the files of one node segment; row i is the node with dense id `first_id + i`.

    Args:
        place: the store.
        node_type: name of the type.
        segment: number of the segment.
        first_id: dense id of row 0.
        ids: [n] int64 or string, the user's ids.
        position: [n] int64, row in the input.
        label, split, timestamp: [n] int64, string and int64 columns, or None.
        features: arrays [k, feature_dim] of `feature_dtype` that make up [n, feature_dim], or None.
        feature_dim, feature_dtype: width and element type of features, or None.

    Raises ValueError when features do not make up n rows.
    """
    check_name(node_type, place="node type")
    folder = f"nodes/{node_type}"
    id_type = pa.int64() if pa.types.is_integer(ids.type) else pa.string()
    columns = [
        ("id", id_type, ids),
        ("position", pa.int64(), position),
        ("label", pa.int64(), label),
        ("split", pa.string(), split),
        ("timestamp", pa.int64(), timestamp),
    ]
    table = pa.table({name: values for name, _, values in columns if values is not None})
    schema = pa.schema([pa.field(name, kind) for name, kind, values in columns if values is not None])
    ids_info = _write_table(place, f"{folder}/ids.{segment}.parquet", table, schema)
    lookup_info = write_array(place, f"{folder}/lookup.{segment}.npy", build_lookup(ids))
    features_info = None
    if features is not None:
        assert feature_dim is not None
        assert feature_dtype is not None
        name = f"{folder}/features.{segment}.npy"
        with ArrayWriter(place, name, dtype=feature_dtype, shape=(len(ids), feature_dim)) as writer:
            for rows in features:
                writer.write(rows)
        features_info = writer.info
    return NodeSegment(
        segment=segment,
        first_id=first_id,
        num_nodes=len(ids),
        ids=ids_info,
        lookup=lookup_info,
        features=features_info,
    )


def write_edge_segment(
    place: Place,
    *,
    relation: Relation,
    segment: int,
    indptr: NDArray[Any],
    indices: NDArray[Any],
    out_degree: NDArray[Any],
    weight: NDArray[Any] | None,
    timestamp: NDArray[Any] | None,
) -> EdgeSegment:
    """Write the files of one edge segment.

    Args:
        place: the store.
        relation: whose edges.
        segment: number of the segment.
        indptr: [num_targets + 1] int32 or int64 over all targets there are.
        indices: [num_edges] int32 or int64 dense source ids, sorted by (time, source, position).
        out_degree: [num_sources] int32 or int64, of these edges.
        weight: [num_edges], stored as float32, or None.
        timestamp: [num_edges], stored as int64, or None.
    """
    relation.checked()

    def write(name: str, array: NDArray[Any]) -> FileInfo:
        return write_array(place, f"edges/{relation.folder}/{name}.{segment}.npy", array)

    return EdgeSegment(
        segment=segment,
        num_edges=indices.shape[0],
        indptr=write("indptr", indptr),
        indices=write("indices", indices),
        out_degree=write("out_degree", out_degree),
        weight=None if weight is None else write("weight", weight.astype(np.float32, copy=False)),
        timestamp=None if timestamp is None else write("timestamp", timestamp.astype(np.int64, copy=False)),
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


def _write_table(place: Place, name: str, table: pa.Table, schema: pa.Schema) -> FileInfo:
    with CheckedWriter(place, name) as file, pq.ParquetWriter(file, schema) as writer:
        for start in range(0, table.num_rows, ROW_GROUP_ROWS):
            # cast part by part: one string array may not hold more than 2 GiB
            writer.write_table(table.slice(start, ROW_GROUP_ROWS).cast(schema))
    assert file.info is not None
    return file.info
