"""Every objective in its global form with all that is random in it switched on, for the laws of ranks and exactness."""

from dataclasses import dataclass

from service.objectives import ObjectiveConfig
from service.objectives.bgrl import BgrlConfig
from service.objectives.decorr import DecorrConfig
from service.objectives.edgemask import EdgeMaskConfig
from service.objectives.gptgnn import GptGnnConfig
from service.objectives.graphmae import GraphMaeConfig
from service.objectives.infonce import InfoNceConfig
from service.objectives.multitask import MultitaskConfig
from service.objectives.pretext import PretextConfig
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
    "graphmae, remasked": ObjectiveCase(
        GraphMaeConfig(mask_rate=0.6, replace_rate=0.0, decoder="gcn", num_remasks=2, remask_rate=0.4),
        is_sum=True,
        num_hops=3,
    ),
    # two means over different terms
    "graphmae with latents (GraphMAE2)": ObjectiveCase(
        GraphMaeConfig(mask_rate=0.6, replace_rate=0.0, decoder="sage", latent_weight=2.0, projector_dim=5),
        is_sum=False,
        num_hops=3,
    ),
    "bgrl": ObjectiveCase(BgrlConfig(**VIEWS, predictor_dim=12), is_sum=True),
    "bgrl, batch norm in the predictor": ObjectiveCase(
        BgrlConfig(**VIEWS, predictor_dim=12, predictor_norm="batch"), is_sum=False
    ),
    "infonce": ObjectiveCase(InfoNceConfig(**VIEWS, projector_dim=12, temperature=0.4), is_sum=False),
    "infonce, batch norm in the projector": ObjectiveCase(
        InfoNceConfig(**VIEWS, projector_dim=12, projector_norm="batch"), is_sum=False
    ),
    "infonce, mode dgi": ObjectiveCase(InfoNceConfig(mode="dgi"), is_sum=False),
    "decorr, cca": ObjectiveCase(DecorrConfig(**VIEWS), is_sum=False),
    "decorr, barlow with a projector": ObjectiveCase(
        DecorrConfig(**VIEWS, loss="barlow", projector_dim=12, projector_norm="batch"), is_sum=False
    ),
    "decorr, whitening": ObjectiveCase(DecorrConfig(**VIEWS, loss="whitening"), is_sum=False),
    # negatives and partners are seeds of the batch, and clusters follow it; all are drawn by id, in whatever order
    "edgemask": ObjectiveCase(
        EdgeMaskConfig(mask_rate=0.5, decoder_dim=6, degree_weight=0.1), is_sum=False, num_hops=3
    ),
    "edgemask, dot decoder without a mask (GAE)": ObjectiveCase(
        EdgeMaskConfig(mask_rate=0.0, decoder="dot", degree_weight=0.0), is_sum=False, num_hops=3
    ),
    "edgemask, normal latents (VGAE)": ObjectiveCase(
        EdgeMaskConfig(mask_rate=0.3, decoder="dot", degree_weight=0.1, kl_weight=0.1, latent_dim=5),
        is_sum=False,
        num_hops=3,
    ),
    "gptgnn": ObjectiveCase(GptGnnConfig(num_negatives=7, queue_size=5), is_sum=False, num_hops=3),
    "gptgnn, edges alone": ObjectiveCase(
        GptGnnConfig(mask_rate=0.7, queue_size=0, attribute_weight=0.0), is_sum=False, num_hops=3
    ),
    "pretext": ObjectiveCase(
        PretextConfig(weights=(1.0, 0.5, 2.0), num_clusters=4, num_averages=2, num_pairs=3), is_sum=False
    ),
    "pretext, degrees alone": ObjectiveCase(PretextConfig(tasks=("degree",)), is_sum=True),
    # each task is a mean over its own terms; rows that replace masked ones depend on the order of seeds, and are off;
    # a decoder without hops rebuilds no row of zeros, whose gradient would drown the others'
    "multitask, fixed weights": ObjectiveCase(
        MultitaskConfig(
            tasks=(
                GraphMaeConfig(mask_rate=0.6, replace_rate=0.0, decoder="mlp"),
                DecorrConfig(**VIEWS),
                InfoNceConfig(**VIEWS, projector_dim=12, temperature=0.4),
                EdgeMaskConfig(mask_rate=0.5, decoder_dim=6, degree_weight=0.1),
            ),
            weights=(1.0, 0.5, 2.0, 1.5),
        ),
        is_sum=False,
        num_hops=3,
    ),
    "multitask, uncertainty": ObjectiveCase(
        MultitaskConfig(
            tasks=(
                GraphMaeConfig(mask_rate=0.6, replace_rate=0.0, decoder="mlp"),
                BgrlConfig(**VIEWS, predictor_dim=12, predictor_norm="batch"),
                PretextConfig(num_clusters=4, num_averages=2, num_pairs=3),
            ),
            balance="uncertainty",
        ),
        is_sum=False,
        num_hops=3,
    ),
}
