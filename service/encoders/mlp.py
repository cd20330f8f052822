"""MLP: each node by itself, without neighbours; the cheapest encoder, and what one distils into."""

from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn

from sampling.batch import Hop
from service.encoders.base import Encoder
from service.encoders.config import EncoderConfig
from service.encoders.convolution import linear
from service.encoders.layers import EncoderLayer
from service.encoders.nodes import Nodes
from service.group import Group
from service.noise import Noise
from service.schema import GraphSchema

FIRST_NOISE_LAYER = 1 << 16
"""number of the first layer where dropout is drawn: decoders count theirs from `num_layers`, here 0"""


class MlpEncoder(Encoder):
    """`config.num_layers` linear maps, each with norm, activation and residual as other encoders' convolutions.

    It reads no hop: a batch carries those of the objective's reach alone, and embedding reads a node's own features.
    """

    def __init__(self, config: EncoderConfig, *, schema: GraphSchema) -> None:
        super().__init__(config, schema=schema)
        self.layers = nn.ModuleList(
            EncoderLayer(
                linear(width, config.hidden_dim, bias=True),
                in_dim=width,
                out_dim=config.hidden_dim,
                config=config,
                is_first=number == 0,
            )
            for number, width in enumerate(self.layer_dims[:-1])
        )

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
        """[n, config.out_dim] for all rows of h [n, D_0]; `hops` is empty."""
        assert not hops
        states = []
        for number, layer in enumerate(self.layers):
            assert isinstance(layer, EncoderLayer)
            h = layer(
                h,
                num_targets=h.shape[0],
                dropout=partial(self.drop_input, nodes=nodes, noise=noise, view=view, layer=FIRST_NOISE_LAYER + number),
                convolve=layer.convolution,
                num_seeds=num_seeds,
                group=group or Group(),
            )
            states.append(h)
        return self.finish(states, num_seeds=num_seeds, group=group)
