"""BGRL: its loss against the formula in dense matrices, and what the target network does."""

import math

import pytest
import torch
from torch import Tensor, nn

from service.group import Group
from service.model import build_model
from service.noise import Noise
from service.objectives.bgrl import BgrlConfig
from service.objectives.target import cosine_momentum
from service.run_file import parse_run_text
from storage.errors import BadInput
from tests.service.batches import homogeneous, make_batch
from tests.service.dense_views import VIEW_1, VIEW_2, build, dense_head, dense_states, gradients, prelu
from tests.service.steps import losses_of_training

NOISE = Noise(17)
BGRL = BgrlConfig(view_1=VIEW_1, view_2=VIEW_2, predictor_dim=12)


def test_the_loss_on_the_whole_graph_is_the_published_formula_in_value_and_gradient() -> None:
    graph = homogeneous()
    model = build(graph, BGRL)
    out = model(make_batch(graph, graph.all_seeds(), num_hops=2), NOISE)
    target, head = model.objective.target, model.objective.predictor
    assert isinstance(target, nn.Module)
    assert isinstance(head, nn.Module)
    slope = head.activation.weight  # type: ignore[union-attr]  # nn.Module's attributes are untyped
    assert isinstance(slope, Tensor)
    online = dense_states(graph, model.encoder, noise=NOISE)
    followed = [h.detach() for h in dense_states(graph, target, noise=NOISE)]
    predicted = [dense_head(head, h, prelu(slope)) for h in online]
    expected = torch.zeros((), dtype=torch.float64)
    for one, other in ((0, 1), (1, 0)):
        for q, h in zip(predicted[one], followed[other], strict=True):
            expected = expected + (1 - q @ h / (q.norm() * h.norm())) / len(followed[other])
    loss = out.loss_sum / out.count
    assert out.count == 40
    assert torch.allclose(loss, expected, rtol=1e-12, atol=0.0)
    assert torch.allclose(gradients(model, loss), gradients(model, expected), rtol=1e-9, atol=1e-12)


def test_the_target_starts_from_weights_of_its_own_and_has_no_gradient() -> None:
    graph = homogeneous()
    model = build(graph, BGRL)
    model(make_batch(graph, graph.all_seeds(), num_hops=2), NOISE).loss_sum.backward()
    online = dict(model.encoder.named_parameters())
    target = model.objective.target
    assert isinstance(target, nn.Module)
    for name, parameter in target.named_parameters():
        assert parameter.grad is None
        assert not parameter.requires_grad
        assert online[name].grad is not None
    weight = "layers.0.convolution.neighbor.0.weight"
    assert not torch.equal(dict(target.named_parameters())[weight], online[weight])


def test_after_a_step_the_target_has_moved_by_the_momentum_of_that_step_in_weights_and_statistics() -> None:
    model = build(homogeneous(), BGRL.model_copy(update={"momentum": 0.9}), norm="batch")
    target = model.objective.target
    assert isinstance(target, nn.Module)
    with torch.no_grad():
        for tensor in model.encoder.state_dict().values():
            tensor.add_(torch.rand_like(tensor))
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    model.objective.after_step(model.encoder, done=25, total_steps=100)
    momentum = 1 - (1 - 0.9) * (math.cos(math.pi * 0.25) + 1) / 2
    online = model.encoder.state_dict()
    assert any("running_mean" in name for name in before)
    for name, tensor in target.state_dict().items():
        assert torch.allclose(tensor, momentum * before[name] + (1 - momentum) * online[name], rtol=1e-12)


def test_momentum_rises_from_its_base_to_one() -> None:
    values = [cosine_momentum(0.99, done=done, total_steps=100) for done in range(101)]
    assert values[0] == 0.99
    assert values[100] == 1.0
    assert values == sorted(values)
    assert cosine_momentum(0.99, done=101, total_steps=100) == 1.0


def test_the_target_is_in_the_models_state_so_that_checkpoints_hold_it() -> None:
    state = build(homogeneous(), BGRL, norm="batch").state_dict()
    assert {name.removeprefix("objective.target.") for name in state if name.startswith("objective.target.")} == {
        name.removeprefix("encoder.") for name in state if name.startswith("encoder.")
    }


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("predictor_norm", ["none", "batch"])
def test_training_lowers_the_loss(predictor_norm: str, precision: str) -> None:
    section = f"name: bgrl, predictor_dim: 16, predictor_norm: {predictor_norm}"
    losses = losses_of_training(section, precision=precision, num_steps=30)
    assert losses[-1] < 0.8 * losses[0]


def test_without_seeds_the_loss_is_nothing_and_all_gradients_are_zero() -> None:
    graph = homogeneous()
    model = build(graph, BGRL, norm="batch")
    out = model(make_batch(graph, [], num_hops=2), NOISE)
    assert (out.loss_sum, out.count) == (0.0, 0.0)
    out.loss_sum.backward()
    for parameter in model.parameters():
        assert not parameter.requires_grad or (parameter.grad is not None and not parameter.grad.any())


@pytest.mark.parametrize(
    ("section", "found"),
    [
        ("momentum: 1.5", "objective.momentum=1.5: .*less than or equal to 1"),
        ("predictor_dim: 0", "objective.predictor_dim=0: .*greater than or equal to 1"),
        ("view_2: {feature_drop: -0.1}", "objective.view_2.feature_drop=-0.1: .*greater than or equal to 0"),
        ("temperature: 0.1", "unknown key objective.temperature"),
    ],
)
def test_settings_that_cannot_work_are_refused_with_the_key(section: str, found: str) -> None:
    with pytest.raises(BadInput, match=found):
        parse_run_text(
            f"{{run: {{name: r}}, data: {{store: s}}, objective: {{name: bgrl, {section}}}}}", place="r", overrides=()
        )


def test_cosines_of_half_precision_states_are_taken_in_float32() -> None:
    graph = homogeneous()
    text = "run: {name: r}\ndata: {store: s}\nencoder: {hidden_dim: 8}\nobjective: {name: bgrl}\n"
    model = build_model(parse_run_text(text, place="run.yaml"), graph.schema, group=Group())
    batch = make_batch(graph, graph.all_seeds()[:9], num_hops=2, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(batch, Noise(3)).loss_sum.dtype == torch.float32
