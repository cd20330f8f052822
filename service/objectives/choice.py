"""The `objective` section of a run file: one objective, or several at once."""

from typing import Annotated

from pydantic import Field

from service.encoders.base import EncoderConfig
from service.objectives.base import Objective
from service.objectives.multitask import Multitask, MultitaskConfig
from service.objectives.registry import SingleConfig, make_single
from service.schema import GraphSchema

ObjectiveConfig = Annotated[SingleConfig | MultitaskConfig, Field(discriminator="name")]
"""told apart by `name`"""


def make_objective(config: ObjectiveConfig, *, schema: GraphSchema, encoder_config: EncoderConfig) -> Objective:
    """A fresh objective; its weights come from torch's global generator, so seed that first.

    Raises:
        BadInput: the graph lacks what the objective needs.
    """
    if isinstance(config, MultitaskConfig):
        tasks = [make_single(task, schema=schema, encoder_config=encoder_config) for task in config.tasks]
        return Multitask(config, tasks)
    return make_single(config, schema=schema, encoder_config=encoder_config)
