"""What one ingest writes: segment 0 of a node type and of a relation; and what it counts on the way."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from storage.csc import build_csc, count_parallel
from storage.edges import Edges
from storage.feature_rows import read_features
from storage.nodes import NodeTable
from storage.place import Place
from storage.schema import NodeType, RelationInfo
from storage.segments import write_edge_segment, write_node_segment

WRITE_BYTES = 8 << 20
FIRST_SEGMENT = 0


@dataclass(frozen=True)
class WrittenNodes:
    """A node type in the store, and how many feature values became 0 because they were not finite."""

    node_type: NodeType
    num_zeroed: int


@dataclass(frozen=True)
class WrittenEdges:
    """A relation in the store, and how many of its edges repeat the ends of another."""

    info: RelationInfo
    num_parallel: int


def write_nodes(
    nodes: NodeTable,
    *,
    place: Place,
    order: NDArray[np.int64],
    rank: NDArray[np.int64],
    nan: Literal["refuse", "zero"],
    advance: Callable[[int], None],
) -> WrittenNodes:
    """Write a node type in the given order; its features are in memory meanwhile.

    Args:
        nodes: the table, in input order.
        place: the store.
        order: [n] input position of each dense id.
        rank: [n] dense id of each input position.
        nan: policy for features that are not finite.
        advance: told the number of rows done.

    Raises:
        BadInput: as `read_features`.
    """
    features, num_zeroed = None, 0
    if nodes.features is not None:
        read = read_features(nodes.table, columns=nodes.features, rank=rank, nan=nan, advance=advance)
        features, num_zeroed = read.rows, read.num_zeroed
    else:
        advance(len(nodes))
    segment = write_node_segment(
        place,
        node_type=nodes.name,
        segment=FIRST_SEGMENT,
        first_id=0,
        ids=nodes.ids.in_order(order),
        position=order,
        label=None if nodes.label is None else nodes.label[order],
        split=None if nodes.split is None else nodes.split.take(order),
        timestamp=None if nodes.timestamp is None else nodes.timestamp[order],
        features=None if features is None else _slices(features),
        feature_dim=None if nodes.features is None else nodes.features.dim,
        feature_dtype=None if nodes.features is None else nodes.features.dtype,
    )
    node_type = NodeType(
        name=nodes.name,
        num_nodes=len(nodes),
        id_type=nodes.ids.kind,
        feature_dim=None if nodes.features is None else nodes.features.dim,
        feature_dtype=None if nodes.features is None else nodes.features.dtype,
        has_label=nodes.label is not None,
        has_split=nodes.split is not None,
        has_timestamp=nodes.timestamp is not None,
        segments=(segment,),
    )
    return WrittenNodes(node_type=node_type, num_zeroed=num_zeroed)


def write_edges(
    edges: Edges, *, place: Place, source_rank: NDArray[np.int64], target_rank: NDArray[np.int64]
) -> WrittenEdges:
    """Sort a relation's edges into CSC and write it; ranks [n] give the dense id of each input position."""
    csc = build_csc(edges, source_rank=source_rank, target_rank=target_rank)
    segment = write_edge_segment(
        place,
        relation=edges.relation,
        segment=FIRST_SEGMENT,
        indptr=csc.indptr,
        indices=csc.indices,
        out_degree=csc.out_degree,
        weight=csc.weight,
        timestamp=csc.timestamp,
    )
    info = RelationInfo(
        relation=edges.relation,
        reverse_of=edges.reverse_of,
        num_edges=len(edges),
        has_weight=edges.weight is not None,
        has_timestamp=edges.timestamp is not None,
        segments=(segment,),
    )
    return WrittenEdges(info=info, num_parallel=count_parallel(csc))


def count_self_loops(edges: Edges) -> int:
    """Edges from a node to itself."""
    if edges.relation.source != edges.relation.target:
        return 0
    return int(np.count_nonzero(edges.source == edges.target))


def count_isolated(edges: Sequence[Edges], *, num_nodes: Mapping[str, int]) -> dict[str, int]:
    """For each type the nodes without any edge, in or out, in any relation."""
    touched = {name: np.zeros(n, dtype=np.bool_) for name, n in num_nodes.items()}
    for e in edges:
        touched[e.relation.source][e.source] = True
        touched[e.relation.target][e.target] = True
    return {name: int(np.count_nonzero(~seen)) for name, seen in touched.items()}


def _slices(rows: NDArray[Any]) -> Iterator[NDArray[Any]]:
    step = max(1, WRITE_BYTES // rows[0].nbytes)
    for start in range(0, len(rows), step):
        yield rows[start : start + step]
