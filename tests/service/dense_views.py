"""A two-view GCN over the whole of a small graph in plain dense matrices: the oracle of objectives with views.

Only the keys of what a view drops are the service's own. Shapes: N nodes, E edges, F feature columns.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sampling.masks import edge_keys, keep, node_keys
from service.encoders import EncoderConfig, make_encoder
from service.group import Group
from service.model import Model
from service.noise import Noise, Site
from service.objectives import ObjectiveConfig, make_objective
from service.views import ViewConfig
from tests.service.batches import SmallGraph

VIEW_1 = ViewConfig(edge_drop=0.3, feature_drop=0.4)
VIEW_2 = ViewConfig(edge_drop=0.5, feature_drop=0.2)


def build(graph: SmallGraph, objective: ObjectiveConfig, **encoder: Any) -> Model:
    """A model in float64 with two GCN layers of 8 columns, unless `encoder` says otherwise."""
    torch.manual_seed(0)
    config = EncoderConfig.model_validate({"name": "gcn", "hidden_dim": 8, **encoder})
    return Model(
        make_encoder(config, schema=graph.schema),
        make_objective(objective, schema=graph.schema, encoder_config=config),
        group=Group(),
    ).double()


def dense_view(graph: SmallGraph, config: ViewConfig, *, noise: Noise, view: int) -> tuple[Tensor, Tensor]:
    """[N, N] normalised adjacency and [N, F] features of view number `view` of a homogeneous graph."""
    num_edges = len(graph.indices[0])
    position = torch.arange(num_edges)
    kept = keep(
        edge_keys(torch.zeros_like(position), position),
        salt=noise.salt(view=view, layer=0, site=Site.VIEW_EDGE),
        num_columns=1,
        rate=config.edge_drop,
    ).squeeze(1)
    features = torch.from_numpy(graph.features[0]).clone()
    column = torch.arange(features.shape[1])
    gone = noise.select(
        node_keys(torch.zeros_like(column), column), config.feature_drop, view=view, site=Site.VIEW_COLUMN
    )
    features[:, gone] = 0.0
    return adjacency(graph, kept), features


def adjacency(graph: SmallGraph, kept: Tensor | None = None) -> Tensor:
    """[N, N]: Kipf's, with degrees of the whole graph; where edges are missing the others stand for them too."""
    in_degree = torch.from_numpy(graph.in_degree(0)).double()
    out_degree = torch.from_numpy(graph.out_degree(0)).double()
    num_nodes = graph.num_nodes[0]
    target = np.repeat(np.arange(num_nodes), graph.in_degree(0))
    dense = torch.zeros(num_nodes, num_nodes, dtype=torch.float64)
    for edge, (to, source) in enumerate(zip(target, graph.indices[0], strict=True)):
        if kept is None or kept[edge]:
            dense[to, source] += 1.0
    dense *= (in_degree / dense.sum(1).clamp(min=1.0))[:, None]
    dense += torch.eye(num_nodes, dtype=torch.float64)
    return dense / ((in_degree + 1.0)[:, None] * (out_degree + 1.0)).sqrt()


def dense_gcn(encoder: nn.Module, matrix: Tensor, features: Tensor) -> Tensor:
    """[N, 8]: states of all nodes under `encoder`'s weights."""
    weights = dict(encoder.named_parameters())
    h = features
    for layer in range(2):
        name = f"layers.{layer}"
        h = matrix @ h @ weights[f"{name}.convolution.neighbor.0.weight"].T + weights[f"{name}.convolution.bias"]
        h = prelu(weights[f"{name}.activation.weight"])(h)
    return h


def dense_states(graph: SmallGraph, encoder: nn.Module, *, noise: Noise) -> tuple[Tensor, Tensor]:
    """Two [N, 8]: states of all nodes in `VIEW_1` and `VIEW_2`."""
    first, second = (
        dense_gcn(encoder, *dense_view(graph, config, noise=noise, view=view))
        for view, config in enumerate((VIEW_1, VIEW_2))
    )
    return first, second


def prelu(slope: Tensor) -> Callable[[Tensor], Tensor]:
    """The identity above 0 and `slope` below."""
    return lambda h: torch.where(h > 0, h, slope * h)


def dense_head(head: nn.Module, h: Tensor, activation: Callable[[Tensor], Tensor]) -> Tensor:
    """A two-layer perceptron under `head`'s weights."""
    weights = dict(head.named_parameters())
    inner = activation(h @ weights["first.weight"].T + weights["first.bias"])
    result: Tensor = inner @ weights["last.weight"].T + weights["last.bias"]
    return result


def gradients(model: Model, loss: Tensor) -> Tensor:
    """The gradient of `loss` in all trained parameters, in one row."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.cat([gradient.reshape(-1) for gradient in torch.autograd.grad(loss, trained)])
