"""Law: where formulas coincide, DGL's convolutions and the published loss give what ours give on the same input."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from sampling.batch import MiniBatch
from service.encoders import Nodes
from service.encoders.convolution import ConvolutionShape
from service.encoders.gat import GatConvolution
from service.encoders.gcn import GcnConvolution
from service.encoders.gin import GinConvolution
from service.encoders.sage import SageConvolution
from service.message_passing import dgl_kernels
from service.objectives.gptgnn_edges import Matcher, contrast
from service.objectives.graphmae import scaled_cosine_error
from tests.service.batches import SmallGraph, homogeneous, make_batch

needs_dgl = pytest.mark.skipif(not dgl_kernels.is_available("cpu"), reason="dgl does not load here")
GRAPH = homogeneous(num_nodes=60)
DIM = 6


def full_batch(graph: SmallGraph) -> MiniBatch:
    return make_batch(graph, graph.all_seeds(), num_hops=1)


def dgl_graph(graph: SmallGraph, *, self_loops: bool) -> Any:
    import dgl

    target = torch.repeat_interleave(torch.arange(graph.num_nodes[0]), torch.from_numpy(graph.in_degree(0)))
    whole = dgl.graph((torch.from_numpy(graph.indices[0]), target), num_nodes=graph.num_nodes[0])
    return dgl.add_self_loop(whole) if self_loops else whole


def ours(convolution: nn.Module, x: Tensor) -> Tensor:
    batch = full_batch(GRAPH)
    out: Tensor = convolution(x, hop=batch.hops[0], nodes=Nodes.of(batch))
    return out


def features() -> Tensor:
    assert GRAPH.features[0] is not None
    return torch.from_numpy(GRAPH.features[0]).requires_grad_()


def assert_equal(one: Tensor, other: Tensor, x: Tensor) -> None:
    assert torch.allclose(one, other, atol=1e-12)
    direction = torch.randn(one.shape, dtype=one.dtype, generator=torch.Generator().manual_seed(2))
    (gradient,) = torch.autograd.grad((one * direction).sum(), x)
    (expected,) = torch.autograd.grad((other * direction).sum(), x)
    assert torch.allclose(gradient, expected, atol=1e-12)


def shape(out_dim: int) -> ConvolutionShape:
    return ConvolutionShape(DIM, out_dim, GRAPH.schema, (0,))


@needs_dgl
def test_sage_equals_dgl() -> None:
    from dgl.nn.pytorch import SAGEConv

    convolution = SageConvolution(shape(4)).double()
    peer = SAGEConv(DIM, 4, "mean").double()
    peer.fc_self.weight.data = convolution.own.weight.data
    peer.fc_neigh.weight.data = convolution.neighbor[0].weight.data
    x = features()
    with torch.no_grad():
        convolution.own.bias.copy_(peer.fc_self.bias.normal_())
    assert_equal(ours(convolution, x), peer(dgl_graph(GRAPH, self_loops=False), x), x)


@needs_dgl
@pytest.mark.parametrize("out_dim", [4, 9])
def test_gcn_equals_dgl_with_self_loops(out_dim: int) -> None:
    from dgl.nn.pytorch import GraphConv

    convolution = GcnConvolution(shape(out_dim)).double()
    peer = GraphConv(DIM, out_dim, norm="both").double()
    weight = convolution.neighbor[0].weight
    assert isinstance(weight, Tensor)
    peer.weight.data = weight.data.T.contiguous()
    with torch.no_grad():
        convolution.bias.copy_(peer.bias.normal_())
    x = features()
    assert_equal(ours(convolution, x), peer(dgl_graph(GRAPH, self_loops=True), x), x)


@needs_dgl
@pytest.mark.parametrize(("num_heads", "out_dim"), [(2, 8), (1, 4), (1, 9)])
def test_gat_equals_dgl_with_self_loops(num_heads: int, out_dim: int) -> None:
    from dgl.nn.pytorch import GATConv

    convolution = GatConvolution(shape(out_dim), num_heads=num_heads, attention_dropout=0.0).double()
    peer = GATConv(DIM, out_dim // num_heads, num_heads).double()
    peer.fc.weight.data = convolution.neighbor[0].weight.data
    peer.attn_l.data = convolution.source_attention.data
    peer.attn_r.data = convolution.target_attention.data
    with torch.no_grad():
        convolution.bias.copy_(peer.bias.normal_())
    x = features()
    assert_equal(ours(convolution, x), peer(dgl_graph(GRAPH, self_loops=True), x).flatten(1), x)


@needs_dgl
def test_gin_equals_dgl() -> None:
    from dgl.nn.pytorch import GINConv

    convolution = GinConvolution(shape(4)).double()
    with torch.no_grad():
        convolution.epsilon.fill_(0.3)
    peer = GINConv(convolution.mlp, "sum", init_eps=0.3).double()
    x = features()
    assert_equal(ours(convolution, x), peer(dgl_graph(GRAPH, self_loops=False), x), x)


@pytest.mark.parametrize("exponent", [1.0, 2.0, 3.0])
def test_scaled_cosine_error_equals_the_authors_formula(exponent: float) -> None:
    """The three lines of `sce_loss` in GraphMAE's repository (THUDM/GraphMAE, graphmae/models/loss_func.py)."""
    x = torch.randn(30, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    y = torch.randn(30, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    authors = (1 - (normalize(x, p=2, dim=-1) * normalize(y, p=2, dim=-1)).sum(dim=-1)).pow(exponent)
    assert_equal(scaled_cosine_error(x, y, exponent=exponent), authors, x)


def test_scaled_cosine_error_of_a_zero_target_is_finite() -> None:
    x = torch.randn(3, 7, generator=torch.Generator().manual_seed(1)).requires_grad_()
    error = scaled_cosine_error(x, torch.zeros(3, 7), exponent=3.0)
    assert error.tolist() == [1.0, 1.0, 1.0]
    error.sum().backward()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()


def test_the_contrast_of_edges_equals_the_authors_formula() -> None:
    """`Matcher` and the loss of GPT-GNN's repository (acbull/GPT-GNN, GPT_GNN/model.py): a row a target, its own first.

    There each target has negatives of its own, so states of all pairs are laid out side by side.
    """
    torch.manual_seed(3)
    matcher = Matcher(DIM).double()
    states = [torch.randn(count, DIM, dtype=torch.float64).requires_grad_() for count in (9, 9, 14)]
    for x in states:
        target, source, others = states
        found, scores = matcher(target, source, others)
        losses = contrast(found, scores, torch.zeros_like(scores, dtype=torch.bool))
        sources = torch.cat([source[:, None], others.expand(9, -1, -1)], dim=1)
        scored = (matcher.target(target)[:, None] * matcher.source(sources)).sum(-1) / DIM**0.5
        assert_equal(losses, -scored.log_softmax(dim=-1)[:, 0], x)
