from typing import NamedTuple

import numpy as np
import pytest

from storage.graph import EdgeArrays, merge_segments

RNG = np.random.default_rng(17)
NUM_TARGETS, NUM_SOURCES = 60, 25


class Edge(NamedTuple):
    """Sorts into the order of a merged CSC."""

    target: int
    time: int
    source: int
    segment: int
    position: int


def random_edges(segment: int, num_edges: int, *, timed: bool) -> list[Edge]:
    return sorted(
        Edge(
            target=int(RNG.integers(NUM_TARGETS)),
            time=int(RNG.integers(-3, 3)) if timed else 0,
            source=int(RNG.integers(NUM_SOURCES)),
            segment=segment,
            position=position,
        )
        for position in range(num_edges)
    )


def arrays_of(edges: list[Edge], *, timed: bool, index_dtype: type = np.int32) -> EdgeArrays:
    in_degree = np.bincount([edge.target for edge in edges], minlength=NUM_TARGETS)
    out_degree = np.bincount([edge.source for edge in edges], minlength=NUM_SOURCES)
    return EdgeArrays(
        indptr=np.cumsum([0, *in_degree], dtype=np.int32),
        indices=np.array([edge.source for edge in edges], dtype=index_dtype),
        out_degree=out_degree.astype(np.int32),
        weight=np.array([edge.segment * 1000 + edge.position for edge in edges], dtype=np.float32),
        timestamp=np.array([edge.time for edge in edges], dtype=np.int64) if timed else None,
    )


@pytest.mark.parametrize("timed", [True, False])
@pytest.mark.parametrize("sizes", [(500, 300), (0, 200), (200, 0), (100, 400, 7, 90)])
def test_merged_segments_are_ordered_by_time_source_segment_and_position(timed: bool, sizes: tuple[int, ...]) -> None:
    edges = [random_edges(segment, size, timed=timed) for segment, size in enumerate(sizes)]
    merged = merge_segments([arrays_of(part, timed=timed) for part in edges])
    expected = arrays_of(sorted(edge for part in edges for edge in part), timed=timed)
    for name in ("indptr", "indices", "out_degree", "weight", "timestamp"):
        found, wanted = getattr(merged, name), getattr(expected, name)
        assert (found is None) == (wanted is None)
        if found is not None:
            assert found.dtype == wanted.dtype
            np.testing.assert_array_equal(found, wanted)


def test_ids_that_need_64_bits_keep_them() -> None:
    edges = [random_edges(segment, 50, timed=False) for segment in (0, 1)]
    merged = merge_segments(
        [
            arrays_of(edges[0], timed=False),
            arrays_of(edges[1], timed=False, index_dtype=np.int64),
        ]
    )
    assert merged.indices.dtype == np.int64


def test_a_segment_spans_nodes_that_came_after_it_without_edges() -> None:
    before = arrays_of(random_edges(0, 100, timed=False), timed=False)
    after = before.spanning(num_targets=NUM_TARGETS + 5, num_sources=NUM_SOURCES + 2)
    assert after.indptr.tolist() == [*before.indptr.tolist(), 100, 100, 100, 100, 100]
    assert after.out_degree.tolist() == [*before.out_degree.tolist(), 0, 0]
    assert before.spanning(num_targets=NUM_TARGETS, num_sources=NUM_SOURCES) is before
