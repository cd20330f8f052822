"""Hotness against the same recursion in exact fractions."""

from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from storage.schema import Relation
from storage.stages.degrees import count_degrees
from storage.stages.edge_view import EdgeView
from storage.stages.hot_order import hottest_first
from storage.stages.hotness import expected_accesses
from tests.storage.spills import small_crew, write_spill


class Edges(NamedTuple):
    relation: Relation
    source: NDArray[np.int64]
    target: NDArray[np.int64]


def hotness_of(
    folder: Path, edges: Sequence[Edges], *, num_nodes: dict[str, int], fanout: Sequence[int]
) -> dict[str, NDArray[np.uint64]]:
    crew = small_crew(worker_bytes=1 << 12)
    counted = []
    for number, e in enumerate(edges):
        view = EdgeView(e.relation, None, write_spill(folder / str(number), e.source, e.target), "as-is")
        degrees = count_degrees(
            str(folder / str(number)),
            view=view,
            num_sources=num_nodes[e.relation.source],
            num_targets=num_nodes[e.relation.target],
            crew=crew,
        )
        counted.append((view, degrees))
    files = expected_accesses(str(folder), views=counted, num_nodes=num_nodes, fanout=fanout, crew=crew)
    return {name: np.fromfile(path, dtype=np.uint64) for name, path in files.items()}


def order_of(folder: Path, hotness: NDArray[np.uint64]) -> list[int]:
    hotness.tofile(folder / "hotness")
    found = hottest_first(
        str(folder), hotness=str(folder / "hotness"), base=0, budget=small_crew(worker_bytes=1 << 13).budget
    )
    order = np.fromfile(found.order, dtype=np.uint32)
    assert np.array_equal(np.fromfile(found.rank, dtype=np.uint32)[order], np.arange(len(order)))
    return [int(row) for row in order]


def make_edges(source_type: str, name: str, target_type: str, pairs: Sequence[tuple[int, int]]) -> Edges:
    ends = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    return Edges(Relation(source_type, name, target_type), ends[:, 0], ends[:, 1])


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
def test_hotness_is_proportional_to_the_exact_recursion(tmp_path: Path, fanout: tuple[int, ...], seed: int) -> None:
    edges = two_type_graph(seed)
    exact = in_fractions(edges, num_nodes=NUM_NODES, fanout=fanout)
    found = hotness_of(tmp_path, edges, num_nodes=NUM_NODES, fanout=fanout)
    values = [Fraction(int(x)) for name in NUM_NODES for x in found[name]]
    wanted = [x for name in NUM_NODES for x in exact[name]]
    scale = sum(values, Fraction(0)) / sum(wanted, Fraction(0))
    assert all(abs(a / scale / b - 1) < Fraction(1, 10**9) for a, b in zip(values, wanted, strict=True))


def test_the_order_is_the_exact_one_where_values_differ(tmp_path: Path) -> None:
    edges = two_type_graph(2)
    exact = in_fractions(edges, num_nodes=NUM_NODES, fanout=(15, 10, 5))["paper"]
    found = hotness_of(tmp_path, edges, num_nodes=NUM_NODES, fanout=(15, 10, 5))["paper"]
    in_order = [exact[i] for i in order_of(tmp_path, found)]
    assert all(a >= b * (1 - Fraction(1, 10**9)) for a, b in pairwise(in_order))


def test_equal_nodes_keep_their_input_order(tmp_path: Path) -> None:
    ring = make_edges("a", "next", "a", [(i, (i + 1) % 9) for i in range(9)])
    found = hotness_of(tmp_path, [ring], num_nodes={"a": 9}, fanout=(3, 3))["a"]
    assert order_of(tmp_path, found) == list(range(9))


def test_the_order_of_edges_and_relations_does_not_matter(tmp_path: Path) -> None:
    edges = two_type_graph(3)
    rng = np.random.default_rng(0)
    shuffled = []
    for e in edges:
        order = rng.permutation(len(e.source))
        pairs = list(zip(e.source[order], e.target[order], strict=True))
        shuffled.append(make_edges(*e.relation, pairs))
    a = hotness_of(tmp_path / "a", edges, num_nodes=NUM_NODES, fanout=(15, 10, 5))
    b = hotness_of(tmp_path / "b", shuffled[::-1], num_nodes=NUM_NODES, fanout=(15, 10, 5))
    assert all(np.array_equal(a[name], b[name]) for name in NUM_NODES)


def test_a_hub_with_many_parallel_edges_does_not_overflow(tmp_path: Path) -> None:
    n = {"a": 3000}
    rng = np.random.default_rng(4)
    hub = [(0, v) for v in range(3000)] * 3 + [(v, 0) for v in range(3000)] + [(0, 0)] * 500
    edges = [make_edges("a", "r", "a", [hub[i] for i in rng.permutation(len(hub))])]
    fanout = (-1,) * 6
    exact = in_fractions(edges, num_nodes=n, fanout=fanout)["a"]
    found = hotness_of(tmp_path, edges, num_nodes=n, fanout=fanout)["a"]
    assert order_of(tmp_path, found)[0] == 0
    ratio = Fraction(int(found[0]), int(found[1])) / (exact[0] / exact[1])
    assert abs(ratio - 1) < Fraction(1, 1000)


def test_nodes_nobody_reaches_come_last(tmp_path: Path) -> None:
    edges = [make_edges("a", "r", "a", [(2, 1), (2, 0), (1, 0)])]
    found = hotness_of(tmp_path, edges, num_nodes={"a": 4}, fanout=(5, 5))["a"]
    assert order_of(tmp_path, found) == [2, 1, 0, 3]


@pytest.mark.parametrize("num_values", [1, 3, 50, 10**6])
def test_an_order_made_range_by_range_is_the_stable_sort(tmp_path: Path, num_values: int) -> None:
    rng = np.random.default_rng(5)
    hotness = rng.integers(0, num_values, 5000).astype(np.uint64) ** 2
    wanted = sorted(range(5000), key=lambda row: -int(hotness[row]))
    assert order_of(tmp_path, hotness) == wanted


def test_progress_counts_each_edge_once_a_hop(tmp_path: Path) -> None:
    seen = list[int]()
    crew = small_crew(advance=seen.append)
    spill = write_spill(tmp_path, np.arange(9), np.arange(9))
    view = EdgeView(Relation("a", "r", "a"), None, spill, "as-is")
    degrees = count_degrees(str(tmp_path), view=view, num_sources=9, num_targets=9, crew=small_crew())
    expected_accesses(str(tmp_path), views=[(view, degrees)], num_nodes={"a": 9}, fanout=(4, 4), crew=crew)
    assert sum(seen) == 2 * 9
