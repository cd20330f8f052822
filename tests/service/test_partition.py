"""Partitions of a graph: planted communities are found, sizes are kept, and nothing but the store counts."""

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numba
import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import normalized_mutual_info_score

from service.partition import MOST_ROUNDS, MOST_VOTERS, NONE, SETTLED_SHARE, largest_part, partition
from storage.errors import BadInput
from storage.graph import Topology
from storage.progress import NoProgress
from storage.store import Store
from tests.data import small_store
from tests.service.batches import heterogeneous
from tests.service.planted import planted_store
from tests.service.reversed_graphs import with_reverses
from tests.service.stores import ingested, storable


def parts(store: Store, num_parts: int) -> NDArray[np.int32]:
    return partition(store, num_parts=num_parts, progress=NoProgress())


def label_of(store: Store) -> NDArray[np.int64]:
    label: NDArray[np.int64] = store.node_column("node", "label").to_numpy()
    return label


@pytest.mark.parametrize(
    ("sizes", "num_parts", "least"),
    [
        ([250] * 8, 8, 0.95),
        ([100] * 20, 20, 0.95),
        ([300, 250, 200, 150, 100], 5, 0.8),  # the largest fills a part to its bound
        # two blocks of the stream, and parts of its edges that end inside a block
        ([1750] * 40, 40, 0.95),
    ],
)
def test_planted_communities_are_found(tmp_path: Path, sizes: list[int], num_parts: int, least: float) -> None:
    store = planted_store(tmp_path, sizes=sizes)
    part, label = parts(store, num_parts), label_of(store)
    assert (part == NONE).mean() < 0.02
    assert normalized_mutual_info_score(label, part) > least
    assert np.bincount(part[part >= 0], minlength=num_parts).max() <= largest_part(len(part), num_parts)


@pytest.mark.parametrize("num_parts", [2, 3, 7, 50, 400])
def test_no_part_is_larger_than_its_bound_and_there_are_nearly_as_many_as_asked_for(
    tmp_path: Path, num_parts: int
) -> None:
    store = planted_store(tmp_path, sizes=[1500, 300, 200], across=0.3)
    part = parts(store, num_parts)
    sizes = np.bincount(part[part >= 0], minlength=num_parts)
    assert sizes.shape == (num_parts,)
    assert sizes.max() <= largest_part(2000, num_parts) == -(-1.5 * 2000 // num_parts)
    assert (sizes > 0).mean() > 0.95  # a part may lose its last node to others
    assert (part == NONE).mean() < 0.1


def test_nodes_without_a_neighbour_are_in_no_part_and_a_graph_without_a_community_is_refused(tmp_path: Path) -> None:
    store = planted_store(tmp_path, sizes=[60, 60], num_alone=40)
    part, label = parts(store, 2), label_of(store)
    assert (part[label == -1] == NONE).all()
    assert (part[label >= 0] != NONE).mean() > 0.95
    with pytest.raises(BadInput, match=r"num_parts=160: no two linked nodes .*; set a smaller objective.num_parts"):
        parts(store, 160)


def test_neither_threads_nor_work_at_the_same_time_nor_another_run_change_it(tmp_path: Path) -> None:
    store = planted_store(tmp_path, sizes=[200] * 5, across=3.0)
    alone = parts(store, 6)
    most = numba.get_num_threads()
    for num_threads in {1, most}:
        numba.set_num_threads(num_threads)
        assert (parts(store, 6) == alone).all()
    numba.set_num_threads(most)
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda _: parts(Store.open(store.place.url), 6), range(3)))
    assert all((part == alone).all() for part in found)


def plain_rounds(topology: Topology, label: list[int], *, bound: int, order: Sequence[int]) -> None:
    """The rule in plain loops over the graph in memory."""
    for _ in range(MOST_ROUNDS):
        moved = 0
        for node in order:
            kind = int(np.searchsorted(topology.type_offsets, node, side="right")) - 1
            voters: list[int] = []
            into = [csc for csc in topology.relations if csc.target_type == kind]
            for csc in into:
                row = node - topology.type_offsets[kind]
                found = csc.indices[csc.indptr[row] : csc.indptr[row + 1]]
                voters += (topology.type_offsets[csc.source_type] + found[-(MOST_VOTERS // len(into)) :]).tolist()
            own, votes = label[node], Counter[int]()
            for voter in voters:
                name = label[voter]
                if voter != node and name >= 0 and (name == own or label.count(name) < bound):
                    votes[name] += 1
            best = min(votes, key=lambda name: (-votes[name], name != own, name), default=own)
            moved += best != own
            label[node] = best
        if moved <= SETTLED_SHARE * len(label):
            return


@pytest.mark.parametrize("num_parts", [2, 4, 9])
@pytest.mark.parametrize("graph", ["several types", "one type"])
def test_it_is_what_the_rule_says_in_plain_loops(tmp_path: Path, graph: str, num_parts: int) -> None:
    if graph == "one type":
        small_store(tmp_path)
        store = Store.open(str(tmp_path / "store"))
    else:
        store = ingested(storable(with_reverses(heterogeneous(), {0: 0, 2: 1, 3: 4})), tmp_path)
    topology = store.topology()
    total = int(topology.type_offsets[-1])
    label = list(range(total))
    plain_rounds(topology, label, bound=-(-total // num_parts), order=range(total))
    size = {name: label.count(name) for name in set(label)}
    large = sorted((name for name in size if size[name] > 1), key=lambda name: (-size[name], name))[:num_parts]
    label = [sorted(large).index(name) if name in large else NONE for name in label]
    plain_rounds(topology, label, bound=largest_part(total, num_parts), order=range(total))
    assert len(large) > 1
    assert parts(store, num_parts).tolist() == label
