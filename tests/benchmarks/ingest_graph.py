"""Generated tables for the ingest benchmark: a power-law graph as Parquet, written once and kept."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

FEATURE_DIM = 128
_ROW_GROUP = 1 << 20


def write_edge_table(path: Path, *, num_nodes: int, num_edges: int, seed: int = 0) -> None:
    """src, dst int64 in [0, num_nodes): Pareto-1.2 weights at both ends, ids shuffled."""
    if path.exists():
        return
    rng = np.random.default_rng(seed)
    cumulative = np.cumsum(rng.pareto(1.2, num_nodes) + 1)
    cumulative /= cumulative[-1]
    shuffled = rng.permutation(num_nodes)
    path.parent.mkdir(parents=True, exist_ok=True)
    schema = pa.schema([("src", pa.int64()), ("dst", pa.int64())])
    partial = path.with_suffix(".partial")
    with pq.ParquetWriter(partial, schema) as writer:
        for start in range(0, num_edges, _ROW_GROUP):
            count = min(_ROW_GROUP, num_edges - start)
            ends = [shuffled[np.searchsorted(cumulative, rng.random(count))] for _ in range(2)]
            writer.write_table(pa.table(ends, schema=schema), row_group_size=_ROW_GROUP)
    partial.rename(path)


def write_node_table(path: Path, *, num_nodes: int, strings: bool, features: bool, seed: int = 1) -> None:
    """Ids 0 to num_nodes - 1 in shuffled rows, as int64 or strings, with 128 float16 features where asked for."""
    if path.exists():
        return
    rng = np.random.default_rng(seed)
    ids = rng.permutation(num_nodes)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    writer: pq.ParquetWriter | None = None
    for start in range(0, num_nodes, 1 << 18):
        rows = ids[start : start + (1 << 18)]
        columns = {"id": as_strings(rows) if strings else pa.array(rows)}
        if features:
            values = rng.standard_normal(len(rows) * FEATURE_DIM, dtype=np.float32).astype(np.float16)
            columns["features"] = pa.FixedSizeListArray.from_arrays(pa.array(values), FEATURE_DIM)
        table = pa.table(columns)
        writer = writer or pq.ParquetWriter(partial, table.schema, compression="none")
        writer.write_table(table)
    assert writer is not None
    writer.close()
    partial.rename(path)


def write_string_edges(path: Path, edges: Path) -> None:
    """The edge table with its ids as strings."""
    if path.exists():
        return
    partial = path.with_suffix(".partial")
    schema = pa.schema([("src", pa.string()), ("dst", pa.string())])
    with pq.ParquetFile(edges) as source, pq.ParquetWriter(partial, schema) as writer:
        for batch in source.iter_batches(batch_size=_ROW_GROUP):
            columns = [as_strings(batch.column(name).to_numpy()) for name in ("src", "dst")]
            writer.write_table(pa.table(columns, schema=schema), row_group_size=_ROW_GROUP)
    partial.rename(path)


def as_strings(ids: np.ndarray) -> pa.Array:
    """Ids as a user might write them."""
    return pa.array(np.char.add("node-", ids.astype(str)), pa.string())


def describe(folder: Path) -> str:
    """What was generated, for messages."""
    return json.dumps({path.name: path.stat().st_size for path in sorted(folder.iterdir())})
