"""BGRL: predict, from one view of a batch, what a slowly moving copy of the encoder makes of the other.

Shapes: S seeds of this rank, D hidden columns.
"""

from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch.nn.functional import cosine_similarity

from sampling.batch import MiniBatch
from service.encoders import Encoder, EncoderConfig, make_encoder
from service.encoders.nodes import Nodes
from service.group import Group
from service.noise import Noise
from service.norm import HeadNorm
from service.objectives.base import LossSum, Objective
from service.objectives.heads import Head
from service.objectives.seeds import encode_seeds, full_precision
from service.objectives.target import cosine_momentum, follow, freeze
from service.schema import GraphSchema
from service.views import ViewConfig, make_view


class BgrlConfig(BaseModel):
    """The `objective` section of a run file for bgrl."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["bgrl"] = Field("bgrl", description="bootstrapped latents: no negatives, a target network")
    view_1: ViewConfig = Field(ViewConfig(), description="the first view")
    view_2: ViewConfig = Field(ViewConfig(), description="the second view")
    momentum: float = Field(
        0.99,
        ge=0.0,
        le=1.0,
        description="of the target network at the start; rises to 1 at the end, and stays under schedule infinite",
    )
    predictor_dim: int = Field(512, ge=1, description="hidden columns of the predictor")
    predictor_norm: HeadNorm = Field("none", description="norm inside the predictor: none, layer or batch")

    @property
    def reach(self) -> int:
        """Hops beyond the encoder's."""
        return 0


class Bgrl(Objective):
    """Cosine between predicted and target states of the seeds, over both views, both ways.

    The target encoder starts from weights of its own and follows the online one by a moving average whose momentum
    rises to 1 along a cosine; under the infinite schedule it stays. It sees the views without dropout; batch norm takes
    the statistics of its own pass.
    Source: Thakoor et al., "Large-scale representation learning on graphs via bootstrapping", ICLR 2022, section 2.
    """

    first_passes_are_views = True

    def __init__(self, config: BgrlConfig, *, schema: GraphSchema, encoder_config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder_config = encoder_config
        width = encoder_config.out_dim
        self.target = make_encoder(encoder_config, schema=schema)
        freeze(self.target)
        self.predictor = Head(width, config.predictor_dim, width, activation="prelu", norm=config.predictor_norm)

    @property
    def reach(self) -> int:
        """0: seeds alone are compared."""
        return self.config.reach

    def forward(self, encoder: Encoder, batch: MiniBatch, *, noise: Noise | None, group: Group) -> LossSum:
        """Loss over this rank's seeds; see `Objective.forward`."""
        nodes = Nodes.of(batch, kernels=self.encoder_config.kernels)
        losses = []
        predicted, targets = [], []
        for number, config in enumerate((self.config.view_1, self.config.view_2)):
            view = make_view(batch, config, noise=noise, view=number, dtype=encoder.dtype)
            states = encode_seeds(encoder, view, batch, nodes, noise=noise, group=group, number=number)
            predicted.append(full_precision(self.predictor(states, num_seeds=batch.num_seeds, group=group)))
            with torch.no_grad():
                states = encode_seeds(self.target, view, batch, nodes, noise=None, group=group, number=number)
                targets.append(full_precision(states))
        for one, other in ((0, 1), (1, 0)):
            losses.append(1.0 - cosine_similarity(predicted[one], targets[other].to(predicted[one].dtype), dim=1))
        return LossSum(
            loss_sum=torch.stack(losses).sum(),
            count=torch.tensor(float(batch.num_seeds), dtype=torch.float64, device=batch.node_type.device),
        )

    def after_step(self, encoder: Encoder, *, done: int, total_steps: int) -> None:
        """Move the target network towards the encoder."""
        follow(self.target, encoder, momentum=cosine_momentum(self.config.momentum, done=done, total_steps=total_steps))
