"""Law: with the topology on disk, batches are bit for bit those with the topology in memory, whatever is cached."""

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sampling.assemble import TopologySurroundings, assemble
from sampling.batch import MiniBatch
from sampling.fanouts import HopFanout
from sampling.neighbors import NeighborSampler
from sampling.packed_sample import PackedSample
from sampling.superbatch_sampler import SuperbatchSampler
from storage.errors import DamagedStore
from storage.graph import RelationCSC, Topology
from storage.schema import Relation
from storage.stored_topology import StoredTopology
from tests.sampling.graphs import csc_of, relation_of, topology_of
from tests.sampling.stored_graphs import store_of
from tests.storage.damage import flipped_byte

Step = tuple[int, int, NDArray[np.int64]]
IN_MEMORY = "/dev/shm" if os.path.isdir("/dev/shm") else None
"""where many small stores are written, each file of which is flushed to the disk"""


def assert_same(found: Any, expected: Any) -> None:
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(np.asarray(found), np.asarray(expected))


def check_batch(found: PackedSample, topology: Topology, sampler: NeighborSampler, at: Step) -> None:
    epoch, step, seeds = at
    expected = sampler.sample(seeds, epoch=epoch, step=step)
    sample = found.sample()
    assert_same(sample.nodes, expected.nodes)
    np.testing.assert_array_equal(found.nodes, expected.nodes)
    assert len(sample.hops) == len(expected.hops)
    for hop, other in zip(sample.hops, expected.hops, strict=True):
        assert (hop.num_targets, hop.num_sources) == (other.num_targets, other.num_sources)
        for name in ("indptr", "source", "position"):
            assert_same(getattr(hop, name), getattr(other, name))
    for left, right in zip(
        found.degrees(sample.nodes), TopologySurroundings(topology).degrees(sample.nodes), strict=True
    ):
        assert_same(left, right)
    batch, other_batch = (
        assemble(graph, sample, epoch=epoch, step=step, num_seeds=seeds.size, num_seeds_global=seeds.size, features=())
        for graph in (found, topology)
    )
    check_mini_batch(batch, other_batch)


def check_mini_batch(left: MiniBatch, right: MiniBatch) -> None:
    for name in ("node_type", "node_id", "in_degree", "out_degree"):
        assert getattr(left, name).equal(getattr(right, name))
    for hop, other in zip(left.hops, right.hops, strict=True):
        assert (hop.weight is None) == (other.weight is None)
        assert hop.weight is None or other.weight is None or hop.weight.equal(other.weight)


@dataclass(frozen=True)
class Drawn:
    """A graph, what is sampled of it, and how."""

    topology: Topology
    fanouts: tuple[HopFanout, ...]
    seed: int
    superbatches: list[list[Step]]
    cache_bytes: int
    scratch_bytes: int
    answer_bytes: int
    num_threads: int


@st.composite
def drawn(draw: st.DrawFn) -> Drawn:
    sizes = tuple(draw(st.lists(st.integers(1, 60), min_size=1, max_size=3)))
    kinds = st.integers(0, len(sizes) - 1)
    relations = tuple(
        _relation(draw, f"r{number}", sizes, draw(kinds), draw(kinds)) for number in range(draw(st.integers(1, 4)))
    )
    topology = topology_of(sizes, *relations)
    names = [str(relation.relation) for relation in relations]
    numbers = st.sampled_from([1, 2, 3, 7, -1])
    of_some = st.dictionaries(st.sampled_from(names), numbers, min_size=1)
    return Drawn(
        topology=topology,
        fanouts=tuple(draw(st.lists(numbers | of_some, max_size=3))),
        seed=draw(st.integers(0, 5)),
        superbatches=draw(st.lists(_superbatches(sum(sizes)), min_size=1, max_size=4)),
        cache_bytes=draw(st.sampled_from([0, 4096, 12_288, 1 << 20])),
        scratch_bytes=draw(st.sampled_from([500, 2000, 1 << 20])),
        answer_bytes=draw(st.sampled_from([0, 500, 1 << 20])),
        num_threads=draw(st.integers(1, 2)),
    )


def _relation(draw: st.DrawFn, name: str, sizes: tuple[int, ...], source: int, target: int) -> RelationCSC:
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    num_edges = draw(st.sampled_from([0, 3, 40, 400, 1200]))
    made = relation_of(
        name, source_type=source, target_type=target, sizes=sizes, num_edges=num_edges, rng=rng,
        weighted=draw(st.booleans()),
    )  # fmt: skip
    wide = draw(st.sampled_from([(), ("indptr",), ("indices",), ("indptr", "indices", "out_degree")]))
    return replace(made, **{part: getattr(made, part).astype(np.int64) for part in wide})


@st.composite
def _superbatches(draw: st.DrawFn, num_nodes: int) -> list[Step]:
    nodes = st.lists(st.integers(0, num_nodes - 1), unique=True, max_size=12).map(lambda x: np.array(x, dtype=np.int64))
    return draw(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 5), nodes), max_size=5))


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(drawn())
def test_batches_are_those_of_the_topology_in_memory(case: Drawn) -> None:
    check_case(case)


@pytest.mark.soak
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(drawn())
def test_batches_are_those_of_the_topology_in_memory_for_a_long_time(case: Drawn) -> None:
    check_case(case)


def check_case(case: Drawn) -> None:
    in_memory = NeighborSampler(case.topology, fanouts=case.fanouts, seed=case.seed)
    with (
        tempfile.TemporaryDirectory(dir=IN_MEMORY) as folder,
        StoredTopology(
            store_of(case.topology, folder), cache_bytes=case.cache_bytes, scratch_bytes=case.scratch_bytes,
            num_threads=3,
        ) as stored,
    ):  # fmt: skip
        sampler = SuperbatchSampler(
            stored, fanouts=case.fanouts, seed=case.seed, num_threads=case.num_threads, answer_bytes=case.answer_bytes
        )
        streamed = list(sampler.stream(case.superbatches))
        assert [len(superbatch) for superbatch in streamed] == [len(steps) for steps in case.superbatches]
        for superbatch, steps in zip(streamed, case.superbatches, strict=True):
            alone = sampler.sample(steps)
            for number, step in enumerate(steps):
                for found in (superbatch, alone):
                    check_batch(found.batch(number), case.topology, in_memory, step)
        sampler.close()


@pytest.mark.parametrize("cache_pages", [0, 1, 3, 10, 100])
@pytest.mark.parametrize("num_batches", [1, 2, 7])
def test_neither_the_cache_nor_the_number_of_batches_changes_a_sample(
    tmp_path: Path, cache_pages: int, num_batches: int
) -> None:
    topology = skewed_graph(num_nodes=4000, num_edges=60_000)
    steps = [(0, step, step_seeds(4000, step)) for step in range(14)]
    expected = NeighborSampler(topology, fanouts=(5, 3, 2), seed=1)
    with StoredTopology(store_of(topology, str(tmp_path)), cache_bytes=cache_pages * 4096) as stored:
        sampler = SuperbatchSampler(stored, fanouts=(5, 3, 2), seed=1)
        superbatches = [steps[first : first + num_batches] for first in range(0, 14, num_batches)]
        for given_steps, superbatch in zip(superbatches, sampler.stream(superbatches), strict=True):
            for number, step in enumerate(given_steps):
                check_batch(superbatch.batch(number), topology, expected, step)
        sampler.close()


def skewed_graph(num_nodes: int, num_edges: int) -> Topology:
    """Hubs first, as in a store."""
    rng = np.random.default_rng(0)
    target = (rng.random(num_edges) ** 4 * num_nodes).astype(np.int64)
    source = (rng.random(num_edges) ** 4 * num_nodes).astype(np.int64)
    indptr, indices = csc_of(source, target, num_nodes)
    relation = RelationCSC(
        relation=Relation("t0", "to", "t0"), source_type=0, target_type=0, indptr=indptr, indices=indices,
        out_degree=np.bincount(source, minlength=num_nodes).astype(np.int32), weight=None, timestamp=None,
    )  # fmt: skip
    return topology_of((num_nodes,), relation)


def step_seeds(num_nodes: int, step: int) -> NDArray[np.int64]:
    seeds: NDArray[np.int64] = np.random.default_rng(step).choice(num_nodes, 30, replace=False)
    return seeds


def sampled(folder: str, steps: Sequence[Step]) -> None:
    from storage.store import Store

    with StoredTopology(Store.open(folder), cache_bytes=8192) as stored:
        sampler = SuperbatchSampler(stored, fanouts=(5, 3, 2), seed=1)
        sampler.sample(steps)
        sampler.close()


@pytest.mark.parametrize("name", ["indptr", "indices", "out_degree"])
def test_a_flipped_byte_of_the_topology_is_named_and_no_batch_comes_of_it(tmp_path: Path, name: str) -> None:
    topology = skewed_graph(num_nodes=20_000, num_edges=60_000)
    store_of(topology, str(tmp_path))
    path = tmp_path / "edges" / "t0__to__t0" / f"{name}.0.npy"
    steps = [(0, 0, np.arange(0, 20_000, 40))]
    sampled(str(tmp_path), steps)
    for at in np.random.default_rng(1).integers(path.stat().st_size, size=5).tolist():
        with flipped_byte(path, at), pytest.raises(DamagedStore, match=f"page {at // 4096} has changed") as error:
            sampled(str(tmp_path), steps)
        assert error.value.place == str(path)
    sampled(str(tmp_path), steps)
