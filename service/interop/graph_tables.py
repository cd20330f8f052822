"""From checked columns to a store: interchange tables in a folder beside it, which ingest reads and which then go."""

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import xxhash
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor

from service.interop.graph_columns import EdgeColumns, NodeColumns
from storage.claim import LOCK, lock_folder
from storage.columns import SPLITS
from storage.errors import BadInput
from storage.ingest import IngestResources, IngestSettings, ingest
from storage.place import Place
from storage.progress import NoProgress, Progress
from storage.schema import Generation

CHUNK_BYTES = 16 << 20
CHUNK_EDGES = 1 << 20
SPLIT_NAMES = pa.array(SPLITS)


def ingest_columns(
    nodes: Sequence[NodeColumns],
    edges: Sequence[EdgeColumns],
    *,
    out: str,
    progress: Progress | None,
    settings: Mapping[str, Any],
    resources: IngestResources | None,
) -> Generation:
    """Write the columns as tables and ingest them.

    Args:
        settings: fields of `IngestSettings` other than the tables.
        resources: memory, workers and temporary files of the ingest.

    Memory beside the object and the ingest: 16 MiB and a few columns of 8 bytes a row. The tables' folder has
    the same name every time, so that the store's bytes depend on the object alone.
    """
    progress = progress or NoProgress()
    with _tables_folder(out) as folder:
        tables = {
            "nodes": {columns.name: str(folder / f"nodes-{columns.name}.parquet") for columns in nodes},
            "edges": {str(columns.relation): str(folder / f"{columns.relation.folder}.parquet") for columns in edges},
        }
        checked = _checked_settings(settings, tables)
        total = sum(columns.num_nodes for columns in nodes) + sum(len(columns.source) for columns in edges)
        progress.stage("write tables", total=total, unit="rows")
        for columns in nodes:
            _write(tables["nodes"][columns.name], _node_chunks(columns), progress)
        by_name = {columns.name: columns for columns in nodes}
        for part in edges:
            source, target = by_name[part.relation.source], by_name[part.relation.target]
            _write(tables["edges"][str(part.relation)], _edge_chunks(part, source, target), progress)
        return ingest(checked, out=out, resources=resources, progress=progress)


def _checked_settings(settings: Mapping[str, Any], tables: dict[str, dict[str, str]]) -> IngestSettings:
    for name in settings:
        if name in tables or name not in IngestSettings.model_fields:
            known = sorted(set(IngestSettings.model_fields) - set(tables))
            raise BadInput(
                f"setting {name}",
                f"{settings[name]}",
                rule=f"settings are {', '.join(known)}",
                remedy="correct the name",
            )
    try:
        return IngestSettings.model_validate({**settings, **tables})
    except ValidationError as error:
        first = error.errors()[0]
        raise BadInput(
            f"setting {first['loc'][0]}",
            str(first["input"]),
            rule=first["msg"],
            remedy="see the fields of storage.ingest.IngestSettings",
        ) from None


@contextmanager
def _tables_folder(out: str) -> Iterator[Path]:
    """An empty folder beside a local store, or a temporary one, held by this process; removed afterwards."""
    place = Place(out)
    local = place.local("")
    if local is None:
        digest = xxhash.xxh64_hexdigest(place.url.encode())
        folder = Path(tempfile.gettempdir()) / f"hopstream-{digest}.tables"
    else:
        folder = Path(os.path.realpath(local) + ".tables")  # one store, however it is spelled
    if folder.exists() and not (folder / LOCK).exists() and any(folder.iterdir()):
        raise BadInput(
            str(folder),
            "it exists and is no folder of ours",
            rule="tables are written there for the ingest",
            remedy="choose another place for the store, or move the folder away",
        )
    descriptor = lock_folder(str(folder), place)
    try:
        yield folder
    finally:
        try:
            for path in folder.iterdir():
                if path.name != LOCK:  # which tells that the folder is ours, so it goes last
                    path.unlink()
            shutil.rmtree(folder)
        finally:
            os.close(descriptor)


def _write(path: str, chunks: Iterator[pa.Table], progress: Progress) -> None:
    writer = None
    try:
        for chunk in chunks:
            writer = writer or pq.ParquetWriter(path, chunk.schema)
            writer.write_table(chunk)
            progress.advance(chunk.num_rows)
    finally:
        if writer is not None:
            writer.close()


def _node_chunks(columns: NodeColumns) -> Iterator[pa.Table]:
    row_bytes = 64 + (0 if columns.features is None else columns.features[0].nbytes)
    step = max(1, CHUNK_BYTES // row_bytes)
    for start in range(0, columns.num_nodes, step):
        rows = slice(start, min(start + step, columns.num_nodes))
        table: dict[str, Any] = {"id": _ids_of(torch.arange(rows.start, rows.stop), columns)}
        if columns.features is not None:
            table["features"] = _feature_array(columns.features[rows])
        if columns.label is not None:
            table["label"] = _array(columns.label[rows])
        if columns.split is not None:
            table["split"] = SPLIT_NAMES.take(pa.array(_array(columns.split[rows])))
        if columns.timestamp is not None:
            table["timestamp"] = _array(columns.timestamp[rows])
        yield pa.table(table)


def _edge_chunks(columns: EdgeColumns, source: NodeColumns, target: NodeColumns) -> Iterator[pa.Table]:
    for start in range(0, len(columns.source), CHUNK_EDGES):
        rows = slice(start, start + CHUNK_EDGES)
        ends = {}
        for name, numbers, nodes in (("src", columns.source, source), ("dst", columns.target, target)):
            part = numbers[rows]
            _check_ends(part, f"relation {columns.relation}, {name}", nodes)
            ends[name] = _ids_of(part, nodes)
        table: dict[str, Any] = dict(ends)
        if columns.weight is not None:
            table["weight"] = _array(columns.weight[rows].to(torch.float32))
        if columns.timestamp is not None:
            table["timestamp"] = _array(columns.timestamp[rows])
        yield pa.table(table)


def _check_ends(numbers: Tensor, place: str, nodes: NodeColumns) -> None:
    outside = numbers[(numbers < 0) | (numbers >= nodes.num_nodes)]
    if len(outside):
        raise BadInput(
            place,
            f"node {int(outside[0])}",
            rule=f"the nodes of type {nodes.name} are numbered 0 to {nodes.num_nodes - 1}",
            remedy="set num_nodes, or remove the edges",
        )


def _ids_of(numbers: Tensor, nodes: NodeColumns) -> NDArray[Any]:
    """The ids of nodes that the object knows by number."""
    return _array(numbers if nodes.ids is None else nodes.ids[numbers])


def _feature_array(rows: Tensor) -> pa.Array:
    if rows.dtype == torch.bfloat16:
        rows = rows.to(torch.float32)
    if rows.dtype == torch.bool:
        rows = rows.to(torch.uint8)
    flat = np.ascontiguousarray(_array(rows)).reshape(-1)
    return pa.FixedSizeListArray.from_arrays(pa.array(flat), rows.shape[1])


def _array(values: Tensor) -> NDArray[Any]:
    array: NDArray[Any] = values.cpu().numpy()
    return array
