"""Law: GraphMAE2 on a whole graph is its published formula in plain dense matrices, in value and gradient."""

from typing import Any

import pytest
import torch
from torch import Tensor

from sampling.masks import node_keys
from service.model import Model
from service.noise import Noise, Site
from service.objectives.graphmae import GraphMaeConfig
from service.objectives.latent_prediction import LatentPrediction
from tests.service.batches import SmallGraph, homogeneous, make_batch
from tests.service.dense_views import adjacency, build, dense_gcn, dense_head, gradients, prelu

GRAPHMAE2 = GraphMaeConfig(
    mask_rate=0.6, replace_rate=0.0, exponent=2.0, decoder="gcn", latent_weight=3.0, projector_dim=7, remask_rate=0.4
)
NOISE = Noise(17)


def named(model: Model, name: str) -> Tensor:
    return dict(model.objective.named_parameters())[name]


def with_other_weights(model: Model) -> Model:
    """Tokens and targets begin as zeros and copies, which would hide that they are forgotten or mixed up."""
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "token" in name or "target" in name:
                parameter.add_(torch.rand(parameter.shape, generator=generator, dtype=parameter.dtype) - 0.5)
    return model


def mean_error(found: Tensor, target: Tensor, *, exponent: float) -> Tensor:
    """The scaled cosine error of each row, and the mean of them."""
    errors = [(1 - x @ y / (x.norm() * y.norm())) ** exponent for x, y in zip(found, target, strict=True)]
    return torch.stack(errors).mean()


def dense_loss(graph: SmallGraph, model: Model, config: GraphMaeConfig) -> Tensor:
    """The loss with all nodes as seeds and whole neighbourhoods, as the paper writes it."""
    matrix, features = adjacency(graph), torch.from_numpy(graph.features[0])
    ids = torch.arange(len(features))
    keys = node_keys(torch.zeros_like(ids), ids)
    masked = NOISE.select(keys, config.mask_rate, site=Site.MASK)
    corrupted = features.clone()
    corrupted[masked] = 0.0
    corrupted = corrupted + masked[:, None] * named(model, "tokens.0")
    h = dense_gcn(model.encoder, matrix, corrupted)
    z = h @ named(model, "project.weight").T
    loss = torch.zeros((), dtype=torch.float64)
    for number in range(config.num_random_remasks):
        hidden = NOISE.select(keys, config.remask_rate, view=number, site=Site.REMASK)[:, None]
        seen = torch.where(hidden, named(model, "remask_token"), z)
        rebuilt = matrix @ seen @ named(model, "decoders.0.neighbor.0.weight").T
        rebuilt = rebuilt + named(model, "decoders.0.bias")
        loss = loss + mean_error(rebuilt[masked], features[masked], exponent=config.exponent)
    if config.latent_weight:
        latent = model.objective.latent
        assert isinstance(latent, LatentPrediction)
        inner = dense_head(latent.projector, h, prelu(named(model, "latent.projector.activation.weight")))
        inner = prelu(named(model, "latent.predictor.0.weight"))(inner)
        predicted = inner @ named(model, "latent.predictor.1.weight").T
        predicted = predicted + named(model, "latent.predictor.1.bias")
        with torch.no_grad():
            target = dense_gcn(latent.target_encoder, matrix, features)
            slope = named(model, "latent.target_projector.activation.weight")
            target = dense_head(latent.target_projector, target, prelu(slope))
        loss = loss + config.latent_weight * mean_error(predicted, target, exponent=1.0)
    return loss


@pytest.mark.parametrize("changes", [{}, {"num_remasks": 1}, {"latent_weight": 0.0, "num_remasks": 2}])
def test_graphmae2_on_the_whole_graph_equals_the_published_formula(changes: dict[str, Any]) -> None:
    graph = homogeneous()
    settings = GRAPHMAE2.model_dump() | changes
    if not settings["latent_weight"]:
        del settings["projector_dim"]
    config = GraphMaeConfig.model_validate(settings)
    model = with_other_weights(build(graph, config))
    out = model(make_batch(graph, graph.all_seeds(), num_hops=3), NOISE)
    loss, expected = out.loss_sum / out.count, dense_loss(graph, model, config)
    assert torch.allclose(loss, expected, rtol=1e-12, atol=0.0)
    assert torch.allclose(gradients(model, loss), gradients(model, expected), rtol=1e-9, atol=1e-12)
