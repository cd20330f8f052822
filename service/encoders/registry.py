"""The encoders there are, by name."""

from service.encoders.base import ConvolutionEncoder, Encoder, EncoderConfig
from service.encoders.convolution import Convolution, ConvolutionShape
from service.encoders.gat import GatConvolution
from service.encoders.gcn import GcnConvolution
from service.encoders.gin import GinConvolution
from service.encoders.imported import ImportedEncoder
from service.encoders.mlp import MlpEncoder
from service.encoders.sage import SageConvolution
from service.encoders.sgc import SgcEncoder
from service.schema import GraphSchema


def make_convolution(
    config: EncoderConfig, *, in_dim: int, out_dim: int, schema: GraphSchema, relations: tuple[int, ...]
) -> Convolution:
    """A convolution of `config`'s kind over the numbered relations of `schema`; an encoder's layer or a decoder.

    sgc, mlp and encoders of users' own are no convolutions: a decoder names one of those that are.
    """
    shape = ConvolutionShape(in_dim, out_dim, schema, relations, config.relation_weights)
    match config.name:
        case "sage":
            return SageConvolution(shape, aggregator=config.aggregator)
        case "gcn":
            return GcnConvolution(shape)
        case "gat":
            return GatConvolution(shape, num_heads=config.num_heads, attention_dropout=config.attention_dropout)
        case "gin":
            return GinConvolution(shape)
    raise AssertionError(config.name)


def make_encoder(config: EncoderConfig, *, schema: GraphSchema) -> Encoder:
    """A fresh encoder; its weights come from torch's global generator, so seed that first.

    Raises:
        BadInput: `config.kernels` is "dgl" and DGL does not load here, or `config.name` is the import path of what
            is no encoder.
    """
    if config.is_imported:
        return ImportedEncoder(config, schema=schema)
    if config.name == "sgc":
        return SgcEncoder(config, schema=schema)
    if config.name == "mlp":
        return MlpEncoder(config, schema=schema)
    relations = tuple(range(len(schema.relations)))
    return ConvolutionEncoder(
        config,
        schema=schema,
        make_convolution=lambda in_dim, out_dim: make_convolution(
            config, in_dim=in_dim, out_dim=out_dim, schema=schema, relations=relations
        ),
    )
