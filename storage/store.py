"""Opening and reading a committed store: its graph, features and node columns, every page checked."""

import json
from collections.abc import Iterator
from typing import Any, Literal, NoReturn, Self

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray
from pydantic import ValidationError

from storage.arrays import read_array
from storage.block_cache import BlockCache
from storage.default_cache import open_block_cache
from storage.errors import BadInput
from storage.features import FeatureFile, SegmentedFeatures, StoredFeatures
from storage.graph import EdgeArrays, RelationCSC, Topology, merge_segments
from storage.in_place import ParquetFeatures
from storage.node_columns import deleted_ids, find_rows, read_column, stream_ids
from storage.npy import HEADER_BYTES, damaged
from storage.place import Place
from storage.row_runs import MAX_GAP_BYTES
from storage.schema import FORMAT_VERSION, MANIFEST_NAME, Generation, Manifest, NodeType, RelationInfo
from storage.segments import manifest_name

Column = Literal["id", "label", "split", "timestamp", "position"]


class Store:
    """One generation of a store, open for reading; use `Store.open`."""

    def __init__(self, place: Place, generation: Generation, *, generation_xxh64: str) -> None:
        self.place = place
        self.generation = generation
        self.generation_xxh64 = generation_xxh64  # tells this generation from that of another store in its place
        self.node_types: tuple[NodeType, ...] = generation.node_types
        self.relations: tuple[RelationInfo, ...] = generation.relations
        self._decoded: BlockCache | None = None
        counts = [node_type.num_nodes for node_type in self.node_types]
        self.type_offsets: NDArray[np.int64] = np.cumsum([0, *counts], dtype=np.int64)

    @classmethod
    def open(cls, url: str, *, generation: int | None = None, block_cache: BlockCache | None = None) -> Self:
        """Open the current generation of the store at `url`, or an earlier one.

        Files elsewhere are read through `block_cache` where one is given.

        Raises BadInput when there is no store, no such generation, or a format of another version;
        DamagedStore when the manifest or the generation has changed, or a file is missing or of another size.
        """
        place = Place(url, block_cache=block_cache)
        manifest = _read_manifest(place, generation)
        opened = cls(place, _read_generation(place, manifest), generation_xxh64=manifest.generation_xxh64)
        opened._check_files()
        return opened

    def _check_files(self) -> None:
        for info in self.generation.files():
            sums_bytes = HEADER_BYTES + 4 * info.num_pages
            for name, num_bytes in ((info.name, info.num_bytes), (info.sums_name, sums_bytes)):
                try:
                    found = self.place.size(name)
                except FileNotFoundError:
                    raise damaged(self.place, name, "missing file") from None
                if found != num_bytes:
                    raise damaged(self.place, name, f"{found} bytes where {num_bytes} were written")

    def type_index(self, name: str) -> int:
        """Index of a node type; BadInput lists the types there are."""
        names = [node_type.name for node_type in self.node_types]
        if name not in names:
            raise BadInput(
                f"node type {name!r}",
                "unknown",
                rule=f"node types of this store: {', '.join(names)}",
                remedy="choose one of them",
            )
        return names.index(name)

    def node_type(self, name: str) -> NodeType:
        """What the store says about a node type; BadInput when there is none of that name."""
        return self.node_types[self.type_index(name)]

    def num_nodes(self, node_type: str) -> int:
        """Nodes of a type, deleted ones included."""
        return self.node_type(node_type).num_nodes

    def topology(self) -> Topology:
        """The whole graph, read into memory; segments of a relation are merged.

        Memory: the size of the edge files, twice that while a relation has several segments.
        """
        return Topology(
            node_types=tuple(node_type.name for node_type in self.node_types),
            type_offsets=self.type_offsets,
            relations=tuple(self._read_relation(info) for info in self.relations),
        )

    def _read_relation(self, info: RelationInfo) -> RelationCSC:
        num_sources = self.num_nodes(info.relation.source)
        num_targets = self.num_nodes(info.relation.target)
        segments = []
        for segment in info.segments:
            arrays = EdgeArrays(
                indptr=read_array(self.place, segment.indptr),
                indices=read_array(self.place, segment.indices),
                out_degree=read_array(self.place, segment.out_degree),
                weight=None if segment.weight is None else read_array(self.place, segment.weight),
                timestamp=None if segment.timestamp is None else read_array(self.place, segment.timestamp),
            )
            num_known = arrays.indptr.shape[0] - 1
            if num_known > num_targets or arrays.indices.shape[0] != segment.num_edges:
                found = f"{num_known} targets and {arrays.indices.shape[0]} edges"
                raise damaged(self.place, segment.indptr.name, found)
            segments.append(arrays.spanning(num_targets=num_targets, num_sources=num_sources))
        merged = merge_segments(segments)
        return RelationCSC(
            relation=info.relation,
            source_type=self.type_index(info.relation.source),
            target_type=self.type_index(info.relation.target),
            indptr=merged.indptr,
            indices=merged.indices,
            out_degree=merged.out_degree,
            weight=merged.weight,
            timestamp=merged.timestamp,
        )

    def features(self, node_type: str, *, max_gap_bytes: int = MAX_GAP_BYTES) -> StoredFeatures | None:
        """A new reader of the type's feature rows, which the caller closes; None when it has no features.

        Args:
            max_gap_bytes: gaps between rows that are read through rather than skipped.
        """
        found = self.node_type(node_type)
        if found.feature_dim is None or found.feature_dtype is None:
            return None
        parts: list[StoredFeatures] = []
        for segment in found.segments:
            if segment.in_place is not None:
                parts.append(
                    ParquetFeatures(
                        self.place,
                        segment.in_place,
                        num_rows=segment.num_nodes,
                        scale=found.feature_scale,
                        cache=self._decoded_cache(),
                    )
                )
                continue
            assert segment.features is not None, "the schema holds this"
            parts.append(
                FeatureFile(
                    self.place,
                    segment.features,
                    num_rows=segment.num_nodes,
                    dim=found.feature_dim,
                    dtype=found.feature_dtype,
                    max_gap_bytes=max_gap_bytes,
                )
            )
        return parts[0] if len(parts) == 1 else SegmentedFeatures(parts)

    def _decoded_cache(self) -> BlockCache:
        """Where features in place are decoded to: the cache given, or this machine's."""
        self._decoded = self.place.block_cache or self._decoded or open_block_cache()
        assert self._decoded is not None, "its limit is not 0"
        return self._decoded

    def node_column(self, node_type: str, column: Column) -> pa.ChunkedArray:
        """A column of the user's node table in dense order: id, label (int64, -1 unknown), split, timestamp
        (int64) or position (int64, row in the input). BadInput when the type has no such column.
        """
        found = self.node_type(node_type)
        columns = ["id", "position", *(name for name, has in found.columns.items() if has)]
        if column not in columns:
            raise BadInput(
                f"node type {node_type}, column {column!r}",
                "not in the store",
                rule=f"its columns: {', '.join(columns)}",
                remedy="choose one of them, or ingest a table that has it",
            )
        return read_column(self.place, found, column=column)

    def deleted(self, node_type: str) -> NDArray[np.int64]:
        """Dense ids of the deleted nodes of a type, ascending; their rows are there until `compact`, without edges."""
        return deleted_ids(self.place, self.node_type(node_type))

    def is_live(self, node_type: str) -> NDArray[np.bool_]:
        """Which nodes of a type are not deleted, [num_nodes]."""
        live = np.ones(self.num_nodes(node_type), dtype=np.bool_)
        live[self.deleted(node_type)] = False
        return live

    def live_ids(self, node_type: str) -> NDArray[np.int64]:
        """Dense ids of the nodes of a type that are not deleted, ascending."""
        return np.flatnonzero(self.is_live(node_type))

    @property
    def has_deleted(self) -> bool:
        """Whether any node is deleted."""
        return any(kind.num_deleted for kind in self.node_types)

    def rows_of(self, node_type: str, ids: pa.Array | pa.ChunkedArray) -> NDArray[np.int64]:
        """Dense rows [n] of the user's ids [n]; BadInput names the first unknown id and their number."""
        return find_rows(self.place, self.node_type(node_type), ids)

    def id_batches(self, node_type: str, *, rows_per_batch: int) -> Iterator[pa.Array]:
        """The user's ids of the nodes that are not deleted, in dense order, at most `rows_per_batch` at a time."""
        return stream_ids(self.place, self.node_type(node_type), rows_per_batch=rows_per_batch)


def _read_manifest(place: Place, generation: int | None) -> Manifest:
    name = MANIFEST_NAME if generation is None else manifest_name(generation)
    try:
        data = place.read_bytes(name)
    except (FileNotFoundError, NotADirectoryError):
        _refuse_missing(place, generation)
    try:
        raw: Any = json.loads(data)
        if isinstance(raw, dict) and isinstance(raw.get("format_version"), int):
            _check_version(place, name, raw["format_version"])
        return Manifest.model_validate_json(data)
    except (UnicodeDecodeError, json.JSONDecodeError, ValidationError) as error:
        reason = str(error).splitlines()[0]
        raise damaged(place, name, f"not a manifest ({reason})") from error


def _refuse_missing(place: Place, generation: int | None) -> NoReturn:
    if generation is not None and place.exists(MANIFEST_NAME):
        suffix = ".manifest.json"
        stems = [name.removesuffix(suffix) for name in place.names("generations") if name.endswith(suffix)]
        known = sorted(int(stem) for stem in stems if stem.isdigit())
        raise BadInput(
            place.url,
            f"no generation {generation}",
            rule=f"generations of this store: {', '.join(map(str, known))}",
            remedy="choose one of them",
        )
    place.names()  # refuses a bucket that does not exist
    raise BadInput(
        place.url,
        f"no {MANIFEST_NAME}",
        rule=f"a store is a folder with {MANIFEST_NAME}, which is written last",
        remedy="give the folder that `hopstream ingest --out` wrote; run ingest again if it was interrupted",
    )


def _check_version(place: Place, name: str, version: int) -> None:
    if version != FORMAT_VERSION:
        raise BadInput(
            place.full(name),
            f"format version {version}",
            rule=f"this program reads format version {FORMAT_VERSION}",
            remedy="ingest the tables again, or use the program that wrote the store",
        )


def _read_generation(place: Place, manifest: Manifest) -> Generation:
    name = manifest.generation_file
    try:
        data = place.read_bytes(name)
    except FileNotFoundError:
        raise damaged(place, name, "missing file") from None
    if xxhash.xxh64_hexdigest(data) != manifest.generation_xxh64:
        raise damaged(place, name, "it has changed")
    try:
        generation = Generation.model_validate_json(data)
    except ValidationError as error:
        reason = " ".join(str(error).splitlines()[:3])
        raise damaged(place, name, f"not a generation ({reason})") from error
    if generation.generation != manifest.generation:
        raise damaged(place, name, f"generation {generation.generation}, not {manifest.generation}")
    return generation
