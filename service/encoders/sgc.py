"""SGC: neighbourhood sums of the input without weights, one a hop, and one linear map behind the last.

Shapes: N nodes of the batch, n_h targets of a hop, R relations.
"""

from collections.abc import Sequence

from torch import Tensor

from sampling.batch import Hop
from service.encoders.base import Encoder
from service.encoders.config import EncoderConfig
from service.encoders.convolution import linear, sampling_scale
from service.encoders.layers import Ending
from service.encoders.nodes import Nodes
from service.group import Group
from service.message_passing import sum_neighbors
from service.noise import Noise
from service.schema import GraphSchema


class SgcEncoder(Encoder):
    """activation(norm(S^L H_0 W + b)) with (S h)_v = (h_v + sum over r, u of h_u) / sqrt((in_v + 1)(out_u + 1)).

    Degrees are those of the whole graph over all relations together; h_v itself has out_v. A sampled sum is scaled by
    degree over edges sampled; edge weights multiply. With activation none this is SGC as published.
    Source: Wu et al., "Simplifying graph convolutional networks", ICML 2019, eq. 7-8.
    """

    def __init__(self, config: EncoderConfig, *, schema: GraphSchema) -> None:
        super().__init__(config, schema=schema)
        self.project = linear(self.layer_dims[0], config.hidden_dim, bias=True)
        self.ending = Ending(config.out_dim, config=config)

    @property
    def layer_dims(self) -> tuple[int, ...]:
        """D_0 after every layer; `finish` maps to hidden_dim."""
        first = super().layer_dims[0]
        return (first, *[first] * self.config.num_layers)

    def layer(
        self,
        index: int,
        h: Tensor,
        hop: Hop,
        nodes: Nodes,
        noise: Noise | None = None,
        num_seeds: int = 0,
        *,
        group: Group | None = None,
        view: int = 0,
    ) -> Tensor:
        """See `Encoder.layer`."""
        x = self.drop_input(h[: hop.num_sources], nodes, noise, view=view, layer=index)
        in_N = nodes.in_degree.sum(0).add(1).double().rsqrt()
        out_N = nodes.out_degree.sum(0).add(1).double().rsqrt()
        itself_n = in_N[: hop.num_targets] * out_N[: hop.num_targets]
        total = x[: hop.num_targets] * itself_n.to(x.dtype)[:, None]
        for relation in range(hop.indptr.shape[0]):
            edges = nodes.edges(hop, relation)
            neighbors = edges.neighbors
            target_T = edges.targets_of(in_N) * sampling_scale(edges, in_degree=nodes.in_degree[relation])
            weight_E = target_T[neighbors.target] * edges.sources_of(out_N)[neighbors.source]
            if neighbors.weight is not None:
                weight_E = weight_E * neighbors.weight
            part = sum_neighbors(neighbors, edges.sources_of(x), weight_E=weight_E.to(x.dtype))
            total = total + edges.spread(part, num_rows=hop.num_targets)
        return total

    def finish(self, states: Sequence[Tensor], *, num_seeds: int = 0, group: Group | None = None) -> Tensor:
        """[n, hidden_dim] from what the last layer put out."""
        return super().finish([self.project(states[-1])], num_seeds=num_seeds, group=group)
