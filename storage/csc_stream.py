"""Edges of a stored relation, target by target, without holding them: all segments in step, every page checked."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.npy import damaged
from storage.place import Place
from storage.schema import EdgeSegment, RelationInfo
from storage.streams import ArrayStream

BLOCK_TARGETS = 1 << 16
PART_EDGES = 1 << 20


@dataclass(frozen=True)
class EdgePart:
    """Consecutive edges of one segment inside a block of n targets."""

    pointers: NDArray[np.int64]
    """[m + 1], m <= n: target i of the block has edges [pointers[i], pointers[i + 1]) of the segment"""
    first_edge: int
    """number of the part's first edge in the segment"""
    sources: NDArray[Any]
    """int32 or int64: dense source ids"""


@dataclass(frozen=True)
class TargetBlock:
    """Consecutive targets and how to read their edges."""

    first: int
    """dense id of target 0 of the block"""
    degree: NDArray[np.int64]
    """[n]: in-degree over all segments"""
    parts: Iterator[EdgePart]
    """the edges, segment by segment; to be read before the next block, or not at all for any block"""


def target_blocks(place: Place, info: RelationInfo, *, num_targets: int) -> Iterator[TargetBlock]:
    """All targets of the relation in order. Memory: about 20 MiB, the page sums, 8 bytes a target of a block.

    Raises DamagedStore for a changed page, or for pointers that do not fit the edges.
    """
    with ExitStack() as stack:
        segments = [_Segment(place, segment, stack) for segment in info.segments]
        for first in range(0, num_targets, BLOCK_TARGETS):
            count = min(BLOCK_TARGETS, num_targets - first)
            degree = np.zeros(count, dtype=np.int64)
            pointers = []
            for segment in segments:
                found = segment.next_pointers(count)
                degree[: found.shape[0] - 1] += np.diff(found)
                pointers.append(found)
            yield TargetBlock(first=first, degree=degree, parts=_parts(segments, pointers))


class _Segment:
    """The streams of one edge segment."""

    def __init__(self, place: Place, segment: EdgeSegment, stack: ExitStack) -> None:
        self._place = place
        self._segment = segment
        self._pointers = stack.enter_context(ArrayStream(place, segment.indptr))
        self._last = self._pointers.take(1).astype(np.int64)
        self.sources = stack.enter_context(ArrayStream(place, segment.indices))

    def next_pointers(self, count: int) -> NDArray[np.int64]:
        """Pointers of the next `count` targets, fewer when the segment was written before they existed."""
        found = np.concatenate([self._last, self._pointers.take(count).astype(np.int64)])
        if (np.diff(found) < 0).any() or found[0] < 0 or found[-1] > self._segment.num_edges:
            raise damaged(self._place, self._segment.indptr.name, "pointers that do not fit the edges")
        self._last = found[-1:]
        return found


def _parts(segments: list[_Segment], pointers: list[NDArray[np.int64]]) -> Iterator[EdgePart]:
    for segment, found in zip(segments, pointers, strict=True):
        edge, end = int(found[0]), int(found[-1])
        while edge < end:
            sources = segment.sources.take(min(PART_EDGES, end - edge))
            assert sources.size, "the pointers were checked"
            yield EdgePart(pointers=found, first_edge=edge, sources=sources)
            edge += sources.shape[0]
