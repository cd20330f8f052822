"""Decorrelation: the three losses against their formulas in dense matrices, precision, few seeds, and refusals."""

import pytest
import torch
from torch import Tensor, nn

from service.group import Group
from service.noise import Noise
from service.objectives.decorr import DecorrConfig, barlow, cca, whitened_distance
from service.objectives.moments import centre, sum_together
from service.run_file import parse_run_text
from storage.errors import BadInput
from tests.service.batches import homogeneous, make_batch
from tests.service.dense_views import VIEW_1, VIEW_2, build, dense_head, dense_states, gradients, prelu
from tests.service.steps import losses_of_training

NOISE = Noise(17)
LOSSES = ("cca", "barlow", "whitening")


def plain_loss(name: str, z_1: Tensor, z_2: Tensor, *, weight: float, shrinkage: float) -> Tensor:
    """The published formula on all rows at once."""
    count, dim = z_1.shape
    if name == "whitening":
        apart = plain_white(z_1, shrinkage=shrinkage) - plain_white(z_2, shrinkage=shrinkage)
        return apart.square().sum(1).mean()
    one, other = ((z - z.mean(0)) / (z.var(0, correction=0) + 1e-8).sqrt() for z in (z_1, z_2))
    identity = torch.eye(dim, dtype=torch.float64)
    correlation = one.T @ other / count
    if name == "cca":
        inside = [(identity - z.T @ z / count).square().sum() for z in (one, other)]
        return weight * (inside[0] + inside[1]) - correlation.trace()
    apart = (identity - correlation).square()
    return apart.trace() + weight * (apart.sum() - apart.trace())


def plain_white(z: Tensor, *, shrinkage: float) -> Tensor:
    """Rows of unit length, whitened by the inverse of the Cholesky factor of their shrunk covariance."""
    dim = z.shape[1]
    covariance = torch.cov(z.T, correction=0)
    shrunk = (1 - shrinkage) * covariance + shrinkage * covariance.trace() / dim * torch.eye(dim, dtype=torch.float64)
    rows = (z - z.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(shrunk)).T
    unit: Tensor = rows / rows.norm(dim=1, keepdim=True)
    return unit


@pytest.mark.parametrize("projector_dim", [None, 5])
@pytest.mark.parametrize("name", LOSSES)
def test_the_loss_on_the_whole_graph_is_the_published_formula_in_value_and_gradient(
    name: str, projector_dim: int | None
) -> None:
    graph = homogeneous()
    config = DecorrConfig.model_validate(
        {
            "loss": name,
            "view_1": VIEW_1,
            "view_2": VIEW_2,
            "projector_dim": projector_dim,
            **({"shrinkage": 0.05} if name == "whitening" else {"weight": 0.2}),
        }
    )
    model = build(graph, config)
    out = model(make_batch(graph, graph.all_seeds(), num_hops=2), NOISE)
    states = dense_states(graph, model.encoder, noise=NOISE)
    if projector_dim is not None:
        head = model.objective.projector
        assert isinstance(head, nn.Module)
        slope = head.activation.weight  # type: ignore[union-attr]  # nn.Module's attributes are untyped
        assert isinstance(slope, Tensor)

        first, second = states
        states = dense_head(head, first, prelu(slope)), dense_head(head, second, prelu(slope))
    expected = plain_loss(name, *states, weight=0.2, shrinkage=0.05)
    loss = out.loss_sum / out.count
    assert out.count == 40
    assert torch.allclose(loss, expected, rtol=1e-12, atol=0.0)
    assert torch.allclose(gradients(model, loss), gradients(model, expected), rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize(("name", "weight"), [("cca", 1e-3), ("barlow", 1 / 6)])
def test_an_unset_weight_is_that_of_the_paper(name: str, weight: float) -> None:
    compare = {"cca": cca, "barlow": barlow}[name]
    z_1, z_2 = two_views()
    centred, count = centre(torch.stack([z_1, z_2]), group=Group())
    found = compare(centred[0], centred[1], count=count, weight=None, group=Group())
    assert torch.allclose(found, plain_loss(name, z_1, z_2, weight=weight, shrinkage=0.0))


def two_views(num_rows: int = 50, dim: int = 6, *, offset: float = 0.0) -> tuple[Tensor, Tensor]:
    """Two related [num_rows, dim] with correlated columns."""
    generator = torch.Generator().manual_seed(0)
    mixed = torch.randn(num_rows, dim, dtype=torch.float64, generator=generator) @ torch.randn(
        dim, dim, dtype=torch.float64, generator=generator
    )
    other = mixed + 0.3 * torch.randn(num_rows, dim, dtype=torch.float64, generator=generator)
    return mixed + offset, other + offset


def test_states_that_are_no_numbers_give_a_loss_that_is_none_instead_of_an_error() -> None:
    z = torch.full((6, 3), torch.nan)
    found = whitened_distance(z, z, count=torch.tensor(6.0), shrinkage=0.1, group=Group())
    assert found.isnan().all()


@pytest.mark.parametrize("name", LOSSES)
def test_a_mean_far_from_zero_costs_float32_no_digits(name: str) -> None:
    views = torch.stack(two_views(offset=1000.0)).float()
    z, count = centre(views, group=Group())
    if name == "whitening":
        found = whitened_distance(z[0], z[1], count=count, shrinkage=1e-3, group=Group()).mean()
    else:
        found = {"cca": cca, "barlow": barlow}[name](z[0], z[1], count=count, weight=0.2, group=Group())
    first, second = views.double()
    assert found.item() == pytest.approx(plain_loss(name, first, second, weight=0.2, shrinkage=1e-3).item(), rel=1e-4)


def test_views_that_agree_have_no_whitened_distance_and_whatever_their_scale() -> None:
    for scale in (1e-3, 1.0, 1e3):
        z, count = centre(torch.stack([two_views()[0] * scale] * 2), group=Group())
        distance = whitened_distance(z[0], z[1], count=count, shrinkage=1e-3, group=Group())
        assert distance.abs().max() < 1e-12
    losses = []
    for scale in (1e-3, 1.0, 1e3):
        z, count = centre(torch.stack(two_views()) * scale, group=Group())
        losses.append(whitened_distance(z[0], z[1], count=count, shrinkage=1e-3, group=Group()).sum().item())
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-9)


def test_tensors_of_several_shapes_are_summed_together_and_keep_their_shapes() -> None:
    parts = [torch.ones(2, 3), torch.arange(4.0), torch.tensor(5.0)]
    for total, part in zip(sum_together(*parts, group=Group()), parts, strict=True):
        assert torch.equal(total, part)


@pytest.mark.parametrize("num_seeds", [0, 1, 2, 5])
@pytest.mark.parametrize("name", LOSSES)
def test_fewer_seeds_than_columns_give_finite_losses_and_gradients(name: str, num_seeds: int) -> None:
    graph = homogeneous()
    model = build(graph, DecorrConfig.model_validate({"loss": name}))
    out = model(make_batch(graph, graph.all_seeds()[:num_seeds], num_hops=2), NOISE)
    assert out.count == num_seeds
    out.loss_sum.backward()
    for parameter in model.parameters():
        assert parameter.grad is not None
        assert torch.isfinite(parameter.grad).all()


@pytest.mark.parametrize("name", LOSSES)
def test_a_constant_column_gives_finite_losses_and_gradients(name: str) -> None:
    views = torch.stack(two_views())
    views[:, :, 2] = 7.0
    views.requires_grad_()
    z, count = centre(views, group=Group())
    if name == "whitening":
        loss = whitened_distance(z[0], z[1], count=count, shrinkage=1e-3, group=Group()).mean()
    else:
        loss = {"cca": cca, "barlow": barlow}[name](z[0], z[1], count=count, weight=0.2, group=Group())
    loss.backward()
    assert views.grad is not None
    assert torch.isfinite(views.grad).all()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("section", ["loss: cca", "loss: barlow", "loss: whitening", "loss: barlow, projector_dim: 8"])
def test_training_lowers_the_loss(section: str, precision: str) -> None:
    losses = losses_of_training(f"name: decorr, {section}", precision=precision, num_steps=30)
    assert losses[-1] < losses[0] - 0.05 * abs(losses[0])


@pytest.mark.parametrize(
    ("section", "found"),
    [
        ("loss: vicreg", "objective.loss=.vicreg.*'cca', 'barlow' or 'whitening'"),
        ("loss: whitening, weight: 0.1", "loss=whitening takes no weight"),
        ("loss: cca, shrinkage: 0.1", "loss=cca takes no shrinkage"),
        ("loss: whitening, shrinkage: 0", "objective.shrinkage=0: .*greater than 0"),
        ("projector_norm: batch", "projector_norm without a projector"),
        ("projector_dim: 0", "objective.projector_dim=0: .*greater than or equal to 1"),
    ],
)
def test_settings_that_have_no_effect_or_cannot_work_are_refused(section: str, found: str) -> None:
    with pytest.raises(BadInput, match=found):
        parse_run_text(
            f"{{run: {{name: r}}, data: {{store: s}}, objective: {{name: decorr, {section}}}}}", place="r", overrides=()
        )


@pytest.mark.parametrize("name", LOSSES)
def test_a_resolved_run_file_can_be_read_again(name: str) -> None:
    text = f"{{run: {{name: r}}, data: {{store: s}}, objective: {{name: decorr, loss: {name}}}}}"
    run = parse_run_text(text, place="r", overrides=())
    assert parse_run_text(run.to_yaml(), place="r", overrides=()) == run
