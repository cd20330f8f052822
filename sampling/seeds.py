"""The order of seed nodes: (seed, epoch, step) -> seeds of the global batch, a pure function.

No shuffled list is kept: place i of an epoch holds seed number P(i), where P is a keyed permutation of
[0, num_seeds) computed on the spot. So resuming needs only (epoch, step), memory does not grow with the graph,
and the global batch does not know how many ranks share it.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sampling.keys import fold, subkey
from storage.errors import BadInput
from storage.jit import kernel

NUM_ROUNDS = 6
ORDER_TAG = 0x5EED5
"""keeps the order's keys apart from those of sampling, which fold (epoch, step) under the same seed"""


@kernel
def permute(places: NDArray[np.int64], size: int, key: np.uint64, out: NDArray[np.int64]) -> None:
    """`out[i] = P(places[i])` for the permutation P of [0, size) that `key` names.

    A balanced Feistel network on the smallest even number of bits that holds `size`, walked until the value falls
    inside (Black and Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002, section 4); fewer than four
    walks are expected.
    """
    half = 1
    while (np.int64(1) << (2 * half)) < size:
        half += 1
    mask = (np.int64(1) << half) - 1
    for index in range(places.shape[0]):
        value = places[index]
        while True:
            left = value >> half
            right = value & mask
            for number in range(NUM_ROUNDS):
                mixed = np.int64(fold(fold(key, number), right) & np.uint64(mask))
                left, right = right, left ^ mixed
            value = (left << half) | right
            if value < size:
                break
        out[index] = value


@dataclass(frozen=True)
class SeedOrder:
    """Which seed nodes form the global batch of every step.

    Args:
        seeds: int64 [num_seeds] global ids, or None when every node of the graph is a seed.
        num_nodes: nodes of the graph.
        seeds_per_step: size of the global batch; the last of an epoch may be smaller.
        seed: the run's seed.
    """

    seeds: NDArray[np.int64] | None
    num_nodes: int
    seeds_per_step: int
    seed: int

    def __post_init__(self) -> None:
        if self.seeds_per_step < 1:
            raise BadInput(
                f"sampling.seeds_per_step={self.seeds_per_step}",
                "no seeds",
                rule="a global batch has at least one seed",
                remedy="set it to 1 or more",
            )
        if self.num_seeds == 0:
            raise BadInput(
                "seed nodes",
                "none",
                rule="training needs at least one seed node",
                remedy="widen the seed types or the seed split",
            )

    @property
    def num_seeds(self) -> int:
        """Seeds of one epoch."""
        return self.num_nodes if self.seeds is None else int(self.seeds.shape[0])

    @property
    def steps_per_epoch(self) -> int:
        """Global batches of one epoch."""
        return -(-self.num_seeds // self.seeds_per_step)

    def place_of(self, run_step: int) -> tuple[int, int]:
        """Epoch, and step in it, of a step counted over all epochs."""
        return divmod(run_step, self.steps_per_epoch)

    def num_in_step(self, *, step: int) -> int:
        """Seeds of the global batch of step `step` of any epoch."""
        return min(self.seeds_per_step, self.num_seeds - step * self.seeds_per_step)

    def global_batch(self, *, epoch: int, step: int) -> NDArray[np.int64]:
        """Global ids (int64, distinct) of the seeds of step `step` of epoch `epoch`."""
        assert 0 <= step < self.steps_per_epoch
        start = step * self.seeds_per_step
        places = np.arange(start, start + self.num_in_step(step=step), dtype=np.int64)
        numbers = np.empty_like(places)
        permute(places, self.num_seeds, subkey(np.uint64(ORDER_TAG), self.seed, epoch), numbers)
        return numbers if self.seeds is None else self.seeds[numbers]


@dataclass(frozen=True)
class EdgeOrder(SeedOrder):
    """Which edges of one relation form the global batch of every step; ids are then places in the relation's CSC.

    `num_nodes` is the number of these edges, and `seeds` is None.
    """


def rank_slice(batch: NDArray[np.int64], *, rank: int, world_size: int) -> NDArray[np.int64]:
    """Rank `rank`'s consecutive share of a global batch; shares differ by at most one seed and may be empty."""
    size = batch.shape[0]
    return batch[size * rank // world_size : size * (rank + 1) // world_size]
