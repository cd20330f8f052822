"""Keyed random numbers: every draw is a hash of what it is for, so no thread, rank or timing changes it.

A key is built by folding words into 64 bits; the mixer is splitmix64's finaliser (Steele, Lea and Flood,
"Fast splittable pseudorandom number generators", OOPSLA 2014, section 3). The same function is written
twice, for numba scalars here and for torch tensors in `sampling.masks`; a test holds them equal.
"""

import numpy as np

from storage.jit import kernel

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
MIX_2 = np.uint64(0x94D049BB133111EB)
UNIT = 1.0 / 9007199254740992.0  # 2**-53


@kernel
def mix(word: np.uint64) -> np.uint64:
    """Scramble 64 bits into 64 bits; a bijection."""
    word = np.uint64(word)
    word = (word ^ (word >> np.uint64(30))) * MIX_1
    word = (word ^ (word >> np.uint64(27))) * MIX_2
    return np.uint64(word ^ (word >> np.uint64(31)))


@kernel
def fold(key: np.uint64, word: int) -> np.uint64:
    """The key of `word` under `key`; keys of different words are independent."""
    return mix((np.uint64(key) + GOLDEN) ^ mix(np.uint64(word) + GOLDEN))


@kernel
def draw(key: np.uint64, number: int) -> np.uint64:
    """Random 64 bits number `number` of the stream of `key` (splitmix64 started at `key`)."""
    return mix(np.uint64(key) + np.uint64(number + 1) * GOLDEN)


@kernel
def below(word: np.uint64, bound: int) -> int:
    """Map random 64 bits to an integer in [0, bound), bias below bound / 2**53."""
    return int(np.float64(np.uint64(word) >> np.uint64(11)) * UNIT * bound)


def subkey(key: np.uint64, *words: int) -> np.uint64:
    """`fold` of every word in turn, for callers outside kernels."""
    for word in words:
        key = np.uint64(fold(key, word))
    return key


def step_key(*, seed: int, epoch: int, step: int) -> np.uint64:
    """The key under which everything random in one training step is drawn."""
    return subkey(np.uint64(0), seed, epoch, step)
