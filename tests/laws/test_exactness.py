"""Law: mini-batches with full fan-out equal the full batch, in loss and gradient.

The full batch has all nodes as seeds. Dropout and masks stay on: they are drawn by node and edge, so every node is
treated alike in every mini-batch. Replacement rows come from the global batch and are off. With batch norm the
statistics are those of the seeds, so there the mini-batch has all nodes as seeds, in another order.
"""

from collections.abc import Sequence
from itertools import product
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from service.encoders import EncoderConfig, make_encoder
from service.encoders.base import ConvolutionName
from service.group import Group
from service.model import Model
from service.noise import Noise
from service.norm import NormName
from service.objectives import ObjectiveConfig, make_objective
from service.objectives.graphmae import GraphMaeConfig
from tests.laws.encoder_cases import ENCODER_CASES
from tests.laws.objective_cases import OBJECTIVES
from tests.service.batches import SmallGraph, heterogeneous, homogeneous, make_batch

ENCODERS: tuple[ConvolutionName, ...] = ("sage", "gcn", "gat", "gin")
GRAPHS = {
    "homogeneous": homogeneous(),
    "heterogeneous": heterogeneous(),
    "weighted": heterogeneous(weighted=True),
}
GraphName = Literal["homogeneous", "heterogeneous", "weighted"]


def encoder_config(encoder: str, norm: NormName) -> EncoderConfig:
    """Of a plain convolution, or of one of `ENCODER_CASES`."""
    if encoder in ENCODER_CASES:
        return ENCODER_CASES[encoder].config(norm=norm)
    return EncoderConfig(
        name=encoder,
        num_layers=2,
        hidden_dim=8,
        num_heads=2,
        norm=norm,
        residual="post",
        feature_dropout=0.2,
        attention_dropout=0.3,
        edge_dropout=0.2,
    )


def build(graph: SmallGraph, encoder: str, norm: NormName, objective: ObjectiveConfig) -> Model:
    config = encoder_config(encoder, norm)
    torch.manual_seed(0)
    return Model(
        make_encoder(config, schema=graph.schema),
        make_objective(objective, schema=graph.schema, encoder_config=config),
        group=Group(),
    ).double()


def loss_and_gradient(
    graph: SmallGraph,
    batches: Sequence[Sequence[tuple[int, int]]],
    *,
    encoder: str,
    norm: NormName,
    objective: str = "graphmae",
) -> tuple[float, float, Tensor]:
    """Sums over `batches` of seeds: loss, count, and all gradients in one row."""
    decoder: Any = ENCODER_CASES[encoder].decoder if encoder in ENCODER_CASES else encoder
    config: ObjectiveConfig = GraphMaeConfig(mask_rate=0.6, replace_rate=0.0, decoder=decoder)
    num_hops = ENCODER_CASES[encoder].num_hops + 1 if encoder in ENCODER_CASES else 3
    if objective in OBJECTIVES:
        config, num_hops = OBJECTIVES[objective].config, OBJECTIVES[objective].num_hops
    model = build(graph, encoder, norm, config)
    loss, count = 0.0, 0.0
    for seeds in batches:
        out = model(make_batch(graph, seeds, num_hops=num_hops), Noise(3))
        out.loss_sum.backward()
        loss, count = loss + out.loss_sum.item(), count + out.count.item()
    gradients = []
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        assert parameter.grad is not None
        gradients.append(parameter.grad.reshape(-1))
    return loss, count, torch.cat(gradients)


@pytest.mark.parametrize(
    ("encoder", "graph_name", "norm"),
    [
        *product(ENCODERS, GRAPHS, ["none", "layer"]),
        *product(ENCODER_CASES, ["homogeneous", "heterogeneous"], ["layer"]),
        *product(ENCODER_CASES, ["weighted"], ["none"]),
    ],
)
def test_full_fan_out_mini_batches_equal_the_full_batch(encoder: str, graph_name: GraphName, norm: NormName) -> None:
    graph = GRAPHS[graph_name]
    seeds = graph.all_seeds()
    order = torch.randperm(len(seeds), generator=torch.Generator().manual_seed(5)).tolist()
    batches = [[seeds[number] for number in order[first : first + 13]] for first in range(0, len(seeds), 13)]
    loss, count, gradient = loss_and_gradient(graph, batches, encoder=encoder, norm=norm)
    full_loss, full_count, full_gradient = loss_and_gradient(graph, [seeds], encoder=encoder, norm=norm)
    assert count == full_count > 0
    assert loss == pytest.approx(full_loss, rel=1e-12)
    assert (gradient - full_gradient).norm() <= 1e-11 * full_gradient.norm()


@pytest.mark.parametrize(
    ("encoder", "graph_name"),
    [*product(ENCODERS, ["homogeneous", "heterogeneous"]), *product(ENCODER_CASES, ["heterogeneous"])],
)
def test_with_batch_norm_all_nodes_as_seeds_in_any_order_are_the_full_batch(
    encoder: str, graph_name: GraphName
) -> None:
    graph = GRAPHS[graph_name]
    seeds = graph.all_seeds()
    order = torch.randperm(len(seeds), generator=torch.Generator().manual_seed(5)).tolist()
    shuffled = [seeds[number] for number in order]
    loss, count, gradient = loss_and_gradient(graph, [shuffled], encoder=encoder, norm="batch")
    full_loss, full_count, full_gradient = loss_and_gradient(graph, [seeds], encoder=encoder, norm="batch")
    assert count == full_count > 0
    assert loss == pytest.approx(full_loss, rel=1e-12)
    assert (gradient - full_gradient).norm() <= 1e-10 * full_gradient.norm()


@pytest.mark.parametrize("objective", [name for name, case in OBJECTIVES.items() if case.is_sum])
@pytest.mark.parametrize("graph_name", ["homogeneous", "heterogeneous"])
def test_every_loss_that_is_a_sum_over_seeds_adds_up_to_the_full_batch(objective: str, graph_name: GraphName) -> None:
    graph = GRAPHS[graph_name]
    seeds = graph.all_seeds()
    order = torch.randperm(len(seeds), generator=torch.Generator().manual_seed(5)).tolist()
    batches = [[seeds[number] for number in order[first : first + 13]] for first in range(0, len(seeds), 13)]
    found = loss_and_gradient(graph, batches, encoder="gcn", norm="layer", objective=objective)
    full = loss_and_gradient(graph, [seeds], encoder="gcn", norm="layer", objective=objective)
    assert found[1] == full[1] > 0
    assert found[0] == pytest.approx(full[0], rel=1e-12)
    assert (found[2] - full[2]).norm() <= 1e-11 * full[2].norm()


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("graph_name", ["homogeneous", "heterogeneous"])
def test_every_objective_with_all_nodes_as_seeds_in_any_order_is_the_full_batch(
    objective: str, graph_name: GraphName
) -> None:
    graph = GRAPHS[graph_name]
    seeds = graph.all_seeds()
    order = torch.randperm(len(seeds), generator=torch.Generator().manual_seed(5)).tolist()
    shuffled = [seeds[number] for number in order]
    found = loss_and_gradient(graph, [shuffled], encoder="gcn", norm="batch", objective=objective)
    full = loss_and_gradient(graph, [seeds], encoder="gcn", norm="batch", objective=objective)
    assert found[1] == full[1] > 0
    assert found[0] == pytest.approx(full[0], rel=1e-12)
    assert (found[2] - full[2]).norm() <= 1e-10 * full[2].norm()
