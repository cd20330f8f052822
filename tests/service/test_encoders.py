"""Encoders against dense formulas, and what the training loop and layer-wise embedding rely on."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from sampling.batch import Hop, MiniBatch
from service.encoders import Encoder, EncoderConfig, Nodes, make_encoder
from service.encoders.base import ConvolutionName
from service.encoders.convolution import Convolution
from service.encoders.gat import GatConvolution
from service.encoders.gcn import GcnConvolution
from service.encoders.gin import GinConvolution
from service.encoders.nodes import drop_edges
from service.encoders.registry import make_convolution
from service.encoders.sage import SageConvolution
from service.noise import Noise
from tests.service.batches import SmallGraph, heterogeneous, homogeneous, make_batch

ENCODERS: tuple[ConvolutionName, ...] = ("sage", "gcn", "gat", "gin")
GRAPHS = {
    "homogeneous": homogeneous(),
    "homogeneous weighted": homogeneous(weighted=True),
    "heterogeneous": heterogeneous(),
    "heterogeneous weighted": heterogeneous(weighted=True),
}
IN_DIM = 6


def convolution_of(name: ConvolutionName, graph: SmallGraph, *, out_dim: int, num_heads: int = 2) -> Convolution:
    torch.manual_seed(0)
    config = EncoderConfig(name=name, hidden_dim=out_dim, num_heads=num_heads)
    relations = tuple(range(len(graph.schema.relations)))
    convolution = make_convolution(
        config, in_dim=IN_DIM, out_dim=out_dim, schema=graph.schema, relations=relations
    ).double()
    for parameter in convolution.parameters():  # so that no bias is 0
        nn.init.normal_(parameter, std=0.5)
    return convolution


def encoder_of(name: ConvolutionName, graph: SmallGraph, **settings: object) -> Encoder:
    torch.manual_seed(0)
    values = {"name": name, "hidden_dim": 8, "num_heads": 2, **settings}
    return make_encoder(EncoderConfig.model_validate(values), schema=graph.schema).double()


def start(encoder: Encoder, batch: MiniBatch) -> Tensor:
    return encoder.input(batch.features, batch.node_type, batch.in_degree, batch.out_degree)


# A dense oracle: h is one matrix over all nodes of all types, an adjacency matrix [N, N] a relation.


def dense_adjacency(graph: SmallGraph, relation: int, *, weighted: bool = True) -> Tensor:
    bare = graph if weighted else replace(graph, weight=None)
    offsets = [sum(graph.num_nodes[:kind]) for kind in range(len(graph.num_nodes))]
    info = graph.schema.relations[relation]
    whole = torch.zeros(sum(graph.num_nodes), sum(graph.num_nodes), dtype=torch.float64)
    part = bare.adjacency(relation)
    rows, columns = offsets[info.target_type], offsets[info.source_type]
    whole[rows : rows + part.shape[0], columns : columns + part.shape[1]] = part
    return whole


def dense(convolution: Convolution, graph: SmallGraph, h: Tensor) -> Tensor:
    relations = range(len(graph.schema.relations))
    match convolution:
        case SageConvolution():
            out: Tensor = convolution.own(h)
            for relation in relations:
                matrix = dense_adjacency(graph, relation)
                mean = matrix / matrix.sum(1, keepdim=True).clamp(min=1e-30)
                out = out + mean @ convolution.neighbor[relation](h)
            return out
        case GcnConvolution():
            out = convolution.bias.expand(h.shape[0], -1)
            eye = torch.eye(h.shape[0], dtype=h.dtype)
            if convolution.own is not None:
                out = out + convolution.own(h)
            for relation in relations:
                count = dense_adjacency(graph, relation, weighted=False)
                matrix = dense_adjacency(graph, relation)
                if convolution.own is None:
                    count, matrix = count + eye, matrix + eye
                scale = count.sum(1, keepdim=True).clamp(min=1) * count.sum(0).clamp(min=1)
                out = out + (matrix / scale.sqrt()) @ convolution.neighbor[relation](h)
            return out
        case GinConvolution():
            total = (1 + convolution.epsilon) * h
            for relation in relations:
                total = total + convolution.neighbor[relation](dense_adjacency(graph, relation) @ h)
            hidden: Tensor = convolution.mlp(total)
            return hidden
        case GatConvolution():
            out = convolution.bias.expand(h.shape[0], -1)
            if convolution.own is not None:
                out = out + convolution.own(h)
            for relation in relations:
                count = dense_adjacency(graph, relation, weighted=False)
                if convolution.own is None:
                    count = count + torch.eye(h.shape[0], dtype=h.dtype)
                z = convolution.neighbor[relation](h).unflatten(1, (convolution.num_heads, -1))
                source = (z * convolution.source_attention[relation]).sum(2)
                target = (z * convolution.target_attention[relation]).sum(2)
                power = nn.functional.leaky_relu(target[:, None] + source[None], 0.2).exp() * count[:, :, None]
                share = power / power.sum(1, keepdim=True).clamp(min=1e-30)
                out = out + torch.einsum("vuh,uhd->vhd", share, z).flatten(1)
            return out
    raise AssertionError(convolution)


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("graph_name", GRAPHS)
@pytest.mark.parametrize(("out_dim", "num_heads"), [(4, 2), (8, 2), (4, 1), (9, 1)])
def test_a_convolution_equals_its_dense_formula(
    name: ConvolutionName, graph_name: str, out_dim: int, num_heads: int
) -> None:
    """Narrow outputs are projected before aggregation, wide ones after it: both orders are met."""
    graph = GRAPHS[graph_name]
    convolution = convolution_of(name, graph, out_dim=out_dim, num_heads=num_heads)
    batch = make_batch(graph, graph.all_seeds(), num_hops=1)
    h = torch.randn(len(graph.all_seeds()), IN_DIM, dtype=torch.float64, requires_grad=True)
    ours = convolution(h, hop=batch.hops[0], nodes=Nodes.of(batch))
    expected = dense(convolution, graph, h)
    assert torch.allclose(ours, expected, atol=1e-12)
    direction = torch.randn_like(ours)
    inputs = [h, *convolution.parameters()]
    for one, other in zip(
        torch.autograd.grad((ours * direction).sum(), inputs),
        torch.autograd.grad((expected * direction).sum(), inputs, materialize_grads=True, allow_unused=True),
        strict=True,
    ):
        assert torch.allclose(one, other, atol=1e-10)


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("graph_name", GRAPHS)
def test_chosen_rows_are_the_same_rows_of_all_targets(name: ConvolutionName, graph_name: str) -> None:
    graph = GRAPHS[graph_name]
    convolution = convolution_of(name, graph, out_dim=8)
    batch = make_batch(graph, graph.all_seeds()[5:25], num_hops=2, fanout=2)
    h = torch.randn(batch.hops[1].num_sources, IN_DIM, dtype=torch.float64)
    nodes = Nodes.of(batch)
    whole = convolution(h, hop=batch.hops[1], nodes=nodes)
    rows = torch.tensor([7, 0, 19, 3])
    assert torch.allclose(convolution(h, hop=batch.hops[1], nodes=nodes, rows=rows), whole[rows], atol=1e-12)
    nothing = rows[:0]
    assert convolution(h, hop=batch.hops[1], nodes=nodes, rows=nothing).shape == (0, 8)


def test_sage_maximum_takes_the_largest_entry_of_the_neighbours() -> None:
    graph = homogeneous()
    config = EncoderConfig(name="sage", aggregator="max", hidden_dim=4)
    convolution = make_convolution(config, in_dim=IN_DIM, out_dim=4, schema=graph.schema, relations=(0,)).double()
    assert isinstance(convolution, SageConvolution)
    batch = make_batch(graph, graph.all_seeds(), num_hops=1)
    h = torch.randn(40, IN_DIM, dtype=torch.float64)
    present = graph.adjacency(0)[:, :, None] > 0
    top = torch.where(present, h[None], -torch.inf).amax(1)
    expected = convolution.own(h) + convolution.neighbor[0](torch.where(present.any(1), top, 0.0))
    assert torch.allclose(convolution(h, hop=batch.hops[0], nodes=Nodes.of(batch)), expected)


@pytest.mark.parametrize("name", ["gcn", "gin"])
def test_sampled_sums_are_unbiased(name: ConvolutionName) -> None:
    """The average over every way to sample one neighbour of node 0 is the full neighbourhood."""
    graph = homogeneous()
    node = int(graph.in_degree(0).argmax())
    convolution = convolution_of(name, graph, out_dim=8)
    if isinstance(convolution, GinConvolution):
        convolution.mlp = nn.Sequential(nn.Identity())  # the sum is unbiased, what follows is not linear
    batch = make_batch(graph, [(0, node)], num_hops=1)
    hop, nodes = batch.hops[0], Nodes.of(batch)
    h = torch.randn(hop.num_sources, IN_DIM, dtype=torch.float64)
    draws = [
        replace(
            hop,
            indptr=torch.tensor([[0, 1]], dtype=torch.int32),
            source=hop.source[edge : edge + 1],
            position=hop.position[edge : edge + 1],
        )
        for edge in range(hop.source.shape[0])
    ]
    assert len(draws) > 3
    average = torch.stack([convolution(h, hop=draw, nodes=nodes) for draw in draws]).mean(0)
    assert torch.allclose(average, convolution(h, hop=hop, nodes=nodes), atol=1e-12)


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("graph_name", ["homogeneous", "heterogeneous"])
def test_layers_on_chunks_with_full_neighbourhoods_equal_one_forward_pass(
    name: ConvolutionName, graph_name: str
) -> None:
    """What layer-wise embedding does: `input` and `layer`, chunk by chunk, in evaluation."""
    graph = GRAPHS[graph_name]
    encoder = encoder_of(name, graph, norm="batch", residual=True, feature_dropout=0.5)
    nodes_of_graph = graph.all_seeds()
    whole = make_batch(graph, nodes_of_graph, num_hops=2)
    encoder(start(encoder, whole), whole.hops[::-1], Nodes.of(whole), None, len(nodes_of_graph))  # statistics
    encoder.eval()
    with torch.no_grad():
        expected = encoder(start(encoder, whole), whole.hops[::-1], Nodes.of(whole))
        place = {node: row for row, node in enumerate(nodes_of_graph)}
        below = start(encoder, whole)
        for index in range(encoder.num_layers):
            parts = []
            for first in range(0, len(nodes_of_graph), 9):
                chunk = make_batch(graph, nodes_of_graph[first : first + 9], num_hops=1)
                known = zip(chunk.node_type.tolist(), chunk.node_id.tolist(), strict=True)
                h = start(encoder, chunk) if index == 0 else below[[place[node] for node in known]]
                parts.append(encoder.layer(index, h, chunk.hops[0], Nodes.of(chunk)))
            below = torch.cat(parts)
            assert below.shape[1] == encoder.layer_dims[index + 1]
    assert torch.allclose(below, expected, atol=1e-12)


def test_one_type_with_features_enters_as_it_is_and_others_through_a_map_each() -> None:
    graph = homogeneous()
    encoder = encoder_of("sage", graph)
    batch = make_batch(graph, graph.all_seeds(), num_hops=2, dtype=torch.float32)
    assert batch.features[0] is not None
    assert torch.equal(start(encoder, batch), batch.features[0].double())
    assert encoder.layer_dims == (6, 8, 8)

    graph = heterogeneous()
    encoder = encoder_of("sage", graph, num_layers=3)
    batch = make_batch(graph, graph.all_seeds()[30:] + graph.all_seeds()[:4], num_hops=1)
    h = start(encoder, batch)
    assert encoder.layer_dims == (8, 8, 8, 8)
    for kind, table in enumerate(batch.features):
        chosen = batch.node_type == kind
        degrees = torch.cat([batch.in_degree, batch.out_degree])[:, chosen].T.double().log1p()
        assert torch.allclose(h[chosen], encoder.projections[kind](degrees if table is None else table))


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("graph_name", ["homogeneous", "heterogeneous"])
def test_a_batch_without_seeds_gives_every_parameter_a_gradient_of_zero(name: ConvolutionName, graph_name: str) -> None:
    graph = GRAPHS[graph_name]
    encoder = encoder_of(
        name, graph, norm="batch", residual=True, feature_dropout=0.2, attention_dropout=0.2, edge_dropout=0.2
    )
    batch = make_batch(graph, [], num_hops=2)
    encoder(start(encoder, batch), batch.hops[::-1], Nodes.of(batch), Noise(1), 0).sum().backward()
    for parameter in encoder.parameters():
        assert parameter.grad is not None
        assert not parameter.grad.any()


@pytest.mark.parametrize("name", ENCODERS)
def test_noise_repeats_with_its_key_and_differs_between_keys_and_views(name: ConvolutionName) -> None:
    graph = homogeneous()
    encoder = encoder_of(name, graph, feature_dropout=0.3, attention_dropout=0.3, edge_dropout=0.3)
    batch = make_batch(graph, graph.all_seeds()[:10], num_hops=2)

    def run(noise: Noise | None, view: int = 0) -> Tensor:
        out: Tensor = encoder(start(encoder, batch), batch.hops[::-1], Nodes.of(batch), noise, 10, view=view)
        return out

    assert torch.equal(run(Noise(1)), run(Noise(1)))
    assert not torch.allclose(run(Noise(1)), run(Noise(2)))
    assert not torch.allclose(run(Noise(1)), run(Noise(1), view=1))
    assert not torch.allclose(run(Noise(1)), run(None))
    assert torch.equal(run(None), run(None))


def test_dropped_edges_leave_the_others_in_place() -> None:
    graph = heterogeneous(weighted=True)
    hop: Hop = make_batch(graph, graph.all_seeds(), num_hops=1).hops[0]
    dropped = drop_edges(hop, rate=0.4, salt=5)
    share = dropped.source.shape[0] / hop.source.shape[0]
    assert 0.4 < share < 0.8
    assert hop.weight is not None
    assert dropped.weight is not None
    before = edge_set(hop, hop.weight)
    after = edge_set(dropped, dropped.weight)
    assert after < before
    assert len(after) == dropped.source.shape[0]
    assert drop_edges(hop, rate=0.0, salt=5) is hop


def edge_set(hop: Hop, weight: Tensor) -> set[tuple[float, ...]]:
    edges: set[tuple[float, ...]] = set()
    for relation in range(hop.indptr.shape[0]):
        for row in range(hop.num_targets):
            for edge in range(int(hop.indptr[relation, row]), int(hop.indptr[relation, row + 1])):
                edges.add((relation, row, int(hop.source[edge]), int(hop.position[edge]), float(weight[edge])))
    return edges


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("graph_name", ["homogeneous", "heterogeneous"])
def test_autocast_trains_in_bfloat16_close_to_float32(name: ConvolutionName, graph_name: str) -> None:
    graph = GRAPHS[graph_name]
    encoder = encoder_of(name, graph, norm="batch", residual=True, feature_dropout=0.1).float()
    batch = make_batch(graph, graph.all_seeds()[:10], num_hops=2, dtype=torch.float32)

    def run() -> Tensor:
        out: Tensor = encoder(start(encoder, batch), batch.hops[::-1], Nodes.of(batch), Noise(1), 10)
        return out

    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = run()
    low.float().sum().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in encoder.parameters() if parameter.grad is not None)
    assert (low - run()).norm() < 0.1 * low.norm()


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"hidden_dim=10, num_heads=4: .* make hidden_dim a multiple"):
        EncoderConfig(name="gat", hidden_dim=10, num_heads=4)
    assert EncoderConfig(name="sage", hidden_dim=10, num_heads=4).hidden_dim == 10


def test_activations_and_residuals_are_applied() -> None:
    graph = homogeneous()
    batch = make_batch(graph, graph.all_seeds(), num_hops=1)
    functions: dict[str, Callable[[Tensor], Tensor]] = {
        "relu": torch.relu,
        "elu": nn.functional.elu,
        "gelu": nn.functional.gelu,
        "prelu": lambda x: torch.where(x > 0, x, 0.25 * x),
    }
    for activation, function in functions.items():
        encoder = encoder_of("sage", graph, num_layers=1, activation=activation, residual=True)
        h = start(encoder, batch)
        layer = encoder.layers[0]
        plain = dense(layer.convolution, graph, h) + layer.residual(h)  # type: ignore[operator, arg-type]  # nn.Module's attributes are untyped
        assert torch.allclose(encoder(h, batch.hops, Nodes.of(batch)), function(plain))
