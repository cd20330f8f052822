"""What stands around convolutions (residuals, jumping) and the encoders without any (sgc, mlp), from the formulas."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from service.encoders import Encoder, EncoderConfig, Nodes, make_encoder
from service.encoders.base import ConvolutionEncoder
from service.encoders.layers import EncoderLayer
from service.encoders.mlp import MlpEncoder
from service.encoders.sgc import SgcEncoder
from service.group import Group
from service.message_passing import dgl_kernels
from service.model import Model
from service.noise import Noise
from service.objectives import make_objective
from service.objectives.graphmae import GraphMaeConfig
from tests.service.batches import SmallGraph, heterogeneous, homogeneous, make_batch
from tests.service.test_encoders import dense, dense_adjacency, start

needs_dgl = pytest.mark.skipif(not dgl_kernels.is_available("cpu"), reason="dgl does not load here")
GRAPHS = {"homogeneous": homogeneous(weighted=True), "heterogeneous": heterogeneous(weighted=True)}


def encoder_of(graph: SmallGraph, **settings: object) -> Encoder:
    torch.manual_seed(0)
    encoder = make_encoder(EncoderConfig.model_validate({"hidden_dim": 8, **settings}), schema=graph.schema).double()
    for parameter in encoder.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return encoder


def run(encoder: Encoder, graph: SmallGraph) -> tuple[Tensor, Tensor]:
    """The input and the output of all nodes, with full neighbourhoods."""
    batch = make_batch(graph, graph.all_seeds(), num_hops=encoder.num_layers)
    h = start(encoder, batch)
    out: Tensor = encoder(h, batch.hops[::-1], Nodes.of(batch), None, len(graph.all_seeds()))
    return h, out


def convolve(encoder: Encoder, number: int, graph: SmallGraph, h: Tensor) -> Tensor:
    assert isinstance(encoder, ConvolutionEncoder)
    layer = encoder.layers[number]
    assert isinstance(layer, EncoderLayer)
    return dense(layer.convolution, graph, h)  # type: ignore[arg-type]  # a convolution


@pytest.mark.parametrize("graph_name", GRAPHS)
@pytest.mark.parametrize("name", ["sage", "gcn"])
def test_pre_activation_is_norm_activation_convolution_addition(graph_name: str, name: str) -> None:
    graph = GRAPHS[graph_name]
    encoder = encoder_of(graph, name=name, residual="pre", norm="layer", activation="elu", num_layers=3)
    h, out = run(encoder, graph)

    def normed(x: Tensor, norm: nn.Module) -> Tensor:
        assert isinstance(norm, nn.LayerNorm)
        centred = x - x.mean(1, keepdim=True)
        scaled = centred / (centred.square().mean(1, keepdim=True) + norm.eps).sqrt()
        return nn.functional.elu(scaled * norm.weight + norm.bias)

    assert isinstance(encoder, ConvolutionEncoder)
    expected = convolve(encoder, 0, graph, h)
    for number in (1, 2):
        norm = encoder.layers[number].norm
        assert isinstance(norm, nn.Module)
        expected = expected + convolve(encoder, number, graph, normed(expected, norm))
    assert encoder.ending is not None
    assert torch.allclose(out, normed(expected, encoder.ending.norm), atol=1e-12)


@pytest.mark.parametrize("jumping", ["concat", "max", "mean"])
def test_jumping_joins_the_states_of_all_layers(jumping: str) -> None:
    graph = GRAPHS["heterogeneous"]
    encoder = encoder_of(graph, name="sage", activation="relu", num_layers=3, jumping=jumping)
    h, out = run(encoder, graph)
    states = []
    for number in range(3):
        h = torch.relu(convolve(encoder, number, graph, h))
        states.append(h)
    expected = {
        "concat": torch.cat(states, 1),
        "max": torch.maximum(torch.maximum(states[0], states[1]), states[2]),
        "mean": (states[0] + states[1] + states[2]) / 3,
    }[jumping]
    assert torch.allclose(out, expected, atol=1e-12)
    assert out.shape[1] == encoder.config.out_dim == (24 if jumping == "concat" else 8)


def test_jumping_in_a_mini_batch_gives_the_rows_of_its_targets() -> None:
    graph = GRAPHS["homogeneous"]
    encoder = encoder_of(graph, name="gcn", jumping="concat")
    _, whole = run(encoder, graph)
    batch = make_batch(graph, graph.all_seeds()[7:12], num_hops=2)
    part = encoder(start(encoder, batch), batch.hops[::-1], Nodes.of(batch), None, 5)
    assert torch.allclose(part, whole[7:12], atol=1e-12)


@pytest.mark.parametrize("graph_name", GRAPHS)
@pytest.mark.parametrize("activation", ["none", "relu"])
def test_sgc_is_powers_of_the_normalised_adjacency_and_one_linear_map(graph_name: str, activation: str) -> None:
    graph = GRAPHS[graph_name]
    encoder = encoder_of(graph, name="sgc", activation=activation, num_layers=3)
    h, out = run(encoder, graph)
    relations = range(len(graph.schema.relations))
    count = torch.stack([dense_adjacency(graph, relation, weighted=False) for relation in relations]).sum(0)
    matrix = torch.stack([dense_adjacency(graph, relation) for relation in relations]).sum(0)
    eye = torch.eye(count.shape[0], dtype=torch.float64)
    power = (matrix + eye) / ((count.sum(1, keepdim=True) + 1) * (count.sum(0) + 1)).sqrt()
    assert isinstance(encoder, SgcEncoder)
    expected = encoder.project(power @ power @ power @ h)
    assert torch.allclose(out, torch.relu(expected) if activation == "relu" else expected, atol=1e-12)


@needs_dgl
def test_sgc_equals_dgl_on_an_undirected_graph_with_self_loops() -> None:
    from dgl import add_reverse_edges, add_self_loop
    from dgl import graph as dgl_graph
    from dgl.nn.pytorch import SGConv

    bare = homogeneous(num_nodes=30)
    target = torch.repeat_interleave(torch.arange(30), torch.from_numpy(bare.in_degree(0)))
    once = dgl_graph((torch.from_numpy(bare.indices[0]), target), num_nodes=30)
    peer_graph = add_self_loop(add_reverse_edges(once, exclude_self=False))
    graph = both_ways(bare)
    encoder = encoder_of(graph, name="sgc", activation="none")
    assert isinstance(encoder, SgcEncoder)
    peer = SGConv(6, 8, k=2, norm=None, bias=True).double()
    peer.fc.weight.data, peer.fc.bias.data = encoder.project.weight.data, encoder.project.bias.data
    h, out = run(encoder, graph)
    assert torch.allclose(out, peer(peer_graph, h), atol=1e-12)


def both_ways(graph: SmallGraph) -> SmallGraph:
    """`graph` with every edge in both directions."""
    num_nodes = graph.num_nodes[0]
    target = np.repeat(np.arange(num_nodes), graph.in_degree(0))
    source = graph.indices[0]
    sources, targets = np.concatenate([source, target]), np.concatenate([target, source])
    order = np.argsort(targets, kind="stable")
    starts = np.concatenate([[0], np.cumsum(np.bincount(targets, minlength=num_nodes))]).astype(np.int64)
    return replace(graph, indptr=(starts,), indices=(sources[order],))


@pytest.mark.parametrize("residual", ["none", "post", "pre"])
def test_mlp_encodes_each_node_by_itself(residual: str) -> None:
    graph = GRAPHS["heterogeneous"]
    encoder = encoder_of(graph, name="mlp", residual=residual, activation="elu", num_layers=2)
    assert isinstance(encoder, MlpEncoder)
    assert encoder.num_layers == 0
    h, out = run(encoder, graph)
    maps = [layer.convolution for layer in encoder.layers if isinstance(layer, EncoderLayer)]
    elu = nn.functional.elu
    if residual == "pre":
        first = maps[0](h)
        expected = elu(first + maps[1](elu(first)))
    else:
        first = elu(maps[0](h) + (h if residual == "post" else 0.0))
        expected = elu(maps[1](first) + (first if residual == "post" else 0.0))
    assert torch.allclose(out, expected, atol=1e-12)


@pytest.mark.parametrize("name", ["sgc", "mlp"])
@pytest.mark.parametrize("graph_name", GRAPHS)
def test_a_batch_without_seeds_gives_every_parameter_a_gradient_of_zero(name: str, graph_name: str) -> None:
    graph = GRAPHS[graph_name]
    encoder = encoder_of(graph, name=name, norm="batch", feature_dropout=0.2)
    batch = make_batch(graph, [], num_hops=encoder.num_layers)
    encoder(start(encoder, batch), batch.hops[::-1], Nodes.of(batch), Noise(1), 0).sum().backward()
    for parameter in encoder.parameters():
        assert parameter.grad is not None
        assert not parameter.grad.any()


@pytest.mark.parametrize("decoder", ["mlp", "gat"])
@pytest.mark.parametrize(
    "settings", [{"name": "sage", "jumping": "concat"}, {"name": "mlp", "jumping": "concat"}, {"name": "sgc"}]
)
def test_graphmae_trains_on_what_the_encoder_puts_out(decoder: str, settings: dict[str, str]) -> None:
    graph = GRAPHS["heterogeneous"]
    config = EncoderConfig.model_validate({"hidden_dim": 8, "num_heads": 2, **settings})
    objective = make_objective(
        GraphMaeConfig.model_validate({"decoder": decoder}), schema=graph.schema, encoder_config=config
    )
    encoder = make_encoder(config, schema=graph.schema)
    model = Model(encoder, objective, group=Group()).double()
    batch = make_batch(graph, graph.all_seeds()[:20], num_hops=encoder.num_layers + objective.reach)
    model(batch, Noise(3)).loss_sum.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_residual_of_older_run_files_is_post_or_none() -> None:
    assert EncoderConfig.model_validate({"residual": True}).residual == "post"
    assert EncoderConfig.model_validate({"residual": False}).residual == "none"
    assert EncoderConfig.model_validate({"residual": "pre"}).residual == "pre"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"name": "sgc", "residual": "pre"}, "residual=pre: it has no meaning for name=sgc; leave it none"),
        ({"name": "sgc", "jumping": "max"}, "jumping=max: it has no meaning for name=sgc; leave it none"),
        ({"name": "mlp", "relation_weights": "mean"}, "relation_weights=mean: it has no meaning for name=mlp"),
        ({"name": "a.b:C", "norm": "batch"}, "norm=batch: it has no meaning for name=a.b:C; leave it none"),
        ({"name": "gcn", "options": {"a": 1}}, "options: name=gcn takes none"),
        ({"name": "gnc"}, "it is one of 'sage', 'gcn', 'gat', 'gin', 'sgc', 'mlp', or the import path"),
        ({"name": "a.b:"}, "package.module:Class"),
    ],
)
def test_settings_without_a_meaning_are_refused(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError) as caught:
        EncoderConfig.model_validate(settings)
    assert words in str(caught.value)
