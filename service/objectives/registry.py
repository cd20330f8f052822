"""The single objectives there are, by name; `choice` adds those that hold others."""

from service.encoders.base import EncoderConfig
from service.objectives.base import Objective
from service.objectives.bgrl import Bgrl, BgrlConfig
from service.objectives.decorr import Decorr, DecorrConfig
from service.objectives.dgi import Dgi
from service.objectives.edgemask import EdgeMask, EdgeMaskConfig
from service.objectives.gptgnn import GptGnn, GptGnnConfig
from service.objectives.graphmae import GraphMae, GraphMaeConfig
from service.objectives.infonce import Grace, InfoNceConfig
from service.objectives.pretext import Pretext, PretextConfig
from service.schema import GraphSchema

SingleConfig = (
    GraphMaeConfig | BgrlConfig | InfoNceConfig | DecorrConfig | EdgeMaskConfig | PretextConfig | GptGnnConfig
)
"""the settings of one objective, told apart by `name`"""


def make_single(config: SingleConfig, *, schema: GraphSchema, encoder_config: EncoderConfig) -> Objective:
    """A fresh objective; its weights come from torch's global generator, so seed that first.

    Raises:
        BadInput: the graph lacks what the objective needs.
    """
    match config:
        case GraphMaeConfig():
            return GraphMae(config, schema=schema, encoder_config=encoder_config)
        case BgrlConfig():
            return Bgrl(config, schema=schema, encoder_config=encoder_config)
        case InfoNceConfig(mode="dgi"):
            return Dgi(schema=schema, encoder_config=encoder_config)
        case InfoNceConfig():
            return Grace(config, encoder_config=encoder_config)
        case DecorrConfig():
            return Decorr(config, encoder_config=encoder_config)
        case EdgeMaskConfig():
            return EdgeMask(config, schema=schema, encoder_config=encoder_config)
        case PretextConfig():
            return Pretext(config, schema=schema, encoder_config=encoder_config)
        case GptGnnConfig():
            return GptGnn(config, schema=schema, encoder_config=encoder_config)
