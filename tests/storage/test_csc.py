"""CSC against a plain sort of tuples."""

import numpy as np
import pytest

from storage.csc import build_csc, count_parallel
from storage.edges import Edges, both_ways, symmetric
from storage.schema import Relation


def random_relation(*, weights: bool, times: bool, num_sources: int = 12, num_targets: int = 9) -> Edges:
    rng = np.random.default_rng(7)
    e = 160
    return Edges(
        relation=Relation("a", "r", "b" if num_sources != num_targets else "a"),
        source=rng.integers(0, num_sources, e).astype(np.int32),
        target=rng.integers(0, num_targets, e).astype(np.int32),
        weight=rng.random(e).astype(np.float32) if weights else None,
        timestamp=rng.integers(-3, 3, e) if times else None,
    )


@pytest.mark.parametrize("times", [False, True])
@pytest.mark.parametrize("weights", [False, True])
def test_every_array_equals_a_sort_of_tuples(weights: bool, times: bool) -> None:
    edges = random_relation(weights=weights, times=times)
    rng = np.random.default_rng(8)
    source_rank, target_rank = rng.permutation(12), rng.permutation(9)
    csc = build_csc(edges, source_rank=source_rank, target_rank=target_rank)
    rows = sorted(
        (
            int(target_rank[edges.target[i]]),
            0 if edges.timestamp is None else int(edges.timestamp[i]),
            int(source_rank[edges.source[i]]),
            i,
        )
        for i in range(len(edges))
    )
    order = [row[3] for row in rows]
    assert list(csc.indices) == [row[2] for row in rows]
    assert list(csc.indptr) == [sum(row[0] < v for row in rows) for v in range(10)]
    assert list(csc.out_degree) == [sum(row[2] == u for row in rows) for u in range(12)]
    assert csc.indptr.dtype == csc.indices.dtype == csc.out_degree.dtype == np.int32
    if edges.weight is not None:
        assert csc.weight is not None
        assert list(csc.weight) == [edges.weight[i] for i in order]
    if edges.timestamp is not None:
        assert csc.timestamp is not None
        assert list(csc.timestamp) == [edges.timestamp[i] for i in order]
    assert (csc.weight is None, csc.timestamp is None) == (not weights, not times)


def test_parallel_edges_are_counted_across_times() -> None:
    edges = random_relation(weights=False, times=True)
    csc = build_csc(edges, source_rank=np.arange(12), target_rank=np.arange(9))
    pairs = set(zip(edges.source.tolist(), edges.target.tolist(), strict=True))
    assert count_parallel(csc) == len(edges) - len(pairs)


def test_a_symmetric_relation_holds_each_edge_and_its_reverse_at_one_position() -> None:
    edges = random_relation(weights=True, times=True, num_targets=12)
    assert edges.weight is not None
    assert edges.timestamp is not None
    wanted = list[tuple[int, int, float, int]]()
    for i in range(len(edges)):
        u, v = int(edges.source[i]), int(edges.target[i])
        rest = (float(edges.weight[i]), int(edges.timestamp[i]))
        wanted += [(u, v, *rest)] if u == v else [(u, v, *rest), (v, u, *rest)]
    both = symmetric(edges)
    assert both.weight is not None
    assert both.timestamp is not None
    columns = (both.source, both.target, both.weight, both.timestamp)
    found = list(zip(*(column.tolist() for column in columns), strict=True))
    assert found == wanted
    assert both.reverse_of == both.relation


def test_a_relation_between_types_gets_a_second_one_that_names_it() -> None:
    there, back = both_ways(random_relation(weights=True, times=False))
    assert back.relation == Relation("b", "rev_r", "a")
    assert (there.reverse_of, back.reverse_of) == (back.relation, there.relation)
    assert np.array_equal(there.source, back.target)
    assert np.array_equal(there.target, back.source)
