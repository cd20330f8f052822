"""Grouping and slicing: a batch cut from a large query is the batch that its seeds alone would give."""

import numpy as np
import pytest

from sampling.grouping import Grouping, sample_group
from sampling.modes import ModeName, SamplingMode
from sampling.neighbors import ALL_NEIGHBORS, NeighborSampler, Sample
from sampling.seeds import SeedOrder, rank_slice
from tests.sampling.graphs import dressed, two_type_graph

MODES: tuple[ModeName, ...] = ("uniform", "weighted", "temporal-uniform", "temporal-latest", "labor", "ppr")


def assert_same(left: Sample, right: Sample) -> None:
    assert left.nodes.tolist() == right.nodes.tolist()
    assert (left.times is None) == (right.times is None)
    if left.times is not None and right.times is not None:
        assert left.times.tolist() == right.times.tolist()
    for mine, theirs in zip(left.hops, right.hops, strict=True):
        assert (mine.num_targets, mine.num_sources) == (theirs.num_targets, theirs.num_sources)
        assert mine.indptr.tolist() == theirs.indptr.tolist()
        assert mine.source.tolist() == theirs.source.tolist()
        assert mine.position.tolist() == theirs.position.tolist()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("fanouts", [(), (3,), (3, 2, ALL_NEIGHBORS)])
@pytest.mark.parametrize("world_size", [1, 3])
def test_every_cut_is_the_sample_of_its_own_seeds(mode: ModeName, fanouts: tuple[int, ...], world_size: int) -> None:
    graph = dressed(two_type_graph())
    order = SeedOrder(None, num_nodes=200, seeds_per_step=30, seed=1)
    grouping = Grouping(steps=3)
    node_times = np.random.default_rng(0).integers(0, 60, 200)

    def sampler() -> NeighborSampler:
        return NeighborSampler(graph, fanouts=fanouts, seed=1, mode=SamplingMode(mode, node_times=node_times))

    for group, steps in enumerate(([0, 1, 2], [3, 4, 5], [6])):
        for rank in range(world_size):
            parts = list(
                sample_group(sampler(), order, grouping, epoch=2, group=group, rank=rank, world_size=world_size)
            )
            assert len(parts) == len(steps)
            for part, step in zip(parts, steps, strict=True):
                assert grouping.group_of(step) == group
                seeds = rank_slice(order.global_batch(epoch=2, step=step), rank=rank, world_size=world_size)
                assert_same(part, sampler().sample(seeds, epoch=2, step=group))


def test_the_steps_of_groups_are_those_of_the_epoch() -> None:
    grouping = Grouping(steps=4)
    steps = [list(grouping.steps_of(group, steps_per_epoch=10)) for group in range(3)]
    assert steps == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert [grouping.group_of(step) for step in range(10)] == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2]


def test_the_steps_of_a_group_draw_shared_nodes_once() -> None:
    graph = two_type_graph()
    order = SeedOrder(None, num_nodes=200, seeds_per_step=30, seed=1)
    sampler = NeighborSampler(graph, fanouts=(5, 5), seed=1)
    parts = list(sample_group(sampler, order, Grouping(steps=3), epoch=0, group=0))
    drawn: dict[int, list[int]] = {}
    for part in parts:
        hop = part.hops[0]
        for row in range(hop.num_targets):
            own = hop.position[hop.indptr[0, row] : hop.indptr[0, row + 1]].tolist()
            assert drawn.setdefault(int(part.nodes[row]), own) == own
