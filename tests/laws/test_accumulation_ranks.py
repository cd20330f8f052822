"""Law: W ranks that accumulate equal one that does: loss, gradient, running statistics and health; one reduction.

Dropout, masks, replacement rows and batch norm are on; the batches of a step are cut unevenly over ranks, differently
each, and a rank may have no seed of one. Each test starts its own gloo processes (this file run as a program).
"""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from service.group import Group
from service.health import SeedStates
from service.model import build_model
from service.run_file import RunFile, parse_run_text
from service.step import find_gradient
from tests.laws.gloo_ranks import joined_rank, leave, left_by, run_ranks
from tests.laws.rank_results import dealt_batches
from tests.service.batches import homogeneous

OBJECTIVES = {
    "graphmae": "{name: graphmae, mask_rate: 0.6, replace_rate: 0.4, decoder: gcn}",
    "graphmae2": "{name: graphmae, mask_rate: 0.6, decoder: gcn, latent_weight: 2, projector_dim: 6}",
    "bgrl": "{name: bgrl, predictor_norm: batch}",
    "decorr": "{name: decorr, loss: barlow}",
    "infonce": "{name: infonce, projector_dim: 6}",
    "edgemask": "{name: edgemask, decoder_dim: 5}",
    "pretext": "{name: pretext, num_clusters: 3, num_pairs: 2}",
}
BATCHES = {1: ((11,), (9,), (7,)), 2: ((8, 3), (0, 9), (6, 1)), 3: ((4, 3, 4), (9, 0, 0), (0, 5, 2))}
"""seeds of each rank in each of the three batches of a step, by world size"""


def run_of(objective: str) -> RunFile:
    return parse_run_text(
        f"""
        run: {{name: r}}
        data: {{store: s}}
        encoder:
          {{name: gcn, hidden_dim: 8, norm: batch, residual: true, feature_dropout: 0.2, edge_dropout: 0.2,
            kernels: torch}}
        objective: {OBJECTIVES[objective]}
        training: {{accumulate: 3, clip_norm: 0.05}}
        """,
        place="run.yaml",
    )


def run_case(objective: str, *, group: Group, process_group: Any) -> dict[str, Tensor]:
    run = run_of(objective)
    model = build_model(run, homogeneous().schema, group=group).double()
    forward: nn.Module = model
    reductions: list[int] = []
    if group.world_size > 1:

        def counted(
            state: Any,
            bucket: dist.GradBucket,  # type: ignore[name-defined]  # torch makes it at run time
        ) -> torch.futures.Future[Tensor]:
            reductions.append(bucket.index())
            return allreduce_hook(state, bucket)

        forward = DistributedDataParallel(model, broadcast_buffers=False, process_group=process_group)
        forward.register_comm_hook(process_group, counted)
    states = SeedStates(views=model.objective.first_passes_are_views)
    counts, num_hops = BATCHES[group.world_size], 2 + model.objective.reach
    batches = dealt_batches(homogeneous(), counts, rank=group.rank, num_hops=num_hops)
    found = find_gradient(run, batches, num_batches=3, forward=forward, model=model, group=group, states=states)
    figures = asdict(states.figures(group))
    # of a task that has states of seeds alone no links are aligned over
    health = {f"health {name}": value for name, value in figures.items() if value is not None}
    assert len(health) >= 4 if group.rank == 0 else not health
    assert reductions.count(0) == (group.world_size > 1)
    assert len(set(reductions)) == len(reductions), "a bucket was reduced twice"
    figures = {"loss": found.loss, "norm": found.norm, **health}
    result = {name: torch.tensor(value, dtype=torch.float64) for name, value in figures.items()}
    result["batch losses"] = torch.tensor(found.batch_losses, dtype=torch.float64)
    result |= {
        f"gradient {name}": parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None
    }
    return result | {f"buffer {name}": buffer for name, buffer in model.named_buffers()}


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_that_accumulate_equal_one_rank(world_size: int, tmp_path: Path) -> None:
    run_ranks("tests.laws.test_accumulation_ranks", world_size=world_size, folder=tmp_path)
    for objective in OBJECTIVES:
        alone = run_case(objective, group=Group(), process_group=None)
        for rank in range(world_size):
            together = left_by(folder=tmp_path, name=objective, rank=rank)
            # the figures of health are known to rank 0 alone
            names = {name for name in alone if rank == 0 or not name.startswith("health")}
            assert together.keys() == names
            for name in names:
                value = alone[name]
                # states are gathered in float32 for health
                tolerance = 1e-5 if name.startswith("health") else 1e-9
                value, other = value.double(), together[name].double()  # counts of clusters are integers
                difference = float((other - value).norm() / value.norm().clamp(min=1e-6))
                assert difference <= tolerance, f"{objective}: {name} on rank {rank}: {difference}"


if __name__ == "__main__":
    with joined_rank(sys.argv) as (joined, where):
        for name in OBJECTIVES:
            tensors = run_case(name, group=joined, process_group=dist.group.WORLD)
            leave(tensors, folder=where, name=name, rank=joined.rank)
