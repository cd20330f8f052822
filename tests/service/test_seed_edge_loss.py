"""edgemask on seed edges: the loss against its formula in plain loops, on the graph without the target pairs."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import logsigmoid

from sampling.edge_seeds import EdgeSeeds, Side
from sampling.masks import node_keys
from service.encoders import EncoderConfig, Nodes, make_encoder
from service.group import Group
from service.model import Model
from service.noise import Noise, Site
from service.objectives import make_objective
from service.objectives.edgemask import EdgeMask, EdgeMaskConfig
from service.objectives.pair_decoders import HadamardMlp
from tests.service.batches import SmallGraph, heterogeneous, homogeneous, make_batch
from tests.service.edge_batches import edge_batch, edge_sampling
from tests.service.formulas import assert_formula
from tests.service.reversed_graphs import edges_of, with_edges, with_reverses
from tests.service.steps import losses_of_one_batch

NOISE = Noise(17)
REVERSE_OF = {"one type": {0: 0}, "several types": {0: 0, 2: 1, 3: 4}, "no reverse": {}}
GRAPHS = {
    "one type": with_reverses(homogeneous(), REVERSE_OF["one type"]),
    "several types": with_reverses(heterogeneous(), REVERSE_OF["several types"]),
    "no reverse": with_reverses(homogeneous(), REVERSE_OF["no reverse"]),
}
NODE = tuple[int, int]


def build(graph: SmallGraph, *, encoder: str = "sage", feature_dropout: float = 0.0, **settings: Any) -> Model:
    torch.manual_seed(0)
    config = EncoderConfig(name=encoder, hidden_dim=8, feature_dropout=feature_dropout)
    objective = EdgeMaskConfig.model_validate(
        {"targets": "seeds", "decoder_dim": 5, "decoder_dropout": 0.0, **settings}
    )
    return Model(
        make_encoder(config, schema=graph.schema),
        make_objective(objective, schema=graph.schema, encoder_config=config),
        group=Group(),
    ).double()


def drawn(graph: SmallGraph, relation: int, *, count: int, side: Side = "target", num_negatives: int = 3) -> EdgeSeeds:
    sampling = edge_sampling(graph, relation, num_negatives=num_negatives, side=side)
    places = np.random.default_rng(3).permutation(graph.indices[relation].size)[:count]
    return sampling.batch(places, epoch=0, step=0)


def named(graph: SmallGraph, seeds: EdgeSeeds, places: NDArray[np.int64]) -> list[NODE]:
    """(type, id) of seeds."""
    offsets = np.cumsum([0, *graph.num_nodes])
    kinds = np.searchsorted(offsets[1:], seeds.nodes[places], side="right")
    return [(int(kind), int(node - offsets[kind])) for kind, node in zip(kinds, seeds.nodes[places], strict=True)]


def without(graph: SmallGraph, relation: int, pairs: set[NODE], reverse_of: dict[int, int]) -> SmallGraph:
    """The graph without any edge between pairs (source, target) of a relation, there and in the one that turns it."""
    left = []
    for number in range(len(graph.indptr)):
        gone = set(pairs) if number == relation else set()
        if reverse_of.get(number) == relation or reverse_of.get(relation) == number:
            gone |= {(target, source) for source, target in pairs}
        left.append([edge for edge in edges_of(graph, number) if edge not in gone])
    return with_edges(graph, left)


def expected_loss(model: Model, graph: SmallGraph, seeds: EdgeSeeds, *, reverse_of: dict[int, int]) -> Tensor:
    """The mean loss; states are those of all nodes of the graph that is left, with degrees of the whole graph."""
    objective = model.objective
    assert isinstance(objective, EdgeMask)
    positives = list(
        zip(named(graph, seeds, seeds.source), named(graph, seeds, seeds.target), strict=True),
    )
    pairs = {(source[1], target[1]) for source, target in positives}
    whole = make_batch(graph, graph.all_seeds(), num_hops=0)
    batch = make_batch(without(graph, seeds.relation, pairs, reverse_of), graph.all_seeds(), num_hops=2)
    batch = replace(batch, in_degree=whole.in_degree, out_degree=whole.out_degree)
    h = model.encoder.input(batch.features, batch.node_type, batch.in_degree, batch.out_degree)
    h = model.encoder(h, batch.hops[::-1], Nodes.of(batch))
    state = dict(zip(graph.all_seeds(), h, strict=True))
    nodes = named(graph, seeds, np.arange(seeds.nodes.size))
    divergence = torch.zeros(())
    if objective.latent is not None:
        normal = torch.distributions.Normal
        terms = []
        for node in nodes:
            mean, log_variance = objective.latent.mean(state[node]), objective.latent.log_variance(state[node])
            terms.append(torch.distributions.kl_divergence(normal(mean, (log_variance / 2).exp()), normal(0.0, 1.0)))
            key = node_keys(torch.tensor([node[0]]), torch.tensor([node[1]]))
            epsilon = NOISE.normals(key, mean.shape[0], site=Site.LATENT)[0]
            state[node] = mean + (log_variance / 2).exp() * epsilon
        divergence = torch.stack([term.sum() for term in terms]).mean()

    def logit(one: NODE, other: NODE) -> Tensor:
        product: Tensor = state[one] * state[other]
        if not isinstance(objective.decoder, HadamardMlp):
            return product.sum()
        pair = next((pair for pair in reverse_of.items() if seeds.relation in pair), (seeds.relation,))
        values = objective.decoder.heads[str(min(pair))].state_dict(keep_vars=True)
        hidden = torch.relu(values["first.weight"] @ product + values["first.bias"])
        result: Tensor = (values["last.weight"] @ hidden + values["last.bias"])[0]
        return result

    found, absent = [], []
    into = dict.fromkeys(nodes, 0)
    for number, (source, target) in enumerate(positives):
        if source == target:
            continue
        into[target] += 1
        found.append(-logsigmoid(logit(source, target)))
        for other in named(graph, seeds, seeds.negative[number]):
            if other not in (source, target):
                stays = source if seeds.side == "target" else target
                absent.append(-logsigmoid(-logit(other, stays)))
    loss = torch.stack(found).mean() + torch.stack(absent).mean() + objective.config.kl_weight * divergence
    if objective.degree is not None:
        predicted = objective.degree(torch.stack([state[node] for node in nodes]), num_seeds=len(nodes), group=Group())
        errors = (predicted[:, 0] - torch.tensor([float(into[node]) for node in nodes])) ** 2
        loss = loss + objective.config.degree_weight * errors.mean()
    return loss


@pytest.mark.parametrize(
    ("graph_name", "relation", "side", "encoder", "settings"),
    [
        ("one type", 0, "target", "gcn", {"degree_weight": 0.3}),
        ("no reverse", 0, "source", "sage", {"decoder": "dot", "degree_weight": 0.0}),
        ("several types", 1, "target", "sage", {"degree_weight": 0.1}),
        ("several types", 2, "source", "gat", {"decoder": "dot", "degree_weight": 0.0}),
        ("several types", 4, "target", "sage", {"degree_weight": 0.1, "kl_weight": 0.2, "latent_dim": 3}),
    ],
)
def test_the_loss_and_its_gradient_are_those_of_the_formula(
    graph_name: str, relation: int, side: Side, encoder: str, settings: dict[str, Any]
) -> None:
    graph = GRAPHS[graph_name]
    model = build(graph, encoder=encoder, **settings)
    assert model.objective.reach == 0
    seeds = drawn(graph, relation, count=17, side=side)
    out = model(edge_batch(graph, seeds, num_hops=2), NOISE)
    expected = expected_loss(model, graph, seeds, reverse_of=REVERSE_OF[graph_name])
    assert out.count == seeds.nodes.size
    assert_formula(model, out, expected)


def test_an_edge_from_a_node_to_itself_and_a_negative_that_is_an_end_of_its_edge_are_left_out() -> None:
    graph = GRAPHS["one type"]
    seeds = drawn(graph, 0, count=200, num_negatives=20)
    is_loop = seeds.source == seeds.target
    same = (seeds.negative == seeds.source[:, None]) | (seeds.negative == seeds.target[:, None])
    out = build(graph)(edge_batch(graph, seeds, num_hops=2), NOISE)
    assert 0 < is_loop.sum() < same[~is_loop].sum()
    assert out.metrics["negative_pairs"] == (~same[~is_loop]).sum()
    assert out.metrics["target_edges"] == (~is_loop).sum()


def test_dropout_of_products_differs_from_pair_to_pair_and_is_the_same_again() -> None:
    graph = GRAPHS["one type"]
    batch = edge_batch(graph, drawn(graph, 0, count=20), num_hops=2)
    model = build(graph, decoder_dropout=0.5)
    losses = [model(batch, noise).loss_sum.item() for noise in (NOISE, NOISE, Noise(18), None)]
    assert losses[0] == losses[1]
    assert len(set(losses)) == 3


def test_training_lowers_the_loss() -> None:
    graph = GRAPHS["several types"]
    model = build(graph, decoder_dim=16, feature_dropout=0.1)
    batch = edge_batch(graph, drawn(graph, 1, count=30), num_hops=2)
    losses = losses_of_one_batch(model, batch, noise=NOISE)
    assert losses[-1] < 0.9 * losses[0]


def test_half_precision_states_are_decoded_in_float32() -> None:
    graph = GRAPHS["one type"]
    model = build(graph, kl_weight=0.1).float()
    batch = edge_batch(graph, drawn(graph, 0, count=20), num_hops=2, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = model(batch, NOISE)
    assert low.loss_sum.dtype == torch.float32
    assert low.loss_sum.item() == pytest.approx(model(batch, NOISE).loss_sum.item(), rel=0.05)
    low.loss_sum.backward()
    assert all(isinstance(p.grad, Tensor) and math.isfinite(p.grad.sum()) for p in model.parameters())
