"""Law: W ranks that balance the gradients of tasks equal one rank, and each other bit for bit; DDP reduces nothing.

Dropout, masks, views and batch norm are on; batches are cut unevenly over ranks, and a rank may have no seed of one.
The test starts its own gloo processes (this file run as a program).
"""

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from service.group import Group
from service.model import build_model
from service.run_file import RunFile, parse_run_text
from service.step import find_gradient
from tests.laws.gloo_ranks import joined_rank, leave, left_by, run_ranks
from tests.laws.rank_results import dealt_batches
from tests.service.batches import homogeneous

WORLD_SIZE = 2
BATCHES = {1: ((11,), (9,)), 2: ((8, 3), (0, 9))}
"""seeds of each rank in each of the two batches, by world size"""
ACCUMULATE = (1, 2)
FIGURES = ("loss", "norm")


def run_of(accumulate: int) -> RunFile:
    return parse_run_text(
        f"""
        run: {{name: r}}
        data: {{store: s}}
        encoder: {{name: gcn, hidden_dim: 8, norm: batch, feature_dropout: 0.2, edge_dropout: 0.2, kernels: torch}}
        objective:
          name: multitask
          balance: mgda
          tasks:
            - {{name: graphmae, mask_rate: 0.6, replace_rate: 0.4, decoder: mlp}}
            - {{name: decorr, loss: cca}}
            - {{name: infonce, projector_dim: 6}}
            - {{name: bgrl, predictor_dim: 6, predictor_norm: batch}}
            - {{name: edgemask, mask_rate: 0.5, decoder_dim: 6, degree_weight: 0.1}}
        training: {{accumulate: {accumulate}, clip_norm: 0.5}}
        """,
        place="run.yaml",
    )


def run_case(accumulate: int, *, group: Group, process_group: Any) -> dict[str, Tensor]:
    """Loss, gradients and buffers after the second of two steps, or after one of two batches."""
    run = run_of(accumulate)
    model = build_model(run, homogeneous().schema, group=group).double()
    forward: nn.Module = model
    if group.world_size > 1:
        forward = DistributedDataParallel(model, broadcast_buffers=False, process_group=process_group)
        forward.register_comm_hook(None, refuse)
    counts, num_hops = BATCHES[group.world_size], 2 + model.objective.reach
    batches = dealt_batches(homogeneous(), counts, rank=group.rank, num_hops=num_hops)
    for _ in range(len(BATCHES[1]) // accumulate):
        found = find_gradient(run, batches, num_batches=accumulate, forward=forward, model=model, group=group)
    assert found.norm < 1e3
    result = {name: torch.tensor(value, dtype=torch.float64) for name, value in vars(found).items() if name in FIGURES}
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
        if parameter.grad is not None:
            result[f"gradient {name}"] = parameter.grad
    return result | {f"buffer {name}": buffer for name, buffer in model.named_buffers()}


def refuse(
    state: Any,
    bucket: dist.GradBucket,  # type: ignore[name-defined]  # torch makes it at run time
) -> torch.futures.Future[Tensor]:
    raise AssertionError("DDP has reduced a gradient")


def test_ranks_that_balance_gradients_equal_one_rank(tmp_path: Path) -> None:
    run_ranks("tests.laws.test_multitask_ranks", world_size=WORLD_SIZE, folder=tmp_path)
    for accumulate in ACCUMULATE:
        alone = run_case(accumulate, group=Group(), process_group=None)
        first, second = (left_by(folder=tmp_path, name=accumulate, rank=rank) for rank in range(WORLD_SIZE))
        assert first.keys() == second.keys() == alone.keys()
        for name, value in alone.items():
            if name.startswith("gradient"):
                assert torch.equal(first[name], second[name]), f"{name} differs between ranks"
            difference = float((first[name] - value).norm() / value.norm().clamp(min=1e-6))
            assert difference <= 1e-9, f"accumulate {accumulate}: {name}: {difference}"


if __name__ == "__main__":
    with joined_rank(sys.argv) as (joined, where):
        for number in ACCUMULATE:
            tensors = run_case(number, group=joined, process_group=dist.group.WORLD)
            leave(tensors, folder=where, name=number, rank=joined.rank)
