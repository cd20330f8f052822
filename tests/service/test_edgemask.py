"""edgemask: the loss against its formula in plain numbers, its settings GAE and VGAE, and its ends."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from sampling.masks import edge_keys, node_keys
from service.encoders import EncoderConfig, Nodes, make_encoder
from service.group import Group
from service.model import Model
from service.noise import Noise, Site
from service.objectives import make_objective
from service.objectives.edgemask import EdgeMask, EdgeMaskConfig
from service.objectives.latent import LatentHeads
from service.objectives.pair_decoders import HadamardMlp
from service.objectives.pair_mask import relation_families
from service.schema import GraphSchema, NodeTypeSchema, RelationSchema
from storage.errors import BadInput
from tests.service.batches import SmallGraph, heterogeneous, homogeneous, make_batch
from tests.service.formulas import assert_formula
from tests.service.reversed_graphs import edges_of, with_edges, with_reverses
from tests.service.steps import losses_of_one_batch

NOISE = Noise(17)
GRAPHS = {
    "one type": with_reverses(homogeneous(), {0: 0}),
    "several types": with_reverses(heterogeneous(), {0: 0, 2: 1, 3: 4}),
}
FAMILIES = {"one type": [0], "several types": [0, 1, 1, 3, 3, 5]}
NODE = tuple[int, int]


def build(graph: SmallGraph, *, encoder: dict[str, Any] | None = None, **settings: Any) -> Model:
    torch.manual_seed(0)
    # sage's mean weighs by no degrees, so a graph without the masked edges gives an oracle's states
    config = EncoderConfig.model_validate({"name": "sage", "hidden_dim": 8, **(encoder or {})})
    objective = EdgeMaskConfig.model_validate({"decoder_dim": 5, "decoder_dropout": 0.0, **settings})
    return Model(
        make_encoder(config, schema=graph.schema),
        make_objective(objective, schema=graph.schema, encoder_config=config),
        group=Group(),
    ).double()


def parts(model: Model) -> EdgeMask:
    assert isinstance(model.objective, EdgeMask)
    return model.objective


def key_of(nodes: list[NODE]) -> Tensor:
    return node_keys(torch.tensor([node[0] for node in nodes]), torch.tensor([node[1] for node in nodes]))


def chosen_seeds(graph: SmallGraph, count: int) -> list[NODE]:
    order = torch.randperm(sum(graph.num_nodes), generator=torch.Generator().manual_seed(2))[:count].tolist()
    return [graph.all_seeds()[number] for number in order]


def is_masked(source: NODE, target: NODE, *, family: int, rate: float) -> bool:
    if source == target or rate == 0.0:
        return False
    low, high = sorted(key_of([source, target]).tolist())
    ends = node_keys(torch.tensor([low]), torch.tensor([high]))
    return bool(NOISE.select(node_keys(torch.tensor([family]), ends), rate, site=Site.PAIR))


def expected_loss(model: Model, graph: SmallGraph, seeds: list[NODE], *, families: list[int], rate: float) -> Tensor:
    """The mean loss in plain loops over full neighbourhoods; states are those of a graph without the masked edges."""
    objective = parts(model)
    left, targets = [], []
    for relation, info in enumerate(graph.schema.relations):
        edges = edges_of(graph, relation)
        named = [((info.source_type, source), (info.target_type, target)) for source, target in edges]
        hidden = [is_masked(*ends, family=families[relation], rate=rate) for ends in named]
        left.append([edge for edge, gone in zip(edges, hidden, strict=True) if not gone])
        for position, (source, target) in enumerate(named):
            if target in seeds and source != target and (hidden[position] or rate == 0.0):
                targets.append((relation, position, source, target))
    # the states of all nodes, as seeds of the graph that is left; degrees stay those of the whole graph
    whole = make_batch(graph, graph.all_seeds(), num_hops=0)
    batch = make_batch(with_edges(graph, left), graph.all_seeds(), num_hops=2)
    batch = replace(batch, in_degree=whole.in_degree, out_degree=whole.out_degree)
    h = model.encoder.input(batch.features, batch.node_type, batch.in_degree, batch.out_degree)
    h = model.encoder(h, batch.hops[::-1], Nodes.of(batch))
    state = dict(zip(graph.all_seeds(), h, strict=True))
    divergence = torch.zeros(())
    if objective.latent is not None:
        means = {node: objective.latent.mean(x) for node, x in state.items()}
        logs = {node: objective.latent.log_variance(x) for node, x in state.items()}
        for node in state:
            epsilon = NOISE.normals(key_of([node]), len(means[node]), site=Site.LATENT)[0]
            state[node] = means[node] + torch.exp(logs[node] / 2) * epsilon
        normal = torch.distributions.Normal
        divergence = torch.stack([
            torch.distributions.kl_divergence(normal(means[node], torch.exp(logs[node] / 2)), normal(0.0, 1.0)).sum()
            for node in seeds
        ]).mean()  # fmt: skip

    def logit(one: NODE, other: NODE, family: int) -> Tensor:
        product: Tensor = state[one] * state[other]
        if not isinstance(objective.decoder, HadamardMlp):
            return product.sum()
        values = objective.decoder.heads[str(family)].state_dict(keep_vars=True)
        hidden = torch.relu(values["first.weight"] @ product + values["first.bias"])
        result: Tensor = (values["last.weight"] @ hidden + values["last.bias"])[0]
        return result

    found, absent = [], []
    degree = dict.fromkeys(seeds, 0)
    for relation, position, source, target in targets:
        degree[target] += 1
        found.append(-logsigmoid(logit(source, target, families[relation])))
        candidates = sorted(seed for seed in seeds if seed[0] == source[0])
        if not candidates:
            continue
        key = edge_keys(torch.tensor([relation]), torch.tensor([position]))
        negative = candidates[int(NOISE.partners(key, len(candidates), site=Site.NEGATIVE))]
        if negative not in (source, target):
            absent.append(-logsigmoid(-logit(negative, target, families[relation])))
    assert len(found) > len(absent) > 5
    loss = torch.stack(found).mean() + torch.stack(absent).mean() + objective.config.kl_weight * divergence
    if objective.degree is not None:
        predicted = objective.degree(torch.stack([state[seed] for seed in seeds]), num_seeds=len(seeds), group=Group())
        errors = (predicted[:, 0] - torch.tensor([float(degree[seed]) for seed in seeds])) ** 2
        loss = loss + objective.config.degree_weight * errors.mean()
    return loss


@pytest.mark.parametrize("graph_name", GRAPHS)
@pytest.mark.parametrize(
    "settings",
    [
        {"mask_rate": 0.6, "degree_weight": 0.3},
        {"mask_rate": 0.0, "decoder": "dot", "degree_weight": 0.0},
        {"mask_rate": 0.0, "decoder": "dot", "degree_weight": 0.0, "kl_weight": 0.2, "latent_dim": 3},
        {"mask_rate": 0.4, "degree_weight": 0.1, "kl_weight": 0.1},
    ],
    ids=["MaskGAE", "GAE", "VGAE", "masked VGAE"],
)
def test_the_loss_and_its_gradient_are_those_of_the_formula(graph_name: str, settings: dict[str, Any]) -> None:
    graph = GRAPHS[graph_name]
    model = build(graph, **settings)
    seeds = chosen_seeds(graph, 27)
    out = model(make_batch(graph, seeds, num_hops=3), NOISE)
    expected = expected_loss(model, graph, seeds, families=FAMILIES[graph_name], rate=settings["mask_rate"])
    assert out.count == len(seeds)
    assert_formula(model, out, expected)


def test_without_a_mask_the_encoder_reads_every_edge() -> None:
    graph = GRAPHS["one type"]
    batch = make_batch(graph, graph.all_seeds(), num_hops=3)
    seen: list[Any] = []
    model = build(graph, mask_rate=0.0)
    model.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1]))
    out = model(batch, NOISE)
    assert list(seen[0]) == list(batch.hops[:0:-1])
    assert out.metrics["target_edges"] == sum(source != target for source, target in edges_of(graph, 0))


def test_relations_that_turn_each_other_round_are_one_family() -> None:
    def families(*reverse_of: int | None) -> tuple[int, ...]:
        relations = tuple(RelationSchema(str(number), 0, 0, reverse) for number, reverse in enumerate(reverse_of))
        return relation_families(GraphSchema(node_types=(NodeTypeSchema("t", None, None),), relations=relations))

    assert families(None, None) == (0, 1)
    assert families(0, None) == (0, 1)
    assert families(None, 0, 1) == (0, 0, 0)
    assert families(3, None, 1, None) == (0, 1, 1, 0)
    assert families(2, 3, None, 2) == (0, 0, 0, 0)


def test_a_batch_without_targets_or_seeds_to_draw_has_a_gradient_for_every_parameter() -> None:
    graph = GRAPHS["several types"]
    for settings in ({"mask_rate": 1e-9}, {"mask_rate": 0.7}, {"decoder": "dot", "kl_weight": 0.1}):
        model = build(graph, **settings)
        for seeds in ([(2, 0), (2, 3)], []):  # venues alone: papers stand at the other end, and none is a seed
            out = model(make_batch(graph, seeds, num_hops=3, num_seeds_global=2), NOISE)
            assert out.count == len(seeds)
            assert out.metrics["negative_pairs"] == 0
            model.zero_grad()
            out.loss_sum.backward()
            assert math.isfinite(out.loss_sum.item())
            assert all(parameter.grad is not None for parameter in model.parameters())


def test_evaluation_masks_the_same_pairs_every_time_and_draws_no_noise() -> None:
    graph = GRAPHS["one type"]
    batch = make_batch(graph, graph.all_seeds(), num_hops=3)
    noisy = build(graph, encoder={"feature_dropout": 0.5}, kl_weight=0.1, decoder_dropout=0.5)
    plain = build(graph, kl_weight=0.1)
    assert noisy(batch, None).loss_sum == plain(batch, None).loss_sum
    assert noisy(batch, NOISE).loss_sum != plain(batch, NOISE).loss_sum
    assert plain(batch, NOISE).loss_sum != plain(batch, None).loss_sum


def test_a_node_has_one_latent_in_a_step_and_another_in_the_next() -> None:
    heads = LatentHeads(4, 3).double()
    h = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    keys = node_keys(torch.zeros(6, dtype=torch.int64), torch.arange(6))
    sample = heads(h, keys, noise=NOISE).sample
    order = torch.tensor([4, 1, 5])
    assert torch.allclose(heads(h[order], keys[order], noise=NOISE).sample, sample[order], rtol=1e-12)
    assert not torch.isclose(heads(h, keys, noise=Noise(18)).sample, sample).any()
    assert torch.allclose(heads(h, keys, noise=None).sample, heads.mean(h), rtol=1e-12)


@pytest.mark.parametrize("settings", [{"decoder": "mlp"}, {"decoder": "dot", "mask_rate": 0.0}, {"kl_weight": 0.01}])
def test_training_lowers_the_loss(settings: dict[str, Any]) -> None:
    graph = GRAPHS["several types"]
    model = build(graph, **{"mask_rate": 0.3, "decoder_dim": 16, **settings})
    batch = make_batch(graph, graph.all_seeds(), num_hops=3)
    losses = losses_of_one_batch(model, batch, noise=NOISE)
    assert losses[-1] < 0.9 * losses[0]


def test_half_precision_states_are_decoded_in_float32() -> None:
    graph = GRAPHS["one type"]
    model = build(graph, mask_rate=0.5, kl_weight=0.1).float()
    batch = make_batch(graph, graph.all_seeds(), num_hops=3, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = model(batch, NOISE)
    assert low.loss_sum.dtype == torch.float32
    assert low.loss_sum.item() == pytest.approx(model(batch, NOISE).loss_sum.item(), rel=0.05)
    low.loss_sum.backward()
    assert all(isinstance(p.grad, Tensor) and p.grad.isfinite().all() for p in model.parameters())


def test_a_graph_without_relations_is_refused_with_the_remedy() -> None:
    schema = GraphSchema(node_types=(NodeTypeSchema("user", 4, "float32"),), relations=())
    with pytest.raises(BadInput, match=r"edgemask: no relations: .*; ingest an edge table"):
        make_objective(EdgeMaskConfig(), schema=schema, encoder_config=EncoderConfig())


def test_seeds_without_the_sources_of_their_relations_are_refused() -> None:
    graph = GRAPHS["several types"]
    names = [kind.name for kind in graph.schema.node_types]
    objective = parts(build(graph))
    objective.check_seed_types(names)
    relation = next(one for one in graph.schema.relations if one.source_type != one.target_type)
    with pytest.raises(BadInput, match=f"add {names[relation.source_type]} to data.seed_types"):
        objective.check_seed_types([name for name in names if name != names[relation.source_type]])


def test_half_precision_divergence_is_computed_in_float32() -> None:
    heads = LatentHeads(4, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = heads(torch.randn(5, 4), torch.arange(5), noise=NOISE)
    assert (found.divergence.dtype, found.sample.dtype) == (torch.float32, torch.float32)
