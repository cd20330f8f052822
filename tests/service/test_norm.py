"""Norms: torch's own where all rows are seeds, else statistics of seed rows. Ranks: tests/laws/test_ranks.py."""

import torch
from torch import Tensor, nn

from service.group import Group
from service.norm import LayerNorm, LocalBatchNorm, NoNorm, SeedBatchNorm, make_norm


def rows(count: int = 30, *, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 5, dtype=torch.float64, generator=generator) * 3.0 + 2.0


def test_with_all_rows_as_seeds_it_is_torch_batch_norm_in_value_gradient_and_running_statistics() -> None:
    ours, peer = SeedBatchNorm(5).double(), nn.BatchNorm1d(5).double()
    for step in range(3):
        x, y = rows(seed=step).requires_grad_(), rows(seed=step).requires_grad_()
        out, expected = ours(x, num_seeds=30, group=Group()), peer(y)
        assert torch.allclose(out, expected, atol=1e-12)
        out.square().sum().backward()
        expected.square().sum().backward()
        assert x.grad is not None
        assert y.grad is not None
        assert torch.allclose(x.grad, y.grad, atol=1e-10)
    assert peer.running_mean is not None
    assert peer.running_var is not None
    assert torch.allclose(ours.running_mean, peer.running_mean)
    assert torch.allclose(ours.running_var, peer.running_var)
    assert torch.allclose(ours.eval()(rows(), num_seeds=0, group=Group()), peer.eval()(rows()))


def test_statistics_come_from_seed_rows_and_apply_to_all_rows() -> None:
    x = rows()
    out = SeedBatchNorm(5).double()(x, num_seeds=10, group=Group())
    mean, var = x[:10].mean(0), x[:10].var(0, unbiased=False)
    assert torch.allclose(out, (x - mean) / (var + 1e-5).sqrt())


def test_a_constant_column_and_a_single_seed_stay_finite() -> None:
    norm = SeedBatchNorm(5)
    x = torch.ones(4, 5, requires_grad=True)
    for num_seeds in (4, 1):
        out = norm(x, num_seeds=num_seeds, group=Group())
        assert torch.equal(out, torch.zeros(4, 5))
        out.sum().backward()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()
    assert torch.isfinite(norm.running_var).all()


def test_a_batch_without_seeds_leaves_running_statistics_and_gives_zero_gradients() -> None:
    norm = SeedBatchNorm(5)
    norm(torch.empty(0, 5), num_seeds=0, group=Group()).sum().backward()
    assert torch.equal(norm.running_mean, torch.zeros(5))
    assert torch.equal(norm.running_var, torch.ones(5))
    for parameter in norm.parameters():
        assert parameter.grad is not None
        assert not parameter.grad.any()


def test_low_precision_rows_are_normalised_in_the_parameters_type() -> None:
    x = rows().bfloat16()
    out = SeedBatchNorm(5)(x, num_seeds=30, group=Group())
    assert torch.equal(out, SeedBatchNorm(5)(x.float(), num_seeds=30, group=Group()))


def test_layer_norm_is_torchs_and_none_changes_nothing() -> None:
    x = rows()
    assert isinstance(make_norm("none", 5), NoNorm)
    assert isinstance(make_norm("batch", 5), SeedBatchNorm)
    layer = make_norm("layer", 5).double()
    assert isinstance(layer, LayerNorm)
    assert torch.equal(layer(x, num_seeds=3, group=Group()), nn.LayerNorm(5).double()(x))
    assert make_norm("none", 5)(x, num_seeds=3, group=Group()) is x


def test_local_batch_norm_is_batch_norm_on_one_rank() -> None:
    ours, peer = make_norm("local-batch", 5).double(), SeedBatchNorm(5).double()
    assert isinstance(ours, LocalBatchNorm)
    x = rows()
    assert torch.equal(ours(x, num_seeds=12, group=Group()), peer(x, num_seeds=12, group=Group()))
    assert ours.state_dict().keys() == peer.state_dict().keys()
    assert all(torch.equal(tensor, peer.state_dict()[name]) for name, tensor in ours.state_dict().items())
    assert torch.equal(ours.eval()(x, num_seeds=0, group=Group()), peer.eval()(x, num_seeds=0, group=Group()))


def test_local_batch_norm_takes_the_statistics_of_its_own_seeds_and_exchanges_nothing() -> None:
    """Without a process group any exchange between the two ranks would be an error."""
    x = rows()
    norm, batch_norm = LocalBatchNorm(5).double(), SeedBatchNorm(5).double()
    halves = [norm(part, num_seeds=15, group=Group(rank, 2)) for rank, part in enumerate(x.split(15))]
    expected = [(part - part.mean(0)) / (part.var(0, unbiased=False) + 1e-5).sqrt() for part in x.split(15)]
    assert torch.allclose(torch.cat(halves), torch.cat(expected))
    assert not torch.allclose(torch.cat(halves), batch_norm(x, num_seeds=30, group=Group()))


def test_local_batch_norm_of_one_seed_or_none_takes_the_running_statistics() -> None:
    norm = LocalBatchNorm(5).double()
    for step in range(40):
        norm(rows(seed=step), num_seeds=30, group=Group())
    before = {name: tensor.clone() for name, tensor in norm.state_dict().items()}
    x = rows(seed=50)
    for num_seeds in (1, 0):
        found = norm(x, num_seeds=num_seeds, group=Group())
        found.sum().backward()
        assert torch.allclose(found, (x - norm.running_mean) / (norm.running_var + 1e-5).sqrt())
    assert all(torch.equal(tensor, before[name]) for name, tensor in norm.state_dict().items())
    assert all(parameter.grad is not None for parameter in norm.parameters())
