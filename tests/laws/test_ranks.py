"""Law: W ranks equal one rank on the same global batch, in loss, every parameter's gradient and running statistics.

Dropout of features, attention and edges, masks, replacement rows and batch norm are on; slices are uneven and one
rank may be empty. Each test starts its own gloo processes (this file run as a program), which meet through a file.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sampling.batch import MiniBatch
from service.encoders import EncoderConfig, make_encoder
from service.group import Group
from service.model import Model
from service.noise import Noise
from service.norm import NormName
from service.objectives import LossSum, ObjectiveConfig, make_objective
from service.objectives.graphmae import GraphMaeConfig
from tests.laws.encoder_cases import ENCODER_CASES
from tests.laws.gloo_ranks import joined_rank, leave, run_ranks
from tests.laws.objective_cases import OBJECTIVES
from tests.laws.rank_results import assert_ranks_equal, backward_over_ranks, gradients_and_buffers
from tests.service.batches import heterogeneous, homogeneous, make_batch

NUM_SEEDS = 23
SLICES = {1: (23,), 2: (18, 5), 4: (9, 0, 3, 11)}
"""seeds of each rank, by world size"""
EMPTY_SLICES = {1: (23,), 2: (23, 0), 4: (0, 0, 23, 0)}


@dataclass(frozen=True)
class Case:
    name: str
    encoder: str
    """a plain convolution, or one of `ENCODER_CASES`"""
    norm: NormName
    graph: Literal["homogeneous", "heterogeneous"] = "homogeneous"
    dtype: torch.dtype = torch.float64
    most_are_empty: bool = False
    objective: str = "graphmae"
    """or one of `OBJECTIVES`"""

    @property
    def num_hops(self) -> int:
        if self.encoder in ENCODER_CASES:
            return ENCODER_CASES[self.encoder].num_hops + 1
        return OBJECTIVES[self.objective].num_hops if self.objective in OBJECTIVES else 3

    @property
    def tolerance(self) -> float:
        return 1e-9 if self.dtype == torch.float64 else 1e-4


def cases() -> Iterator[Case]:
    for encoder in ("sage", "gcn", "gat", "gin"):
        yield Case(f"{encoder}, batch norm", encoder, "batch")
        yield Case(f"{encoder}, batch norm, several types", encoder, "batch", "heterogeneous")
        yield Case(f"{encoder}, batch norm, float32", encoder, "batch", dtype=torch.float32)
    for encoder in ENCODER_CASES:
        yield Case(f"{encoder}, several types", encoder, "batch", "heterogeneous")
    for encoder in ("gcn, pre-activation", "sgc", "mlp", "imported"):
        yield Case(encoder, encoder, "batch")
    for encoder in ("gcn, attention to relations", "gat, pre-activation, layers concatenated", "mlp"):
        yield Case(f"{encoder}, one rank has all seeds", encoder, "batch", "heterogeneous", most_are_empty=True)
    yield Case("gat, no norm", "gat", "none")
    yield Case("sage, layer norm, several types", "sage", "layer", "heterogeneous")
    yield Case("gcn, batch norm, one rank has all seeds", "gcn", "batch", most_are_empty=True)
    yield Case("gat, several types, one rank has all seeds", "gat", "batch", "heterogeneous", most_are_empty=True)
    for objective in OBJECTIVES:
        yield Case(objective, "gcn", "batch", objective=objective)
        yield Case(f"{objective}, several types", "sage", "layer", "heterogeneous", objective=objective)
        yield Case(f"{objective}, float32", "gcn", "batch", dtype=torch.float32, objective=objective)
        yield Case(f"{objective}, one rank has all seeds", "gcn", "batch", most_are_empty=True, objective=objective)


def encoder_config(case: Case) -> EncoderConfig:
    if case.encoder in ENCODER_CASES:
        return ENCODER_CASES[case.encoder].config(norm=case.norm, kernels="torch")
    return EncoderConfig(
        name=case.encoder,
        num_layers=2,
        hidden_dim=8,
        num_heads=2,
        norm=case.norm,
        residual="post",
        feature_dropout=0.2,
        attention_dropout=0.3,
        edge_dropout=0.2,
        kernels="torch",  # the processes start sooner without dgl
    )


def build(case: Case, *, group: Group) -> Model:
    graph = homogeneous() if case.graph == "homogeneous" else heterogeneous()
    config = encoder_config(case)
    decoder: Any = ENCODER_CASES[case.encoder].decoder if case.encoder in ENCODER_CASES else case.encoder
    objective: ObjectiveConfig = GraphMaeConfig(mask_rate=0.6, replace_rate=0.4, decoder=decoder)
    if case.objective in OBJECTIVES:
        objective = OBJECTIVES[case.objective].config
    torch.manual_seed(0)
    encoder = make_encoder(config, schema=graph.schema)
    return Model(encoder, make_objective(objective, schema=graph.schema, encoder_config=config), group=group).to(
        case.dtype
    )


def slice_of(case: Case, *, rank: int, world_size: int) -> MiniBatch:
    graph = homogeneous() if case.graph == "homogeneous" else heterogeneous()
    counts = (EMPTY_SLICES if case.most_are_empty else SLICES)[world_size]
    chosen = torch.randperm(sum(graph.num_nodes), generator=torch.Generator().manual_seed(1))[:NUM_SEEDS]
    seeds = [graph.all_seeds()[number] for number in chosen.tolist()]
    first = sum(counts[:rank])
    return make_batch(
        graph,
        seeds[first : first + counts[rank]],
        num_hops=case.num_hops,
        fanout=2,
        num_seeds_global=NUM_SEEDS,
        dtype=case.dtype,
    )


def run_case(case: Case, *, group: Group, process_group: dist.ProcessGroup | None) -> dict[str, Tensor]:
    """Loss, gradients and buffers after one forward and backward pass of this rank."""
    model = build(case, group=group)
    forward: nn.Module = model
    if group.world_size > 1:
        forward = DistributedDataParallel(model, broadcast_buffers=False, process_group=process_group)
    out: LossSum = forward(slice_of(case, rank=group.rank, world_size=group.world_size), Noise(11))
    result = backward_over_ranks(out, group=group)
    model.objective.after_step(model.encoder, done=1, total_steps=4)
    return result | gradients_and_buffers(model)


@pytest.mark.parametrize("world_size", [2, pytest.param(4, marks=pytest.mark.soak)])
def test_ranks_equal_one_rank(world_size: int, tmp_path: Path) -> None:
    run_ranks("tests.laws.test_ranks", world_size=world_size, folder=tmp_path)
    for number, case in enumerate(cases()):
        alone = run_case(case, group=Group(), process_group=None)
        assert alone["count"] > 5
        assert_ranks_equal(
            alone,
            folder=tmp_path,
            number=number,
            world_size=world_size,
            named=case.name,
            tolerance=case.tolerance,
            dtype=case.dtype,
        )


def check_group(group: Group) -> None:
    """Sums have the gradient of the sum over ranks; rows are gathered in rank order, of uneven counts."""
    x = torch.full((3,), float(group.rank + 1), dtype=torch.float64, requires_grad=True)
    total = group.sum(x)
    assert total.tolist() == [sum(range(1, group.world_size + 1))] * 3
    (total * (group.rank + 1)).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [sum(range(1, group.world_size + 1))] * 3
    for dtype in (torch.uint8, torch.float16, torch.float32, torch.int64):
        rows = torch.full((group.rank % 3, 2), group.rank, dtype=dtype)
        gathered = group.gather_rows(rows)
        assert gathered.dtype == dtype
        expected = [[rank, rank] for rank in range(group.world_size) for _ in range(rank % 3)]
        assert gathered.tolist() == expected
    assert group.gather_rows(torch.empty(0, 4)).shape == (0, 4)
    mine = torch.full((group.rank % 3, 2), float(group.rank), dtype=torch.float64, requires_grad=True)
    rows, first = group.gather(mine)
    assert rows.tolist() == [[rank, rank] for rank in range(group.world_size) for _ in range(rank % 3)]
    assert rows[first : first + mine.shape[0]].tolist() == mine.tolist()
    (rows.sum() * (group.rank + 1)).backward()
    assert mine.grad is not None
    assert mine.grad.tolist() == [[sum(range(1, group.world_size + 1))] * 2] * (group.rank % 3)
    group.barrier()


if __name__ == "__main__":
    with joined_rank(sys.argv) as (joined, where):
        check_group(joined)
        for place, one in enumerate(cases()):
            tensors = run_case(one, group=joined, process_group=dist.group.WORLD)
            leave(tensors, folder=where, name=place, rank=joined.rank)
