"""Encoder and objective as one module, so that all views of a step pass one DDP forward."""

from typing import TYPE_CHECKING

import torch
from torch import nn

from sampling.batch import MiniBatch
from service.encoders import Encoder, make_encoder
from service.encoders.id_embedding import make_id_embedding
from service.feature_values import FeatureValues
from service.group import Group
from service.noise import Noise
from service.objectives import LossSum, Objective, make_objective
from service.schema import GraphSchema
from storage.errors import BadInput

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
        values = self.values(self.encoder.look_up(batch))
        loss: LossSum = self.objective(self.encoder, values, noise=noise, group=self.group)
        return loss

    @property
    def num_trained(self) -> int:
        """Numbers in parameters and learned rows."""
        by_id = 0 if self.encoder.ids is None else self.encoder.ids.num_entries
        return by_id + sum(parameter.numel() for parameter in self.parameters())


def build_model(run: "RunFile", schema: GraphSchema, *, group: Group) -> Model:
    """The model of a run file with the initial weights of its seed; torch's global generator is left as it was.

    Args:
        group: the ranks that train together; `Group()` for one alone, and for evaluation and embedding.

    Raises:
        BadInput: the graph lacks what the objective needs or the nodes that learned rows are asked for, DGL is demanded
            and absent, or the objective cannot train learned rows.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.run.seed)
        encoder = make_encoder(run.encoder, schema=schema)
        objective = make_objective(run.objective, schema=schema, encoder_config=run.encoder)
    encoder.ids = make_id_embedding(run.encoder, schema=schema, seed=run.run.seed)
    if encoder.ids is not None and objective.balances_gradients:
        raise BadInput(
            "objective.balance=mgda",
            f"encoder.id_embedding_dim={run.encoder.id_embedding_dim}",
            rule="mgda balances the gradients of shared weights, and has none for learned rows",
            remedy="set objective.balance=uncertainty or fixed, or leave encoder.id_embedding_dim unset",
        )
    return Model(encoder, objective, group=group)
