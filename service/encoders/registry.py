"""The encoders there are, by name."""

from service.encoders.base import Encoder, EncoderConfig
from service.encoders.convolution import Convolution
from service.encoders.gat import GatConvolution
from service.encoders.gcn import GcnConvolution
from service.encoders.gin import GinConvolution
from service.encoders.sage import SageConvolution
from service.schema import GraphSchema


def make_convolution(
    config: EncoderConfig, *, in_dim: int, out_dim: int, schema: GraphSchema, relations: tuple[int, ...]
) -> Convolution:
    """A convolution of `config`'s kind over the numbered relations of `schema`; an encoder's layer or a decoder."""
    match config.name:
        case "sage":
            return SageConvolution(
                in_dim=in_dim,
                out_dim=out_dim,
                schema=schema,
                relations=relations,
                aggregator=config.aggregator,
            )
        case "gcn":
            return GcnConvolution(in_dim=in_dim, out_dim=out_dim, schema=schema, relations=relations)
        case "gat":
            return GatConvolution(
                in_dim=in_dim,
                out_dim=out_dim,
                schema=schema,
                relations=relations,
                num_heads=config.num_heads,
                attention_dropout=config.attention_dropout,
            )
        case "gin":
            return GinConvolution(in_dim=in_dim, out_dim=out_dim, schema=schema, relations=relations)


def make_encoder(config: EncoderConfig, *, schema: GraphSchema) -> Encoder:
    """A fresh encoder; its weights come from torch's global generator, so seed that first.

    Raises:
        BadInput: `config.kernels` is "dgl" and DGL does not load here.
    """
    relations = tuple(range(len(schema.relations)))
    return Encoder(
        config,
        schema=schema,
        make_convolution=lambda in_dim, out_dim: make_convolution(
            config, in_dim=in_dim, out_dim=out_dim, schema=schema, relations=relations
        ),
    )
