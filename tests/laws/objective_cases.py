"""Every objective in its global form with all that is random in it switched on, for the laws of ranks and exactness."""

from dataclasses import dataclass

from service.objectives import ObjectiveConfig
from service.objectives.bgrl import BgrlConfig
from service.views import ViewConfig

VIEWS = {
    "view_1": ViewConfig(edge_drop=0.3, feature_drop=0.3),
    "view_2": ViewConfig(edge_drop=0.2, feature_drop=0.4),
}


@dataclass(frozen=True)
class ObjectiveCase:
    """A setting of one objective."""

    config: ObjectiveConfig
    is_sum: bool
    """the loss is a sum over seeds, each term of that seed's neighbourhood alone: batches add up to the full batch"""
    num_hops: int = 2
    """of the two encoder layers and the objective's reach"""


OBJECTIVES = {
    "bgrl": ObjectiveCase(BgrlConfig(**VIEWS, predictor_dim=12), is_sum=True),
    "bgrl, batch norm in the predictor": ObjectiveCase(
        BgrlConfig(**VIEWS, predictor_dim=12, predictor_norm="batch"), is_sum=False
    ),
}
