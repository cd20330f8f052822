"""GraphMAE: what is masked, shown, decoded and counted."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sampling.batch import MiniBatch
from service.encoders import EncoderConfig, Nodes, make_encoder
from service.group import Group
from service.model import Model
from service.noise import Noise, Site
from service.objectives import make_objective
from service.objectives.graphmae import GraphMaeConfig
from service.schema import GraphSchema, NodeTypeSchema, RelationSchema
from storage.errors import BadInput
from tests.service.batches import SmallGraph, heterogeneous, homogeneous, make_batch
from tests.service.steps import losses_of_one_batch

NOISE = Noise(17)


def build(graph: SmallGraph, *, encoder: dict[str, Any] | None = None, **settings: Any) -> Model:
    torch.manual_seed(0)
    config = EncoderConfig.model_validate({"name": "gat", "hidden_dim": 8, "num_heads": 2, **(encoder or {})})
    objective = GraphMaeConfig.model_validate(settings)
    return Model(
        make_encoder(config, schema=graph.schema),
        make_objective(objective, schema=graph.schema, encoder_config=config),
        group=Group(),
    ).double()


def masked_nodes(batch: MiniBatch, *, rate: float) -> Tensor:
    return NOISE.select(Nodes.of(batch).keys, rate, site=Site.MASK)


class Recorder:
    """Keeps the first positional input of a module."""

    def __init__(self, module: nn.Module) -> None:
        self.inputs: list[Tensor] = []
        module.register_forward_pre_hook(lambda _, inputs: self.inputs.append(inputs[0].detach().clone()))


def test_masked_nodes_show_the_token_or_a_seeds_features_and_others_their_own() -> None:
    graph = homogeneous(num_nodes=200)
    model = build(graph, mask_rate=0.5, replace_rate=0.3)
    with torch.no_grad():
        model.objective.tokens["0"].fill_(9.0)  # type: ignore[index]  # nn.Module's attributes are untyped
    seen = Recorder(model.encoder.layers[0].convolution)  # type: ignore[arg-type]  # as above
    batch = make_batch(graph, graph.all_seeds()[:80], num_hops=3)
    model(batch, NOISE)
    shown, own, masked = seen.inputs[0], batch.features[0], masked_nodes(batch, rate=0.5)
    assert own is not None
    assert torch.equal(shown[~masked], own[~masked])
    has_token = (shown == 9.0).all(1)
    assert not has_token[~masked].any()
    partners = {tuple(row) for row in own[: batch.num_seeds].tolist()}
    replaced = masked & ~has_token
    assert all(tuple(row) in partners for row in shown[replaced].tolist())
    assert len({tuple(row) for row in shown[replaced].tolist()}) > 10
    assert 0.4 < masked.double().mean() < 0.6
    assert 0.15 < replaced.sum() / masked.sum() < 0.45


@pytest.mark.parametrize("decoder", ["gat", "gcn", "gin", "sage"])
def test_a_decoder_sees_zeros_for_masked_nodes(decoder: str) -> None:
    graph = homogeneous()
    model = build(graph, decoder=decoder)
    seen = Recorder(model.objective.decoders["0"])  # type: ignore[index, arg-type]  # nn.Module's attributes are untyped
    batch = make_batch(graph, graph.all_seeds()[:20], num_hops=3)
    model(batch, NOISE)
    masked = masked_nodes(batch, rate=0.5)[: batch.hops[0].num_sources]
    assert seen.inputs[0].shape == (batch.hops[0].num_sources, 8)
    assert not seen.inputs[0][masked].any()
    assert (seen.inputs[0][~masked] != 0).any(1).all()


def test_the_loss_is_the_error_of_masked_seeds_decoded_from_all_seeds() -> None:
    """An oracle that decodes every seed, without choosing rows, and applies the published formula."""
    graph = homogeneous()
    model = build(graph, mask_rate=0.6, replace_rate=0.0, exponent=2.0)
    batch = make_batch(graph, graph.all_seeds()[:20], num_hops=3, fanout=3)
    out = model(batch, NOISE)
    masked = masked_nodes(batch, rate=0.6)
    own, nodes = batch.features[0], Nodes.of(batch)
    assert own is not None
    shown = torch.where(masked[:, None], 0.0, own)
    h = model.encoder(shown, batch.hops[:0:-1], nodes)
    h = model.objective.project(h)  # type: ignore[operator]  # nn.Module's attributes are untyped
    h = torch.where(masked[: len(h), None], 0.0, h)
    rebuilt = model.objective.decoders["0"](h, hop=batch.hops[0], nodes=nodes)  # type: ignore[index, operator]  # as above
    cosine = nn.functional.cosine_similarity(rebuilt, own[:20])
    expected = ((1 - cosine) ** 2)[masked[:20]]
    assert out.count == len(expected) > 0
    assert torch.allclose(out.loss_sum, expected.sum())


def test_types_without_features_are_not_masked_and_count_nothing() -> None:
    graph = heterogeneous()
    model = build(graph, mask_rate=1.0, replace_rate=0.0)
    venues = make_batch(graph, [(2, node) for node in range(5)], num_hops=3)
    out = model(venues, NOISE)
    assert out.count == 0
    assert out.loss_sum == 0
    out.loss_sum.backward()
    for parameter in model.parameters():
        assert parameter.grad is not None
        assert not parameter.grad.any()
    everything = make_batch(graph, graph.all_seeds(), num_hops=3)
    assert model(everything, NOISE).count == 20 + 15


def test_mlp_decoder_needs_no_hop_beyond_the_encoders() -> None:
    graph = homogeneous()
    assert build(graph).objective.reach == GraphMaeConfig().reach == 1
    model = build(graph, decoder="mlp")
    assert model.objective.reach == 0
    out = model(make_batch(graph, graph.all_seeds(), num_hops=2), NOISE)
    out.loss_sum.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_evaluation_masks_the_same_nodes_every_time_and_drops_nothing() -> None:
    graph = homogeneous()
    batch = make_batch(graph, graph.all_seeds(), num_hops=3)
    noisy = build(graph, encoder={"feature_dropout": 0.5, "attention_dropout": 0.5})
    plain = build(graph)
    assert noisy(batch, None).loss_sum == plain(batch, None).loss_sum == plain(batch, Noise(0)).loss_sum
    assert noisy(batch, NOISE).loss_sum != plain(batch, NOISE).loss_sum


def test_features_of_any_stored_type_train_alike() -> None:
    graph = homogeneous()
    batch = make_batch(graph, graph.all_seeds(), num_hops=3)
    assert batch.features[0] is not None
    whole = (batch.features[0] * 20).round().clamp(-100, 100)
    model = build(graph)
    losses = []
    for dtype in (torch.float64, torch.float32, torch.float16, torch.int8):
        typed = type(batch)(**{**vars(batch), "features": (whole.to(dtype),)})
        losses.append(model(typed, NOISE).loss_sum.item())
    assert losses == pytest.approx([losses[0]] * 4)


@pytest.mark.parametrize("decoder", ["gat", "gcn", "gin", "sage", "mlp"])
def test_training_lowers_the_loss(decoder: str) -> None:
    graph = heterogeneous()
    model = build(graph, encoder={"name": "sage"}, decoder=decoder, mask_rate=0.3)
    batch = make_batch(graph, graph.all_seeds(), num_hops=3 - (decoder == "mlp"))
    losses = losses_of_one_batch(model, batch, noise=NOISE)
    assert losses[-1] < 0.9 * losses[0]


def test_a_graph_without_any_features_is_refused_with_the_remedy() -> None:
    schema = GraphSchema(
        node_types=(NodeTypeSchema("user", None, None), NodeTypeSchema("item", None, None)),
        relations=(RelationSchema("user:buys:item", 0, 1),),
    )
    with pytest.raises(BadInput, match=r"graphmae: no features on node types user, item: .*; ingest node tables"):
        make_objective(GraphMaeConfig(), schema=schema, encoder_config=EncoderConfig())
