"""InfoNCE: GRACE and DGI against their formulas in dense matrices, who is whose negative, and what is refused."""

import math

import pytest
import torch
from torch import Tensor, nn

from sampling.masks import node_keys
from service.encoders import EncoderConfig, Nodes
from service.group import Group
from service.noise import Noise, Site
from service.objectives import make_objective
from service.objectives.dgi import shuffle_features
from service.objectives.infonce import InfoNceConfig, info_nce, unit_rows
from service.run_file import parse_run_text
from service.schema import GraphSchema, NodeTypeSchema, RelationSchema
from storage.errors import BadInput
from tests.service.batches import heterogeneous, homogeneous, make_batch
from tests.service.dense_views import (
    VIEW_1,
    VIEW_2,
    adjacency,
    build,
    dense_gcn,
    dense_head,
    dense_states,
    gradients,
)
from tests.service.steps import losses_of_training

NOISE = Noise(17)
GRACE = InfoNceConfig(view_1=VIEW_1, view_2=VIEW_2, temperature=0.4, projector_dim=12)


def plain_loss(one: Tensor, other: Tensor, *, temperature: float) -> Tensor:
    """GRACE, eq. 1, term by term: the mean over rows i of l(one_i, other_i)."""

    def similarity(a: Tensor, b: Tensor) -> Tensor:
        return torch.exp((a @ b) / (a.norm() * b.norm()) / temperature)

    losses = []
    for i in range(len(one)):
        across = [similarity(one[i], other[k]) for k in range(len(other))]
        inside = [similarity(one[i], one[k]) for k in range(len(one)) if k != i]
        losses.append(-torch.log(across[i] / (sum(across) + sum(inside))))
    return torch.stack(losses).mean()


def test_grace_on_the_whole_graph_is_the_published_formula_in_value_and_gradient() -> None:
    graph = homogeneous()
    model = build(graph, GRACE)
    out = model(make_batch(graph, graph.all_seeds(), num_hops=2), NOISE)
    states = dense_states(graph, model.encoder, noise=NOISE)
    head = model.objective.projector
    assert isinstance(head, nn.Module)
    u, v = (dense_head(head, h, nn.ELU()) for h in states)
    expected = (plain_loss(u, v, temperature=0.4) + plain_loss(v, u, temperature=0.4)) / 2
    loss = out.loss_sum / out.count
    assert out.count == 40
    assert torch.allclose(loss, expected, rtol=1e-12, atol=0.0)
    assert torch.allclose(gradients(model, loss), gradients(model, expected), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("max_logits", [1, 100, 230, 231])
def test_chunks_of_rows_give_the_same_loss_and_gradient(max_logits: int) -> None:
    def run(max_logits: int) -> tuple[Tensor, Tensor, Tensor]:
        generator = torch.Generator().manual_seed(0)
        own = unit_rows(torch.randn(7, 5, dtype=torch.float64, generator=generator)).requires_grad_()
        pool = unit_rows(torch.randn(22, 5, dtype=torch.float64, generator=generator)).requires_grad_()
        losses = info_nce(own, pool, ids_G=torch.arange(11), first=3, temperature=0.5, max_logits=max_logits)
        losses.square().sum().backward()
        assert own.grad is not None
        assert pool.grad is not None
        return losses.detach(), own.grad, pool.grad

    for found, expected in zip(run(max_logits), run(10**6), strict=True):
        assert torch.allclose(found, expected, rtol=1e-12, atol=1e-14)


def test_a_node_that_is_a_seed_twice_is_no_negative_of_itself() -> None:
    generator = torch.Generator().manual_seed(0)
    own, other = (unit_rows(torch.randn(4, 5, dtype=torch.float64, generator=generator)) for _ in range(2))
    losses = info_nce(own, torch.cat([other, own]), ids_G=torch.tensor([8, 5, 8, 6]), first=0, temperature=1.0)
    across, inside = (own @ other.T).exp(), (own @ own.T).exp()
    # rows 0 and 2 are one node: of its two others each row keeps its own place only
    row_0 = across[0, [0, 1, 3]].sum() + inside[0, [1, 3]].sum()
    row_1 = across[1].sum() + inside[1, [0, 2, 3]].sum()
    assert losses[0].item() == pytest.approx(math.log(row_0 / across[0, 0]))
    assert losses[1].item() == pytest.approx(math.log(row_1 / across[1, 1]))


def test_local_negatives_exchange_nothing_between_ranks() -> None:
    graph = homogeneous()
    batch = make_batch(graph, graph.all_seeds()[:20], num_hops=2)
    alone = build(graph, GRACE)(batch, NOISE)
    model = build(graph, GRACE.model_copy(update={"negatives": "local"}))
    model.group = Group(rank=1, world_size=2)  # has no process group, so any exchange would fail
    assert torch.equal(model(batch, NOISE).loss_sum, alone.loss_sum)


def test_rows_of_zeros_stay_and_have_no_gradient() -> None:
    z = torch.tensor([[3.0, 4.0], [0.0, 0.0]], requires_grad=True)
    unit = unit_rows(z)
    assert unit.tolist() == [[pytest.approx(0.6), pytest.approx(0.8)], [0.0, 0.0]]
    unit.sum().backward()
    assert z.grad is not None
    assert z.grad[0].any()
    assert not z.grad[1].any()


def test_dgi_on_the_whole_graph_is_the_published_formula_in_value_and_gradient() -> None:
    graph = homogeneous()
    model = build(graph, InfoNceConfig(mode="dgi"))
    out = model(make_batch(graph, graph.all_seeds(), num_hops=2), NOISE)
    assert graph.features[0] is not None
    own = torch.from_numpy(graph.features[0])
    keys = node_keys(torch.zeros(40, dtype=torch.int64), torch.arange(40))
    shown = own[keys.argsort()[NOISE.partners(keys, 40, site=Site.SHUFFLE)]]
    real, shuffled = (dense_gcn(model.encoder, adjacency(graph), x) for x in (own, shown))
    summary = torch.sigmoid(real.mean(0))
    weight = model.objective.score.weight  # type: ignore[union-attr]  # nn.Module's attributes are untyped
    assert isinstance(weight, Tensor)
    probability, of_shuffled = (torch.sigmoid(h @ weight @ summary) for h in (real, shuffled))
    expected = -(torch.log(probability).sum() + torch.log(1 - of_shuffled).sum()) / 80
    loss = out.loss_sum / out.count
    assert torch.allclose(loss, expected, rtol=1e-12, atol=0.0)
    assert torch.allclose(gradients(model, loss), gradients(model, expected), rtol=1e-9, atol=1e-12)


def test_shuffled_nodes_show_features_of_seeds_of_their_type_whatever_the_order_of_seeds() -> None:
    graph = heterogeneous()
    seeds = [(0, node) for node in range(12)] + [(2, 1)]
    shown: list[dict[tuple[int, int], tuple[float, ...]]] = []
    for order in (seeds, seeds[::-1]):
        batch = make_batch(graph, order, num_hops=2)
        shuffled = shuffle_features(batch, Nodes.of(batch), noise=NOISE, group=Group())
        papers, authors, venues = shuffled
        assert papers is not None
        assert venues is None
        assert authors is batch.features[1]  # no author is a seed
        ids = batch.node_id[batch.node_type == 0]
        shown.append({(0, int(node)): tuple(row) for node, row in zip(ids, papers.tolist(), strict=True)})
    assert shown[0] == shown[1]
    assert graph.features[0] is not None
    of_seeds = {tuple(row) for row in graph.features[0][:12].tolist()}
    assert set(shown[0].values()) <= of_seeds
    moved = sum(row != tuple(graph.features[0][node].tolist()) for (_, node), row in shown[0].items())
    assert moved >= len(shown[0]) - 4
    assert len(set(shown[0].values())) >= 6


@pytest.mark.parametrize("mode", ["grace", "dgi"])
def test_without_noise_the_loss_is_the_same_every_time_and_without_seeds_it_is_nothing(mode: str) -> None:
    graph = heterogeneous()
    model = build(graph, InfoNceConfig.model_validate({"mode": mode}), feature_dropout=0.4)
    batch = make_batch(graph, graph.all_seeds(), num_hops=2)
    assert model(batch, None).loss_sum == model(batch, None).loss_sum != model(batch, NOISE).loss_sum
    out = model(make_batch(graph, [], num_hops=2), NOISE)
    assert (out.loss_sum, out.count) == (0.0, 0.0)
    out.loss_sum.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert not parameter.grad.any()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("mode", ["grace", "dgi"])
def test_training_lowers_the_loss(mode: str, precision: str) -> None:
    losses = losses_of_training(f"name: infonce, mode: {mode}", precision=precision, num_steps=30)
    assert losses[-1] < 0.95 * losses[0]


@pytest.mark.parametrize(
    ("section", "found"),
    [
        ("name: infonce, mode: dgi, temperature: 0.1, negatives: local", "mode=dgi takes no temperature, negatives"),
        ("name: infonce, mode: mvgrl", r"objective.mode=.mvgrl.*'grace' or 'dgi'"),
        ("name: infonce, temperature: 0", "objective.temperature=0: .*greater than 0"),
        ("name: infonce, view_1: {edge_drop: 1}", "objective.view_1.edge_drop=1: .*less than 1"),
        ("name: infonce, projector: 3", "unknown key objective.projector: .*did you mean objective.projector_"),
    ],
)
def test_settings_that_cannot_work_are_refused_with_the_key(section: str, found: str) -> None:
    with pytest.raises(BadInput, match=found):
        parse_run_text(f"{{run: {{name: r}}, data: {{store: s}}, objective: {{{section}}}}}", place="r", overrides=())


def test_a_resolved_run_file_of_dgi_can_be_read_again() -> None:
    text = "{run: {name: r}, data: {store: s}, objective: {name: infonce, mode: dgi}}"
    run = parse_run_text(text, place="r", overrides=())
    assert parse_run_text(run.to_yaml(), place="r", overrides=()) == run


def test_dgi_on_a_graph_without_features_is_refused_and_grace_is_not() -> None:
    schema = GraphSchema(node_types=(NodeTypeSchema("user", None, None),), relations=(RelationSchema("knows", 0, 0),))
    with pytest.raises(BadInput, match=r"dgi: no features on node types user: .*, or use mode=grace"):
        make_objective(InfoNceConfig(mode="dgi"), schema=schema, encoder_config=EncoderConfig())
    make_objective(GRACE, schema=schema, encoder_config=EncoderConfig())
