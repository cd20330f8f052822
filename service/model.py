"""Encoder and objective as one module, so that all views of a step pass one DDP forward."""

from typing import TYPE_CHECKING

import torch
from torch import nn

from sampling.batch import MiniBatch
from service.encoders import Encoder, make_encoder
from service.feature_values import FeatureValues
from service.group import Group
from service.noise import Noise
from service.objectives import LossSum, Objective, make_objective
from service.schema import GraphSchema

if TYPE_CHECKING:
    from service.run_file import RunFile  # which imports the configs of what is built here


class Model(nn.Module):
    """What is trained and checkpointed: parameters below `encoder.` and `objective.`."""

    def __init__(self, encoder: Encoder, objective: Objective, *, group: Group) -> None:
        """`group`: the ranks that share each global batch."""
        super().__init__()
        self.values = FeatureValues(encoder.schema)
        self.encoder = encoder
        self.objective = objective
        self.group = group
        objective.begin(encoder)

    def forward(self, batch: MiniBatch, noise: Noise | None) -> LossSum:
        """One rank's part of the loss; every rank of the group must call it, also one without seeds."""
        loss: LossSum = self.objective(self.encoder, self.values(batch), noise=noise, group=self.group)
        return loss


def build_model(run: "RunFile", schema: GraphSchema, *, group: Group) -> Model:
    """The model of a run file with the initial weights of its seed; torch's global generator is left as it was.

    Args:
        group: the ranks that train together; `Group()` for one alone, and for evaluation and embedding.

    Raises:
        BadInput: the graph lacks what the objective needs, or DGL is demanded and absent.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.run.seed)
        encoder = make_encoder(run.encoder, schema=schema)
        objective = make_objective(run.objective, schema=schema, encoder_config=run.encoder)
    return Model(encoder, objective, group=group)
