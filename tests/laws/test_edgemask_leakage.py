"""Law: no edge of a pair that edgemask predicts, on any rank, is in any hop that the encoder reads on any rank.

Parallel edges, reverses and the same edge in other hops included; and nothing else is taken out.
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
from service.objectives.edgemask import EdgeMaskConfig
from service.objectives.pair_mask import MaskedBatch, mask_pairs, relation_families
from tests.service.batches import SmallGraph, heterogeneous, homogeneous, make_batch
from tests.service.reversed_graphs import with_reverses

CITES, WRITES, WRITTEN_BY, PRINTS, PRINTED_IN, NONE = range(6)
GRAPHS = {
    "one symmetric relation": with_reverses(homogeneous(num_nodes=60, degree=2.0), {0: 0}),
    "one relation without a reverse": with_reverses(homogeneous(num_nodes=60, degree=4.0), {}),
    "several types": with_reverses(heterogeneous(), {CITES: CITES, WRITTEN_BY: WRITES, PRINTS: PRINTED_IN}),
}
SLICES = {1: (25,), 2: (17, 8), 4: (9, 0, 5, 11)}
NODE = tuple[int, int]


def slices(graph: SmallGraph, world_size: int, *, fanout: int | None) -> list[MiniBatch]:
    chosen = torch.randperm(sum(graph.num_nodes), generator=torch.Generator().manual_seed(1))[:25].tolist()
    seeds = [graph.all_seeds()[number] for number in chosen]
    batches, first = [], 0
    for count in SLICES[world_size]:
        batches.append(make_batch(graph, seeds[first : first + count], num_hops=3, fanout=fanout, num_seeds_global=25))
        first += count
    return batches


def listed(batch: MiniBatch, hop: Hop) -> list[tuple[int, NODE, NODE, int]]:
    """(relation, source node, target node, position) of every edge of a hop, read off its arrays."""
    nodes = list(zip(batch.node_type.tolist(), batch.node_id.tolist(), strict=True))
    found = []
    for relation in range(hop.indptr.shape[0]):
        for row in range(hop.num_targets):
            for edge in range(int(hop.indptr[relation, row]), int(hop.indptr[relation, row + 1])):
                found.append((relation, nodes[int(hop.source[edge])], nodes[row], int(hop.position[edge])))
    return found


def links(graph: SmallGraph, relation: int, source: NODE, target: NODE) -> set[tuple[int, frozenset[NODE]]]:
    """The pair under the relation and every relation that says the same turned round, spelled out."""
    infos = graph.schema.relations
    same = {number for number in range(len(infos)) if infos[number].reverse_of == relation}
    own = infos[relation].reverse_of
    return {
        (number, frozenset((source, target))) for number in {relation, *same} | ({own} if own is not None else set())
    }


def mask(graph: SmallGraph, batch: MiniBatch, *, rate: float, step_key: int = 3) -> MaskedBatch:
    return mask_pairs(
        batch,
        rate=rate,
        families=relation_families(graph.schema),
        keys=Nodes.of(batch).keys,
        noise=Noise(step_key),
        num_read=2,
    )


def targets_of(batch: MiniBatch, masked: MaskedBatch) -> list[tuple[int, NODE, NODE, int]]:
    nodes = list(zip(batch.node_type.tolist(), batch.node_id.tolist(), strict=True))
    return [
        (relation, nodes[source], nodes[target], position)
        for relation, source, target, position in zip(
            masked.relation.tolist(), masked.source.tolist(), masked.target.tolist(), masked.position.tolist(),
            strict=True,
        )
    ]  # fmt: skip


def links_of_targets(
    graph: SmallGraph, batches: list[MiniBatch], masked: list[MaskedBatch]
) -> set[tuple[int, frozenset[NODE]]]:
    """What no hop of any rank may hold."""
    return {
        link
        for batch, found in zip(batches, masked, strict=True)
        for relation, source, target, _ in targets_of(batch, found)
        for link in links(graph, relation, source, target)
    }


@pytest.mark.parametrize("graph_name", GRAPHS)
@pytest.mark.parametrize("world_size", SLICES)
@pytest.mark.parametrize("fanout", [None, 2])
def test_no_edge_of_a_target_pair_is_in_a_hop_that_any_rank_reads(
    graph_name: str, world_size: int, fanout: int | None
) -> None:
    graph = GRAPHS[graph_name]
    batches = slices(graph, world_size, fanout=fanout)
    masked = [mask(graph, batch, rate=0.5) for batch in batches]
    absent = links_of_targets(graph, batches, masked)
    assert len(absent) > 9
    leaks_before = 0
    for batch, found in zip(batches, masked, strict=True):
        for before, after in zip(batch.hops[1:], found.hops[1:], strict=True):
            for relation, source, target, _ in listed(batch, after):
                assert (relation, frozenset((source, target))) not in absent
            leaks_before += sum((edge[0], frozenset(edge[1:3])) in absent for edge in listed(batch, before))
    assert leaks_before > 20  # the same hops do leak as they were sampled


@pytest.mark.parametrize("graph_name", GRAPHS)
@pytest.mark.parametrize("world_size", [2, 4])
def test_targets_of_all_ranks_are_those_of_one_rank_each_once(graph_name: str, world_size: int) -> None:
    graph = GRAPHS[graph_name]
    (whole,) = slices(graph, 1, fanout=2)
    alone = Counter(targets_of(whole, mask(graph, whole, rate=0.5)))
    together: Counter[tuple[int, NODE, NODE, int]] = Counter()
    for batch in slices(graph, world_size, fanout=2):
        together.update(targets_of(batch, mask(graph, batch, rate=0.5)))
    assert together == alone
    assert set(alone.values()) == {1}


@pytest.mark.parametrize("graph_name", GRAPHS)
def test_a_pair_goes_as_a_whole_and_edges_that_stay_stay_as_they_were(graph_name: str) -> None:
    graph = GRAPHS[graph_name]
    kept_pairs, gone_pairs = set(), set()
    for batch in slices(graph, 4, fanout=3):
        masked = mask(graph, batch, rate=0.5)
        assert [hop.num_targets for hop in masked.hops] == [hop.num_targets for hop in batch.hops]
        assert listed(batch, masked.hops[0]) == listed(batch, batch.hops[0])
        for before, after in zip(batch.hops[1:], masked.hops[1:], strict=True):
            kept, gone = listed(batch, after), Counter(listed(batch, before)) - Counter(listed(batch, after))
            assert kept == [edge for edge in listed(batch, before) if edge not in gone]
            kept_pairs |= {link for edge in kept for link in links(graph, *edge[:3])}
            gone_pairs |= {link for edge in gone for link in links(graph, *edge[:3])}
    loops = {pair for pair in kept_pairs | gone_pairs if len(pair[1]) == 1}
    assert not kept_pairs & gone_pairs
    assert not loops & gone_pairs
    share = len(gone_pairs) / len((kept_pairs | gone_pairs) - loops)
    assert 0.35 < share < 0.65


def test_the_encoder_is_given_the_masked_hops_and_another_step_masks_other_pairs() -> None:
    graph = GRAPHS["several types"]
    (batch,) = slices(graph, 1, fanout=None)
    config = EncoderConfig(hidden_dim=8)
    objective = make_objective(EdgeMaskConfig(mask_rate=0.5), schema=graph.schema, encoder_config=config)
    model = Model(make_encoder(config, schema=graph.schema), objective, group=Group()).double()
    seen: list[list[Hop]] = []
    model.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(list(inputs[1])))
    for step_key in (3, 4):
        model(batch, Noise(step_key))
        wanted = mask(graph, batch, rate=0.5, step_key=step_key)
        assert [listed(batch, hop) for hop in seen[-1]] == [listed(batch, hop) for hop in wanted.hops[:0:-1]]
    assert listed(batch, seen[0][0]) != listed(batch, seen[1][0])
    assert mask(graph, batch, rate=1.0).hops[1].source.shape[0] == sum(
        edge[1] == edge[2] for edge in listed(batch, batch.hops[1])
    )
