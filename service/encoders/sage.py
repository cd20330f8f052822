"""GraphSAGE: a node's own state and the mean (or maximum) of its neighbours', each through its own linear map."""

from torch import Tensor, nn

from sampling.batch import Hop
from service.encoders.convolution import Convolution, ConvolutionShape, linear, own_rows, projects_first
from service.encoders.nodes import Nodes
from service.message_passing import maximum, mean
from service.noise import Noise


class SageConvolution(Convolution):
    """h'_v = W h_v + sum over relations of W_r mean(h_u) + b.

    Source: Hamilton et al., "Inductive representation learning on large graphs", NeurIPS 2017, algorithm 1 with
    the mean aggregator (the concatenation written as two maps); "max" is the element-wise maximum of h_u.
    """

    def __init__(self, shape: ConvolutionShape, *, aggregator: str = "mean") -> None:
        super().__init__(shape)
        self.takes_maximum = aggregator == "max"
        self.own = linear(self.in_dim, self.out_dim, bias=True)
        self.neighbor = nn.ModuleList(linear(self.in_dim, self.out_dim) for _ in self.relations)

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
        out: Tensor = self.own(own_rows(h, hop=hop, rows=rows))
        parts = []
        for relation, project in zip(self.relations, self.neighbor, strict=True):
            edges = nodes.edges(hop, relation, rows=rows)
            x = edges.sources_of(h)
            if self.takes_maximum:
                part = project(maximum(edges.neighbors, x))
            elif projects_first(edges, in_dim=self.in_dim, out_dim=self.out_dim):
                part = mean(edges.neighbors, project(x))
            else:
                part = project(mean(edges.neighbors, x))
            parts.append((edges, part))
        mixed: Tensor = self.mix(out, parts)
        return mixed
