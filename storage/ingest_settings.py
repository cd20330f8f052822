"""What to ingest and under which policies, and with what memory: the settings of `storage.ingest`."""

import os
from collections import Counter
from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ByteSize, ConfigDict, Field

from storage.errors import BadInput
from storage.nodes import NODE_COLUMNS
from storage.schema import Dtype, Relation, check_name
from storage.stages.edge_view import reversed_name
from storage.stages.hotness import ALL_NEIGHBOURS
from storage.tables import Table

DEFAULT_MEMORY_BYTES = ByteSize(4 << 30)


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
    features: Literal["copy", "in-place"] = Field(
        default="copy", description="copy features into the store, or leave them in the Parquet files of the table"
    )
    feature_dtype: Dtype | None = Field(
        default=None, description="dtype of stored features; by default as in the table"
    )
    quantize: bool = Field(
        default=False, description="store features as int8 steps of a scale of each column, largest magnitude / 127"
    )
    feature_columns: tuple[str, ...] | None = Field(
        default=None, description="numeric columns that are the features, in place of the column features"
    )
    fanout: tuple[int, ...] = Field(
        default=(15, 10, 5),
        description="neighbours per node and relation in each hop, for which the hottest nodes come first",
    )
    order: Literal["hotness", "input"] = Field(
        default="hotness", description="dense ids: hottest first, or as the rows stand in the table"
    )


class IngestResources(BaseModel):
    """What an ingest may use; the store does not depend on it.

    The memory is that of the whole process: itself, the nodes' arrays and the workers' pieces.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", validate_by_name=True)

    memory_bytes: ByteSize = Field(
        default=DEFAULT_MEMORY_BYTES, alias="memory", ge=1, description="memory of the process tree"
    )
    num_workers: int = Field(
        default_factory=lambda: os.cpu_count() or 1, alias="workers", ge=1, description="by default the cores"
    )
    work_folder: str | None = Field(
        default=None,
        alias="work",
        description="local folder for temporary files, the same when an ingest is to be continued; by default inside "
        "a local store, or in the system's temporary folder",
    )


def check_settings(settings: IngestSettings) -> dict[Relation, str]:
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
    if settings.quantize and settings.feature_dtype not in (None, "int8"):
        raise BadInput(
            f"--feature-dtype {settings.feature_dtype}",
            "with --quantize",
            rule="quantised features are int8",
            remedy="leave out one of the two",
        )
    if settings.quantize and settings.features == "in-place":
        raise BadInput(
            "--features in-place",
            "with --quantize",
            rule="features that stay in the table are not rewritten",
            remedy="leave out one of the two",
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


def check_feature_columns(named: Sequence[str] | None) -> None:
    """BadInput for a feature column that is repeated, or has another meaning in a node table."""
    for name, count in Counter(named or ()).items():
        if name in NODE_COLUMNS:
            raise BadInput(
                "--feature-columns",
                name,
                rule=f"the columns {', '.join(NODE_COLUMNS)} have meanings of their own",
                remedy="leave the name out; without named columns, column features is used"
                if name == "features"
                else "leave the name out, or store its values under another name as well",
            )
        if count > 1:
            raise BadInput(
                "--feature-columns", f"{name} twice", rule="every column is named once", remedy="remove the repetition"
            )


def find_feature_columns_in(named: Sequence[str] | None, tables: dict[str, Table]) -> None:
    """BadInput when no node table has any of the named feature columns."""
    if named is not None and not any(set(named) & set(table.schema.names) for table in tables.values()):
        raise BadInput(
            f"feature columns {', '.join(named)}",
            f"in no table of {', '.join(tables)}",
            rule="a named feature column must be in a node table",
            remedy="correct the names, or leave them out to use the column features",
        )
