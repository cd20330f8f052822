"""What a store says about itself: the models behind `manifest.json` and `generations/<g>.json` (format 1).

`manifest.json` names the current generation and its checksum. A generation names every file of the store with
its size and the checksum of its page sums, so that one hash in the manifest vouches for every stored byte.
Counts and ids: a node's id is dense inside its type, segments of a type follow each other, an edge segment
spans all targets of its relation.
"""

import re
from typing import Any, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from storage.errors import BadInput

FORMAT_VERSION = 1
MANIFEST_NAME = "manifest.json"

IdType = Literal["int64", "string"]
Dtype = Literal["float32", "float16", "uint8", "int8"]

DEFAULT_NODE_TYPE = "node"
"""what the one node type is called where nothing names it"""

_NAME = re.compile(r"_?[A-Za-z0-9][A-Za-z0-9.-]*(_[A-Za-z0-9.-]+)*")
_XXH64 = r"^[0-9a-f]{16}$"


def check_name(name: str, *, place: str) -> str:
    """Return `name` when it can name a node type, an edge type and a folder; BadInput otherwise."""
    if not _NAME.fullmatch(name):
        raise BadInput(
            place,
            f"name {name!r}",
            rule="names are letters, digits, '.', '-' and single '_', begin with a letter, digit or '_' and "
            "do not end with '_'",
            remedy="rename it",
        )
    return name


class Relation(NamedTuple):
    """An edge type: edges run from nodes of type `source` to nodes of type `target`."""

    source: str
    name: str
    target: str

    def __str__(self) -> str:
        """`source:name:target`, as `parse` reads it."""
        return f"{self.source}:{self.name}:{self.target}"

    @property
    def folder(self) -> str:
        """Its folder under `edges/`; distinct for distinct relations because names hold no double '_'."""
        return f"{self.source}__{self.name}__{self.target}"

    @classmethod
    def parse(cls, text: str) -> "Relation":
        """Read `source:name:target`; BadInput for another shape or a name that cannot be a folder."""
        parts = text.split(":")
        if len(parts) != 3:
            raise BadInput(
                f"relation {text!r}",
                f"{len(parts)} part{'s' * (len(parts) != 1)}",
                rule="a relation is written source:name:target",
                remedy="write for example paper:cites:paper",
            )
        return cls(*parts).checked()

    def checked(self) -> "Relation":
        """Return itself when all three names are fit; BadInput otherwise."""
        for name in self:
            check_name(name, place=f"relation {str(self)!r}")
        return self


DEFAULT_RELATION = Relation(DEFAULT_NODE_TYPE, "to", DEFAULT_NODE_TYPE)
"""what the one relation is called where nothing names it"""


class StoredModel(BaseModel):
    """Common ground: frozen, and unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class FileInfo(StoredModel):
    """One stored file and what proves that its bytes are the ones written."""

    name: str = Field(min_length=1, description="path relative to the store")
    num_bytes: int = Field(ge=0, description="size of the file")
    num_pages: int = Field(ge=0, description="4096-byte pages, the last one may be partial")
    sums_xxh64: str = Field(pattern=_XXH64, description="hex XXH64 of the page sums (little-endian uint32)")

    @property
    def sums_name(self) -> str:
        """Where its page sums are: `<stem>.sums.npy` beside it."""
        return self.name.rpartition(".")[0] + ".sums.npy"

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.num_pages != -(-self.num_bytes // 4096):
            raise ValueError(f"{self.name}: {self.num_pages} pages cannot hold {self.num_bytes} bytes")
        if self.name.startswith("/") or ".." in self.name.split("/") or "." not in self.name:
            raise ValueError(f"{self.name}: a file name is a path inside the store with an extension")
        return self


class SourceFile(StoredModel):
    """A Parquet file of the user's that features stay in, and what tells it from a changed one."""

    url: str = Field(min_length=1, description="URL or absolute path")
    num_bytes: int = Field(ge=0, description="size of the file")
    group_rows: tuple[int, ...] = Field(min_length=1, description="rows of each row group")
    fingerprint: str = Field(description="etag, or time of last change, as the file system gives it")
    footer_xxh64: str = Field(pattern=_XXH64, description="hex XXH64 of the Parquet footer with its length and mark")

    @property
    def num_rows(self) -> int:
        """Rows of the file."""
        return sum(self.group_rows)


class InPlaceFeatures(StoredModel):
    """Features of a node segment that stay in the user's table."""

    files: tuple[SourceFile, ...] = Field(min_length=1, description="of the table; rows follow each other")
    columns: tuple[str, ...] = Field(min_length=1, description="the list column, or named numeric columns")
    is_list: bool = Field(description="whether it is a list column")
    converts: bool = Field(description="another dtype than the table's was asked for")
    dim: int = Field(ge=1, description="columns of a feature row")
    dtype: Dtype = Field(description="element type of a feature row, as it is served")
    nan: Literal["refuse", "zero"] = Field(description="what becomes of values that are not finite")
    positions: FileInfo = Field(description="[num_nodes] int64: row of the table of each dense id of the segment")


class NodeSegment(StoredModel):
    """Consecutive nodes of one type, written together; ids run hottest first inside it."""

    segment: int = Field(ge=0, description="number of the segment inside its type")
    first_id: int = Field(ge=0, description="dense id of its first node")
    num_nodes: int = Field(ge=0, description="nodes in this segment")
    ids: FileInfo = Field(description="Parquet: id, position and, where the type has them, label, split, timestamp")
    lookup: FileInfo = Field(description="structured array (hash, row) sorted by both")
    features: FileInfo | None = Field(description="[num_nodes, feature_dim]; null without features or in place")
    in_place: InPlaceFeatures | None = Field(default=None, description="features that stay in the user's table")


class NodeType(StoredModel):
    """A node table."""

    name: str = Field(description="node type")
    num_nodes: int = Field(ge=0, description="nodes over all segments")
    id_type: IdType = Field(description="type of the user's ids")
    feature_dim: int | None = Field(ge=1, description="columns of a feature row; null without features")
    feature_dtype: Dtype | None = Field(description="element type of features; null without features")
    feature_scale: tuple[float, ...] | None = Field(
        default=None, description="[feature_dim] what a step of quantised int8 features is worth; null as they are"
    )
    has_label: bool = Field(description="ids files carry `label` (int64, -1 unknown)")
    has_split: bool = Field(description="ids files carry `split` (train, val, test, none)")
    has_timestamp: bool = Field(description="ids files carry `timestamp` (int64)")
    segments: tuple[NodeSegment, ...] = Field(min_length=1, description="in order of first_id")
    num_deleted: int = Field(default=0, ge=0, description="of num_nodes; they keep their ids until `compact`")
    deleted: FileInfo | None = Field(
        default=None, description="[num_deleted] int64 ascending dense ids of deleted nodes; null when there are none"
    )

    @property
    def columns(self) -> dict[str, bool]:
        """Which of the columns that a node table may have its ids files carry."""
        return {"label": self.has_label, "split": self.has_split, "timestamp": self.has_timestamp}

    @property
    def next_segment(self) -> int:
        """Number of the next segment to be written."""
        return 1 + max(segment.segment for segment in self.segments)

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_name(self.name, place="node type")
        if (self.feature_dim is None) != (self.feature_dtype is None):
            raise ValueError(f"node type {self.name}: feature_dim and feature_dtype are given together or not")
        if self.feature_scale is not None and len(self.feature_scale) != self.feature_dim:
            raise ValueError(f"node type {self.name}: {len(self.feature_scale)} scales of {self.feature_dim} columns")
        if (self.deleted is None) != (self.num_deleted == 0) or self.num_deleted > self.num_nodes:
            raise ValueError(f"node type {self.name}: {self.num_deleted} deleted nodes of {self.num_nodes}")
        next_id = 0
        for segment in self.segments:
            if segment.first_id != next_id:
                raise ValueError(f"node type {self.name}: segment {segment.segment} does not begin at {next_id}")
            if (segment.features is None and segment.in_place is None) != (self.feature_dim is None):
                raise ValueError(f"node type {self.name}: segments with and without features")
            if segment.in_place is not None:
                shape = (segment.in_place.dim, segment.in_place.dtype)
                if segment.features is not None or shape != (self.feature_dim, self.feature_dtype):
                    raise ValueError(
                        f"node type {self.name}: segment {segment.segment} has its features twice, or others"
                    )
            next_id += segment.num_nodes
        if next_id != self.num_nodes:
            raise ValueError(f"node type {self.name}: segments hold {next_id} of {self.num_nodes} nodes")
        return self

    @property
    def num_live(self) -> int:
        """Nodes that are not deleted."""
        return self.num_nodes - self.num_deleted


class EdgeSegment(StoredModel):
    """Edges of one relation written together: a CSC over all targets, in-neighbours sorted in each."""

    segment: int = Field(ge=0, description="number of the segment inside its relation")
    num_edges: int = Field(ge=0, description="edges in this segment")
    indptr: FileInfo = Field(description="[num_targets + 1] int32 or int64")
    indices: FileInfo = Field(description="[num_edges] int32 or int64 dense source ids")
    out_degree: FileInfo = Field(description="[num_sources] int32 or int64, of this segment's edges")
    weight: FileInfo | None = Field(description="[num_edges] float32; null when unweighted")
    timestamp: FileInfo | None = Field(description="[num_edges] int64; null without times")


class RelationInfo(StoredModel):
    """An edge table."""

    relation: Relation = Field(description="[source, name, target]")
    reverse_of: Relation | None = Field(
        description="the relation whose edges these are, turned round; itself if symmetric"
    )
    num_edges: int = Field(ge=0, description="edges over all segments")
    has_weight: bool = Field(description="every segment has weights")
    has_timestamp: bool = Field(description="every segment has times")
    segments: tuple[EdgeSegment, ...] = Field(min_length=1, description="in order of writing")

    @property
    def next_segment(self) -> int:
        """Number of the next segment to be written."""
        return 1 + max(segment.segment for segment in self.segments)

    @model_validator(mode="after")
    def _check(self) -> Self:
        self.relation.checked()
        for segment in self.segments:
            if (segment.weight is not None, segment.timestamp is not None) != (
                self.has_weight,
                self.has_timestamp,
            ):
                raise ValueError(f"relation {self.relation}: segment {segment.segment} has other columns")
        total = sum(segment.num_edges for segment in self.segments)
        if total != self.num_edges:
            raise ValueError(f"relation {self.relation}: segments hold {total} of {self.num_edges} edges")
        return self


class Generation(StoredModel):
    """One immutable state of a store; append and compact write new ones."""

    format_version: Literal[1] = Field(description="format of everything below")
    generation: int = Field(ge=0, description="number of this generation")
    node_types: tuple[NodeType, ...] = Field(description="their order fixes type indices and global ids")
    relations: tuple[RelationInfo, ...] = Field(description="their order fixes relation indices")
    settings: dict[str, Any] = Field(description="ingest settings as given")
    report: dict[str, Any] = Field(description="what ingest counted: duplicates, self-loops, dropped, zeroed, ...")

    @model_validator(mode="after")
    def _check(self) -> Self:
        names = [node_type.name for node_type in self.node_types]
        relations = [info.relation for info in self.relations]
        if len(set(names)) < len(names) or len(set(relations)) < len(relations):
            raise ValueError("node types and relations are distinct")
        for info in self.relations:
            if not {info.relation.source, info.relation.target} <= set(names):
                raise ValueError(f"relation {info.relation}: its node types are not in this generation")
            if info.reverse_of is not None and info.reverse_of not in relations:
                raise ValueError(f"relation {info.relation}: reverse_of {info.reverse_of} is not in this generation")
        return self

    def files(self) -> tuple[FileInfo, ...]:
        """Every file of this generation; page sums are implied by `FileInfo.sums_name`."""
        found: list[FileInfo | None] = []
        for node_type in self.node_types:
            found.append(node_type.deleted)
            for nodes in node_type.segments:
                found += [nodes.ids, nodes.lookup, nodes.features]
                found += [] if nodes.in_place is None else [nodes.in_place.positions]
        for relation in self.relations:
            for edges in relation.segments:
                found += [edges.indptr, edges.indices, edges.out_degree, edges.weight, edges.timestamp]
        return tuple(info for info in found if info is not None)


class Manifest(StoredModel):
    """`manifest.json`: which generation is current; replaced last and atomically."""

    format_version: int = Field(description="1")
    generation: int = Field(ge=0, description="number of the current generation")
    generation_file: str = Field(description="its file, relative to the store")
    generation_xxh64: str = Field(pattern=_XXH64, description="hex XXH64 of that file's bytes")
