"""GraphMAE2's second task: from the masked batch, predict what a slowly moving copy of the encoder makes of the batch.

Shapes: S seeds of this rank, D hidden columns.
"""

import copy

import torch
from torch import Tensor, nn

from sampling.batch import MiniBatch
from service.encoders import Encoder, EncoderConfig, make_encoder
from service.encoders.convolution import linear
from service.encoders.nodes import Nodes
from service.group import Group
from service.objectives.cosine_error import scaled_cosine_error
from service.objectives.heads import Head
from service.objectives.seeds import encode_seeds
from service.objectives.target import follow, freeze
from service.schema import GraphSchema
from service.views import View


class LatentPrediction(nn.Module):
    """1 - cosine between predictor(projector(h)) of each seed and the target projector of its target state.

    Targets are copies of encoder and projector that begin with their weights and follow them by a moving average of
    constant momentum. They see the batch as it is, without masks and without dropout of features or edges, on the
    hops nearest the seeds: those are enough for the states of seeds. Batch norm takes the statistics of its own pass.
    Source: Hou et al., "GraphMAE2: a decoding-enhanced masked self-supervised graph learner", WWW 2023, section 3;
    widths, activations and momentum as in its public code, but for the average, which there moves in every forward
    pass and here in every step of the optimiser.
    """

    def __init__(
        self, *, schema: GraphSchema, encoder_config: EncoderConfig, projector_dim: int, momentum: float
    ) -> None:
        super().__init__()
        width = encoder_config.out_dim
        self.momentum = momentum
        self.projector = Head(width, projector_dim, width, activation="prelu")
        self.predictor = nn.Sequential(nn.PReLU(), linear(width, width, bias=True))
        self.target_encoder = make_encoder(encoder_config, schema=schema)
        self.target_projector = copy.deepcopy(self.projector)
        freeze(self.target_encoder)
        freeze(self.target_projector)

    def forward(self, states_SD: Tensor, batch: MiniBatch, nodes: Nodes, *, group: Group) -> Tensor:
        """[S]: errors of the seeds, whose states in the masked batch are `states_SD`."""
        predicted_SD = self.predictor(self.projector(states_SD, num_seeds=batch.num_seeds, group=group))
        with torch.no_grad():
            dtype = self.target_encoder.dtype
            clean = View(tuple(None if table is None else table.to(dtype) for table in batch.features), batch.hops)
            target_SD = encode_seeds(self.target_encoder, clean, batch, nodes, noise=None, group=group, number=0)
            target_SD = self.target_projector(target_SD, num_seeds=batch.num_seeds, group=group)
        return scaled_cosine_error(predicted_SD, target_SD, exponent=1.0)

    def begin(self, encoder: Encoder) -> None:
        """Give the target encoder the weights of `encoder`."""
        follow(self.target_encoder, encoder, momentum=0.0)  # learned rows are shared, not copied

    def follow(self, encoder: Encoder) -> None:
        """Move the targets towards `encoder` and the projector."""
        follow(self.target_encoder, encoder, momentum=self.momentum)
        follow(self.target_projector, self.projector, momentum=self.momentum)
