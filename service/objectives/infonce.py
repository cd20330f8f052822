"""InfoNCE: tell a seed's other view from all other seeds of the global batch.

Shapes: S seeds of this rank, G of the global batch (of this rank alone with local negatives), P projected columns,
C rows of one chunk.
"""

from typing import Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils.checkpoint import checkpoint

from sampling.batch import MiniBatch
from service.encoders.base import Encoder, EncoderConfig
from service.encoders.nodes import Nodes
from service.group import Group
from service.noise import Noise
from service.norm import HeadNorm
from service.objectives.base import LossSum, Objective
from service.objectives.heads import Head
from service.objectives.seeds import encode_two_views, full_precision
from service.views import ViewConfig

MAX_LOGITS = 2**24
"""logits of one chunk: 64 MiB in float32; a larger batch is computed chunk by chunk and again in the backward pass"""


class InfoNceConfig(BaseModel):
    """The `objective` section of a run file for infonce."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["infonce"] = Field("infonce", description="contrast with other seeds, or with shuffled features")
    mode: Literal["grace", "dgi"] = Field(
        "grace",
        description="grace: each seed's two views against all other seeds; dgi: seeds against seeds of a graph with "
        "shuffled features, by a summary of the batch; the other keys are of grace",
    )
    view_1: ViewConfig = Field(ViewConfig(), description="the first view")
    view_2: ViewConfig = Field(ViewConfig(), description="the second view")
    temperature: float = Field(0.5, gt=0.0, description="cosines are divided by it: small ones weigh near seeds more")
    projector_dim: int = Field(128, ge=1, description="hidden and output columns of the projector")
    projector_norm: HeadNorm = Field("none", description="norm inside the projector: none, layer or batch")
    negatives: Literal["gathered", "local"] = Field(
        "gathered",
        description="gathered: the seeds of all workers; local: those of the same worker, which costs less and makes "
        "the loss depend on the number of workers",
    )

    @property
    def reach(self) -> int:
        """Hops beyond the encoder's."""
        return 0

    @property
    def varies_with_workers(self) -> str | None:
        """The setting that makes the loss depend on the number of workers; None without it."""
        return "negatives=local" if self.negatives == "local" else None

    @model_validator(mode="after")
    def _dgi_has_no_settings(self) -> Self:
        if self.mode == "dgi":
            set_keys = [
                key
                for key, field in type(self).model_fields.items()
                if key not in ("name", "mode") and getattr(self, key) != field.default
            ]
            if set_keys:
                raise ValueError(f"mode=dgi takes no {', '.join(set_keys)}; leave out what belongs to mode=grace")
        return self


class Grace(Objective):
    """Cross-entropy of a seed's other view among both views of all seeds, both ways, on projected states.

    Seeds that occur twice in a global batch are never each other's negatives.
    Source: Zhu et al., "Deep graph contrastive representation learning", 2020, section 3.2, with all negatives of the
    batch instead of the graph.
    """

    first_passes_are_views = True

    def __init__(self, config: InfoNceConfig, *, encoder_config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder_config = encoder_config
        width = config.projector_dim
        self.projector = Head(encoder_config.out_dim, width, width, activation="elu", norm=config.projector_norm)

    @property
    def reach(self) -> int:
        """0: seeds alone are compared."""
        return self.config.reach

    def forward(self, encoder: Encoder, batch: MiniBatch, *, noise: Noise | None, group: Group) -> LossSum:
        """Loss over this rank's seeds; see `Objective.forward`."""
        nodes = Nodes.of(batch, kernels=self.encoder_config.kernels)
        views = (self.config.view_1, self.config.view_2)
        states = encode_two_views(encoder, batch, nodes, views, noise=noise, group=group)
        with torch.autocast(batch.node_type.device.type, enabled=False):
            u_SP, v_SP = (
                unit_rows(self.projector(full_precision(h), num_seeds=batch.num_seeds, group=group)) for h in states
            )
            pool = group if self.config.negatives == "gathered" else Group()
            both, first = pool.gather(torch.cat([u_SP, v_SP], dim=1))
            u_GP, v_GP = both.chunk(2, dim=1)
            ids_G = pool.gather_rows(nodes.keys[: batch.num_seeds])
            losses_S = [
                info_nce(own, torch.cat([others, alike]), ids_G=ids_G, first=first, temperature=self.config.temperature)
                for own, others, alike in ((u_SP, v_GP, u_GP), (v_SP, u_GP, v_GP))
            ]
        return LossSum(
            loss_sum=torch.stack(losses_S).sum() / 2.0,
            count=torch.tensor(float(batch.num_seeds), dtype=torch.float64, device=batch.node_type.device),
        )


def unit_rows(z: Tensor) -> Tensor:
    """Rows of length 1; a row of zeros stays, without gradient, which has no limit there."""
    return normalize(z.masked_fill((z == 0).all(1, keepdim=True), 0.0), dim=1)


def info_nce(
    own_SP: Tensor,
    pool_2GP: Tensor,
    *,
    ids_G: Tensor,
    first: int,
    temperature: float,
    max_logits: int = MAX_LOGITS,
) -> Tensor:
    """[S]: -log of the share of seed i's other view in the sum of exp(cosine / temperature) over the pool.

    Args:
        own_SP: rows of unit length.
        pool_2GP: the other view of all seeds, then this view of all seeds; seed i stands at row `first + i` of both.
        ids_G: int64, one for each node; a seed's own row in its own view, and both rows of any other seed of the same
            id, are left out.
        max_logits: rows are taken in chunks of at most so many logits, or one row.

    Source: GRACE, eq. 1.
    """
    num_rows = max(1, max_logits // max(1, pool_2GP.shape[0]))
    if own_SP.shape[0] <= num_rows:
        return _chunk_losses(own_SP, pool_2GP, ids_G, first, temperature)
    parts: list[Tensor] = []
    for begin in range(0, own_SP.shape[0], num_rows):
        chunk_CP = own_SP[begin : begin + num_rows]
        part: Tensor = checkpoint(  # forgets the logits and computes them again
            _chunk_losses, chunk_CP, pool_2GP, ids_G, first + begin, temperature, use_reentrant=False
        )
        parts.append(part)
    return torch.cat(parts)


def _chunk_losses(own_CP: Tensor, pool_2GP: Tensor, ids_G: Tensor, first: int, temperature: float) -> Tensor:
    """`info_nce` of the rows whose first is seed `first` of the pool."""
    num_rows, num_pool = own_CP.shape[0], ids_G.shape[0]
    logits = (own_CP / temperature) @ pool_2GP.T
    place_C = torch.arange(first, first + num_rows, device=ids_G.device)[:, None]
    positive = logits.gather(1, place_C)
    same = ids_G[first : first + num_rows, None] == ids_G
    left_out = torch.cat([same.scatter(1, place_C, False), same], dim=1)
    assert left_out.shape == (num_rows, 2 * num_pool)
    return logits.masked_fill(left_out, -torch.inf).logsumexp(1) - positive.squeeze(1)
