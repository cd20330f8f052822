"""Masks by key: equal on both code paths, of the stated rate, and independent of everything but the key."""

import numpy as np
import pytest
import torch
from torch import Tensor

from sampling.keys import UNIT, below, draw, fold
from sampling.masks import (
    EDGE_DOMAIN,
    NODE_DOMAIN,
    edge_keys,
    integers,
    integers_by_torch,
    keep,
    keep_by_torch,
    kept_of_range,
    node_keys,
    pair_keys_by_torch,
    uniform,
    uniform_by_torch,
)

GOLDEN_KEYS = [-5834059989471987304, -8051798292971208136]
GOLDEN_MASK = [[1, 0, 1, 0, 1, 1, 1, 0], [1, 0, 0, 1, 1, 0, 1, 1]]
SALTS = (0, 1, 2**63, 2**64 - 1, 0x9E3779B97F4A7C15)


def some_keys(count: int = 500) -> Tensor:
    return node_keys(torch.arange(count) % 3, torch.arange(count))


@pytest.mark.parametrize("salt", SALTS)
def test_torch_path_equals_numba_path_bit_for_bit(salt: int) -> None:
    kind, number = torch.arange(200) % 5, torch.arange(200) * 1_000_003
    assert torch.equal(node_keys(kind, number), pair_keys_by_torch(NODE_DOMAIN, kind, number))
    assert torch.equal(edge_keys(kind, number), pair_keys_by_torch(EDGE_DOMAIN, kind, number))
    keys = some_keys()
    for num_columns in (1, 3, 4, 5, 64, 67):
        for rate in (0.0, 0.1, 0.5, 0.999, 1.0):
            by_torch = keep_by_torch(keys, salt=salt, num_columns=num_columns, threshold=kept_of_range(rate))
            assert torch.equal(keep(keys, salt=salt, num_columns=num_columns, rate=rate), by_torch)
    assert torch.equal(uniform(keys, salt=salt), uniform_by_torch(keys, salt=salt))
    for bound in (1, 2, 1000, 2**40):
        assert torch.equal(integers(keys, salt=salt, bound=bound), integers_by_torch(keys, salt=salt, bound=bound))


def test_values_are_those_of_the_scalar_hash() -> None:
    keys = some_keys(20)
    salt = np.uint64(12345)
    mask = keep(keys, salt=12345, num_columns=7, rate=0.25)
    for row, key in enumerate(keys.numpy().view(np.uint64)):
        stream = np.uint64(fold(salt, key))
        words = [int(draw(stream, number)) for number in range(2)]
        lanes = [(words[column // 4] >> (16 * (column % 4))) & 0xFFFF for column in range(7)]
        assert mask[row].tolist() == [lane < 49152 for lane in lanes]
        assert uniform(keys, salt=12345)[row].item() == (words[0] >> 11) * UNIT
        assert integers(keys, salt=12345, bound=77)[row].item() == below(np.uint64(words[0]), 77)


def test_the_first_bits_never_change_between_versions() -> None:
    keys = node_keys(torch.tensor([0, 1]), torch.tensor([5, 5]))
    assert keys.tolist() == GOLDEN_KEYS
    assert keep(keys, salt=7, num_columns=8, rate=0.5).int().tolist() == GOLDEN_MASK


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.75])
def test_share_dropped_is_the_rate_in_every_column_and_lane(rate: float) -> None:
    kept = keep(some_keys(40_000), salt=3, num_columns=9, rate=rate).double()
    deviation = (rate * (1 - rate) / 40_000) ** 0.5
    assert ((kept.mean(0) - (1 - rate)).abs() < 5 * deviation).all()
    pairs = (kept.T @ kept) / 40_000  # columns are independent: joint share is the product
    off_diagonal = pairs[~torch.eye(9, dtype=torch.bool)]
    assert ((off_diagonal - (1 - rate) ** 2).abs() < 6 * deviation).all()


def test_a_row_depends_on_its_key_and_salt_only() -> None:
    keys = some_keys(100)
    whole = keep(keys, salt=9, num_columns=13, rate=0.5)
    order = torch.randperm(100, generator=torch.Generator().manual_seed(0))
    assert torch.equal(keep(keys[order], salt=9, num_columns=13, rate=0.5), whole[order])
    assert torch.equal(keep(keys, salt=9, num_columns=5, rate=0.5), whole[:, :5])
    other = keep(keys, salt=10, num_columns=13, rate=0.5)
    assert 0.4 < (other == whole).double().mean() < 0.6


def test_keys_of_nodes_types_and_edges_are_distinct() -> None:
    kind = torch.arange(4).repeat_interleave(1000)
    number = torch.arange(1000).repeat(4)
    keys = torch.cat([node_keys(kind, number), edge_keys(kind, number)])
    assert keys.unique().shape == keys.shape


def test_uniform_and_integers_are_uniform() -> None:
    keys = some_keys(20_000)
    values = uniform(keys, salt=1)
    assert values.min() >= 0.0
    assert values.max() < 1.0
    counts = torch.bincount(integers(keys, salt=2, bound=10), minlength=10).double()
    chi_square = ((counts - 2000) ** 2 / 2000).sum()
    assert chi_square < 27.9  # 9 degrees of freedom, p = 0.001
    assert ((torch.histc(values.float(), 10, 0, 1).double() - 2000) ** 2 / 2000).sum() < 27.9


def test_empty_inputs_give_empty_masks() -> None:
    nothing = torch.empty(0, dtype=torch.int64)
    keys = node_keys(nothing, nothing)
    assert keep(keys, salt=0, num_columns=4, rate=0.5).shape == (0, 4)
    assert keep_by_torch(keys, salt=0, num_columns=4, threshold=1).shape == (0, 4)
    assert uniform(keys, salt=0).shape == (0,)
    assert integers(keys, salt=0, bound=3).shape == (0,)
