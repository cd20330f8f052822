"""GAT: a sum of neighbours weighted by learned attention, several heads side by side."""

import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu

from sampling.batch import Hop
from service.encoders.convolution import Convolution, ConvolutionShape, count_rows, linear, own_rows, projects_first
from service.encoders.nodes import Nodes, RelationEdges
from service.message_passing import attend, edge_softmax, score_edges
from service.noise import Noise, Site

NEGATIVE_SLOPE = 0.2
"""of the leaky relu on attention logits (section 2.1)"""


class GatConvolution(Convolution):
    """h'_v = concatenation over heads of sum over u in N(v) and v of a_vu W h_u, + b, on a homogeneous graph.

    a_vu = softmax over u of leaky_relu(s . W h_u + t . W h_v). Several relations: one W, s, t and softmax each, and
    a linear map of h_v in place of the edge to itself. Edge weights play no part.
    Source: Velickovic et al., "Graph attention networks", ICLR 2018, eq. 1-5; initial weights as in DGL's GATConv.
    """

    def __init__(self, shape: ConvolutionShape, *, num_heads: int, attention_dropout: float) -> None:
        super().__init__(shape)
        assert self.out_dim % num_heads == 0, "checked by EncoderConfig"
        self.num_heads = num_heads
        self.attention_dropout = attention_dropout
        self.neighbor = nn.ModuleList(nn.Linear(self.in_dim, self.out_dim, bias=False) for _ in self.relations)
        vectors = (len(self.relations), num_heads, self.out_dim // num_heads)
        self.source_attention = nn.Parameter(torch.empty(vectors))
        self.target_attention = nn.Parameter(torch.empty(vectors))
        self.own = None if self.is_homogeneous else linear(self.in_dim, self.out_dim)
        self.bias = nn.Parameter(torch.zeros(self.out_dim))
        gain = nn.init.calculate_gain("relu")
        for project in self.neighbor:
            assert isinstance(project, nn.Linear)
            nn.init.xavier_normal_(project.weight, gain=gain)
        # fans as in DGL's GATConv, whose vectors have shape (1, heads, width)
        deviation = gain * (2.0 / (num_heads * vectors[2] + vectors[2])) ** 0.5
        nn.init.normal_(self.source_attention, std=deviation)
        nn.init.normal_(self.target_attention, std=deviation)

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
        out = self.bias.expand(count_rows(hop, rows), -1)
        if self.own is not None:
            out = out + self.own(own_rows(h, hop=hop, rows=rows))
        parts = []
        for place, relation in enumerate(self.relations):
            edges = nodes.edges(hop, relation, to_itself=self.own is None, rows=rows)
            attention_EH = self._attention(edges, h, place)
            if noise is not None:
                attention_EH = noise.dropout(
                    attention_EH,
                    edges.keys,
                    self.attention_dropout,
                    view=view,
                    layer=layer,
                    site=Site.ATTENTION,
                )
            parts.append((edges, self._attend(edges, edges.sources_of(h), attention_EH, place)))
        mixed: Tensor = self.mix(out, parts)
        return mixed

    def _attention(self, edges: RelationEdges, h: Tensor, place: int) -> Tensor:
        """[E, H]; s . W h is taken as (W^T s) . h, which needs no W h of the targets."""
        project = self.neighbor[place]
        assert isinstance(project, nn.Linear)
        weight_HDF = project.weight.view(self.num_heads, -1, self.in_dim)
        source_HF = torch.einsum("hdf,hd->hf", weight_HDF, self.source_attention[place])
        target_HF = torch.einsum("hdf,hd->hf", weight_HDF, self.target_attention[place])
        logits_EH = score_edges(
            edges.neighbors,
            edges.sources_of(h) @ source_HF.T,
            target_TH=edges.targets_of(h) @ target_HF.T,
        )
        return edge_softmax(edges.neighbors, leaky_relu(logits_EH, NEGATIVE_SLOPE))

    def _attend(self, edges: RelationEdges, x_SF: Tensor, attention_EH: Tensor, place: int) -> Tensor:
        """[T, H * D]: attention-weighted sum of W x."""
        neighbors, project = edges.neighbors, self.neighbor[place]
        if self.num_heads == 1 and not projects_first(edges, in_dim=self.in_dim, out_dim=self.out_dim):
            # a wide output (a decoder's) is made for the targets alone
            summed: Tensor = project(attend(neighbors, x_SF[:, None, :], attention_EH=attention_EH).squeeze(1))
            return summed
        z_SHD = project(x_SF).unflatten(1, (self.num_heads, self.out_dim // self.num_heads))
        return attend(neighbors, z_SHD, attention_EH=attention_EH).flatten(1)
