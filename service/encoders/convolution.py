"""What one layer's convolution is: hidden states of a hop's sources in, of its targets out."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sampling.batch import Hop
from service.encoders.nodes import Nodes, RelationEdges
from service.encoders.relations import RelationWeights, make_mix
from service.noise import Noise
from service.schema import GraphSchema

AGGREGATION_COST = 32
"""multiply-adds of a matrix product that take as long as passing one number along one edge (2 cores, float32:
0.06 ns against 2 ns, forward and backward)"""


@dataclass(frozen=True)
class ConvolutionShape:
    """What a convolution of any kind is made for."""

    in_dim: int
    out_dim: int
    schema: GraphSchema
    relations: tuple[int, ...]
    """numbers of those that it reads"""
    relation_weights: RelationWeights = "sum"


class Convolution(nn.Module, ABC):
    """One convolution per relation, joined by `mix` (`service.encoders.relations`), plus one self term.

    On a homogeneous graph (one type, one relation) gcn and gat take the node itself as one more neighbour, as in
    their papers; otherwise the self term is a linear map of its own, as in R-GCN (Schlichtkrull et al., 2018, eq. 2).
    """

    in_dim: int
    out_dim: int

    def __init__(self, shape: ConvolutionShape, *, mixed_dim: int | None = None) -> None:
        """`mixed_dim`: columns of what is joined, where these are not `shape.out_dim`."""
        super().__init__()
        self.in_dim = shape.in_dim
        self.out_dim = shape.out_dim
        self.relations = shape.relations
        self.is_homogeneous = shape.schema.is_homogeneous
        self.mix = make_mix(shape.relation_weights, mixed_dim or shape.out_dim, num_relations=len(shape.relations))

    @abstractmethod
    def forward(
        self,
        h: Tensor,
        *,
        hop: Hop,
        nodes: Nodes,
        rows: Tensor | None = None,
        noise: Noise | None = None,
        view: int = 0,
        layer: int = 0,
    ) -> Tensor:
        """[n_h, out_dim] for the hop's targets, or [len(rows), out_dim] for the targets `rows` alone.

        Args:
            h: [>= hop.num_sources, in_dim].
            rows: int64, distinct, below hop.num_targets.
            noise: where attention dropout comes from; None means none. `view` and `layer` name its draws.
        """


def linear(in_dim: int, out_dim: int, *, bias: bool = False) -> nn.Linear:
    """A linear map with Glorot uniform weights (gain for relu) and bias 0."""
    module = nn.Linear(in_dim, out_dim, bias=bias)
    nn.init.xavier_uniform_(module.weight, gain=nn.init.calculate_gain("relu"))
    if bias:
        nn.init.zeros_(module.bias)
    return module


def own_rows(h: Tensor, *, hop: Hop, rows: Tensor | None) -> Tensor:
    """H of the nodes a convolution is asked for."""
    return h[: hop.num_targets] if rows is None else h[rows]


def count_rows(hop: Hop, rows: Tensor | None) -> int:
    """How many nodes a convolution is asked for."""
    return hop.num_targets if rows is None else rows.shape[0]


def projects_first(edges: RelationEdges, *, in_dim: int, out_dim: int) -> bool:
    """Whether W applied to sources and then aggregated costs less than aggregated and then W applied to targets."""
    neighbors = edges.neighbors
    per_row = in_dim * out_dim
    first = neighbors.num_sources * per_row + AGGREGATION_COST * neighbors.num_edges * out_dim
    last = neighbors.num_targets * per_row + AGGREGATION_COST * neighbors.num_edges * in_dim
    return first < last


def sampling_scale(edges: RelationEdges, *, in_degree: Tensor) -> Tensor:
    """float32 [T]: degree in the whole graph over edges sampled, which makes a sampled sum unbiased; 0 without edges.

    Args:
        in_degree: int32 [N] of this relation, over the nodes of the forward pass.
    """
    sampled = edges.neighbors.num_in_edges
    scale = edges.targets_of(in_degree).double() / sampled.clamp(min=1)
    return torch.where(sampled > 0, scale, 0.0)
