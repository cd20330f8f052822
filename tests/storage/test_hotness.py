"""Hotness against the same recursion in exact fractions."""

from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest

from storage.edges import Edges
from storage.hotness import expected_accesses, hottest_first
from storage.schema import Relation


def make_edges(source_type: str, name: str, target_type: str, pairs: Sequence[tuple[int, int]]) -> Edges:
    ends = np.array(pairs, dtype=np.int32).reshape(-1, 2)
    return Edges(
        relation=Relation(source_type, name, target_type),
        source=ends[:, 0].copy(),
        target=ends[:, 1].copy(),
        weight=None,
        timestamp=None,
    )


def random_edges(rng: np.random.Generator, *, relation: tuple[str, str, str], n: dict[str, int], e: int) -> Edges:
    source = np.minimum(rng.integers(0, n[relation[0]], e), rng.integers(0, n[relation[0]], e))
    return make_edges(*relation, list(zip(source, rng.integers(0, n[relation[2]], e), strict=True)))


def in_fractions(
    edges: Sequence[Edges], *, num_nodes: dict[str, int], fanout: Sequence[int]
) -> dict[str, list[Fraction]]:
    level = {name: [Fraction(1)] * n for name, n in num_nodes.items()}
    total = {name: list(values) for name, values in level.items()}
    for k in fanout:
        reached = {name: [Fraction(0)] * n for name, n in num_nodes.items()}
        for e in edges:
            degree = [0] * num_nodes[e.relation.target]
            for v in e.target:
                degree[v] += 1
            for u, v in zip(e.source, e.target, strict=True):
                kept = Fraction(1) if k == -1 else min(Fraction(1), Fraction(k, degree[v]))
                reached[e.relation.source][u] += level[e.relation.target][v] * kept
        total = {name: [a + b for a, b in zip(values, reached[name], strict=True)] for name, values in total.items()}
        level = reached
    return total


NUM_NODES = {"paper": 40, "author": 25}


def two_type_graph(seed: int) -> list[Edges]:
    rng = np.random.default_rng(seed)
    return [
        random_edges(rng, relation=("paper", "cites", "paper"), n=NUM_NODES, e=300),
        random_edges(rng, relation=("author", "writes", "paper"), n=NUM_NODES, e=120),
        random_edges(rng, relation=("paper", "rev_writes", "author"), n=NUM_NODES, e=120),
    ]


@pytest.mark.parametrize("fanout", [(15, 10, 5), (2, 1), (3,), (-1, 4)])
@pytest.mark.parametrize("seed", [0, 1])
def test_hotness_is_proportional_to_the_exact_recursion(fanout: tuple[int, ...], seed: int) -> None:
    edges = two_type_graph(seed)
    exact = in_fractions(edges, num_nodes=NUM_NODES, fanout=fanout)
    found = expected_accesses(edges, num_nodes=NUM_NODES, fanout=fanout, advance=lambda _: None)
    values = [Fraction(int(x)) for name in NUM_NODES for x in found[name]]
    wanted = [x for name in NUM_NODES for x in exact[name]]
    scale = sum(values, Fraction(0)) / sum(wanted, Fraction(0))
    assert all(abs(a / scale / b - 1) < Fraction(1, 10**9) for a, b in zip(values, wanted, strict=True))


def test_the_order_is_the_exact_one_where_values_differ() -> None:
    edges = two_type_graph(2)
    exact = in_fractions(edges, num_nodes=NUM_NODES, fanout=(15, 10, 5))["paper"]
    found = expected_accesses(edges, num_nodes=NUM_NODES, fanout=(15, 10, 5), advance=lambda _: None)["paper"]
    in_order = [exact[i] for i in hottest_first(found)]
    assert all(a >= b * (1 - Fraction(1, 10**9)) for a, b in pairwise(in_order))


def test_equal_nodes_keep_their_input_order() -> None:
    ring = make_edges("a", "next", "a", [(i, (i + 1) % 9) for i in range(9)])
    found = expected_accesses([ring], num_nodes={"a": 9}, fanout=(3, 3), advance=lambda _: None)["a"]
    assert list(hottest_first(found)) == list(range(9))


def test_the_order_of_edges_and_relations_does_not_matter() -> None:
    edges = two_type_graph(3)
    rng = np.random.default_rng(0)
    shuffled = []
    for e in edges:
        order = rng.permutation(len(e))
        pairs = list(zip(e.source[order], e.target[order], strict=True))
        shuffled.append(make_edges(*e.relation, pairs))
    a = expected_accesses(edges, num_nodes=NUM_NODES, fanout=(15, 10, 5), advance=lambda _: None)
    b = expected_accesses(shuffled[::-1], num_nodes=NUM_NODES, fanout=(15, 10, 5), advance=lambda _: None)
    assert all(np.array_equal(a[name], b[name]) for name in NUM_NODES)


def test_a_hub_with_many_parallel_edges_does_not_overflow() -> None:
    n = {"a": 3000}
    rng = np.random.default_rng(4)
    hub = [(0, v) for v in range(3000)] * 3 + [(v, 0) for v in range(3000)] + [(0, 0)] * 500
    edges = [make_edges("a", "r", "a", [hub[i] for i in rng.permutation(len(hub))])]
    fanout = (-1,) * 6
    exact = in_fractions(edges, num_nodes=n, fanout=fanout)["a"]
    found = expected_accesses(edges, num_nodes=n, fanout=fanout, advance=lambda _: None)["a"]
    assert hottest_first(found)[0] == 0
    ratio = Fraction(int(found[0]), int(found[1])) / (exact[0] / exact[1])
    assert abs(ratio - 1) < Fraction(1, 1000)


def test_nodes_nobody_reaches_come_last() -> None:
    edges = [make_edges("a", "r", "a", [(2, 1), (2, 0), (1, 0)])]
    found = expected_accesses(edges, num_nodes={"a": 4}, fanout=(5, 5), advance=lambda _: None)["a"]
    assert list(hottest_first(found)) == [2, 1, 0, 3]


def test_progress_counts_each_edge_once_a_hop() -> None:
    seen = list[int]()
    expected_accesses(two_type_graph(0), num_nodes=NUM_NODES, fanout=(4, 4), advance=seen.append)
    assert sum(seen) == 2 * (300 + 120 + 120)
