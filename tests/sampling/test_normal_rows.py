"""Normal numbers by key: standard normal, the same wherever a row stands, and the same by torch as by numba."""

import torch
from scipy import stats

from sampling.masks import node_keys
from sampling.normal_rows import normals, normals_by_torch

KEYS = node_keys(torch.zeros(2000, dtype=torch.int64), torch.arange(2000))


def test_torch_draws_what_the_kernel_draws() -> None:
    kernel, torchs = (draw(KEYS, salt=(1 << 63) + 5, num_columns=7) for draw in (normals, normals_by_torch))
    assert torch.allclose(kernel, torchs, rtol=1e-12, atol=1e-12)
    assert normals(KEYS[:0], salt=1, num_columns=3).shape == normals_by_torch(KEYS[:0], salt=1, num_columns=3).shape
    assert normals(KEYS, salt=1, num_columns=0).shape == normals_by_torch(KEYS, salt=1, num_columns=0).shape


def test_entries_are_standard_normal_and_columns_and_salts_are_independent() -> None:
    one, other = normals(KEYS, salt=3, num_columns=4), normals(KEYS, salt=4, num_columns=4)
    assert stats.kstest(one.reshape(-1).numpy(), "norm").pvalue > 1e-3
    correlation = torch.corrcoef(torch.cat([one, other], dim=1).T)
    assert (correlation - torch.eye(8, dtype=torch.float64)).abs().max() < 0.1


def test_an_entry_depends_on_its_key_and_column_alone() -> None:
    whole = normals(KEYS, salt=9, num_columns=5)
    order = torch.randperm(2000, generator=torch.Generator().manual_seed(0))[:50]
    assert torch.equal(normals(KEYS[order], salt=9, num_columns=3), whole[order, :3])
