"""The edge segments of a relation as one segment, written to local disk for as long as it is open.

An appended store keeps new edges in segments of their own. Held in memory they are merged; read from the disk they
have to lie merged there. This writes them so, part by part of the targets, in the order that `merge_segments` gives
them. The folder is removed as soon as its files are open, and a killed process's folder by the next one.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.arrays import ArrayWriter
from storage.block_files import NO_ROOM, open_held, remove_abandoned
from storage.errors import BadInput
from storage.graph import INT32_MAX, EdgeArrays, merge_segments
from storage.npy import damaged
from storage.place import Place
from storage.schema import EdgeSegment, RelationInfo
from storage.streams import ArrayStream

PART_TARGETS = 1 << 16
PART_EDGES = 1 << 18
"""edges merged at a time, unless one target has more"""
_PREFIX = "merged-edges-"
_HELD = "held"


@contextmanager
def merged_edges(
    place: Place, info: RelationInfo, *, num_sources: int, num_targets: int, folder: str
) -> Iterator[tuple[Place, EdgeSegment]]:
    """Where the merged edges of `info` are, while the block runs; files opened in it stay readable.

    Memory: some MiB, and 60 bytes an edge of the target with most. Disk: that of the segments. Raises BadInput when
    `folder` has no room, DamagedStore for a changed page or pointers that do not fit the edges.
    """
    os.makedirs(folder, exist_ok=True)
    _remove_abandoned(folder)
    own = tempfile.mkdtemp(prefix=_PREFIX, dir=folder)
    try:
        with open_held(os.path.join(own, _HELD)):
            try:
                merged = _write(place, info, Place(own), num_sources=num_sources, num_targets=num_targets)
            except OSError as error:
                if error.errno not in NO_ROOM:
                    raise
                raise BadInput(
                    f"folder {folder}",
                    f"no room for the merged edges of relation {info.relation}",
                    rule="edges of several segments are merged there while they are read from the disk",
                    remedy="make room, name another folder, or run `hopstream compact` on the store",
                ) from error
            yield Place(own), merged
    finally:
        shutil.rmtree(own)


def _remove_abandoned(folder: str) -> None:
    for name in os.listdir(folder):
        held = os.path.join(folder, name, _HELD)
        if name.startswith(_PREFIX) and os.path.exists(held) and remove_abandoned(held):
            shutil.rmtree(os.path.join(folder, name), ignore_errors=True)


def _write(place: Place, info: RelationInfo, out: Place, *, num_sources: int, num_targets: int) -> EdgeSegment:
    counts = np.int32 if info.num_edges <= INT32_MAX else np.int64
    with ExitStack() as stack:
        segments = [_Segment(place, segment, stack) for segment in info.segments]
        ids = np.int32 if all(segment.indices.dtype == np.int32 for segment in segments) else np.int64

        def writer(name: str, dtype: Any, length: int) -> ArrayWriter:
            return stack.enter_context(ArrayWriter(out, f"{name}.npy", dtype=dtype, shape=(length,)))

        indptr = writer("indptr", counts, num_targets + 1)
        indices = writer("indices", ids, info.num_edges)
        out_degree = writer("out_degree", counts, num_sources)
        weight = writer("weight", np.float32, info.num_edges) if info.has_weight else None
        timestamp = writer("timestamp", np.int64, info.num_edges) if info.has_timestamp else None
        indptr.write(np.zeros(1, dtype=counts))
        done = 0
        for part in _parts(segments, num_targets):
            merged = merge_segments(part)
            indptr.write((merged.indptr[1:].astype(np.int64) + done).astype(counts))
            indices.write(merged.indices.astype(ids, copy=False))
            if weight is not None and merged.weight is not None:
                weight.write(merged.weight)
            if timestamp is not None and merged.timestamp is not None:
                timestamp.write(merged.timestamp)
            done += merged.indices.shape[0]
        for first in range(0, num_sources, PART_EDGES):
            count = min(PART_EDGES, num_sources - first)
            out_degree.write(_sum([segment.out_degree.take(count) for segment in segments], count).astype(counts))
    return EdgeSegment(
        segment=0,
        num_edges=info.num_edges,
        indptr=indptr.info,
        indices=indices.info,
        out_degree=out_degree.info,
        weight=None if weight is None else weight.info,
        timestamp=None if timestamp is None else timestamp.info,
    )


def _parts(segments: Sequence["_Segment"], num_targets: int) -> Iterator[list[EdgeArrays]]:
    """The edges of consecutive targets, of every segment, few enough to be merged in memory."""
    for first in range(0, num_targets, PART_TARGETS):
        pointers = [segment.pointers(min(PART_TARGETS, num_targets - first)) for segment in segments]
        ends = np.sum(pointers, axis=0)
        begin = 0
        while begin < ends.shape[0] - 1:
            stop = int(np.searchsorted(ends, ends[begin] + PART_EDGES, side="right")) - 1
            stop = max(stop, begin + 1)
            yield [segment.edges(found[begin : stop + 1]) for segment, found in zip(segments, pointers, strict=True)]
            begin = stop


class _Segment:
    """The streams of one segment, read in step with those of the others."""

    def __init__(self, place: Place, segment: EdgeSegment, stack: ExitStack) -> None:
        def stream(name: str) -> ArrayStream | None:
            file = getattr(segment, name)
            return None if file is None else stack.enter_context(ArrayStream(place, file))

        self._place = place
        self._segment = segment
        self._pointers = stack.enter_context(ArrayStream(place, segment.indptr))
        self._last = self._pointers.take(1).astype(np.int64)
        self.indices = stack.enter_context(ArrayStream(place, segment.indices))
        self.out_degree = stack.enter_context(ArrayStream(place, segment.out_degree))
        self._weight, self._timestamp = stream("weight"), stream("timestamp")

    def pointers(self, count: int) -> NDArray[np.int64]:
        """[count + 1] of the next targets; those added after the segment was written have no edges in it."""
        found = np.concatenate([self._last, self._pointers.take(count).astype(np.int64)])
        if (np.diff(found) < 0).any() or found[0] < 0 or found[-1] > self._segment.num_edges:
            raise damaged(self._place, self._segment.indptr.name, "pointers that do not fit the edges")
        self._last = found[-1:]
        return np.pad(found, (0, count + 1 - found.shape[0]), mode="edge")

    def edges(self, pointers: NDArray[np.int64]) -> EdgeArrays:
        """The next edges: those of consecutive targets."""
        count = int(pointers[-1] - pointers[0])
        return EdgeArrays(
            indptr=pointers - pointers[0],
            indices=self.indices.take(count),
            out_degree=np.empty(0, dtype=np.int64),
            weight=None if self._weight is None else self._weight.take(count),
            timestamp=None if self._timestamp is None else self._timestamp.take(count),
        )


def _sum(arrays: Sequence[NDArray[Any]], length: int) -> NDArray[np.int64]:
    """Element by element; shorter ones end in zeros."""
    total = np.zeros(length, dtype=np.int64)
    for array in arrays:
        total[: array.shape[0]] += array
    return total
