"""How several relations are joined, against dense formulas over all nodes of all types."""

import pytest
import torch
from torch import Tensor, nn

from service.encoders import EncoderConfig, Nodes
from service.encoders.base import ConvolutionName
from service.encoders.convolution import Convolution
from service.encoders.gat import GatConvolution
from service.encoders.gcn import GcnConvolution
from service.encoders.gin import GinConvolution
from service.encoders.registry import make_convolution
from service.encoders.relations import RelationAttention, RelationSum, RelationWeights
from service.encoders.sage import SageConvolution
from tests.service.batches import SmallGraph, heterogeneous, homogeneous, make_batch
from tests.service.test_encoders import dense_adjacency

IN_DIM, OUT_DIM = 6, 8
CONVOLUTIONS: tuple[ConvolutionName, ...] = ("sage", "gcn", "gat", "gin")


def convolution_of(name: ConvolutionName, graph: SmallGraph, weights: RelationWeights) -> Convolution:
    torch.manual_seed(0)
    config = EncoderConfig(name=name, hidden_dim=OUT_DIM, num_heads=2, relation_weights=weights)
    relations = tuple(range(len(graph.schema.relations)))
    convolution = make_convolution(
        config, in_dim=IN_DIM, out_dim=OUT_DIM, schema=graph.schema, relations=relations
    ).double()
    for parameter in convolution.parameters():
        nn.init.normal_(parameter, std=0.5)
    return convolution


def own_part(convolution: Convolution, h: Tensor) -> Tensor:
    match convolution:
        case SageConvolution():
            own: Tensor = convolution.own(h)
        case GcnConvolution() | GatConvolution():
            assert convolution.own is not None
            own = convolution.own(h) + convolution.bias
        case GinConvolution():
            own = (1 + convolution.epsilon) * h
        case _:
            raise AssertionError(convolution)
    return own


def relation_part(convolution: Convolution, graph: SmallGraph, relation: int, h: Tensor) -> Tensor:
    """[all nodes, D]: what one relation alone gives, by its formula."""
    matrix = dense_adjacency(graph, relation)
    count = dense_adjacency(graph, relation, weighted=False)
    assert isinstance(convolution, SageConvolution | GcnConvolution | GatConvolution | GinConvolution)
    project = convolution.neighbor[relation]
    match convolution:
        case SageConvolution():
            part: Tensor = (matrix / matrix.sum(1, keepdim=True).clamp(min=1e-30)) @ project(h)
        case GcnConvolution():
            scale = count.sum(1, keepdim=True).clamp(min=1) * count.sum(0).clamp(min=1)
            part = (matrix / scale.sqrt()) @ project(h)
        case GinConvolution():
            part = project(matrix @ h)
        case GatConvolution():
            z = project(h).unflatten(1, (2, -1))
            source = (z * convolution.source_attention[relation]).sum(2)
            target = (z * convolution.target_attention[relation]).sum(2)
            power = nn.functional.leaky_relu(target[:, None] + source[None], 0.2).exp() * count[:, :, None]
            share = power / power.sum(1, keepdim=True).clamp(min=1e-30)
            part = torch.einsum("vuh,uhd->vhd", share, z).flatten(1)
    return part


def dense(convolution: Convolution, graph: SmallGraph, h: Tensor, weights: RelationWeights) -> Tensor:
    """HAN's eq. 7-9 without the average over nodes, and the mean, over relations in which a node has neighbours."""
    parts_RND = torch.stack(
        [relation_part(convolution, graph, relation, h) for relation in range(len(graph.schema.relations))]
    )
    present_RN = torch.stack(
        [dense_adjacency(graph, relation, weighted=False).sum(1) > 0 for relation in range(len(graph.schema.relations))]
    )
    if weights == "mean":
        share_RN = present_RN / present_RN.sum(0).clamp(min=1)
    else:
        assert isinstance(convolution.mix, RelationAttention)
        hidden, score = convolution.mix.hidden, convolution.mix.score
        power_RN = (torch.tanh(parts_RND @ hidden.weight.T + hidden.bias) @ score.weight[0]).exp() * present_RN
        share_RN = power_RN / power_RN.sum(0).clamp(min=1e-30)
    out = own_part(convolution, h) + (share_RN[:, :, None] * parts_RND).sum(0)
    return convolution.mlp(out) if isinstance(convolution, GinConvolution) else out


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("weights", ["mean", "attention"])
@pytest.mark.parametrize("weighted", [False, True])
def test_joined_relations_equal_the_dense_formula(
    name: ConvolutionName, weights: RelationWeights, weighted: bool
) -> None:
    graph = heterogeneous(weighted=weighted)
    convolution = convolution_of(name, graph, weights)
    batch = make_batch(graph, graph.all_seeds(), num_hops=1)
    h = torch.randn(len(graph.all_seeds()), IN_DIM, dtype=torch.float64, requires_grad=True)
    ours = convolution(h, hop=batch.hops[0], nodes=Nodes.of(batch))
    expected = dense(convolution, graph, h, weights)
    assert torch.allclose(ours, expected, atol=1e-12)
    direction = torch.randn_like(ours)
    inputs = [h, *convolution.parameters()]
    for one, other in zip(
        torch.autograd.grad((ours * direction).sum(), inputs),
        torch.autograd.grad((expected * direction).sum(), inputs, materialize_grads=True, allow_unused=True),
        strict=True,
    ):
        assert torch.allclose(one, other, atol=1e-10)


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("weights", ["mean", "attention"])
def test_chosen_rows_are_the_same_rows_of_all_targets(name: ConvolutionName, weights: RelationWeights) -> None:
    graph = heterogeneous()
    convolution = convolution_of(name, graph, weights)
    batch = make_batch(graph, graph.all_seeds()[5:25], num_hops=2, fanout=2)
    h = torch.randn(batch.hops[1].num_sources, IN_DIM, dtype=torch.float64)
    nodes = Nodes.of(batch)
    whole = convolution(h, hop=batch.hops[1], nodes=nodes)
    rows = torch.tensor([7, 0, 19, 3])
    assert torch.allclose(convolution(h, hop=batch.hops[1], nodes=nodes, rows=rows), whole[rows], atol=1e-12)
    assert convolution(h, hop=batch.hops[1], nodes=nodes, rows=rows[:0]).shape == (0, OUT_DIM)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_one_relation_is_joined_with_nothing(name: ConvolutionName) -> None:
    for weights in ("mean", "attention"):
        convolution = convolution_of(name, homogeneous(), weights)
        assert isinstance(convolution.mix, RelationSum)


@pytest.mark.parametrize("weights", ["mean", "attention"])
def test_autocast_joins_parts_of_several_types(weights: RelationWeights) -> None:
    graph = heterogeneous()
    batch = make_batch(graph, graph.all_seeds(), num_hops=1, dtype=torch.float32)
    h = torch.randn(len(graph.all_seeds()), IN_DIM)
    for name in CONVOLUTIONS:
        convolution = convolution_of(name, graph, weights).float()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            low = convolution(h, hop=batch.hops[0], nodes=Nodes.of(batch))
        low.float().sum().backward()
        full = convolution(h, hop=batch.hops[0], nodes=Nodes.of(batch))
        assert (low - full).norm() < 0.1 * full.norm()
