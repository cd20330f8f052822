"""The encoder: raw features in, one hidden state per node out, through a stack of layers.

Shapes: N nodes of a batch, n_h targets of a hop, D_l columns before layer l (`Encoder.layer_dims`).
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from sampling.batch import Hop, MiniBatch
from service.encoders.config import ActivationName, ConvolutionName, EncoderConfig
from service.encoders.convolution import Convolution, linear
from service.encoders.id_embedding import IdEmbedding, id_types
from service.encoders.jumping import join_states
from service.encoders.layers import EncoderLayer, Ending, make_activation
from service.encoders.nodes import Nodes, drop_edges
from service.group import Group
from service.message_passing import dgl_kernels
from service.noise import Noise, Site
from service.schema import GraphSchema

__all__ = ["ActivationName", "ConvolutionName", "Encoder", "EncoderConfig", "make_activation"]


class Encoder(nn.Module):
    """What every encoder shares: the input, dropout by key, the order of layers, and what comes out of them.

    Noise is drawn where a `Noise` is given; `train()` and `eval()` only choose the statistics of batch norm.
    """

    def __init__(self, config: EncoderConfig, *, schema: GraphSchema) -> None:
        """Made by `service.encoders.registry.make_encoder`. Raises BadInput where the section asks for learned rows of
        types that cannot have any.
        """
        super().__init__()
        dgl_kernels.check(config.kernels)
        self.config = config
        self.schema = schema
        self.id_types = id_types(config, schema)
        """numbers of the types whose nodes have learned rows"""
        self.ids: IdEmbedding | None = None
        """these rows; of an encoder that reads another's, such as a target network, None"""
        self.projections = nn.ModuleList(
            _input_projection(
                number,
                schema=schema,
                hidden_dim=config.hidden_dim,
                id_dim=(config.id_embedding_dim or 0) if number in self.id_types else 0,
            )
            for number in range(len(schema.node_types))
        )
        self.layers = nn.ModuleList()
        """filled by encoders whose layers are modules of ours"""
        self.ending = Ending(config.out_dim, config=config) if config.residual == "pre" else None

    @property
    def num_layers(self) -> int:
        """Layers that read a hop each; 0 where nodes are encoded without neighbours."""
        return self.config.num_hops

    @property
    def layer_dims(self) -> tuple[int, ...]:
        """D_0 (columns of `input`), D_1, ..., D_L: one more than the section's num_layers."""
        first = self.config.hidden_dim
        if len(self.schema.node_types) == 1 and self.schema.node_types[0].feature_dim is not None:
            first = self.schema.node_types[0].feature_dim
        return (first, *[self.config.hidden_dim] * self.config.num_layers)

    @property
    def dtype(self) -> torch.dtype:
        """Type of the parameters and of hidden states outside autocast."""
        return next((parameter.dtype for parameter in self.parameters()), torch.get_default_dtype())

    def look_up(self, batch: MiniBatch) -> MiniBatch:
        """`batch` with the learned rows of its nodes; itself where it has them or there are none."""
        return batch if self.ids is None or batch.learned else self.ids.look_up(batch, dtype=self.dtype)

    def input(
        self,
        features: Sequence[Tensor | None],
        node_type: Tensor,
        in_degree: Tensor,
        out_degree: Tensor,
        learned: Sequence[Tensor | None] = (),
    ) -> Tensor:
        """H [N, D_0] before the first layer.

        One node type with features: these, as floats. Otherwise each type through its own linear map to
        hidden_dim: its features, or where it has none the logarithms of its degrees in every relation, and behind
        these the learned row of a node of `id_types` (the map's bias is then the learned vector of the type).

        Args:
            features: one per type: [N_t, F_t] of any dtype, rows in the order of the nodes; None where a type has none.
            node_type: int64 [N].
            in_degree: int32 [R, N], in the whole graph; so `out_degree`.
            learned: one per type: [N_t, C], in the order of the nodes, as `look_up` gives them to a batch.
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
                if number in self.id_types:
                    table = torch.cat([table, _given(learned, number).to(self.dtype)], dim=1)
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
        """H [hop.num_targets, D_{index+1}] from h [>= hop.num_sources, D_index]; encoders that read no hop have none.

        Args:
            nodes: covers the hop's sources; rows of h are its first rows.
            noise: where dropout comes from; None means no dropout.
            num_seeds: the first rows of h that are this rank's seeds (batch norm's statistics in training).
            group: the ranks that share the global batch; None means this one alone.
            view: number of the augmented copy of the batch.
        """
        raise TypeError(f"{type(self).__name__} has no layer that reads a hop")

    def finish(self, states: Sequence[Tensor], *, num_seeds: int = 0, group: Group | None = None) -> Tensor:
        """[n, config.out_dim] from the states of the layers, first to last, each of the same n nodes.

        Without jumping the last alone is read and may be given alone.
        """
        out = join_states(self.config.jumping, states)
        if self.ending is not None:
            out = self.ending(out, num_seeds=num_seeds, group=group or Group())
        return out

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
        """H [n, config.out_dim] for the targets of the last of `hops`: one per layer, outermost first.

        Without a hop, of an encoder that reads none, for all rows of h.
        """
        assert len(hops) == self.num_layers
        states = []
        for index, hop in enumerate(hops):
            chosen = hop
            if noise is not None and self.config.edge_dropout > 0.0:
                salt = noise.salt(view=view, layer=index, site=Site.EDGE)
                chosen = drop_edges(hop, rate=self.config.edge_dropout, salt=salt)
            h = self.layer(index, h, chosen, nodes, noise, num_seeds, group=group, view=view)
            states.append(h)
        if self.config.jumping == "none":
            states = states[-1:]
        num_rows = hops[-1].num_targets
        return self.finish([state[:num_rows] for state in states], num_seeds=num_seeds, group=group)

    def drop_input(self, h: Tensor, nodes: Nodes, noise: Noise | None, *, view: int, layer: int) -> Tensor:
        """Rows of h, the first of `nodes`, with the section's feature dropout."""
        if noise is None or self.config.feature_dropout == 0.0:
            return h
        keys = nodes.keys[: h.shape[0]]
        return noise.dropout(h, keys, self.config.feature_dropout, view=view, layer=layer, site=Site.FEATURE)


class ConvolutionEncoder(Encoder):
    """`config.num_layers` layers of one kind of convolution over the relations of `schema`."""

    def __init__(
        self,
        config: EncoderConfig,
        *,
        schema: GraphSchema,
        make_convolution: Callable[[int, int], Convolution],
    ) -> None:
        """`make_convolution` takes columns in and out."""
        super().__init__(config, schema=schema)
        self.layers = nn.ModuleList(
            EncoderLayer(
                make_convolution(width, config.hidden_dim),
                in_dim=width,
                out_dim=config.hidden_dim,
                config=config,
                is_first=number == 0,
            )
            for number, width in enumerate(self.layer_dims[:-1])
        )

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
        layer = self.layers[index]
        assert isinstance(layer, EncoderLayer)

        def convolve(x: Tensor) -> Tensor:
            out: Tensor = layer.convolution(x, hop=hop, nodes=nodes, noise=noise, view=view, layer=index)
            return out

        out: Tensor = layer(
            h[: hop.num_sources],
            num_targets=hop.num_targets,
            dropout=lambda x: self.drop_input(x, nodes, noise, view=view, layer=index),
            convolve=convolve,
            num_seeds=num_seeds,
            group=group or Group(),
        )
        return out


def _given(learned: Sequence[Tensor | None], number: int) -> Tensor:
    rows = learned[number] if learned else None
    assert rows is not None, "the batch has passed `look_up`"
    return rows


def _input_projection(number: int, *, schema: GraphSchema, hidden_dim: int, id_dim: int) -> nn.Module:
    width = schema.node_types[number].feature_dim
    if width is None:
        width = 2 * len(schema.relations) + id_dim
    elif len(schema.node_types) == 1:
        return nn.Identity()
    return linear(width, hidden_dim, bias=True)
