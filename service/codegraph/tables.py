"""Nodes and edges as the interchange tables of `hopstream ingest`: Parquet, string ids."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from service.codegraph.edges import Edges
from service.codegraph.resolve import Kind
from storage.place import Place

LABELS_FILE = "labels.json"
UNKNOWN_LABEL = -1
_ROWS_PER_GROUP = 1 << 16


def unique_ids(names: Iterable[str]) -> list[str]:
    """The names, where one that was there before gets the next free number: ``a.b.run#2``.

    Inside a file names are unique; method run of class b in package a and function run of module a.b are not.
    """
    found: dict[str, None] = {}
    for name in names:
        unique, number = name, 1
        while unique in found:
            number += 1
            unique = f"{name}#{number}"
        found[unique] = None
    return list(found)


def label_packages(ids: Mapping[Kind, Sequence[str]], *, min_class_nodes: int) -> tuple[str, ...]:
    """The classes, by name: top-level packages with at least `min_class_nodes` nodes of all types."""
    num_nodes = Counter(_package(name) for names in ids.values() for name in names)
    return tuple(sorted(name for name, count in num_nodes.items() if count >= min_class_nodes))


def write_nodes(
    place: Place, *, kind: Kind, ids: Sequence[str], features: NDArray[np.float16], classes: Sequence[str]
) -> str:
    """Write one node table: id, features (fixed-size list of float16), label (index in `classes` or -1).

    Returns:
        URL of the table.
    """
    label_of_package = {name: label for label, name in enumerate(classes)}
    labels = [label_of_package.get(_package(name), UNKNOWN_LABEL) for name in ids]
    columns = {
        "id": pa.array(ids, pa.string()),
        "features": pa.FixedSizeListArray.from_arrays(pa.array(features.reshape(-1)), features.shape[1]),
        "label": pa.array(labels, pa.int64()),
    }
    # ids and hashed features hardly repeat: a dictionary would cost time and save nothing
    return _write(place, f"nodes/{kind}.parquet", pa.table(columns), dictionary_columns=["label"])


def write_edges(place: Place, edges: Edges, *, source_ids: pa.Array, target_ids: pa.Array) -> str:
    """Write one edge table: src, dst.

    Returns:
        URL of the table.
    """
    columns = {
        "src": source_ids.take(pa.array(edges.source)),
        "dst": target_ids.take(pa.array(edges.target)),
    }
    name = edges.relation.replace(":", "__")
    return _write(place, f"edges/{name}.parquet", pa.table(columns), dictionary_columns=["src", "dst"])


def write_classes(place: Place, classes: Sequence[str], *, min_class_nodes: int) -> str:
    """Write what the labels mean; label i is `classes[i]`.

    Returns:
        URL of the JSON file.
    """
    meaning = {"label": "top-level package", "min_class_nodes": min_class_nodes, "classes": list(classes)}
    place.write_bytes(LABELS_FILE, (json.dumps(meaning, indent=1) + "\n").encode())
    return place.full(LABELS_FILE)


def _package(name: str) -> str:
    return name.partition(".")[0]


def _write(place: Place, name: str, table: pa.Table, *, dictionary_columns: list[str]) -> str:
    with place.open_write(name) as file:
        pq.write_table(
            table,
            file,
            row_group_size=_ROWS_PER_GROUP,
            use_dictionary=dictionary_columns,
            compression="zstd",
            compression_level=1,
        )
    return place.full(name)
