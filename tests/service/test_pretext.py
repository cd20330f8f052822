"""pretext: each task's loss against its formula in plain numbers, the clusters that follow batches, and refusals."""

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn.functional import log_softmax

from sampling.masks import node_keys
from service.encoders import EncoderConfig, Nodes, make_encoder
from service.group import Group
from service.model import Model
from service.noise import Noise, Site
from service.objectives import make_objective
from service.objectives.online_clusters import OnlineClusters
from service.objectives.pretext import Pretext, PretextConfig
from service.schema import GraphSchema, NodeTypeSchema, RelationSchema
from storage.errors import BadInput
from tests.service.batches import SmallGraph, heterogeneous, homogeneous, make_batch
from tests.service.steps import losses_of_one_batch

NOISE = Noise(17)
GRAPHS = {"one type": homogeneous(), "several types": heterogeneous()}
NUM_PAIRS = 3
NODE = tuple[int, int]


def build(graph: SmallGraph, *, encoder: dict[str, Any] | None = None, **settings: Any) -> Model:
    torch.manual_seed(0)
    config = EncoderConfig.model_validate({"name": "sage", "hidden_dim": 8, **(encoder or {})})
    objective = PretextConfig.model_validate({"num_clusters": 4, "num_pairs": NUM_PAIRS, **settings})
    return Model(
        make_encoder(config, schema=graph.schema),
        make_objective(objective, schema=graph.schema, encoder_config=config),
        group=Group(),
    ).double()


def chosen_seeds(graph: SmallGraph, count: int) -> list[NODE]:
    order = torch.randperm(sum(graph.num_nodes), generator=torch.Generator().manual_seed(2))[:count].tolist()
    return [graph.all_seeds()[number] for number in order]


def key_of(node: NODE) -> Tensor:
    return node_keys(torch.tensor([node[0]]), torch.tensor([node[1]]))


def states_of(model: Model, graph: SmallGraph, seeds: list[NODE]) -> dict[NODE, Tensor]:
    batch = make_batch(graph, seeds, num_hops=2)
    h = model.encoder.input(batch.features, batch.node_type, batch.in_degree, batch.out_degree)
    h = model.encoder(h, batch.hops[::-1], Nodes.of(batch))
    return dict(zip(seeds, h[: len(seeds)], strict=True))


def unit_features(graph: SmallGraph, *, num_averages: int) -> dict[NODE, Tensor]:
    """Dense: rows averaged with those of all in-neighbours of the same type, then scaled to length 1."""
    found = {}
    for kind, table in enumerate(graph.features):
        if table is None:
            continue
        inside = [
            graph.adjacency(number)
            for number, info in enumerate(graph.schema.relations)
            if info.source_type == info.target_type == kind
        ]
        mixed = torch.eye(len(table), dtype=torch.float64)
        for matrix in inside:
            mixed = mixed + matrix
        x = torch.from_numpy(table)
        for _ in range(num_averages):
            x = mixed @ x / mixed.sum(1, keepdim=True)
        found.update({(kind, node): row / row.norm() for node, row in enumerate(x)})
    return found


@pytest.mark.parametrize("graph_name", GRAPHS)
def test_degrees_are_predicted_as_logarithms_over_a_types_own_relations(graph_name: str) -> None:
    graph = GRAPHS[graph_name]
    model = build(graph, tasks=["degree"])
    seeds = chosen_seeds(graph, 21)
    out = model(make_batch(graph, seeds, num_hops=2, fanout=None), NOISE)
    head = model.get_submodule("objective.tasks.degree.head")
    num_relations = len(graph.schema.relations)
    losses = []
    for (kind, node), h in states_of(model, graph, seeds).items():
        predicted, errors = head(h), []
        for number, info in enumerate(graph.schema.relations):
            if info.target_type == kind:
                errors.append((predicted[number] - math.log(1 + graph.in_degree(number)[node])) ** 2)
            if info.source_type == kind:
                errors.append((predicted[num_relations + number] - math.log(1 + graph.out_degree(number)[node])) ** 2)
        losses.append(torch.stack(errors).mean())
    assert out.count == len(seeds)
    assert out.loss_sum.item() == pytest.approx(torch.stack(losses).sum().item(), rel=1e-12)


@pytest.mark.parametrize("graph_name", GRAPHS)
@pytest.mark.parametrize("num_averages", [0, 1, 2])
def test_similarities_are_cosines_of_averaged_features(graph_name: str, num_averages: int) -> None:
    graph = GRAPHS[graph_name]
    model = build(graph, tasks=["similarity"], num_averages=num_averages)
    seeds = chosen_seeds(graph, 21)
    out = model(make_batch(graph, seeds, num_hops=2), NOISE)
    states, features, errors = states_of(model, graph, seeds), unit_features(graph, num_averages=num_averages), []
    for seed in seeds:
        if seed not in features:
            continue
        candidates = sorted(other for other in seeds if other[0] == seed[0])
        head = model.get_submodule(f"objective.tasks.similarity.heads.{seed[0]}")
        for number in range(NUM_PAIRS):
            drawn = NOISE.partners(key_of(seed), len(candidates), view=number, site=Site.PARTNER)
            other = candidates[int(drawn)]
            if other != seed:
                cosine = features[seed] @ features[other]
                errors.append((head(states[seed] * states[other])[0] - cosine) ** 2)
    assert len(errors) > 2 * len([seed for seed in seeds if seed in features])
    assert (out.loss_sum / out.count).item() == pytest.approx(torch.stack(errors).mean().item(), rel=1e-11)


@pytest.mark.parametrize("graph_name", GRAPHS)
def test_clusters_are_k_means_of_the_batches_so_far(graph_name: str) -> None:
    """Three steps in plain loops: clusters take rows by key, seeds are labelled, centroids become means."""
    graph = GRAPHS[graph_name]
    model = build(graph, tasks=["cluster"], num_averages=1, num_clusters=5)
    features = unit_features(graph, num_averages=1)
    members: dict[int, list[list[Tensor]]] = {
        kind: [[] for _ in range(5)] for kind, table in enumerate(graph.features) if table is not None
    }
    order = chosen_seeds(graph, sum(graph.num_nodes))
    for step, seeds in enumerate((order[:7], order[7:20], order[20:40])):
        noise = Noise(step)
        out = model(make_batch(graph, seeds, num_hops=2), noise)
        states, losses = states_of(model, graph, seeds), []
        for kind, held in members.items():
            own = [seed for seed in seeds if seed[0] == kind]
            by_key = sorted(own, key=lambda seed: int(noise.partners(key_of(seed), 1 << 53, site=Site.SHUFFLE)))
            empty = [number for number in range(5) if not held[number]]
            fresh = {number: features[seed] for number, seed in zip(empty, by_key, strict=False)}
            means = {number: torch.stack(held[number]).mean(0) for number in range(5) if held[number]}
            centroids = dict(sorted((means | fresh).items()))
            labels = {
                seed: min(centroids, key=lambda number: float((centroids[number] - features[seed]).norm()))
                for seed in own
            }
            for seed, label in labels.items():
                head = model.get_submodule(f"objective.tasks.cluster.heads.{kind}")
                losses.append(-log_softmax(head(states[seed]), dim=0)[label])
                held[label].append(features[seed])
        assert (out.loss_sum / out.count).item() == pytest.approx(torch.stack(losses).mean().item(), rel=1e-11)
    for kind, held in members.items():
        clusters = model.get_submodule(f"objective.tasks.cluster.clusters.{kind}")
        assert isinstance(clusters, OnlineClusters)
        assert clusters.counts.tolist() == [len(rows) for rows in held]
        assert torch.allclose(clusters.centroids, torch.stack([torch.stack(rows).mean(0) for rows in held]))


def test_tasks_add_up_by_their_weights() -> None:
    graph = GRAPHS["several types"]
    batch = make_batch(graph, chosen_seeds(graph, 30), num_hops=2)
    both = build(graph, tasks=["similarity", "degree"], weights=[0.5, 3.0])
    total = 0.0
    for name, weight in (("similarity", 0.5), ("degree", 3.0)):
        alone = build(graph, tasks=[name])
        alone.load_state_dict({key: both.state_dict()[key] for key in alone.state_dict()})
        loss = alone(batch, NOISE).loss_sum.item()
        assert both(batch, NOISE).metrics[name].item() == pytest.approx(loss)
        total += weight * loss
    assert both(batch, NOISE).loss_sum.item() == pytest.approx(total)


def test_rows_of_groups_far_apart_never_share_a_cluster() -> None:
    generator = torch.Generator().manual_seed(0)
    centres = torch.eye(3, dtype=torch.float64) * 10
    clusters = OnlineClusters(12, 3).double()
    groups = torch.arange(300) % 3
    rows = centres[groups] + torch.randn(300, 3, dtype=torch.float64, generator=generator)
    keys = node_keys(torch.zeros(300, dtype=torch.int64), torch.arange(300))
    for first in range(0, 300, 50):
        part = slice(first, first + 50)
        clusters.fill(rows[part], keys[part], noise=Noise(first), group=Group())
        clusters.update(rows[part], clusters.assign(rows[part]), group=Group())
    labels = clusters.assign(rows)
    assert all(len(set(groups[labels == label].tolist())) == 1 for label in set(labels.tolist()))
    assert clusters.counts.sum() == 300


def test_equal_rows_fill_one_cluster_and_each_is_counted_once() -> None:
    rows = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    clusters = OnlineClusters(3, 2)
    for step in range(2):
        clusters.fill(rows, torch.arange(5), noise=Noise(step), group=Group())
        clusters.update(rows, clusters.assign(rows), group=Group())
    assert sorted(clusters.counts.tolist()) == [0, 4, 6]
    more = torch.tensor([[0.5, 0.5]])
    clusters.fill(more, torch.arange(1), noise=Noise(2), group=Group())
    clusters.update(more, clusters.assign(more), group=Group())
    assert sorted(clusters.counts.tolist()) == [1, 4, 6]
    assert sorted(clusters.centroids.tolist()) == [[0.0, 1.0], [0.5, 0.5], [1.0, 0.0]]


def test_evaluation_moves_no_centroid_and_repeats() -> None:
    graph = GRAPHS["one type"]
    batch = make_batch(graph, graph.all_seeds(), num_hops=2)
    model = build(graph, encoder={"feature_dropout": 0.5})
    model(batch, NOISE)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert any("centroids" in name for name in before)
    first = model(batch, None).loss_sum
    model.eval()
    model(batch, NOISE)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model(batch, None).loss_sum == first
    model.train()
    model(batch, NOISE)
    assert any(not torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_batch_of_types_without_features_or_of_nothing_has_a_gradient_for_every_parameter() -> None:
    graph = GRAPHS["several types"]
    model = build(graph)
    for seeds in ([(2, 0), (2, 3)], []):
        out = model(make_batch(graph, seeds, num_hops=2, num_seeds_global=2), NOISE)
        model.zero_grad()
        out.loss_sum.backward()
        assert out.count == len(seeds)
        assert math.isfinite(out.loss_sum.item())
        assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)


@pytest.mark.parametrize("task", ["degree", "cluster", "similarity"])
def test_training_lowers_every_tasks_loss(task: str) -> None:
    graph = GRAPHS["several types"]
    model = build(graph, tasks=[task])
    assert isinstance(model.objective, Pretext)
    assert model.objective.reach == model.objective.config.reach == 0
    batch = make_batch(graph, graph.all_seeds(), num_hops=2)
    for _ in range(5):
        model(batch, NOISE)  # centroids come to rest
    losses = losses_of_one_batch(model, batch, noise=NOISE)
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tasks": ["degree", "degree"]}, "one is named twice"),
        ({"weights": [1.0]}, "3 tasks have as many weights"),
        ({"weights": [1.0, 0.0, 1.0]}, "weights are above 0"),
        ({"weights": [1.0, math.nan, 1.0]}, "weights are above 0"),
        ({"tasks": []}, "at least 1 item"),
    ],
)
def test_settings_that_say_nothing_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        PretextConfig.model_validate(settings)


def test_a_graph_that_lacks_what_is_predicted_is_refused_with_the_remedy() -> None:
    def refused(config: PretextConfig, *, dim: int | None, num_relations: int, message: str) -> None:
        schema = GraphSchema(
            node_types=(NodeTypeSchema("user", dim, None if dim is None else "float32"),),
            relations=tuple(RelationSchema(str(number), 0, 0) for number in range(num_relations)),
        )
        with pytest.raises(BadInput, match=message):
            make_objective(config, schema=schema, encoder_config=EncoderConfig())

    refused(
        PretextConfig(),
        dim=None,
        num_relations=1,
        message=r"no features on node types user: cluster and similarity predict .*; ingest node tables",
    )
    refused(PretextConfig(), dim=4, num_relations=0, message=r"no relations: .*; ingest an edge table")
    refused(
        PretextConfig(num_averages=3),
        dim=4,
        num_relations=1,
        message=r"num_averages=3: an encoder that reads 2 hops: .*; set objective.num_averages to at most 2",
    )
