"""The objectives there are, by name."""

from service.encoders.base import EncoderConfig
from service.objectives.base import Objective
from service.objectives.graphmae import GraphMae, GraphMaeConfig
from service.schema import GraphSchema

ObjectiveConfig = GraphMaeConfig
"""the `objective` section of a run file: a union told apart by `name` once there are several"""


def make_objective(config: ObjectiveConfig, *, schema: GraphSchema, encoder_config: EncoderConfig) -> Objective:
    """A fresh objective; its weights come from torch's global generator, so seed that first.

    Raises:
        BadInput: the graph lacks what the objective needs.
    """
    return GraphMae(config, schema=schema, encoder_config=encoder_config)
