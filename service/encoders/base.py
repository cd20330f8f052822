"""The encoder: raw features in, one hidden state per node out, through a stack of convolutions.

Shapes: N nodes of a batch, n_h targets of a hop, D_l columns before layer l (`Encoder.layer_dims`).
"""

from collections.abc import Callable, Sequence
from typing import Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from sampling.batch import Hop
from service.encoders.convolution import Convolution, linear
from service.encoders.nodes import Nodes, drop_edges
from service.group import Group
from service.message_passing import Kernels, dgl_kernels
from service.noise import Noise, Site
from service.norm import NormName, make_norm
from service.schema import GraphSchema

ConvolutionName = Literal["sage", "gcn", "gat", "gin"]
ActivationName = Literal["prelu", "relu", "elu", "gelu"]


class EncoderConfig(BaseModel):
    """The `encoder` section of a run file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: ConvolutionName = Field("sage", description="convolution: sage, gcn, gat or gin")
    num_layers: int = Field(2, ge=1, description="layers; each reads one hop")
    hidden_dim: int = Field(256, ge=1, description="output columns of every layer, all heads together")
    num_heads: int = Field(4, ge=1, description="attention heads of gat; divides hidden_dim")
    aggregator: Literal["mean", "max"] = Field("mean", description="what sage takes of the neighbours")
    activation: ActivationName = Field("prelu", description="after every layer: prelu, relu, elu or gelu")
    norm: NormName = Field(
        "none", description="before the activation: none, layer, or batch (statistics of all ranks' seeds)"
    )
    residual: bool = Field(False, description="add each layer's input, through a linear map where widths differ")
    feature_dropout: float = Field(0.0, ge=0.0, lt=1.0, description="share of every layer's input entries zeroed")
    attention_dropout: float = Field(0.0, ge=0.0, lt=1.0, description="share of gat's attention entries zeroed")
    edge_dropout: float = Field(0.0, ge=0.0, lt=1.0, description="share of sampled edges dropped in training")
    kernels: Kernels = Field("auto", description="message passing: auto (DGL where it runs, else torch), dgl, or torch")

    @property
    def out_dim(self) -> int:
        """Columns of what the encoder puts out."""
        return self.hidden_dim

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Self:
        if self.name == "gat" and self.hidden_dim % self.num_heads:
            raise ValueError(
                f"hidden_dim={self.hidden_dim}, num_heads={self.num_heads}: heads share the columns equally; "
                "make hidden_dim a multiple of num_heads"
            )
        return self


class EncoderLayer(nn.Module):
    """One convolution with its residual, norm and activation."""

    def __init__(self, convolution: Convolution, *, config: EncoderConfig) -> None:
        super().__init__()
        self.convolution = convolution
        self.residual = _residual(convolution) if config.residual else None
        self.norm = make_norm(config.norm, convolution.out_dim)
        self.activation = make_activation(config.activation)


class Encoder(nn.Module):
    """`config.num_layers` layers of one kind of convolution over the relations of `schema`.

    Noise is drawn where a `Noise` is given; `train()` and `eval()` only choose the statistics of batch norm.
    """

    def __init__(
        self,
        config: EncoderConfig,
        *,
        schema: GraphSchema,
        make_convolution: Callable[[int, int], Convolution],
    ) -> None:
        """Made by `service.encoders.registry.make_encoder`; `make_convolution` takes columns in and out."""
        super().__init__()
        dgl_kernels.check(config.kernels)
        self.config = config
        self.schema = schema
        self.projections = nn.ModuleList(
            _input_projection(number, schema=schema, hidden_dim=config.hidden_dim)
            for number in range(len(schema.node_types))
        )
        self.layers = nn.ModuleList(
            EncoderLayer(make_convolution(width, config.hidden_dim), config=config) for width in self.layer_dims[:-1]
        )

    @property
    def num_layers(self) -> int:
        """Layers, each of which reads one hop."""
        return self.config.num_layers

    @property
    def layer_dims(self) -> tuple[int, ...]:
        """D_0 (columns of `input`), D_1, ..., D_L: num_layers + 1 widths."""
        first = self.config.hidden_dim
        if len(self.schema.node_types) == 1 and self.schema.node_types[0].feature_dim is not None:
            first = self.schema.node_types[0].feature_dim
        return (first, *[self.config.hidden_dim] * self.num_layers)

    @property
    def dtype(self) -> torch.dtype:
        """Type of the parameters and of hidden states outside autocast."""
        return next(self.layers.parameters()).dtype

    def input(
        self, features: Sequence[Tensor | None], node_type: Tensor, in_degree: Tensor, out_degree: Tensor
    ) -> Tensor:
        """H [N, D_0] before the first layer.

        One node type with features: these, as floats. Otherwise each type through its own linear map to
        hidden_dim: its features, or where it has none the logarithms of its degrees in every relation (the map's
        bias is then the learned vector of the type).

        Args:
            features: one per type: [N_t, F_t] of any dtype, rows in the order of the nodes; None where a type has none.
            node_type: int64 [N].
            in_degree: int32 [R, N], in the whole graph; so `out_degree`.
        """
        if isinstance(self.projections[0], nn.Identity):
            assert features[0] is not None
            return features[0].to(self.dtype)
        rows, parts = [], []
        for number, project in enumerate(self.projections):
            table = features[number]
            rows_of_type = (node_type == number).nonzero().squeeze(1)
            if table is None:
                degree = torch.cat([in_degree[:, rows_of_type], out_degree[:, rows_of_type]])
                table = degree.T.to(self.dtype).log1p()
            rows.append(rows_of_type)
            parts.append(project(table.to(self.dtype)))
        joined = torch.cat(parts)
        return joined.new_zeros((node_type.shape[0], joined.shape[1])).index_copy(0, torch.cat(rows), joined)

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
        """H [hop.num_targets, D_{index+1}] from h [>= hop.num_sources, D_index].

        Args:
            nodes: covers the hop's sources; rows of h are its first rows.
            noise: where dropout comes from; None means no dropout.
            num_seeds: the first rows of h that are this rank's seeds (batch norm's statistics in training).
            group: the ranks that share the global batch; None means this one alone.
            view: number of the augmented copy of the batch.
        """
        layer = self.layers[index]
        assert isinstance(layer, EncoderLayer)
        h = h[: hop.num_sources]
        x = h
        if noise is not None and self.config.feature_dropout > 0.0:
            keys = nodes.keys[: hop.num_sources]
            x = noise.dropout(h, keys, self.config.feature_dropout, view=view, layer=index, site=Site.FEATURE)
        out = layer.convolution(x, hop=hop, nodes=nodes, noise=noise, view=view, layer=index)
        if layer.residual is not None:
            out = out + layer.residual(h[: hop.num_targets])
        out = layer.norm(out, num_seeds=num_seeds, group=group or Group())
        result: Tensor = layer.activation(out)
        return result

    def forward(
        self,
        h: Tensor,
        hops: Sequence[Hop],
        nodes: Nodes,
        noise: Noise | None = None,
        num_seeds: int = 0,
        *,
        group: Group | None = None,
        view: int = 0,
    ) -> Tensor:
        """H [n, hidden_dim] for the targets of the last of `hops`, which are given outermost first, one per layer."""
        assert len(hops) == self.num_layers
        for index, hop in enumerate(hops):
            chosen = hop
            if noise is not None and self.config.edge_dropout > 0.0:
                salt = noise.salt(view=view, layer=index, site=Site.EDGE)
                chosen = drop_edges(hop, rate=self.config.edge_dropout, salt=salt)
            h = self.layer(index, h, chosen, nodes, noise, num_seeds, group=group, view=view)
        return h


def make_activation(name: ActivationName) -> nn.Module:
    """The activation called `name`; prelu learns one slope, from 0.25."""
    match name:
        case "prelu":
            return nn.PReLU()
        case "relu":
            return nn.ReLU()
        case "elu":
            return nn.ELU()
        case "gelu":
            return nn.GELU()


def _residual(convolution: Convolution) -> nn.Module:
    if convolution.in_dim == convolution.out_dim:
        return nn.Identity()
    return linear(convolution.in_dim, convolution.out_dim)


def _input_projection(number: int, *, schema: GraphSchema, hidden_dim: int) -> nn.Module:
    width = schema.node_types[number].feature_dim
    if width is None:
        width = 2 * len(schema.relations)
    elif len(schema.node_types) == 1:
        return nn.Identity()
    return linear(width, hidden_dim, bias=True)
