"""The graph left on disk: a store's relations, whose pointers, sources and degrees are read for many nodes at once.

The counterpart of `storage.graph.Topology` for graphs larger than memory. Ids run hottest first, so what is held in
memory is the first part of every file.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from storage.element_file import SCRATCH_BYTES, ElementFile, ElementPool
from storage.errors import BadInput
from storage.features import TierCounters
from storage.graph import INT32_MAX
from storage.merged_edges import merged_edges
from storage.npy import damaged
from storage.place import Place
from storage.read_pool import NUM_THREADS
from storage.row_runs import MAX_GAP_BYTES
from storage.schema import EdgeSegment, FileInfo, Relation, RelationInfo
from storage.store import Store


@dataclass(frozen=True)
class TopologyCounters:
    """What has been looked up so far, over all relations."""

    indptr: TierCounters = field(default_factory=TierCounters)
    indices: TierCounters = field(default_factory=TierCounters)
    out_degree: TierCounters = field(default_factory=TierCounters)
    weight: TierCounters = field(default_factory=TierCounters)


@dataclass(frozen=True)
class StoredRelation:
    """Edges of one relation by target, as `RelationCSC`, on disk. An edge's position is its place in the CSC."""

    relation: Relation
    source_type: int
    """index of the source type"""
    target_type: int
    """index of the target type"""
    num_edges: int
    indptr: ElementFile
    """of the targets there were when the edges were written; later ones have no edge"""
    indices: ElementFile
    out_degree: ElementFile
    """of the sources there were then"""
    weight: ElementFile | None
    timestamp: ElementFile | None

    @property
    def edge_dtype(self) -> np.dtype[Any]:
        """That holds a position as well as the source there."""
        fits = self.num_edges <= INT32_MAX and self.indices.dtype == np.int32
        return np.dtype(np.int32 if fits else np.int64)

    @property
    def files(self) -> tuple[ElementFile, ...]:
        """Its open files."""
        found = (self.indptr, self.out_degree, self.indices, self.weight, self.timestamp)
        return tuple(file for file in found if file is not None)

    def spans(self, targets: NDArray[Any], *, begin: NDArray[Any], degree: NDArray[np.int32]) -> None:
        """First edge and in-degree of `targets` [n]; `begin` of the dtype of indptr, or empty when not wanted."""
        self.indptr.spans(_known(targets, self.indptr.length - 1, begin, degree), begin, degree)

    def out_degrees(self, sources: NDArray[Any], *, degree: NDArray[np.int32]) -> None:
        """Out-degree of `sources` [n]."""
        at = _known(sources, self.out_degree.length, degree)
        if self.out_degree.dtype == np.int32:
            self.out_degree.gather(at, degree)
        else:
            wide = np.zeros(at.shape[0], dtype=np.int64)
            self.out_degree.gather(at, wide)
            degree[:] = wide


class StoredTopology:
    """The relations of an open store, to be read on demand; close it, or use it as a context manager.

    Args:
        store: the store.
        cache_bytes: memory for the first parts of the files: pointers first (every node that is expanded needs its
            own), then out-degrees, then sources and weights.
        scratch_bytes: memory of one look-up.
        num_threads: reads in flight; a MiB of memory each.
        max_gap_bytes, direct: see `ElementFile`.
        merge_folder: local folder for the merged edges of relations of several segments; see `merged_edges`.

    Raises BadInput for a relation of several segments when there is no such folder, DamagedStore as reading pages does.
    """

    def __init__(
        self,
        store: Store,
        *,
        cache_bytes: int,
        scratch_bytes: int = SCRATCH_BYTES,
        num_threads: int = NUM_THREADS,
        max_gap_bytes: int = MAX_GAP_BYTES,
        direct: bool = True,
        merge_folder: str | None = None,
    ) -> None:
        self.node_types = tuple(node_type.name for node_type in store.node_types)
        self.type_offsets = store.type_offsets
        self._store = store
        self._merge_folder = merge_folder
        self._pool = ElementPool(num_threads=num_threads)
        self._options: dict[str, Any] = {
            "pool": self._pool,
            "scratch_bytes": scratch_bytes,
            "max_gap_bytes": max_gap_bytes,
            "direct": direct,
        }
        with ExitStack() as stack:
            stack.callback(self._pool.close)
            self.relations = tuple(self._open_relation(info, stack) for info in store.relations)
            files = self._files_by_heat()
            sizes = share_cache([[file.num_bytes for file in group] for group in files], cache_bytes=cache_bytes)
            for group, shares in zip(files, sizes, strict=True):
                for file, share in zip(group, shares, strict=True):
                    file.cache(share)
            self._stack = stack.pop_all()

    def _open_relation(self, info: RelationInfo, stack: ExitStack) -> StoredRelation:
        if len(info.segments) == 1:
            return self._open_segment(self._store.place, info, info.segments[0], stack)
        if self._merge_folder is None:
            raise BadInput(
                f"relation {info.relation} of {self._store.place.url}",
                f"its edges are in {len(info.segments)} segments",
                rule="edges that are read from the disk lie in one, sorted",
                remedy="run `hopstream compact` on the store, or hold the topology in memory",
            )
        num_sources = self._store.num_nodes(info.relation.source)
        num_targets = self._store.num_nodes(info.relation.target)
        with merged_edges(
            self._store.place, info, num_sources=num_sources, num_targets=num_targets, folder=self._merge_folder
        ) as (place, segment):
            return self._open_segment(place, info, segment, stack)

    def _open_segment(self, place: Place, info: RelationInfo, segment: EdgeSegment, stack: ExitStack) -> StoredRelation:
        def open_file(file: FileInfo) -> ElementFile:
            opened = ElementFile(place, file, **self._options)
            stack.callback(opened.close)
            return opened

        found = StoredRelation(
            relation=info.relation,
            source_type=self._store.type_index(info.relation.source),
            target_type=self._store.type_index(info.relation.target),
            num_edges=info.num_edges,
            indptr=open_file(segment.indptr),
            indices=open_file(segment.indices),
            out_degree=open_file(segment.out_degree),
            weight=None if segment.weight is None else open_file(segment.weight),
            timestamp=None if segment.timestamp is None else open_file(segment.timestamp),
        )
        num_targets = self._store.num_nodes(info.relation.target)
        if not 1 <= found.indptr.length <= num_targets + 1 or found.indices.length != segment.num_edges:
            text = f"{found.indptr.length - 1} targets and {found.indices.length} edges"
            raise damaged(place, segment.indptr.name, text)
        return found

    def _files_by_heat(self) -> list[list[ElementFile]]:
        return [
            [relation.indptr for relation in self.relations],
            [relation.out_degree for relation in self.relations],
            [file for relation in self.relations for file in (relation.indices, relation.weight) if file is not None],
        ]

    @property
    def cached_bytes(self) -> int:
        """Memory of the cached parts."""
        return sum(file.num_cached * file.dtype.itemsize for relation in self.relations for file in relation.files)

    @property
    def counters(self) -> TopologyCounters:
        """What was looked up so far."""

        def total(name: str) -> TierCounters:
            found = (getattr(relation, name) for relation in self.relations)
            return sum((file.counters for file in found if file is not None), TierCounters())

        return TopologyCounters(total("indptr"), total("indices"), total("out_degree"), total("weight"))

    def close(self) -> None:
        """Close the files and end the threads; no look-up may follow."""
        self._stack.close()

    def __enter__(self) -> Self:
        """Open already."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()


def share_cache(groups: Sequence[Sequence[int]], *, cache_bytes: int) -> list[list[int]]:
    """Divide a budget over files of the given sizes: group after group, inside one in proportion to size."""
    shares = []
    for sizes in groups:
        total = sum(sizes)
        given = min(total, cache_bytes)
        shares.append([given * size // total if total else 0 for size in sizes])
        cache_bytes -= given
    return shares


def _known(nodes: NDArray[Any], num_known: int, *answers: NDArray[Any]) -> NDArray[Any]:
    """`nodes`, those added after the file was written as -1, which is not looked up; their answers are 0."""
    added = nodes >= num_known
    if not added.any():
        return nodes
    for answer in answers:
        answer[:] = 0
    return np.where(added, nodes.dtype.type(-1), nodes)
