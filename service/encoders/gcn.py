"""GCN: sums normalised by the degrees of both ends in the whole graph."""

import torch
from torch import Tensor, nn

from sampling.batch import Hop
from service.encoders.convolution import (
    Convolution,
    ConvolutionShape,
    linear,
    own_rows,
    projects_first,
    sampling_scale,
)
from service.encoders.nodes import Nodes, RelationEdges
from service.message_passing import sum_neighbors
from service.noise import Noise


class GcnConvolution(Convolution):
    """h'_v = sum over u in N(v) and v of W h_u / sqrt((in_v + 1)(out_u + 1)) + b on a homogeneous graph.

    Several relations: h'_v = W h_v + sum over r, u of W_r h_u / sqrt(in_r,v out_r,u) + b. Degrees are those of the
    whole graph, unweighted; a sampled sum is scaled by degree over edges sampled, so its expectation is the full
    sum. Edge weights multiply. Source: Kipf and Welling, ICLR 2017, eq. 2 and section 2.2.
    """

    def __init__(self, shape: ConvolutionShape) -> None:
        super().__init__(shape)
        self.neighbor = nn.ModuleList(linear(self.in_dim, self.out_dim) for _ in self.relations)
        self.own = None if self.is_homogeneous else linear(self.in_dim, self.out_dim)
        self.bias = nn.Parameter(torch.zeros(self.out_dim))

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
        own_h = own_rows(h, hop=hop, rows=rows)
        out = self.bias.expand(own_h.shape[0], -1)
        if self.own is not None:
            out = out + self.own(own_h)
        parts = []
        for relation, project in zip(self.relations, self.neighbor, strict=True):
            edges = nodes.edges(hop, relation, rows=rows)
            weight_E = self._weights(edges, nodes, relation).to(h.dtype)
            x = edges.sources_of(h)
            if projects_first(edges, in_dim=self.in_dim, out_dim=self.out_dim):
                part = sum_neighbors(edges.neighbors, project(x), weight_E=weight_E)
                part = part if self.own is not None else part + project(self._share(own_h, nodes, relation, rows))
            else:
                part = sum_neighbors(edges.neighbors, x, weight_E=weight_E)
                part = project(part if self.own is not None else part + self._share(own_h, nodes, relation, rows))
            parts.append((edges, part))
        mixed: Tensor = self.mix(out, parts)
        return mixed

    @property
    def _added(self) -> int:
        """What the node itself adds to its degrees."""
        return 1 if self.own is None else 0

    def _weights(self, edges: RelationEdges, nodes: Nodes, relation: int) -> Tensor:
        """float64 [E]: weight, normalisation and sampling scale of each edge."""
        neighbors = edges.neighbors
        in_degree, out_degree = nodes.in_degree[relation], nodes.out_degree[relation]
        target_T = (edges.targets_of(in_degree) + self._added).clamp(min=1).double().rsqrt()
        target_T = target_T * sampling_scale(edges, in_degree=in_degree)
        source_S = (edges.sources_of(out_degree) + self._added).clamp(min=1).double().rsqrt()
        weight_E = target_T[neighbors.target] * source_S[neighbors.source]
        return weight_E if neighbors.weight is None else weight_E * neighbors.weight

    def _share(self, own_h: Tensor, nodes: Nodes, relation: int, rows: Tensor | None) -> Tensor:
        """The node's own state over sqrt((in_v + 1)(out_v + 1))."""
        chosen = slice(0, own_h.shape[0]) if rows is None else rows
        product = (nodes.in_degree[relation, chosen] + 1).double() * (nodes.out_degree[relation, chosen] + 1)
        return own_h * product.rsqrt().to(own_h.dtype)[:, None]
