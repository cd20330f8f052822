"""Decorrelation: two views of a seed agree while the columns of its state stay uncorrelated; no negatives.

Shapes: S seeds of this rank, G of the global batch, D columns of the states or of the projector.
"""

from typing import Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from sampling.batch import MiniBatch
from service.encoders.base import Encoder, EncoderConfig
from service.encoders.nodes import Nodes
from service.group import Group
from service.noise import Noise
from service.norm import HeadNorm
from service.objectives.base import LossSum, Objective
from service.objectives.heads import Head
from service.objectives.moments import centre, sum_together
from service.objectives.seeds import encode_two_views, full_precision
from service.views import ViewConfig

CCA_WEIGHT = 1e-3
VARIANCE_FLOOR = 1e-8
"""added to variances that are divided by: a constant column is 0, not infinite"""


class DecorrConfig(BaseModel):
    """The `objective` section of a run file for decorr."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["decorr"] = Field("decorr", description="views agree, columns are uncorrelated; no negatives")
    loss: Literal["cca", "barlow", "whitening"] = Field(
        "cca",
        description="cca: correlation inside each view is penalised; barlow: correlation across views; whitening: "
        "states are whitened and compared by cosine, best with 4 times as many seeds as columns or more",
    )
    view_1: ViewConfig = Field(ViewConfig(), description="the first view")
    view_2: ViewConfig = Field(ViewConfig(), description="the second view")
    weight: float | None = Field(
        None,
        ge=0.0,
        description="of the decorrelation term; unset: 0.001 for cca, 1/columns for barlow; whitening has no such term",
    )
    shrinkage: float = Field(
        1e-3,
        gt=0.0,
        le=1.0,
        description="of whitening: share of the mean variance in the covariance that is inverted, which keeps it "
        "regular where a global batch has fewer seeds than columns",
    )
    projector_dim: int | None = Field(
        None, ge=1, description="hidden and output columns of a projector between states and loss; unset for none"
    )
    projector_norm: HeadNorm = Field("none", description="norm inside the projector: none, layer or batch")

    @property
    def reach(self) -> int:
        """Hops beyond the encoder's."""
        return 0

    @model_validator(mode="after")
    def _settings_have_an_effect(self) -> Self:
        fields = type(self).model_fields
        if self.loss == "whitening" and self.weight is not None:
            raise ValueError("loss=whitening takes no weight: it has one term; leave weight out")
        if self.loss != "whitening" and self.shrinkage != fields["shrinkage"].default:
            raise ValueError(f"loss={self.loss} takes no shrinkage: it inverts no covariance; leave shrinkage out")
        if self.projector_dim is None and self.projector_norm != fields["projector_norm"].default:
            raise ValueError("projector_norm without a projector; set projector_dim or leave projector_norm out")
        return self


class Decorr(Objective):
    """A loss of the covariances of two views of the seeds, taken over the whole global batch.

    With fewer seeds than columns no states reach the optimum: the covariance has rank below D. Give a step at least
    four times as many seeds as columns; see `DecorrConfig.shrinkage` for what whitening does with fewer.
    Sources: CCA-SSG (Zhang et al., NeurIPS 2021, eq. 4 and 5); Graph Barlow Twins (Bielak et al., 2022, eq. 3);
    W-MSE (Ermolov et al., ICML 2021, section 3).
    """

    first_passes_are_views = True

    def __init__(self, config: DecorrConfig, *, encoder_config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder_config = encoder_config
        self.projector: nn.Module | None = None
        if config.projector_dim is not None:
            width = config.projector_dim
            self.projector = Head(encoder_config.out_dim, width, width, activation="prelu", norm=config.projector_norm)

    @property
    def reach(self) -> int:
        """0: seeds alone are compared."""
        return self.config.reach

    def forward(self, encoder: Encoder, batch: MiniBatch, *, noise: Noise | None, group: Group) -> LossSum:
        """Part of the loss that is this rank's; see `Objective.forward`."""
        nodes = Nodes.of(batch, kernels=self.encoder_config.kernels)
        views = (self.config.view_1, self.config.view_2)
        states = encode_two_views(encoder, batch, nodes, views, noise=noise, group=group)
        with torch.autocast(batch.node_type.device.type, enabled=False):
            projected = [full_precision(h) for h in states]
            if self.projector is not None:
                projected = [self.projector(h, num_seeds=batch.num_seeds, group=group) for h in projected]
            z_2SD, count = centre(torch.stack(projected), group=group)
            z_1, z_2 = z_2SD
            if self.config.loss == "whitening":
                # a sum over seeds, once the covariances are known
                loss_sum = whitened_distance(z_1, z_2, count=count, shrinkage=self.config.shrinkage, group=group).sum()
            else:
                compare = cca if self.config.loss == "cca" else barlow
                weight = self.config.weight
                # one loss that every rank knows: each gives its share of loss * count
                loss_sum = compare(z_1, z_2, count=count, weight=weight, group=group) * count / group.world_size
        return LossSum(
            loss_sum=loss_sum,
            count=torch.tensor(float(batch.num_seeds), dtype=torch.float64, device=batch.node_type.device),
        )


def cca(z_1: Tensor, z_2: Tensor, *, count: Tensor, weight: float | None, group: Group) -> Tensor:
    """Scalar: -tr(C_12) + weight * (|I - C_11|^2 + |I - C_22|^2), with C the correlations of columns.

    Args:
        z_1, z_2: [S, D], centred over the global batch.
        count: G.
        weight: None for 0.001.

    Source: CCA-SSG, eq. 4 and 5, as its public code weighs the terms.
    """
    own_1, own_2, across_D = (
        total / count for total in sum_together(z_1.T @ z_1, z_2.T @ z_2, (z_1 * z_2).sum(0), group=group)
    )
    scale_1, scale_2 = _inverse_deviations(own_1.diagonal()), _inverse_deviations(own_2.diagonal())
    agreement = (across_D * scale_1 * scale_2).sum()
    identity = torch.eye(z_1.shape[1], dtype=z_1.dtype, device=z_1.device)
    penalty_1 = (identity - own_1 * scale_1[:, None] * scale_1).square().sum()
    penalty_2 = (identity - own_2 * scale_2[:, None] * scale_2).square().sum()
    return (CCA_WEIGHT if weight is None else weight) * (penalty_1 + penalty_2) - agreement


def barlow(z_1: Tensor, z_2: Tensor, *, count: Tensor, weight: float | None, group: Group) -> Tensor:
    """Scalar: sum_i (1 - C_ii)^2 + weight * sum_{i != j} C_ij^2, with C the correlations across the views.

    Args as of `cca`; `weight` None for 1 / D. Source: Graph Barlow Twins, eq. 3.
    """
    across, variance_1, variance_2 = (
        total / count for total in sum_together(z_1.T @ z_2, z_1.square().sum(0), z_2.square().sum(0), group=group)
    )
    correlation = across * _inverse_deviations(variance_1)[:, None] * _inverse_deviations(variance_2)
    same = correlation.diagonal()
    other = correlation - torch.diag(same)
    return (1.0 - same).square().sum() + (1.0 / len(same) if weight is None else weight) * other.square().sum()


def whitened_distance(z_1: Tensor, z_2: Tensor, *, count: Tensor, shrinkage: float, group: Group) -> Tensor:
    """[S]: 2 - 2 cos of a seed's two whitened states.

    Whitened is L^-1 z with L L^T = (1 - e) C + e v I, the covariance C of the view shrunk by e = `shrinkage` towards
    its mean variance v. It is regular whatever the number of seeds, and as v follows the states' scale, small states
    are whitened as large ones are. Other args as of `cca`. Source: W-MSE, section 3, with the whole global batch
    instead of slices of it.
    """
    totals = sum_together(z_1.T @ z_1, z_2.T @ z_2, group=group)
    white_1, white_2 = (
        _whiten(z, total / count, shrinkage=shrinkage) for z, total in zip((z_1, z_2), totals, strict=True)
    )
    return 2.0 - 2.0 * cosine_similarity(white_1, white_2, dim=1)


def _whiten(z: Tensor, covariance: Tensor, *, shrinkage: float) -> Tensor:
    covariance = covariance.double()  # factor and solution lose digits where columns are correlated
    spread = covariance.diagonal().mean().clamp(min=VARIANCE_FLOOR)
    identity = torch.eye(z.shape[1], dtype=torch.float64, device=z.device)
    shrunk = (1.0 - shrinkage) * covariance + shrinkage * spread * identity
    factor, trouble = torch.linalg.cholesky_ex(shrunk, check_errors=False)
    # of states that are not finite, or too large: the loss is no number then, and the step says so
    factor = torch.where(trouble == 0, factor, torch.nan)
    white: Tensor = torch.linalg.solve_triangular(factor, z.T.double(), upper=False)
    return white.T


def _inverse_deviations(variance_D: Tensor) -> Tensor:
    return (variance_D + VARIANCE_FLOOR).rsqrt()
