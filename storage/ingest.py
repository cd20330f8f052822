"""Parquet tables in, a store out: one generation with one segment per node type and relation.

Stages, with what is in memory (n nodes, e edges of a relation):

1. read nodes      ids [n], label, split, timestamp of every type; the features' schema
2. read edges      per relation source, target [e] int32 input positions, weight, timestamp; reverses
3. order nodes     hotness [n] uint64, order [n] and its inverse, rank [n], per type
4. write nodes     one type's features [n, dim] at a time
5. write edges     one relation's CSC at a time
6. commit          the generation, then the manifest

Everything that can be refused without reading features is refused before the first byte is written.
"""

import time
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from storage.claim import claimed, refuse_occupied
from storage.edges import Edges, both_ways, open_edge_table, read_edges, reversed_name, symmetric
from storage.errors import BadInput
from storage.hotness import ALL_NEIGHBOURS, expected_accesses, hottest_first
from storage.nodes import NODE_COLUMNS, NodeTable, open_node_table, read_nodes
from storage.parts import count_isolated, count_self_loops, write_edges, write_nodes
from storage.place import Place
from storage.progress import NoProgress, Progress
from storage.schema import Dtype, Generation, NodeType, Relation, RelationInfo, check_name
from storage.segments import commit_generation
from storage.tables import Table


class IngestSettings(BaseModel):
    """What to ingest and under which policies; stored in the generation as given."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    nodes: dict[str, str] = Field(description="node type -> URL, glob or folder of its table")
    edges: dict[str, str] = Field(description="source:name:target -> URL, glob or folder of its table")
    undirected: bool = Field(default=False, description="add every edge's reverse")
    dangling: Literal["refuse", "drop"] = Field(
        default="refuse", description="edges to unknown nodes: refuse the table, or drop and count them"
    )
    nan: Literal["refuse", "zero"] = Field(
        default="refuse", description="NaN and infinite features: refuse the table, or store 0 and count them"
    )
    feature_dtype: Dtype | None = Field(
        default=None, description="dtype of stored features; by default as in the table"
    )
    feature_columns: tuple[str, ...] | None = Field(
        default=None, description="numeric columns that are the features, in place of the column features"
    )
    fanout: tuple[int, ...] = Field(
        default=(15, 10, 5),
        description="neighbours per node and relation in each hop, for which the hottest nodes come first",
    )


class _Stages:
    """Tells the progress which stage runs, and keeps the seconds of each."""

    def __init__(self, progress: Progress) -> None:
        self.seconds: dict[str, float] = {}
        self._progress = progress
        self._name: str | None = None
        self._began = 0.0

    def begin(self, name: str, *, total: int, unit: str) -> None:
        self.end()
        self._name, self._began = name, time.perf_counter()
        self._progress.stage(name, total=total, unit=unit)

    def advance(self, amount: int) -> None:
        self._progress.advance(amount)

    def end(self) -> None:
        if self._name is not None:
            self.seconds[self._name] = round(time.perf_counter() - self._began, 3)


def ingest(settings: IngestSettings, *, out: str, progress: Progress | None = None) -> Generation:
    """Write the tables as a new store at `out`; the same tables and settings give the same bytes.

    Args:
        settings: tables and policies.
        out: a new or empty folder at any fsspec URL.
        progress: told about the stages.

    Returns:
        The committed generation. Its report also has `seconds` by stage, which the stored one has not.

    Raises:
        BadInput: a table breaks a rule, or `out` is occupied. Nothing is left at `out` then.
    """
    stages = _Stages(progress or NoProgress())
    place = Place(out)
    refuse_occupied(place)
    relations = _check(settings)
    _check_feature_columns(settings.feature_columns)
    node_tables = {
        name: open_node_table(url, feature_columns=settings.feature_columns) for name, url in settings.nodes.items()
    }
    _find_feature_columns(settings, node_tables)
    edge_tables = {relation: open_edge_table(url) for relation, url in relations.items()}
    report: dict[str, dict[str, Any]] = {"nodes": {}, "edges": {}}

    stages.begin("read nodes", total=sum(t.num_rows for t in node_tables.values()), unit="nodes")
    nodes = dict[str, NodeTable]()
    for name, table in node_tables.items():
        nodes[name] = read_nodes(
            table,
            node_type=name,
            feature_columns=settings.feature_columns,
            feature_dtype=settings.feature_dtype,
        )
        report["nodes"][name] = {"rows": table.num_rows}
        stages.advance(table.num_rows)

    stages.begin("read edges", total=sum(t.num_rows for t in edge_tables.values()), unit="edges")
    edges = list[Edges]()
    for relation, table in edge_tables.items():
        read = read_edges(
            table,
            relation=relation,
            source_ids=nodes[relation.source].ids,
            target_ids=nodes[relation.target].ids,
            dangling=settings.dangling,
            advance=stages.advance,
        )
        both = _with_reverses(read.edges) if settings.undirected else [read.edges]
        edges += both
        report["edges"][str(relation)] = {
            "rows": table.num_rows,
            "dangling_dropped": read.num_dangling,
            "self_loops": count_self_loops(read.edges),
            "reverse_edges_added": sum(map(len, both)) - len(read.edges),
        }

    num_nodes = {name: len(table) for name, table in nodes.items()}
    num_visits = len(settings.fanout) * sum(map(len, edges))
    stages.begin("order nodes", total=num_visits, unit="edges")
    hotness = expected_accesses(edges, num_nodes=num_nodes, fanout=settings.fanout, advance=stages.advance)
    orders = {name: hottest_first(values) for name, values in hotness.items()}
    ranks = {name: _inverse(order) for name, order in orders.items()}
    for name, count in count_isolated(edges, num_nodes=num_nodes).items():
        report["nodes"][name]["isolated"] = count

    with claimed(place):
        stages.begin("write nodes", total=sum(num_nodes.values()), unit="nodes")
        node_types = list[NodeType]()
        for name, node_table in nodes.items():
            written = write_nodes(
                node_table,
                place=place,
                order=orders[name],
                rank=ranks[name],
                nan=settings.nan,
                advance=stages.advance,
            )
            node_types.append(written.node_type)
            report["nodes"][name]["nan_zeroed"] = written.num_zeroed

        stages.begin("write edges", total=sum(map(len, edges)), unit="edges")
        infos = list[RelationInfo]()
        while edges:
            part = edges.pop(0)  # its arrays are let go once written
            stored = write_edges(
                part,
                place=place,
                source_rank=ranks[part.relation.source],
                target_rank=ranks[part.relation.target],
            )
            infos.append(stored.info)
            if str(part.relation) in report["edges"]:
                report["edges"][str(part.relation)]["parallel_edges"] = stored.num_parallel
            stages.advance(len(part))

        stages.begin("commit", total=1, unit="store")
        generation = Generation(
            format_version=1,
            generation=0,
            node_types=tuple(node_types),
            relations=tuple(infos),
            settings=settings.model_dump(mode="json"),
            report=report,
        )
        commit_generation(place, generation)
        stages.advance(1)
    stages.end()
    return generation.model_copy(update={"report": {**report, "seconds": stages.seconds}})


def _with_reverses(edges: Edges) -> list[Edges]:
    if edges.relation.source == edges.relation.target:
        return [symmetric(edges)]
    return list(both_ways(edges))


def _inverse(order: NDArray[np.int64]) -> NDArray[np.int64]:
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return rank


def _check(settings: IngestSettings) -> dict[Relation, str]:
    """The relations by URL; BadInput for settings that no table could satisfy."""
    for name in settings.nodes:
        check_name(name, place=f"node type {name!r}")
    relations = {Relation.parse(text): url for text, url in settings.edges.items()}
    for what, given in (("node", settings.nodes), ("edge", settings.edges)):
        if not given:
            raise BadInput(f"--{what}s", "none given", rule=f"a graph has at least one {what} table", remedy="name one")
    for k in settings.fanout:
        if k < 1 and k != ALL_NEIGHBOURS:
            raise BadInput(
                f"fanout {settings.fanout}",
                f"{k}",
                rule="every fan-out must be >= 1, or -1 for all neighbours",
                remedy="drop the hop or give it a number",
            )
    for relation in relations:
        for name in (relation.source, relation.target):
            if name not in settings.nodes:
                raise BadInput(
                    f"relation {relation}",
                    f"unknown node type {name}",
                    rule=f"the node types are {', '.join(settings.nodes)}",
                    remedy=f"give its table with --nodes {name}=URL, or correct the name",
                )
        back = reversed_name(relation)
        if settings.undirected and relation.source != relation.target and back.checked() in relations:
            raise BadInput(
                f"relation {back}",
                f"it is given, and --undirected adds it for {relation}",
                rule="a relation is given once",
                remedy="leave out the table or --undirected, or rename the relation",
            )
    return relations


def _check_feature_columns(named: tuple[str, ...] | None) -> None:
    """BadInput for a name that is repeated, or has another meaning in a node table."""
    for i, name in enumerate(named or ()):
        if name in NODE_COLUMNS:
            raise BadInput(
                "--feature-columns",
                name,
                rule=f"the columns {', '.join(NODE_COLUMNS)} have meanings of their own",
                remedy="leave the name out; without named columns, column features is used"
                if name == "features"
                else "leave the name out, or store its values under another name as well",
            )
        if name in (named or ())[:i]:
            raise BadInput(
                "--feature-columns",
                f"{name} twice",
                rule="every column is named once",
                remedy="remove the repetition",
            )


def _find_feature_columns(settings: IngestSettings, tables: dict[str, Table]) -> None:
    """BadInput when no node table has any of the named feature columns."""
    named = settings.feature_columns
    if named is not None and not any(set(named) & set(table.schema.names) for table in tables.values()):
        raise BadInput(
            f"feature columns {', '.join(named)}",
            f"in no table of {', '.join(tables)}",
            rule="a named feature column must be in a node table",
            remedy="correct the names, or leave them out to use the column features",
        )
