"""Law: W ranks step rows that are learned by id as one rank does, and end with the same bits as each other.

Masks, views, dropout and batch norm are on; the batches of a step are cut unevenly over ranks, and a rank may have no
seed of one. The test starts its own gloo processes (this file run as a program).
"""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from service.group import Group
from service.model import build_model
from service.row_adagrad import step_rows
from service.run_file import RunFile, parse_run_text
from service.step import find_gradient
from tests.laws.gloo_ranks import joined_rank, leave, left_by, run_ranks
from tests.laws.rank_results import dealt_batches
from tests.service.batches import featureless

OBJECTIVES = {
    "graphmae": "{name: graphmae, mask_rate: 0.6, replace_rate: 0.4, decoder: sage}",
    "graphmae2": "{name: graphmae, decoder: mlp, latent_weight: 1, projector_dim: 6}",
    "bgrl": "{name: bgrl, predictor_dim: 6, predictor_norm: batch}",
    "decorr": "{name: decorr, loss: barlow}",
    "infonce": "{name: infonce, projector_dim: 6}",
    "dgi": "{name: infonce, mode: dgi}",
    "gptgnn": "{name: gptgnn}",
    "edgemask": "{name: edgemask, decoder_dim: 5}",
    "multitask": "{name: multitask, balance: uncertainty, tasks: [{name: graphmae, decoder: mlp}, "
    "{name: edgemask, decoder_dim: 5}]}",
}
BATCHES = {
    1: ((11,), (9,), (8,), (6,)),
    2: ((8, 3), (0, 9), (3, 5), (6, 0)),
    3: ((4, 3, 4), (9, 0, 0), (0, 5, 3), (2, 2, 2)),
}
"""seeds of each rank in each of the batches, two a step, by world size"""


def run_of(objective: str) -> RunFile:
    return parse_run_text(
        f"""
        run: {{name: r}}
        data: {{store: s}}
        encoder:
          {{name: sage, hidden_dim: 8, norm: batch, feature_dropout: 0.2, edge_dropout: 0.2, kernels: torch,
            id_embedding_dim: 4}}
        objective: {OBJECTIVES[objective]}
        training: {{accumulate: 2, clip_norm: 0.5}}
        """,
        place="run.yaml",
    )


def run_case(objective: str, *, group: Group, process_group: Any) -> dict[str, Tensor]:
    """Of two steps, of rows alone: loss, norm, and rows with their state."""
    run = run_of(objective)
    model = build_model(run, featureless().schema, group=group).double()
    ids = model.encoder.ids
    assert ids is not None
    for tables in (ids.rows, ids.squares):
        tables.update({number: table.double() for number, table in tables.items()})
    forward: nn.Module = model
    if group.world_size > 1:
        forward = DistributedDataParallel(model, broadcast_buffers=False, process_group=process_group)
    counts, num_hops = BATCHES[group.world_size], 2 + model.objective.reach
    batches = dealt_batches(featureless(), counts, rank=group.rank, num_hops=num_hops)
    result = {}
    for step in range(2):
        found = find_gradient(run, batches, num_batches=2, forward=forward, model=model, group=group)
        assert [one.node_type for one in found.touched] == [0, 1]
        step_rows(ids, found.touched, learning_rate=0.1)
        result[f"{step} loss"] = torch.tensor([found.loss, found.norm], dtype=torch.float64)
        for one in found.touched:
            result[f"{step} gradient {one.node_type}"] = torch.zeros_like(ids.rows[one.node_type]).index_copy(
                0, one.ids, one.gradient
            )
            assert result[f"{step} gradient {one.node_type}"].abs().sum() > 0
        result |= {f"{step} rows {number}": rows.clone() for number, rows in ids.rows.items()}
        result |= {f"{step} squares {number}": squares.clone() for number, squares in ids.squares.items()}
    return result


@pytest.mark.parametrize("world_size", [2, pytest.param(3, marks=pytest.mark.soak)])
def test_ranks_step_learned_rows_as_one_rank_does(world_size: int, tmp_path: Path) -> None:
    run_ranks("tests.laws.test_id_embedding_ranks", world_size=world_size, folder=tmp_path)
    for objective in OBJECTIVES:
        alone = run_case(objective, group=Group(), process_group=None)
        together = [left_by(folder=tmp_path, name=objective, rank=rank) for rank in range(world_size)]
        for name, value in alone.items():
            for rank, other in enumerate(together):
                assert torch.equal(other[name], together[0][name]), f"{objective}: {name} differs on rank {rank}"
            difference = float((together[0][name] - value).norm() / value.norm())
            assert difference <= 1e-9, f"{objective}: {name}: {difference}"


if __name__ == "__main__":
    with joined_rank(sys.argv) as (joined, where):
        for name in OBJECTIVES:
            tensors = run_case(name, group=joined, process_group=dist.group.WORLD)
            leave(tensors, folder=where, name=name, rank=joined.rank)
