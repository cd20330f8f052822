"""Where samples come from: threads over a topology in memory, or superbatches over one on disk."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sampling.assemble import Surroundings
from sampling.drawn import Drawn, DrawnInMemory, DrawnOnDisk
from sampling.edge_seeds import EdgeSampling
from sampling.neighbors import NeighborSampler
from sampling.seed_share import SeedShares
from sampling.seeds import SeedOrder, rank_slice
from sampling.superbatch_sampler import SuperbatchSampler

FIRST_SWEEP = 4
"""batches of the first sweep over a topology on disk: until then nothing can be planned"""


class SampleSource(Protocol):
    """Samples of consecutive steps, each of them a pure function of its step."""

    def samples(self, first_step: int, last_step: int) -> Iterator[list[Drawn]]:
        """For every step of [first_step, last_step), counted over all epochs, the sample of each rank served."""

    def close(self) -> None:
        """Stop threads."""


class ThreadSource:
    """Sampling threads of this process.

    Args:
        make_sampler: a new sampler, of which each thread has one.
        around: tells degrees and weights of the same graph.
        order: the seed order.
        ranks: whose slices are sampled, of `world_size`.
        edges: makes batches of seed edges of what the order gives; None where that is nodes.
    """

    def __init__(
        self,
        make_sampler: Callable[[], NeighborSampler],
        around: Surroundings,
        *,
        order: SeedOrder,
        ranks: Sequence[int] = (0,),
        world_size: int = 1,
        num_threads: int = 1,
        edges: EdgeSampling | None = None,
    ) -> None:
        self._around = around
        self._shares = SeedShares(order, world_size, edges)
        self._ranks = tuple(ranks)
        self._num_threads = num_threads
        self._samplers: SimpleQueue[NeighborSampler] = SimpleQueue()
        for _ in range(num_threads):
            self._samplers.put(make_sampler())
        self._threads = ThreadPoolExecutor(num_threads, thread_name_prefix="hopstream-sample")

    def samples(self, first_step: int, last_step: int) -> Iterator[list[Drawn]]:
        """See `SampleSource`; at most two steps a thread are sampled ahead."""
        flying: deque[Future[list[Drawn]]] = deque()
        step = first_step
        while step < last_step or flying:
            while step < last_step and len(flying) < 2 * self._num_threads:
                flying.append(self._threads.submit(self._draw, step))
                step += 1
            yield flying.popleft().result()

    def close(self) -> None:
        """Stop the threads; samples under way are thrown away."""
        self._threads.shutdown(wait=True, cancel_futures=True)

    def _draw(self, run_step: int) -> list[Drawn]:
        epoch, step = self._shares.order.place_of(run_step)
        shares = self._shares.at(run_step, self._ranks)
        sampler = self._samplers.get()
        try:
            samples = [
                sampler.sample(share.nodes, epoch=epoch, step=step, times=share.times, exclude=share.exclude)
                for share in shares
            ]
            return [DrawnInMemory(sample, self._around) for sample in samples]
        finally:
            self._samplers.put(sampler)


class DiskSource:
    """Superbatches over a topology on disk.

    Args:
        sampler: given up to this source, which closes it.
        order, ranks, world_size: as of `ThreadSource`.
        batches_per_sweep: steps that are sampled at once, hop by hop; the first sweeps are smaller.
    """

    def __init__(
        self,
        sampler: SuperbatchSampler,
        *,
        order: SeedOrder,
        ranks: Sequence[int] = (0,),
        world_size: int = 1,
        batches_per_sweep: int,
    ) -> None:
        self._sampler = sampler
        self._order = order
        self._ranks = tuple(ranks)
        self._world_size = world_size
        self._batches_per_sweep = batches_per_sweep

    def samples(self, first_step: int, last_step: int) -> Iterator[list[Drawn]]:
        """See `SampleSource`; several sweeps are under way at once, each a hop behind the one before."""
        sweeps = (
            [
                seeds
                for step in range(first, last)
                for seeds in rank_seeds(self._order, step, self._ranks, self._world_size)
            ]
            for first, last in doubling(first_step, last_step, first_size=FIRST_SWEEP, most=self._batches_per_sweep)
        )
        num_ranks = len(self._ranks)
        for superbatch in self._sampler.stream(sweeps):
            for first in range(0, len(superbatch), num_ranks):
                numbers = range(first, first + num_ranks)
                yield [DrawnOnDisk(superbatch.batch(number)) for number in numbers]
                for number in numbers:
                    superbatch.release(number)

    def close(self) -> None:
        """End the sampler's threads."""
        self._sampler.close()


def doubling(first: int, last: int, *, first_size: int, most: int) -> Iterator[tuple[int, int]]:
    """Consecutive parts [start, end) of [first, last), each twice the one before until they have `most`."""
    size = min(first_size, most)
    while first < last:
        yield first, min(first + size, last)
        first += size
        size = min(2 * size, most)


def rank_seeds(
    order: SeedOrder, run_step: int, ranks: Sequence[int], world_size: int
) -> list[tuple[int, int, NDArray[np.int64]]]:
    """(epoch, step, seeds) of each rank at a step counted over all epochs."""
    epoch, step = order.place_of(run_step)
    whole = order.global_batch(epoch=epoch, step=step)
    return [(epoch, step, rank_slice(whole, rank=rank, world_size=world_size)) for rank in ranks]
