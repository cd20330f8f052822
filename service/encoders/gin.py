"""GIN: plain sums of neighbours and a small network on top, as discriminating as the 1-WL test."""

import torch
from torch import Tensor, nn

from sampling.batch import Hop
from service.encoders.convolution import Convolution, ConvolutionShape, linear, own_rows, sampling_scale
from service.encoders.nodes import Nodes
from service.message_passing import sum_neighbors
from service.noise import Noise


class GinConvolution(Convolution):
    """h'_v = MLP((1 + e) h_v + sum over u in N(v) of h_u), with a learned e that starts at 0.

    Several relations: each relation's sum passes a linear map of its own first. A sampled sum is scaled by degree
    over edges sampled; edge weights multiply. Source: Xu et al., "How powerful are graph neural networks?", ICLR
    2019, eq. 4.1 (MLP of two layers, relu between).
    """

    def __init__(self, shape: ConvolutionShape) -> None:
        super().__init__(shape, mixed_dim=shape.in_dim)
        single = shape.schema.is_homogeneous
        self.neighbor = nn.ModuleList(
            nn.Identity() if single else linear(self.in_dim, self.in_dim) for _ in self.relations
        )
        self.epsilon = nn.Parameter(torch.zeros(()))
        self.mlp = nn.Sequential(
            linear(self.in_dim, self.out_dim, bias=True), nn.ReLU(), linear(self.out_dim, self.out_dim, bias=True)
        )

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
        total = (1.0 + self.epsilon) * own_rows(h, hop=hop, rows=rows)
        parts = []
        for relation, project in zip(self.relations, self.neighbor, strict=True):
            edges = nodes.edges(hop, relation, rows=rows)
            neighbors = edges.neighbors
            scale_T = sampling_scale(edges, in_degree=nodes.in_degree[relation]).to(h.dtype)
            weight_E = scale_T[neighbors.target]
            if neighbors.weight is not None:
                weight_E = weight_E * neighbors.weight
            parts.append((edges, project(sum_neighbors(neighbors, edges.sources_of(h), weight_E=weight_E))))
        out: Tensor = self.mlp(self.mix(total, parts))
        return out
