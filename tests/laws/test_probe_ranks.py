"""Law: every rank has the figures of the validation probe, at the same steps; rank 0 alone computes them.

The ranks are gloo processes of their own (this file run as a program).
"""

import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from service.group import Group
from service.validation_probe import ValidationProbe
from tests.laws.gloo_ranks import joined_rank, leave, left_by, run_ranks

TOTAL_STEPS = 13


def figures(group: Group) -> dict[str, Tensor]:
    """What arrived at each step, as (step of the weights, accuracy)."""

    def compute(weights: Mapping[str, Tensor]) -> float:
        return float(weights["weight"].sum()) / 7.0

    probe = ValidationProbe(
        every_steps=3,
        total_steps=TOTAL_STEPS,
        compute=compute if group.rank == 0 else None,
        group=group,
        device=torch.device("cpu"),
    )
    encoder = nn.Linear(1, 1)
    found = {}
    for step in range(1, TOTAL_STEPS + 1):
        nn.init.constant_(encoder.weight, float(step))
        figure = probe.arrive(step)
        if figure is not None:
            found[str(step)] = torch.tensor([figure.step, figure.accuracy], dtype=torch.float64)
        probe.begin(step, encoder)
    probe.close()
    return found


def test_every_rank_has_the_figures_of_rank_0(tmp_path: Path) -> None:
    run_ranks("tests.laws.test_probe_ranks", world_size=2, folder=tmp_path)
    alone = figures(Group())
    assert list(alone) == ["6", "9", "12"]
    for rank in range(2):
        together = left_by(folder=tmp_path, name="figures", rank=rank)
        assert {step: figure.tolist() for step, figure in together.items()} == {
            step: [int(step) - 3, (int(step) - 3) / 7.0] for step in alone
        }
        assert {step: figure.tolist() for step, figure in alone.items()} == {
            step: figure.tolist() for step, figure in together.items()
        }


if __name__ == "__main__":
    with joined_rank(sys.argv) as (joined, where):
        leave(figures(joined), folder=where, name="figures", rank=joined.rank)
