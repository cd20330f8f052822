"""The objectives there are, by name."""

from typing import Annotated

from pydantic import Field

from service.encoders.base import EncoderConfig
from service.objectives.base import Objective
from service.objectives.bgrl import Bgrl, BgrlConfig
from service.objectives.graphmae import GraphMae, GraphMaeConfig
from service.schema import GraphSchema

ObjectiveConfig = Annotated[GraphMaeConfig | BgrlConfig, Field(discriminator="name")]
"""the `objective` section of a run file, told apart by `name`"""


def make_objective(config: ObjectiveConfig, *, schema: GraphSchema, encoder_config: EncoderConfig) -> Objective:
    """A fresh objective; its weights come from torch's global generator, so seed that first.

    Raises:
        BadInput: the graph lacks what the objective needs.
    """
    match config:
        case GraphMaeConfig():
            return GraphMae(config, schema=schema, encoder_config=encoder_config)
        case BgrlConfig():
            return Bgrl(config, schema=schema, encoder_config=encoder_config)
