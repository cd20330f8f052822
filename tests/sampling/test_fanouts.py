"""Fan-outs by relation: what a hop's number or mapping means, and what is refused."""

import numpy as np
import pytest

from sampling.fanouts import HopFanout, fanouts_by_relation, used_relations
from sampling.neighbors import NeighborSampler
from storage.errors import BadInput
from storage.schema import Relation
from tests.sampling.graphs import two_type_graph

RELATIONS = (Relation("user", "reads", "item"), Relation("item", "rev-reads", "user"))


def test_a_number_is_for_every_relation_and_a_mapping_for_those_it_names() -> None:
    fanouts = fanouts_by_relation([3, {"user:reads:item": -1}, {"item:rev-reads:user": 2}], RELATIONS)
    assert fanouts == ((3, 3), (-1, 0), (0, 2))
    assert used_relations(fanouts) == (0, 1)
    assert used_relations(fanouts[1:2]) == (0,)
    assert fanouts_by_relation([], RELATIONS) == ()


@pytest.mark.parametrize(
    ("fanouts", "message"),
    [
        (
            [3, {"user:likes:item": 2}],
            "hop 1: unknown relation 'user:likes:item'.*user:reads:item, item:rev-reads:user",
        ),
        ([{"user:reads:item": -2}], "hop 0: fan-out -2"),
        ([0], "fan-out 0"),
        ([-2], "fan-out -2"),
        ([{"user:reads:item": 0}], "no relation is used"),
        ([{}], "no relation is used"),
    ],
)
def test_fan_outs_that_mean_nothing_are_refused(fanouts: list[HopFanout], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        fanouts_by_relation(fanouts, RELATIONS)


def test_every_relation_draws_its_own_number_and_an_unused_one_nothing() -> None:
    graph = two_type_graph()
    seeds = np.arange(200, dtype=np.int64)
    sampler = NeighborSampler(graph, fanouts=[{"t0:a:t1": 2, "t0:c:t0": -1}], seed=0)
    hop = sampler.sample(seeds, epoch=0, step=0).hops[0]
    for number, fanout in enumerate((2, 0, 10**9)):
        relation = graph.relations[number]
        degree = np.zeros(200, dtype=np.int64)
        first = graph.type_offsets[relation.target_type]
        degree[first : first + relation.indptr.size - 1] = np.diff(relation.indptr)
        assert np.diff(hop.indptr[number]).tolist() == np.minimum(degree, fanout).tolist()


def test_a_relations_draws_do_not_depend_on_the_fan_outs_of_others() -> None:
    graph = two_type_graph()
    seeds = np.arange(200, dtype=np.int64)
    alone = NeighborSampler(graph, fanouts=[{"t0:c:t0": 3}], seed=0).sample(seeds, epoch=0, step=0).hops[0]
    among = NeighborSampler(graph, fanouts=[3], seed=0).sample(seeds, epoch=0, step=0).hops[0]
    drawn = slice(int(among.indptr[2, 0]), int(among.indptr[2, -1]))
    assert alone.position.tolist() == among.position[drawn].tolist()
