"""The training loop of one rank: what stops a step, where it runs, and what it tells a person meanwhile."""

from pathlib import Path

import pytest
import torch

from sampling.batch import MiniBatch
from service.errors import TrainingFailed
from service.group import Group
from service.model import build_model
from service.noise import Noise
from service.objectives import LossSum
from service.run_file import RunFile, parse_run_text
from service.training import build_optimizer, take_step
from tests.service.batches import homogeneous, make_batch

TEXT = """
run: {name: r}
data: {store: s}
encoder: {hidden_dim: 8}
objective: {name: graphmae}
"""


def run_of(*overrides: str) -> RunFile:
    return parse_run_text(TEXT, place="run.yaml", overrides=overrides)


@pytest.mark.parametrize("clip", ["null", "1.0"])
@pytest.mark.parametrize(
    ("power", "found"),
    [
        (0.5, "gradient norm is (inf|nan) at epoch 0"),  # finite at 0, where its slope is not
        (-1.0, "loss is (inf|nan) at epoch 0"),
    ],
)
def test_a_step_whose_loss_or_gradient_is_no_number_fails_before_the_weights_change(
    power: float, found: str, clip: str
) -> None:
    graph = homogeneous()
    run = run_of(f"training.clip_norm={clip}")
    model = build_model(run, graph.schema, group=Group())
    batch = make_batch(graph, graph.all_seeds()[:5], num_hops=3, dtype=torch.float32)
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def forward(batch: MiniBatch, noise: Noise) -> LossSum:
        distance = sum((parameter - parameter.detach()).abs().sum() for parameter in model.parameters())
        assert isinstance(distance, torch.Tensor)
        return LossSum(loss_sum=distance**power, count=torch.tensor(1.0))

    optimizer = build_optimizer(run, model)
    with pytest.raises(TrainingFailed, match=found):
        take_step(run, batch, forward=forward, model=model, optimizer=optimizer, group=Group())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
