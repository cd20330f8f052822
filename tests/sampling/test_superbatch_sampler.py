"""Superbatches over a stored topology: what is served and released, refused, read and counted."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sampling.neighbors import NeighborSampler
from sampling.superbatch_sampler import SuperbatchSampler
from storage.append import append
from storage.compact import compact
from storage.errors import BadInput
from storage.ingest import ingest
from storage.store import Store
from storage.stored_topology import StoredTopology, share_cache
from tests.laws.test_topology_on_disk import check_batch, skewed_graph
from tests.sampling.graphs import one_type_graph
from tests.sampling.stored_graphs import store_of
from tests.service.batches import heterogeneous, homogeneous
from tests.service.stores import ingested, storable
from tests.storage.growing import shop
from tests.storage.two_segments import write_two_segments

Step = tuple[int, int, NDArray[np.int64]]


def steps_of(num_nodes: int, count: int, *, num_seeds: int = 10) -> list[Step]:
    return [(0, step, np.random.default_rng(step).choice(num_nodes, num_seeds, replace=False)) for step in range(count)]


def check_store(store: Store, *, num_batches: int = 4, **options: Any) -> None:
    """Batches of a store are those of its topology in memory."""
    in_memory = NeighborSampler(store.topology(), fanouts=(3, 2), seed=4)
    steps = steps_of(int(store.type_offsets[-1]), num_batches)
    with StoredTopology(store, cache_bytes=0, **options) as topology:
        sampler = SuperbatchSampler(topology, fanouts=(3, 2), seed=4)
        superbatch = sampler.sample(steps)
        for number, step in enumerate(steps):
            check_batch(superbatch.batch(number), in_memory.topology, in_memory, step)
        sampler.close()


@pytest.mark.parametrize("weighted", [False, True])
def test_batches_of_ingested_stores_are_those_in_memory(tmp_path: Path, weighted: bool) -> None:
    check_store(ingested(homogeneous(weighted=weighted), tmp_path / "one"))
    check_store(ingested(storable(heterogeneous(weighted=weighted)), tmp_path / "several"))


def test_batches_of_a_store_elsewhere_are_those_in_memory() -> None:
    check_store(store_of(one_type_graph(), "memory://superbatches-elsewhere"))


def test_several_segments_are_refused_until_they_are_compacted(tmp_path: Path) -> None:
    tables = shop().write(tmp_path / "tables")
    url = str(tmp_path / "store")
    ingest(tables.first(), out=url)
    append(tables.later(), out=url)
    with pytest.raises(BadInput, match=r"2 segments: .* `hopstream compact`"):
        StoredTopology(Store.open(url), cache_bytes=0)
    compact(url)
    check_store(Store.open(url))


@pytest.mark.parametrize("settings", [{}, {"undirected": True}])
def test_several_segments_are_merged_on_disk_as_they_are_in_memory(tmp_path: Path, settings: dict[str, Any]) -> None:
    tables = shop().write(tmp_path / "tables")
    url = str(tmp_path / "store")
    ingest(tables.first(**settings), out=url)
    append(tables.later(), out=url)
    check_store(Store.open(url), num_batches=20, merge_folder=str(tmp_path / "merged"))
    write_two_segments(str(tmp_path / "two"))
    check_store(Store.open(str(tmp_path / "two")), num_batches=20, merge_folder=str(tmp_path / "merged"))
    assert list((tmp_path / "merged").iterdir()) == []


def test_nodes_added_without_edges_have_none(tmp_path: Path) -> None:
    tables = shop().write(tmp_path / "tables")
    url = str(tmp_path / "store")
    ingest(tables.first(), out=url)
    later = tables.later()
    append(later.model_copy(update={"edges": {}}), out=url)
    store = Store.open(url)
    assert [len(relation.segments) for relation in store.relations] == [1, 1, 1]
    check_store(store, num_batches=20)


def test_a_batch_is_served_until_it_is_released(tmp_path: Path) -> None:
    with StoredTopology(store_of(one_type_graph(), str(tmp_path)), cache_bytes=0) as topology:
        sampler = SuperbatchSampler(topology, fanouts=(3, 2), seed=0)
        superbatch = sampler.sample(steps_of(200, 3))
        assert len(superbatch) == 3
        sizes = [superbatch.batch(number).num_bytes for number in range(3)]
        assert superbatch.num_bytes == sum(sizes)
        assert superbatch.nodes(1).dtype == np.uint32
        first, again = superbatch.sample(1), superbatch.sample(1)
        assert first.nodes.tolist() == again.nodes.tolist() == superbatch.nodes(1).tolist()
        superbatch.release(1)
        assert superbatch.num_bytes == sizes[0] + sizes[2]
        with pytest.raises(AssertionError, match="batch 1 was released"):
            superbatch.sample(1)
        assert superbatch.sample(2).nodes.shape[0] > 10
        sampler.close()


@pytest.mark.parametrize(
    ("seeds", "message"),
    [
        ([1, 2, 1], "node 1 twice in one batch"),
        ([5, 200], "entry 1: global id 200 \\(1 such seeds\\)"),
        ([-1], "global id -1"),
    ],
)
def test_seeds_outside_the_graph_or_given_twice_are_refused_as_in_memory(
    tmp_path: Path, seeds: list[int], message: str
) -> None:
    graph = one_type_graph()
    with StoredTopology(store_of(graph, str(tmp_path)), cache_bytes=0) as topology:
        sampler = SuperbatchSampler(topology, fanouts=(2,), seed=0)
        with pytest.raises(BadInput, match=message) as found:
            sampler.sample([(0, 0, np.array([3])), (0, 1, np.array(seeds))])
        with pytest.raises(BadInput, match=message) as expected:
            NeighborSampler(graph, fanouts=(2,), seed=0).sample(np.array(seeds), epoch=0, step=1)
        assert str(found.value) == str(expected.value)
        assert sampler.sample([(0, 1, np.array([1]))]).nodes(0)[0] == 1
        sampler.close()


def test_fan_outs_that_mean_nothing_are_refused(tmp_path: Path) -> None:
    with StoredTopology(store_of(one_type_graph(), str(tmp_path)), cache_bytes=0) as topology:
        with pytest.raises(BadInput, match="fan-out 0"):
            SuperbatchSampler(topology, fanouts=(2, 0), seed=0)
        with pytest.raises(BadInput, match="unknown relation 't0:no:t0'"):
            SuperbatchSampler(topology, fanouts=({"t0:no:t0": 2},), seed=0)


def test_a_stream_reads_the_sources_once_a_superbatch(tmp_path: Path) -> None:
    store = store_of(skewed_graph(num_nodes=20_000, num_edges=600_000), str(tmp_path))
    pages = -(-600_000 * 4 // 4096)
    steps = steps_of(20_000, 24, num_seeds=500)
    superbatches = [steps[first : first + 6] for first in range(0, 24, 6)]
    with StoredTopology(store, cache_bytes=0) as topology:
        sampler = SuperbatchSampler(topology, fanouts=(5, 5, 5), seed=0)
        assert len(list(sampler.stream(superbatches))) == 4
        assert sampler.counters.sweeps == 4 + 2
        streamed = topology.counters.indices.bytes
        assert streamed <= sampler.counters.sweeps * pages * 4096
        for given_steps in superbatches:
            sampler.sample(given_steps)
        assert topology.counters.indices.bytes - streamed > 1.5 * streamed
        sampler.close()


def test_groups_of_batches_keep_to_the_memory_for_answers(tmp_path: Path) -> None:
    store = store_of(skewed_graph(num_nodes=20_000, num_edges=300_000), str(tmp_path))
    steps = steps_of(20_000, 12, num_seeds=500)
    with StoredTopology(store, cache_bytes=0) as topology:
        whole = SuperbatchSampler(topology, fanouts=(5, 5), seed=0)
        expected = whole.sample(steps)
        assert whole.counters.sweeps == 2
        few = SuperbatchSampler(topology, fanouts=(5, 5), seed=0, answer_bytes=300_000)
        found = few.sample(steps)
        assert few.counters.most_answer_bytes <= 300_000 < whole.counters.most_answer_bytes
        assert few.counters.sweeps > 2
        for number in range(12):
            assert found.nodes(number).tolist() == expected.nodes(number).tolist()
        whole.close()
        few.close()


def test_counters_tell_what_was_sampled_and_looked_up(tmp_path: Path) -> None:
    store = store_of(skewed_graph(num_nodes=20_000, num_edges=300_000), str(tmp_path))
    with StoredTopology(store, cache_bytes=80_000 + 80_000 + 50_000) as topology:
        assert topology.cached_bytes <= 80_000 + 80_000 + 50_000
        sampler = SuperbatchSampler(topology, fanouts=(5, 5), seed=0)
        superbatch = sampler.sample(steps_of(20_000, 3))
        nodes = sum(superbatch.nodes(number).shape[0] for number in range(3))
        edges = sum(hop.source.shape[0] for number in range(3) for hop in superbatch.sample(number).hops)
        counters, read = sampler.counters, topology.counters
        assert (counters.superbatches, counters.batches, counters.nodes, counters.edges) == (1, 3, nodes, edges)
        assert (read.indptr.requests, read.out_degree.requests, read.indices.requests) == (nodes, nodes, edges)
        assert read.indptr.hits > 0.9 * nodes
        assert 0 < read.indices.hits < edges
        assert read.indices.bytes > 0
        assert read.weight.requests == 0
        sampler.close()


def test_the_cache_holds_pointers_first() -> None:
    groups = [[100, 300], [50], [0, 1000, 1000]]
    assert share_cache(groups, cache_bytes=0) == [[0, 0], [0], [0, 0, 0]]
    assert share_cache(groups, cache_bytes=200) == [[50, 150], [0], [0, 0, 0]]
    assert share_cache(groups, cache_bytes=650) == [[100, 300], [50], [0, 100, 100]]
    assert share_cache(groups, cache_bytes=10**6) == groups


def test_memory_stays_inside_what_is_stated(tmp_path: Path) -> None:
    store_of(skewed_graph(num_nodes=400_000, num_edges=6_000_000), str(tmp_path))
    command = [sys.executable, "-m", "tests.sampling.superbatch_memory", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    found = json.loads(done.stdout)
    assert found["grown_bytes"] <= 1.15 * found["stated_bytes"]
