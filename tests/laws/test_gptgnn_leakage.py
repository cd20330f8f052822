"""Law: no edge of a pair that gptgnn generates, on any rank, is in any hop that the encoder reads on any rank.

Parallel edges, reverses, the same edge in other hops and the edges of copied seeds included; of pairs without a seed of
the global batch nothing is taken out.
"""

from collections import Counter

import pytest
import torch

from sampling.batch import Hop, MiniBatch
from service.encoders import EncoderConfig, Nodes, make_encoder
from service.group import Group
from service.model import Model
from service.noise import Noise
from service.objectives import make_objective
from service.objectives.gptgnn import GptGnn, GptGnnConfig
from service.objectives.pair_mask import MaskedBatch
from tests.laws.test_edgemask_leakage import GRAPHS, NODE, SLICES, links_of_targets, listed, slices, targets_of
from tests.service.batches import SmallGraph


def build(graph: SmallGraph) -> Model:
    config = EncoderConfig(hidden_dim=8)
    objective = make_objective(GptGnnConfig(), schema=graph.schema, encoder_config=config)
    return Model(make_encoder(config, schema=graph.schema), objective, group=Group()).double()


def hidden(graph: SmallGraph, batches: list[MiniBatch]) -> list[MaskedBatch]:
    """What every rank hides when it knows the seeds of all."""
    objective = build(graph).objective
    assert isinstance(objective, GptGnn)
    seeds = torch.cat([Nodes.of(batch).keys[: batch.num_seeds] for batch in batches])
    return [objective.hide(batch, Nodes.of(batch).keys, seeds, noise=Noise(3), num_read=2) for batch in batches]


def seeds_of(batches: list[MiniBatch]) -> set[NODE]:
    return {
        node
        for batch in batches
        for node in list(zip(batch.node_type.tolist(), batch.node_id.tolist(), strict=True))[: batch.num_seeds]
    }


@pytest.mark.parametrize("graph_name", GRAPHS)
@pytest.mark.parametrize("world_size", SLICES)
@pytest.mark.parametrize("fanout", [None, 2])
def test_no_edge_of_a_hidden_pair_is_in_a_hop_that_any_rank_reads_and_others_stay(
    graph_name: str, world_size: int, fanout: int | None
) -> None:
    graph = GRAPHS[graph_name]
    batches = slices(graph, world_size, fanout=fanout)
    masked = hidden(graph, batches)
    absent = links_of_targets(graph, batches, masked)
    assert len(absent) > 9
    seeds = seeds_of(batches)
    leaks_before, kept_far = 0, 0
    for batch, found in zip(batches, masked, strict=True):
        for before, after in zip(batch.hops[1:], found.hops[1:], strict=True):
            kept = listed(batch, after)
            assert not {(edge[0], frozenset(edge[1:3])) for edge in kept} & absent
            gone = Counter(listed(batch, before)) - Counter(kept)
            assert all(seeds & {source, target} and source != target for _, source, target, _ in gone)
            leaks_before += sum((edge[0], frozenset(edge[1:3])) in absent for edge in listed(batch, before))
            kept_far += sum(not seeds & set(edge[1:3]) for edge in kept)
    assert leaks_before > 20  # the same hops do leak as they were sampled
    assert kept_far > 20


@pytest.mark.parametrize("graph_name", GRAPHS)
@pytest.mark.parametrize("world_size", [2, 4])
def test_targets_of_all_ranks_are_those_of_one_rank_each_once(graph_name: str, world_size: int) -> None:
    graph = GRAPHS[graph_name]
    whole = slices(graph, 1, fanout=2)
    alone = Counter(targets_of(whole[0], hidden(graph, whole)[0]))
    batches = slices(graph, world_size, fanout=2)
    together: Counter[tuple[int, NODE, NODE, int]] = Counter()
    for batch, found in zip(batches, hidden(graph, batches), strict=True):
        together.update(targets_of(batch, found))
    assert together == alone
    assert set(alone.values()) == {1}


@pytest.mark.parametrize("graph_name", GRAPHS)
def test_the_encoder_is_given_these_hops_with_the_seeds_edges_twice(graph_name: str) -> None:
    graph = GRAPHS[graph_name]
    batches = slices(graph, 1, fanout=None)
    (batch,), (masked,) = batches, hidden(graph, batches)
    model = build(graph)
    seen: list[list[Hop]] = []
    model.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(list(inputs[1])))
    model(batch, Noise(3))
    (hops,) = seen
    nodes = list(zip(batch.node_type.tolist(), batch.node_id.tolist(), strict=True))
    num_seeds = batch.num_seeds
    # copies stand behind the nodes within one hop; one is told from its seed by a third number
    near = batch.hops[0].num_sources
    named = [*((*node, 0) for node in nodes[:near]), *((*node, 1) for node in nodes[:num_seeds])]
    named += [(*node, 0) for node in nodes[near:]]
    for given, wanted in zip(hops, masked.hops[:0:-1], strict=True):
        assert (given.num_targets, given.num_sources) == (
            wanted.num_targets + num_seeds,
            wanted.num_sources + num_seeds,
        )
        found = []
        for relation in range(given.indptr.shape[0]):
            for row in range(given.num_targets):
                for edge in range(int(given.indptr[relation, row]), int(given.indptr[relation, row + 1])):
                    found.append((relation, named[int(given.source[edge])], named[row], int(given.position[edge])))
        expected = []
        for relation, source, target, position in listed(batch, wanted):
            expected.append((relation, (*source, 0), (*target, 0), position))
            if target in nodes[:num_seeds]:
                loops = source == target
                expected.append((relation, (*source, int(loops)), (*target, 1), position))
        assert Counter(found) == Counter(expected)
