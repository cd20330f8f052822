"""Hidden states of a batch's seeds, in one view or in two.

Shapes: S seeds of this rank, D hidden columns.
"""

import torch
from torch import Tensor, nn

from sampling.batch import MiniBatch
from service.encoders.base import Encoder
from service.encoders.nodes import Nodes
from service.group import Group
from service.noise import Noise
from service.views import View, ViewConfig, make_view


def encode_seeds(
    encoder: nn.Module,
    view: View,
    batch: MiniBatch,
    nodes: Nodes,
    *,
    noise: Noise | None,
    group: Group,
    number: int,
) -> Tensor:
    """[S, D]: states of the seeds in view `number`."""
    assert isinstance(encoder, Encoder)
    h = encoder.input(view.features, batch.node_type, batch.in_degree, batch.out_degree, encoder.look_up(batch).learned)
    hops = view.hops[: encoder.num_layers][::-1]
    states: Tensor = encoder(h, hops, nodes, noise, batch.num_seeds, group=group, view=number)
    return states[: batch.num_seeds]


def encode_two_views(
    encoder: Encoder,
    batch: MiniBatch,
    nodes: Nodes,
    configs: tuple[ViewConfig, ViewConfig],
    *,
    noise: Noise | None,
    group: Group,
) -> tuple[Tensor, Tensor]:
    """Two [S, D]: states of the seeds in views 0 and 1, which share the batch's one fetch of features."""
    first, second = (
        encode_seeds(
            encoder,
            make_view(batch, config, noise=noise, view=number, dtype=encoder.dtype),
            batch,
            nodes,
            noise=noise,
            group=group,
            number=number,
        )
        for number, config in enumerate(configs)
    )
    return first, second


def full_precision(z: Tensor) -> Tensor:
    """`z` in at least float32, as sums over many seeds need."""
    return z.float() if z.dtype in (torch.float16, torch.bfloat16) else z
