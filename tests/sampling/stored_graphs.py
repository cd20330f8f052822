"""Stores written array by array from a topology in memory, so that ids, order and element types are exactly its own."""

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from storage.arrays import write_array
from storage.graph import RelationCSC, Topology
from storage.lookup import hash_ids, lookup_entries
from storage.place import Place
from storage.schema import EdgeSegment, FileInfo, Generation, NodeSegment, NodeType, RelationInfo
from storage.segments import commit_generation, ids_schema, write_node_segment
from storage.store import Store


def store_of(topology: Topology, url: str) -> Store:
    """`topology` as an open store of one segment, without features."""
    place = Place(url)
    sizes = np.diff(topology.type_offsets).tolist()
    commit_generation(
        place,
        Generation(
            format_version=1,
            generation=0,
            node_types=tuple(_nodes(place, name, size) for name, size in zip(topology.node_types, sizes, strict=True)),
            relations=tuple(_edges(place, relation) for relation in topology.relations),
            settings={},
            report={},
        ),
    )
    return Store.open(url)


def _nodes(place: Place, name: str, count: int) -> NodeType:
    ids = np.arange(count)
    hashes = hash_ids(pa.array(ids))
    order = np.argsort(hashes, kind="stable")
    segment: NodeSegment = write_node_segment(
        place,
        node_type=name,
        segment=0,
        first_id=0,
        num_nodes=count,
        schema=ids_schema("int64", label=False, split=False, timestamp=False),
        columns=[pa.table({"id": ids, "position": ids})],
        lookup=[lookup_entries(hashes[order], order)],
        features=None,
        feature_dim=None,
        feature_dtype=None,
    )
    return NodeType(
        name=name,
        num_nodes=count,
        id_type="int64",
        feature_dim=None,
        feature_dtype=None,
        has_label=False,
        has_split=False,
        has_timestamp=False,
        segments=(segment,),
    )


def _edges(place: Place, relation: RelationCSC) -> RelationInfo:
    def write(name: str, array: NDArray[Any]) -> FileInfo:
        return write_array(place, f"edges/{relation.relation.folder}/{name}.0.npy", array)

    num_edges = relation.indices.shape[0]
    segment = EdgeSegment(
        segment=0,
        num_edges=num_edges,
        indptr=write("indptr", relation.indptr),
        indices=write("indices", relation.indices),
        out_degree=write("out_degree", relation.out_degree),
        weight=None if relation.weight is None else write("weight", relation.weight),
        timestamp=None if relation.timestamp is None else write("timestamp", relation.timestamp),
    )
    return RelationInfo(
        relation=relation.relation,
        reverse_of=None,
        num_edges=num_edges,
        has_weight=relation.weight is not None,
        has_timestamp=relation.timestamp is not None,
        segments=(segment,),
    )
