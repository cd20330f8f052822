"""The training loop of one rank: what stops a step, where it runs, and what it tells a person meanwhile."""

import pytest
import torch

from sampling.batch import MiniBatch
from service.errors import TrainingFailed
from service.group import Group
from service.model import build_model
from service.noise import Noise
from service.objectives import LossSum
from service.preparation import device_of, pick_device
from service.run_file import RunFile, parse_run_text
from service.step import build_optimizer, take_step
from storage.errors import BadInput
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
        take_step(run, [batch], step=1, forward=forward, model=model, optimizer=optimizer, group=Group())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_ranks_of_a_machine_take_its_gpus_in_turn_whatever_their_global_ranks() -> None:
    # two machines with two GPUs each and three ranks, as Ray may place them: global ranks 1 and 2 share the second
    assert [str(device_of(local_rank, num_gpus=2)) for local_rank in (0, 0, 1)] == ["cuda:0", "cuda:0", "cuda:1"]
    assert str(device_of(3, num_gpus=2)) == "cuda:1"
    assert str(device_of(1, num_gpus=0)) == "cpu"


def test_the_cpu_is_taken_when_it_is_asked_for_and_a_gpu_only_where_there_is_one() -> None:
    assert str(pick_device(run_of("training.device=cpu"), local_rank=1)) == "cpu"
    if torch.cuda.is_available():
        assert pick_device(run_of(), local_rank=0).type == "cuda"
    else:
        assert str(pick_device(run_of(), local_rank=1)) == "cpu"
        with pytest.raises(BadInput, match="no GPU that torch can use"):
            pick_device(run_of("training.device=cuda"), local_rank=0)


def test_a_rank_alone_keeps_its_place_on_the_machine() -> None:
    assert Group.from_torch(local_rank=1).local_rank == 1
    assert Group().local_rank == 0
