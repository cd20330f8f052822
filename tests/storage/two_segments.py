"""A store of two node types and three relations, each in two segments, written by hand, and what it holds.

Type `author` has string ids, times and float32 features; `paper` int64 ids, labels, splits and uint8 features.
Generation 0 has the first segments only; their edges span the nodes there were then.
"""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from storage.lookup import hash_ids, lookup_entries
from storage.place import Place
from storage.schema import EdgeSegment, Generation, NodeSegment, NodeType, Relation, RelationInfo
from storage.segments import SortedEdges, commit_generation, ids_schema, write_edge_segment, write_node_segment

WRITES = Relation("author", "writes", "paper")
WRITTEN_BY = Relation("paper", "written_by", "author")
CITES = Relation("paper", "cites", "paper")
COUNTS = {"author": (700, 300), "paper": (500, 900)}
NUM_EDGES = (3000, 1000)


class Edge(NamedTuple):
    """Tuples of edges sort into the order a merged CSC has."""

    target: int
    time: int
    source: int
    segment: int
    position: int
    weight: float


@dataclass
class Contents:
    """What the store holds, as plain values."""

    ids: dict[str, list[Any]] = field(default_factory=dict)
    features: dict[str, NDArray[Any]] = field(default_factory=dict)
    columns: dict[tuple[str, str], list[Any]] = field(default_factory=dict)
    edges: dict[Relation, list[Edge]] = field(default_factory=dict)


def write_two_segments(url: str) -> Contents:
    """Write both generations and return what generation 1 holds."""
    place = Place(url)
    contents = Contents()
    node_types = (_write_authors(place, contents), _write_papers(place, contents))
    relations = tuple(_write_edges(place, relation, contents) for relation in (WRITES, WRITTEN_BY, CITES))
    for generation, last in enumerate((1, 2)):
        commit_generation(
            place,
            Generation(
                format_version=1,
                generation=generation,
                node_types=tuple(_first_segments(node_type, last) for node_type in node_types),
                relations=tuple(_first_edges(info, last) for info in relations),
                settings={"nodes": {"paper": "papers.parquet"}},
                report={"duplicates": 0},
            ),
        )
    return contents


def _write_authors(place: Place, contents: Contents) -> NodeType:
    total = sum(COUNTS["author"])
    rng = np.random.default_rng(1)
    ids = ["name " * (number % 9) + str(number) for number in range(total)]
    times = list(range(100, 100 + total))
    rows = rng.standard_normal((total, 6), dtype=np.float32)
    contents.ids["author"] = ids
    contents.features["author"] = rows
    contents.columns["author", "timestamp"] = times
    contents.columns["author", "position"] = list(range(total))
    segments: list[NodeSegment] = []
    for segment, where in enumerate(_spans("author")):
        segments.append(
            write_node_segment(
                place,
                node_type="author",
                segment=segment,
                first_id=where.start,
                num_nodes=where.stop - where.start,
                schema=ids_schema("string", label=False, split=False, timestamp=True),
                columns=[pa.table({"id": ids[where], "position": np.arange(total)[where], "timestamp": times[where]})],
                lookup=_lookup(pa.array(ids[where])),
                features=iter([rows[where][:100], rows[where][100:]]),
                feature_dim=6,
                feature_dtype="float32",
            )
        )
    return NodeType(
        name="author",
        num_nodes=total,
        id_type="string",
        feature_dim=6,
        feature_dtype="float32",
        has_label=False,
        has_split=False,
        has_timestamp=True,
        segments=tuple(segments),
    )


def _write_papers(place: Place, contents: Contents) -> NodeType:
    total = sum(COUNTS["paper"])
    rng = np.random.default_rng(2)
    ids = [int(number) * 1_000_003 - 5_000_000 for number in rng.permutation(total)]
    labels = [number % 5 - 1 for number in range(total)]
    splits = [("train", "val", "test", "none")[number % 4] for number in range(total)]
    rows = rng.integers(0, 256, (total, 33), dtype=np.uint8)
    contents.ids["paper"] = ids
    contents.features["paper"] = rows
    contents.columns["paper", "label"] = labels
    contents.columns["paper", "split"] = splits
    segments: list[NodeSegment] = []
    for segment, where in enumerate(_spans("paper")):
        segments.append(
            write_node_segment(
                place,
                node_type="paper",
                segment=segment,
                first_id=where.start,
                num_nodes=where.stop - where.start,
                schema=ids_schema("int64", label=True, split=True, timestamp=False),
                columns=[
                    pa.table(
                        {
                            "id": pa.chunked_array([ids[where][:7], ids[where][7:]]),
                            "position": np.arange(total)[where],
                            "label": labels[where],
                            "split": splits[where],
                        }
                    )
                ],
                lookup=_lookup(pa.array(ids[where])),
                features=iter([rows[where]]),
                feature_dim=33,
                feature_dtype="uint8",
            )
        )
    return NodeType(
        name="paper",
        num_nodes=total,
        id_type="int64",
        feature_dim=33,
        feature_dtype="uint8",
        has_label=True,
        has_split=True,
        has_timestamp=False,
        segments=tuple(segments),
    )


def _write_edges(place: Place, relation: Relation, contents: Contents) -> RelationInfo:
    timed, weighted = relation == CITES, relation != WRITES
    contents.edges[relation] = []
    segments: list[EdgeSegment] = []
    for segment, num_edges in enumerate(NUM_EDGES):
        rng = np.random.default_rng(3 + segment)
        num_sources = sum(COUNTS[relation.source][: segment + 1])
        num_targets = sum(COUNTS[relation.target][: segment + 1])
        edges = [
            Edge(
                target=int(rng.integers(num_targets)),
                time=int(rng.integers(5)) if timed else 0,
                source=int(rng.integers(min(40, num_sources))),
                segment=segment,
                position=position,
                weight=position / 8 if weighted else 1.0,
            )
            for position in range(num_edges)
        ]
        contents.edges[relation] += edges
        segments.append(_write_edge_segment(place, relation, segment, sorted(edges), num_sources, num_targets))
    contents.edges[relation].sort()
    return RelationInfo(
        relation=relation,
        reverse_of={WRITES: WRITTEN_BY, WRITTEN_BY: WRITES}.get(relation),
        num_edges=sum(NUM_EDGES),
        has_weight=weighted,
        has_timestamp=timed,
        segments=tuple(segments),
    )


def _write_edge_segment(
    place: Place, relation: Relation, segment: int, edges: list[Edge], num_sources: int, num_targets: int
) -> EdgeSegment:
    in_degree = np.bincount([edge.target for edge in edges], minlength=num_targets)
    middle = num_targets // 2
    first = int(in_degree[:middle].sum())
    return write_edge_segment(
        place,
        relation=relation,
        segment=segment,
        num_edges=len(edges),
        num_sources=num_sources,
        num_targets=num_targets,
        ranges=[
            _sorted_edges(relation, edges[:first], in_degree[:middle]),
            _sorted_edges(relation, edges[first:], in_degree[middle:]),
        ],
        out_degree=[np.bincount([edge.source for edge in edges], minlength=num_sources)],
        has_weight=relation != WRITES,
        has_timestamp=relation == CITES,
    ).segment


def _sorted_edges(relation: Relation, edges: list[Edge], degrees: NDArray[np.int64]) -> SortedEdges:
    return SortedEdges(
        degrees=degrees,
        indices=np.array([edge.source for edge in edges], dtype=np.uint32),
        weight=np.array([edge.weight for edge in edges], dtype=np.float32) if relation != WRITES else None,
        timestamp=np.array([edge.time for edge in edges], dtype=np.int64) if relation == CITES else None,
        num_parallel=0,
    )


def _lookup(ids: pa.Array) -> list[NDArray[Any]]:
    hashes = hash_ids(ids)
    order = np.argsort(hashes, kind="stable")
    return [lookup_entries(hashes[order], order)]


def _spans(name: str) -> tuple[slice, slice]:
    first, second = COUNTS[name]
    return slice(0, first), slice(first, first + second)


def _first_segments(node_type: NodeType, count: int) -> NodeType:
    segments = node_type.segments[:count]
    num_nodes = sum(segment.num_nodes for segment in segments)
    return node_type.model_copy(update={"segments": segments, "num_nodes": num_nodes})


def _first_edges(info: RelationInfo, count: int) -> RelationInfo:
    segments = info.segments[:count]
    return info.model_copy(update={"segments": segments, "num_edges": sum(NUM_EDGES[:count])})
