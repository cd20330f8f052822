"""Law: where seeds are edges, W ranks equal one rank on the same global batch, in loss, gradient and statistics.

Dropout, views of another task, batch norm and normal latents are on; ends of an edge are seeds of different ranks, and
with one edge most ranks have no pair, or no seed. Each test starts its own gloo processes (this file run as a program).
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sampling.edge_seeds import Side
from service.encoders import EncoderConfig, make_encoder
from service.group import Group
from service.model import Model
from service.noise import Noise
from service.objectives import LossSum, ObjectiveConfig, make_objective
from service.objectives.decorr import DecorrConfig
from service.objectives.edgemask import EdgeMaskConfig
from service.objectives.multitask import MultitaskConfig
from tests.laws.gloo_ranks import joined_rank, leave, run_ranks
from tests.laws.objective_cases import VIEWS
from tests.laws.rank_results import assert_ranks_equal, backward_over_ranks, gradients_and_buffers
from tests.service.batches import SmallGraph, heterogeneous, homogeneous
from tests.service.edge_batches import edge_batch, edge_sampling
from tests.service.reversed_graphs import with_reverses

GRAPHS = {
    "one type": with_reverses(homogeneous(), {0: 0}),
    "several types": with_reverses(heterogeneous(), {0: 0, 2: 1, 3: 4}),
}
MASK_MLP = EdgeMaskConfig(targets="seeds", decoder_dim=6, degree_weight=0.1)


@dataclass(frozen=True)
class Case:
    name: str
    objective: ObjectiveConfig = MASK_MLP
    encoder: str = "gcn"
    graph: str = "one type"
    relation: int = 0
    num_edges: int = 13
    side: Side = "target"
    dtype: torch.dtype = torch.float64

    @property
    def tolerance(self) -> float:
        return 1e-9 if self.dtype == torch.float64 else 1e-4


def cases() -> Iterator[Case]:
    yield Case("mlp decoder")
    yield Case("mlp decoder, float32", dtype=torch.float32)
    yield Case("one edge", num_edges=1)
    yield Case("between two types", encoder="sage", graph="several types", relation=1)
    yield Case(
        "the source replaced, one edge", encoder="gat", graph="several types", relation=2, num_edges=1, side="source"
    )
    yield Case("dot", EdgeMaskConfig(targets="seeds", decoder="dot", degree_weight=0.0), encoder="sgc")
    yield Case(
        "normal latents",
        EdgeMaskConfig(targets="seeds", decoder="dot", degree_weight=0.1, kl_weight=0.1, latent_dim=5),
        encoder="gin",
        graph="several types",
        relation=4,
    )
    yield Case("multitask", MultitaskConfig(tasks=(MASK_MLP, DecorrConfig(**VIEWS))))


def build(case: Case, *, group: Group) -> Model:
    schema = GRAPHS[case.graph].schema
    settings: dict[str, Any] = {} if case.encoder == "sgc" else {"residual": "post"}
    config = EncoderConfig(
        name=case.encoder, num_layers=2, hidden_dim=8, num_heads=2, norm="batch", feature_dropout=0.2,
        attention_dropout=0.3, edge_dropout=0.2, kernels="torch", **settings,
    )  # fmt: skip
    torch.manual_seed(0)
    encoder = make_encoder(config, schema=schema)
    return Model(encoder, make_objective(case.objective, schema=schema, encoder_config=config), group=group).to(
        case.dtype
    )


def run_case(case: Case, *, group: Group, process_group: dist.ProcessGroup | None) -> dict[str, Tensor]:
    """Loss, gradients and buffers after one forward and backward pass of this rank."""
    graph: SmallGraph = GRAPHS[case.graph]
    sampling = edge_sampling(graph, case.relation, num_negatives=3, side=case.side)
    positions = np.random.default_rng(3).permutation(graph.indices[case.relation].size)[: case.num_edges]
    seeds = sampling.batch(positions, epoch=0, step=0)
    model = build(case, group=group)
    forward: nn.Module = model
    if group.world_size > 1:
        forward = DistributedDataParallel(model, broadcast_buffers=False, process_group=process_group)
    batch = edge_batch(
        graph, seeds, num_hops=2, fanout=2, rank=group.rank, world_size=group.world_size, dtype=case.dtype
    )
    out: LossSum = forward(batch, Noise(11))
    return backward_over_ranks(out, group=group) | gradients_and_buffers(model)


@pytest.mark.parametrize("world_size", [2, pytest.param(4, marks=pytest.mark.soak)])
def test_ranks_equal_one_rank(world_size: int, tmp_path: Path) -> None:
    run_ranks("tests.laws.test_seed_edge_ranks", world_size=world_size, folder=tmp_path)
    for number, case in enumerate(cases()):
        alone = run_case(case, group=Group(), process_group=None)
        assert alone["count"] >= 2
        assert_ranks_equal(
            alone,
            folder=tmp_path,
            number=number,
            world_size=world_size,
            named=case.name,
            tolerance=case.tolerance,
            dtype=case.dtype,
        )


if __name__ == "__main__":
    with joined_rank(sys.argv) as (joined, where):
        for place, one in enumerate(cases()):
            tensors = run_case(one, group=joined, process_group=dist.group.WORLD)
            leave(tensors, folder=where, name=place, rank=joined.rank)
