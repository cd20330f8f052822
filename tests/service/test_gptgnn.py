"""gptgnn: three steps against the formula in plain numbers, queue included, and its ends."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor

from sampling.masks import node_keys
from service.encoders import EncoderConfig, Nodes, make_encoder
from service.group import Group
from service.model import Model
from service.noise import Noise, Site
from service.objectives import make_objective
from service.objectives.gptgnn import GptGnn, GptGnnConfig
from service.objectives.gptgnn_copies import with_copies
from service.objectives.gptgnn_edges import NOBODY
from service.schema import GraphSchema, NodeTypeSchema, RelationSchema
from storage.errors import BadInput
from tests.service.batches import SmallGraph, heterogeneous, homogeneous, make_batch
from tests.service.reversed_graphs import edges_of, with_edges, with_reverses
from tests.service.steps import losses_of_training

GRAPHS = {
    "one type": with_reverses(homogeneous(), {0: 0}),
    "several types": with_reverses(heterogeneous(), {0: 0, 2: 1, 3: 4}),
}
FAMILIES = {"one type": [0], "several types": [0, 1, 1, 3, 3, 5]}
NODE = tuple[int, int]
Queue = list[tuple[int, Tensor]]
"""(id, state) of seeds of one type, newest first"""


def build(graph: SmallGraph, *, encoder: dict[str, Any] | None = None, **settings: Any) -> Model:
    torch.manual_seed(0)
    # sage's mean weighs by no degrees, so a graph without the hidden edges gives an oracle's states
    config = EncoderConfig.model_validate({"name": "sage", "hidden_dim": 8, **(encoder or {})})
    model = Model(
        make_encoder(config, schema=graph.schema),
        make_objective(GptGnnConfig.model_validate(settings), schema=graph.schema, encoder_config=config),
        group=Group(),
    ).double()
    for token in parts(model).tokens.values():
        torch.nn.init.normal_(token)
    return model


def parts(model: Model) -> GptGnn:
    assert isinstance(model.objective, GptGnn)
    return model.objective


def key_of(node: NODE) -> Tensor:
    return node_keys(torch.tensor([node[0]]), torch.tensor([node[1]]))


def is_hidden(source: NODE, target: NODE, seeds: list[NODE], *, family: int, rate: float, noise: Noise) -> bool:
    if source == target or (source not in seeds and target not in seeds):
        return False
    low, high = sorted((int(key_of(source)), int(key_of(target))))
    ends = node_keys(torch.tensor([low]), torch.tensor([high]))
    return bool(noise.select(node_keys(torch.tensor([family]), ends), rate, site=Site.PAIR))


def dense_states(
    model: Model, graph: SmallGraph, left: list[list[tuple[int, int]]], seeds: list[NODE]
) -> tuple[dict[NODE, Tensor], dict[NODE, Tensor]]:
    """States of all nodes, and of the seeds' copies: nodes of their own in a graph that has the edges `left`."""
    copy_of: dict[NODE, NODE] = {}
    counts = list(graph.num_nodes)
    for kind, node in seeds:
        copy_of[(kind, node)] = (kind, counts[kind])
        counts[kind] += 1
    features: list[NDArray[np.float64] | None] = []
    for kind, table in enumerate(graph.features):
        if table is None:
            features.append(None)
            continue
        token = parts(model).tokens[str(kind)].detach().numpy()
        features.append(np.concatenate([table, np.tile(token, (counts[kind] - len(table), 1))]))
    edges = []
    for info, found in zip(graph.schema.relations, left, strict=True):
        more = []
        for source, target in found:
            copy = copy_of.get((info.target_type, target))
            if copy is not None:
                is_loop = (info.source_type, source) == (info.target_type, target)
                more.append((copy[1] if is_loop else source, copy[1]))
        edges.append([*found, *more])
    grown = with_edges(replace(graph, num_nodes=tuple(counts), features=tuple(features)), edges)
    batch = make_batch(grown, grown.all_seeds(), num_hops=2)
    seed_of = {copy: seed for seed, copy in copy_of.items()}
    place = {node: row for row, node in enumerate(graph.all_seeds())}
    columns = [place[seed_of.get(node, node)] for node in grown.all_seeds()]
    whole = make_batch(graph, graph.all_seeds(), num_hops=0)
    batch = replace(batch, in_degree=whole.in_degree[:, columns], out_degree=whole.out_degree[:, columns])
    tables = [None if table is None else torch.from_numpy(table) for table in grown.features]
    for name, token in parts(model).tokens.items():  # with their gradient
        rows, known = tables[int(name)], graph.num_nodes[int(name)]
        assert rows is not None
        tables[int(name)] = torch.cat([rows[:known], token.expand(rows.shape[0] - known, -1)])
    h = model.encoder.input(tables, batch.node_type, batch.in_degree, batch.out_degree)
    h = model.encoder(h, batch.hops[::-1], Nodes.of(batch))
    state = dict(zip(grown.all_seeds(), h, strict=True))
    return state, {seed: state[copy] for seed, copy in copy_of.items()}


def expected_loss(
    model: Model, graph: SmallGraph, seeds: list[NODE], queues: dict[int, Queue], *, families: list[int], noise: Noise
) -> Tensor:
    """The mean loss in plain loops over full neighbourhoods; moves `queues`."""
    objective = parts(model)
    config, left, targets = objective.config, [], []
    for relation, info in enumerate(graph.schema.relations):
        edges = edges_of(graph, relation)
        named = [((info.source_type, source), (info.target_type, target)) for source, target in edges]
        hidden = [
            is_hidden(*ends, seeds, family=families[relation], rate=config.mask_rate, noise=noise) for ends in named
        ]
        left.append([edge for edge, gone in zip(edges, hidden, strict=True) if not gone])
        targets += [(relation, *ends) for ends, gone in zip(named, hidden, strict=True) if gone and ends[1] in seeds]
    state, copies = dense_states(model, graph, left, seeds)
    negatives: dict[int, Queue] = {}
    for kind in {info.source_type for info in graph.schema.relations}:
        own = sorted(seed for seed in seeds if seed[0] == kind)
        own.sort(key=lambda seed: int(noise.partners(key_of(seed), 1 << 53, site=Site.NEGATIVE)))
        newest = [(seed[1], state[seed]) for seed in own[: config.num_negatives]]
        negatives[kind] = [*newest, *queues[kind]]
        queues[kind] = [(node, h.detach()) for node, h in negatives[kind]][: config.queue_size]
    errors = []
    for relation, source, target in targets:
        weights = dict(objective.matchers[relation].named_parameters())
        neighbours = {edge[0] for edge in edges_of(graph, relation) if edge[1] == target[1]}
        wanted = weights["target.weight"] @ state[target] + weights["target.bias"]

        def logit(h: Tensor, weights: dict[str, Any] = weights, wanted: Tensor = wanted) -> Tensor:
            found: Tensor = wanted @ (weights["source.weight"] @ h + weights["source.bias"])
            return found / math.sqrt(len(h))

        others = [h for node, h in negatives[source[0]] if node not in neighbours and (source[0], node) != target]
        logits = torch.stack([logit(h) for h in (state[source], *others)])
        errors.append(-torch.log_softmax(logits, 0)[0])
    assert len(errors) > 5
    attributes = []
    for (kind, node), h in copies.items():
        table = graph.features[kind]
        if table is None:
            continue
        weights = dict(objective.decoders[str(kind)].named_parameters())
        rebuilt = weights["last.weight"] @ torch.relu(weights["first.weight"] @ h + weights["first.bias"])
        rebuilt, x = rebuilt + weights["last.bias"], torch.from_numpy(table[node])
        attributes.append(1.0 - rebuilt @ x / (rebuilt.norm() * x.norm()))
    share = config.attribute_weight
    return (1.0 - share) * torch.stack(errors).mean() + share * torch.stack(attributes).mean()


@pytest.mark.parametrize("graph_name", GRAPHS)
@pytest.mark.parametrize(
    "settings",
    [
        {"num_negatives": 6, "queue_size": 9},
        {"num_negatives": 100, "queue_size": 4, "mask_rate": 0.8, "attribute_weight": 0.25},
        {"num_negatives": 3, "queue_size": 0},
    ],
)
def test_losses_gradients_and_queues_of_three_steps_equal_the_formula(
    graph_name: str, settings: dict[str, Any]
) -> None:
    graph = GRAPHS[graph_name]
    model = build(graph, **settings)
    queues: dict[int, Queue] = {kind: [] for kind in range(len(graph.num_nodes))}
    order = torch.randperm(sum(graph.num_nodes), generator=torch.Generator().manual_seed(2)).tolist()
    nodes = [graph.all_seeds()[number] for number in order]
    parameters = list(model.parameters())
    for step, seeds in enumerate((nodes[:12], nodes[12:20], nodes[5:30])):
        noise = Noise(step)
        expected = expected_loss(model, graph, seeds, queues, families=FAMILIES[graph_name], noise=noise)
        out = model(make_batch(graph, seeds, num_hops=3), noise)
        assert out.count == len(seeds)
        assert (out.loss_sum / out.count).item() == pytest.approx(expected.item(), rel=1e-11)
        found = torch.autograd.grad(out.loss_sum / out.count, parameters)
        wanted = torch.autograd.grad(expected, parameters, allow_unused=True)
        for one, other in zip(found, wanted, strict=True):
            assert torch.allclose(one, torch.zeros_like(one) if other is None else other, rtol=1e-9, atol=1e-12)
    for kind, queue in parts(model).queues.items():
        held = queues[int(kind)]
        states, node_id = queue.get_buffer("states"), queue.get_buffer("node_id")
        assert node_id.tolist() == [*(node for node, _ in held), *[NOBODY] * (len(node_id) - len(held))]
        for row, (_, h) in zip(states, held, strict=False):
            assert torch.allclose(row, h, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("encoder", ["sage", "gcn", "gat", "gin"])
def test_a_copy_sees_nothing_of_its_seeds_features_even_where_the_seed_is_its_own_neighbour(encoder: str) -> None:
    empty = homogeneous(num_nodes=6)
    graph = with_edges(empty, [[(0, 0), (1, 0), (2, 0), (3, 1), (3, 3)]])
    model = build(graph, encoder={"name": encoder}, attribute_weight=0.5)
    found = []
    for scale in (1.0, -3.0):
        table = graph.features[0]
        assert table is not None
        table = table.copy()
        table[0] *= scale
        batch = make_batch(replace(graph, features=(table,)), [(0, 0)], num_hops=2)
        tokens = {0: parts(model).tokens["0"]}
        seen = with_copies(batch, batch.hops, tokens=tokens, dtype=torch.float64)
        h = model.encoder.input(seen.features, seen.node_type, seen.in_degree, seen.out_degree)
        found.append(model.encoder(h, seen.hops[::-1], Nodes.of(seen))[:2])
    (seed, copy), (other_seed, other_copy) = found
    assert torch.equal(copy, other_copy)
    assert not torch.allclose(seed, other_seed)
    assert not torch.allclose(seed, copy)


def test_evaluation_moves_no_queue_and_repeats() -> None:
    graph = GRAPHS["one type"]
    batch = make_batch(graph, graph.all_seeds(), num_hops=3)
    model = build(graph, encoder={"feature_dropout": 0.5}, num_negatives=8, queue_size=20)
    model(batch, Noise(1))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert sum(int((value >= 0).sum()) for name, value in before.items() if name.endswith("node_id")) == 8
    first = model(batch, None).loss_sum
    model.eval()
    model(batch, Noise(2))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model(batch, None).loss_sum == first
    model.train()
    model(batch, Noise(2))
    assert any(not torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_seeds_without_targets_negatives_or_features_have_a_finite_gradient_for_every_parameter() -> None:
    graph = GRAPHS["several types"]
    model = build(graph, queue_size=0)
    for seeds in ([], [(2, 0)], [(0, 3)], [(0, 3), (2, 0), (2, 1)]):
        out = model(make_batch(graph, seeds, num_hops=3, num_seeds_global=max(1, len(seeds))), Noise(3))
        model.zero_grad()
        out.loss_sum.backward()
        assert out.count == len(seeds)
        assert math.isfinite(out.loss_sum.item())
        for parameter in model.parameters():
            assert parameter.grad is not None
            assert torch.isfinite(parameter.grad).all()


def test_without_attributes_nothing_is_copied_and_a_graph_without_features_will_do() -> None:
    graph = GRAPHS["several types"]
    plain = replace(
        graph,
        features=(None, None, None),
        schema=replace(
            graph.schema,
            node_types=tuple(replace(kind, feature_dim=None, feature_dtype=None) for kind in graph.schema.node_types),
        ),
    )
    model = build(plain, attribute_weight=0.0)
    assert {name.split(".")[1] for name, _ in model.named_parameters() if name.startswith("objective.")} == {"matchers"}
    rows: list[int] = []
    model.encoder.register_forward_hook(lambda _module, _inputs, output: rows.append(output.shape[0]))
    batch = make_batch(plain, plain.all_seeds()[:9], num_hops=3)
    out = model(batch, Noise(1))
    assert rows == [batch.hops[1].num_targets]
    assert out.loss_sum.item() > 0.0
    assert out.metrics["attributes"] == 0.0


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_training_lowers_the_loss(precision: str) -> None:
    losses = losses_of_training("name: gptgnn, num_negatives: 20, queue_size: 30", precision=precision, num_steps=25)
    assert all(math.isfinite(loss) for loss in losses)
    assert sum(losses[-5:]) < 0.85 * sum(losses[1:6])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mask_rate": 0.0}, "greater than 0"),
        ({"num_negatives": 0}, "greater than or equal to 1"),
        ({"queue_size": -1}, "greater than or equal to 0"),
        ({"attribute_weight": 1.0}, "less than 1"),
    ],
)
def test_settings_that_leave_nothing_to_learn_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        GptGnnConfig.model_validate(settings)


def test_a_graph_that_lacks_what_is_generated_is_refused_with_the_remedy() -> None:
    def schema(*, dim: int | None, num_relations: int) -> GraphSchema:
        return GraphSchema(
            node_types=(NodeTypeSchema("user", dim, None if dim is None else "float32"),),
            relations=tuple(RelationSchema(str(number), 0, 0) for number in range(num_relations)),
        )

    with pytest.raises(BadInput, match=r"no relations: gptgnn .*; ingest an edge table"):
        make_objective(GptGnnConfig(), schema=schema(dim=4, num_relations=0), encoder_config=EncoderConfig())
    with pytest.raises(BadInput, match=r"no features on node types user: .*; set objective.attribute_weight=0"):
        make_objective(GptGnnConfig(), schema=schema(dim=None, num_relations=1), encoder_config=EncoderConfig())


def test_seed_types_that_leave_a_relation_without_negatives_are_refused() -> None:
    model = build(GRAPHS["several types"])
    model.objective.check_seed_types(["paper", "author", "venue"])
    with pytest.raises(BadInput, match=r"gptgnn draws what takes a source's place .*; add author to data.seed_types"):
        model.objective.check_seed_types(["paper", "venue"])
