"""multitask: what its balances make of its tasks, each of which is as it would be alone on the same batch."""

import numpy as np
import pytest
import torch
from torch import Tensor

from sampling.keys import subkey
from service.group import Group
from service.model import Model, build_model
from service.noise import Noise
from service.objectives.multitask import TASK_TAG, Multitask, first_hops
from service.run_file import RunFile, parse_run_text
from service.step import find_gradient
from service.task_gradients import combined
from tests.service.batches import heterogeneous, homogeneous, make_batch

TASKS = "[{name: graphmae, mask_rate: 0.6, decoder: gcn}, {name: decorr, loss: barlow}]"
GRAPH = homogeneous()
SEEDS = GRAPH.all_seeds()[:17]


def run_of(settings: str) -> RunFile:
    return parse_run_text(
        f"""
        run: {{name: r}}
        data: {{store: s}}
        encoder: {{name: gcn, hidden_dim: 8, norm: layer, feature_dropout: 0.2, kernels: torch}}
        objective: {{name: multitask, tasks: {TASKS}, {settings}}}
        """,
        place="run.yaml",
    )


def model_of(settings: str) -> Model:
    return build_model(run_of(settings), GRAPH.schema, group=Group()).double()


def task_of(model: Model, number: int) -> tuple[Tensor, Tensor]:
    """Mean loss of one task alone with its own number of hops, and the gradient of the encoder."""
    assert isinstance(model.objective, Multitask)
    noise = Noise(int(subkey(np.uint64(7), TASK_TAG, number)))
    batch = make_batch(GRAPH, SEEDS, num_hops=3 if number == 0 else 2, fanout=2)
    out = model.objective.tasks[number](model.encoder, batch, noise=noise, group=Group())
    loss = out.loss_sum / out.count
    gradient = torch.autograd.grad(loss, list(model.encoder.parameters()))
    return loss.detach(), torch.cat([part.reshape(-1) for part in gradient])


def mean_loss(model: Model) -> Tensor:
    out = model(make_batch(GRAPH, SEEDS, num_hops=3, fanout=2), Noise(7))
    mean: Tensor = out.loss_sum / out.count
    return mean


def encoder_gradient(model: Model) -> Tensor:
    gradients = [parameter.grad for parameter in model.encoder.parameters()]
    return torch.cat([gradient.reshape(-1) for gradient in gradients if gradient is not None])


def test_fixed_weights_sum_the_mean_losses_and_gradients_of_the_tasks_alone() -> None:
    model = model_of("weights: [2.0, 0.5]")
    (first, first_gradient), (second, second_gradient) = task_of(model, 0), task_of(model, 1)
    loss = mean_loss(model)
    assert loss.item() == pytest.approx((2.0 * first + 0.5 * second).item(), rel=1e-12)
    loss.backward()
    wanted = 2.0 * first_gradient + 0.5 * second_gradient
    assert (encoder_gradient(model) - wanted).norm() <= 1e-12 * wanted.norm()


def test_uncertainty_divides_each_loss_by_a_learned_variance() -> None:
    model = model_of("balance: uncertainty")
    assert isinstance(model.objective, Multitask)
    assert model.objective.log_variance is not None
    with torch.no_grad():
        model.objective.log_variance.copy_(torch.tensor([0.3, -0.8]))
    losses = [task_of(model, number)[0].item() for number in (0, 1)]
    s = model.objective.log_variance.tolist()
    loss = mean_loss(model)
    wanted = sum(
        value / (2.0 * np.exp(one)) + np.log(np.sqrt(np.exp(one))) for value, one in zip(losses, s, strict=True)
    )
    assert loss.item() == pytest.approx(wanted, rel=1e-12)
    loss.backward()
    assert model.objective.log_variance.grad is not None
    slopes = [0.5 - value / (2.0 * np.exp(one)) for value, one in zip(losses, s, strict=True)]
    assert model.objective.log_variance.grad.tolist() == pytest.approx(slopes, rel=1e-12)


def test_mgda_gives_the_encoder_the_shortest_combination_and_each_task_its_own_gradient() -> None:
    run = run_of("balance: mgda")
    model = build_model(run, GRAPH.schema, group=Group()).double()
    assert isinstance(model.objective, Multitask)
    batch = make_batch(GRAPH, SEEDS, num_hops=3, fanout=2)
    found = find_gradient(
        run, [batch], num_batches=1, forward=lambda batch, noise: model(batch, Noise(7)), model=model, group=Group()
    )
    gradient = encoder_gradient(model)
    projection = model.objective.tasks[0].get_parameter("project.weight")
    own = projection.grad
    assert own is not None
    (first, one), (second, other) = task_of(model, 0), task_of(model, 1)
    assert found.loss == pytest.approx((first + second).item(), rel=1e-12)
    # of two vectors of length 1 the shortest point between is their mean
    wanted = (one / one.norm() + other / other.norm()) / 2.0
    assert (gradient - wanted).norm() <= 1e-10 * wanted.norm()
    model.zero_grad()
    out = model(batch, Noise(7))
    (out.tasks[0].loss_sum / out.tasks[0].count).backward()
    assert projection.grad is not None
    assert (own - projection.grad).norm() <= 1e-12 * own.norm()


def test_a_task_without_gradient_takes_no_part() -> None:
    rows = torch.tensor([[0.0, 0.0], [3.0, 4.0]], dtype=torch.float64)
    assert combined(rows, group=Group()).tolist() == pytest.approx([0.6, 0.8])
    assert combined(rows[:1], group=Group()).tolist() == [0.0, 0.0]
    assert combined(rows * torch.nan, group=Group()).isnan().all()


@pytest.mark.parametrize("num_hops", [0, 1, 2, 3])
def test_the_first_hops_of_a_batch_are_a_batch_of_as_many(num_hops: int) -> None:
    graph = heterogeneous()
    seeds = graph.all_seeds()[5:40:3]
    cut = first_hops(make_batch(graph, seeds, num_hops=3, fanout=2), num_hops)
    fresh = make_batch(graph, seeds, num_hops=num_hops, fanout=2)
    assert len(cut.hops) == len(fresh.hops) == num_hops
    for name in ("node_type", "node_id", "in_degree", "out_degree"):
        assert torch.equal(getattr(cut, name), getattr(fresh, name)), name
    for one, other in zip(cut.features, fresh.features, strict=True):
        assert (one is None) == (other is None)
        assert one is None or other is None or torch.equal(one, other)


def test_no_two_tasks_draw_the_same() -> None:
    twice = run_of("balance: fixed").model_dump()
    twice["objective"]["tasks"] = [{"name": "graphmae", "decoder": "mlp"}] * 2
    model = build_model(RunFile.model_validate(twice), GRAPH.schema, group=Group()).double()
    out = model(make_batch(GRAPH, SEEDS, num_hops=2), Noise(7))
    assert out.tasks[0].count == out.tasks[1].count == len(SEEDS)
    assert isinstance(model.objective, Multitask)
    model.objective.tasks[1].load_state_dict(model.objective.tasks[0].state_dict())
    out = model(make_batch(GRAPH, SEEDS, num_hops=2), Noise(7))
    assert out.tasks[0].loss_sum != out.tasks[1].loss_sum
