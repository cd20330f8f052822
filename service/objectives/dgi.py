"""DGI: tell seeds of the graph from seeds of the same graph with shuffled features, by a summary of the batch.

Shapes: N_t nodes of type t, G_t seeds of type t in the global batch, S seeds of this rank, F_t feature columns, D
hidden columns.
"""

import torch
from torch import Tensor
from torch.nn.functional import softplus

from sampling.batch import MiniBatch
from service.encoders.base import Encoder, EncoderConfig
from service.encoders.convolution import linear
from service.encoders.nodes import Nodes
from service.group import Group
from service.noise import Noise, Site
from service.objectives.base import LossSum, Objective
from service.objectives.seeds import encode_seeds, full_precision
from service.schema import GraphSchema
from service.views import View
from storage.errors import BadInput


class Dgi(Objective):
    """Binary cross-entropy of a bilinear score between a seed's state and the sigmoid of the seeds' mean state.

    In the shuffled graph every node shows the features of a seed of its type, drawn by key from the global batch. A
    node of a type without features, or without seeds in the batch, is the same in both graphs.
    Source: Velickovic et al., "Deep graph infomax", ICLR 2019, sections 3.3 and 4.2; the summary of a batch of seeds
    instead of the graph.
    """

    def __init__(self, *, schema: GraphSchema, encoder_config: EncoderConfig) -> None:
        """Raises BadInput when no node type of `schema` has features."""
        super().__init__()
        if all(kind.feature_dim is None for kind in schema.node_types):
            raise BadInput(
                "objective.mode=dgi",
                f"no features on node types {', '.join(kind.name for kind in schema.node_types)}",
                rule="dgi shuffles node features, so at least one node type needs them",
                remedy="ingest node tables that have a features column, or use mode=grace",
            )
        self.encoder_config = encoder_config
        self.score = linear(encoder_config.out_dim, encoder_config.out_dim)

    @property
    def reach(self) -> int:
        """0: seeds alone are compared."""
        return 0

    def forward(self, encoder: Encoder, batch: MiniBatch, *, noise: Noise | None, group: Group) -> LossSum:
        """Loss over this rank's seeds; see `Objective.forward`."""
        nodes = Nodes.of(batch, kernels=self.encoder_config.kernels)
        shuffled = shuffle_features(batch, nodes, noise=noise or Noise(0), group=group)
        real_SD, shuffled_SD = (
            full_precision(
                encode_seeds(encoder, View(features, batch.hops), batch, nodes, noise=noise, group=group, number=number)
            )
            for number, features in enumerate((batch.features, shuffled))
        )
        with torch.autocast(batch.node_type.device.type, enabled=False):
            sums = group.sum(torch.cat([real_SD.sum(0), real_SD.new_full((1,), float(batch.num_seeds))]))
            summary_D = torch.sigmoid(sums[:-1] / sums[-1].detach().clamp(min=1.0))
            direction_D = self.score(summary_D)
            losses_S = softplus(-(real_SD @ direction_D)) + softplus(shuffled_SD @ direction_D)
        return LossSum(
            loss_sum=losses_S.sum() / 2.0,
            count=torch.tensor(float(batch.num_seeds), dtype=torch.float64, device=batch.node_type.device),
        )


def shuffle_features(batch: MiniBatch, nodes: Nodes, *, noise: Noise, group: Group) -> tuple[Tensor | None, ...]:
    """One per type, [N_t, F_t] as in the batch: each row is a seed's of its type, by key, whatever the seeds' order."""
    shuffled: list[Tensor | None] = []
    for kind, table in enumerate(batch.features):
        if table is None:
            shuffled.append(None)
            continue
        keys = nodes.keys[batch.node_type == kind]
        num_seeds = int((batch.node_type[: batch.num_seeds] == kind).sum())
        rows = group.gather_rows(table[:num_seeds])
        if not rows.shape[0]:
            shuffled.append(table)
            continue
        by_key = group.gather_rows(keys[:num_seeds]).argsort()
        partners = noise.partners(keys, rows.shape[0], site=Site.SHUFFLE)
        shuffled.append(rows[by_key[partners]])
    return tuple(shuffled)
