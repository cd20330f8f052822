"""Masks, selections and partners from keys: the same bits on every device, rank and thread.

Written twice: numba kernels for tensors in host memory and torch's wrapping int64 arithmetic for any other
device; a test holds the two equal bit for bit. The hash is that of `sampling.keys`.

Shapes: N nodes or edges, C columns. Keys are the 64 bits of a hash, stored as int64.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sampling.keys import GOLDEN, MIX_1, MIX_2, UNIT, below, draw, fold
from storage.jit import kernel

LANES = 4
"""16-bit lanes cut from one 64-bit word: a mask costs one hash per four columns"""
LANE_RANGE = 65536
"""values of one lane; rates are rounded to this grid"""
NODE_DOMAIN = 1
EDGE_DOMAIN = 2


def node_keys(node_type: Tensor, node_id: Tensor) -> Tensor:
    """Key of each node, from its type and its id: int64 [N] from two int64 [N]."""
    return _pair_keys(NODE_DOMAIN, node_type, node_id)


def edge_keys(relation: Tensor, position: Tensor) -> Tensor:
    """Key of each edge, from its relation and its place in that relation's CSC: int64 [E] from two int64 [E]."""
    return _pair_keys(EDGE_DOMAIN, relation, position)


def keep(keys_N: Tensor, *, salt: int, num_columns: int, rate: float) -> Tensor:
    """Bool [N, C] that is False with probability `rate`; entry (n, c) depends on (salt, keys_N[n], c) only."""
    threshold = kept_of_range(rate)
    if keys_N.device.type != "cpu":
        return keep_by_torch(keys_N, salt=salt, num_columns=num_columns, threshold=threshold)
    out = torch.empty((keys_N.shape[0], num_columns), dtype=torch.bool)
    _keep_kernel(_words(keys_N), np.uint64(salt), threshold, out.numpy())
    return out


def kept_of_range(rate: float) -> int:
    """How many of a lane's 65,536 values keep an entry at drop rate `rate`; kept / 65,536 is the exact rate."""
    return round((1.0 - rate) * LANE_RANGE)


def uniform(keys_N: Tensor, *, salt: int) -> Tensor:
    """float64 [N] in [0, 1), 53 random bits each, from (salt, keys_N[n])."""
    if keys_N.device.type != "cpu":
        return uniform_by_torch(keys_N, salt=salt)
    out = torch.empty(keys_N.shape[0], dtype=torch.float64)
    _uniform_kernel(_words(keys_N), np.uint64(salt), out.numpy())
    return out


def integers(keys_N: Tensor, *, salt: int, bound: int) -> Tensor:
    """int64 [N] in [0, bound), from (salt, keys_N[n]); bound >= 1."""
    if keys_N.device.type != "cpu":
        return integers_by_torch(keys_N, salt=salt, bound=bound)
    out = torch.empty(keys_N.shape[0], dtype=torch.int64)
    _integers_kernel(_words(keys_N), np.uint64(salt), bound, out.numpy())
    return out


def _pair_keys(domain: int, first: Tensor, second: Tensor) -> Tensor:
    if first.device.type != "cpu":
        return pair_keys_by_torch(domain, first, second)
    out = torch.empty(first.shape[0], dtype=torch.int64)
    _pair_kernel(domain, _words(first), _words(second), _words(out))
    return out


def _words(tensor: Tensor) -> NDArray[np.uint64]:
    words: NDArray[np.uint64] = tensor.contiguous().numpy().view(np.uint64)
    return words


@kernel
def _pair_kernel(domain: int, first: NDArray[np.uint64], second: NDArray[np.uint64], out: NDArray[np.uint64]) -> None:
    root = fold(np.uint64(0), domain)
    for row in range(out.shape[0]):
        out[row] = fold(fold(root, first[row]), second[row])


@kernel
def _keep_kernel(keys: NDArray[np.uint64], salt: np.uint64, threshold: int, out: NDArray[np.bool_]) -> None:
    num_columns = out.shape[1]
    num_whole = num_columns // LANES
    bound = np.uint64(threshold)
    low = np.uint64(LANE_RANGE - 1)
    for row in range(out.shape[0]):
        stream = fold(salt, keys[row])
        for number in range(num_whole):
            word = draw(stream, number)
            column = number * LANES
            out[row, column] = (word & low) < bound
            out[row, column + 1] = ((word >> np.uint64(16)) & low) < bound
            out[row, column + 2] = ((word >> np.uint64(32)) & low) < bound
            out[row, column + 3] = (word >> np.uint64(48)) < bound
        if num_whole * LANES < num_columns:
            word = draw(stream, num_whole)
            for column in range(num_whole * LANES, num_columns):
                out[row, column] = (word & low) < bound
                word = word >> np.uint64(16)


@kernel
def _uniform_kernel(keys: NDArray[np.uint64], salt: np.uint64, out: NDArray[np.float64]) -> None:
    for row in range(out.shape[0]):
        out[row] = np.float64(draw(fold(salt, keys[row]), 0) >> np.uint64(11)) * UNIT


@kernel
def _integers_kernel(keys: NDArray[np.uint64], salt: np.uint64, bound: int, out: NDArray[np.int64]) -> None:
    for row in range(out.shape[0]):
        out[row] = below(draw(fold(salt, keys[row]), 0), bound)


# The same functions in torch's int64, whose sums and products wrap as uint64's do; shifts are made logical.


def pair_keys_by_torch(domain: int, first: Tensor, second: Tensor) -> Tensor:
    """`node_keys` and `edge_keys` on any device."""
    root = torch.zeros((), dtype=torch.int64, device=first.device)
    return _fold(_fold(_fold(root, torch.full_like(root, domain)), first.long()), second.long())


def keep_by_torch(keys_N: Tensor, *, salt: int, num_columns: int, threshold: int) -> Tensor:
    """`keep` on any device, at `threshold` kept values of 65,536."""
    num_words = -(-num_columns // LANES)
    numbers = torch.arange(1, num_words + 1, device=keys_N.device) * _signed(int(GOLDEN))
    words = _mix(_streams(keys_N, salt)[:, None] + numbers)
    lanes = torch.stack([(words >> (16 * lane)) & (LANE_RANGE - 1) for lane in range(LANES)], dim=2)
    return (lanes < threshold).reshape(len(keys_N), num_words * LANES)[:, :num_columns].contiguous()


def uniform_by_torch(keys_N: Tensor, *, salt: int) -> Tensor:
    """`uniform` on any device that has float64."""
    words = _mix(_streams(keys_N, salt) + _signed(int(GOLDEN)))
    return _shifted(words, 11).double() * UNIT


def integers_by_torch(keys_N: Tensor, *, salt: int, bound: int) -> Tensor:
    """`integers` on any device that has float64."""
    return (uniform_by_torch(keys_N, salt=salt) * bound).long()


def _streams(keys_N: Tensor, salt: int) -> Tensor:
    return _fold(torch.tensor(_signed(salt), device=keys_N.device), keys_N)


def _fold(key: Tensor, word: Tensor) -> Tensor:
    golden = _signed(int(GOLDEN))
    return _mix((key + golden) ^ _mix(word + golden))


def _mix(word: Tensor) -> Tensor:
    word = (word ^ _shifted(word, 30)) * _signed(int(MIX_1))
    word = (word ^ _shifted(word, 27)) * _signed(int(MIX_2))
    return word ^ _shifted(word, 31)


def _shifted(word: Tensor, bits: int) -> Tensor:
    return (word >> bits) & ((1 << (64 - bits)) - 1)


def _signed(word: int) -> int:
    return word - (1 << 64) if word >= 1 << 63 else word
