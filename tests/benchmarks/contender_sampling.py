"""Samples of consecutive steps, drawn ahead in threads: what the contenders with our sampler share."""

import argparse
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count
from queue import SimpleQueue

from sampling.neighbors import NeighborSampler, Sample
from tests.benchmarks.contender import BenchStore, Seeds, fanouts_of

THREADS = {"memory": 1, "disk": 3}
"""by where the topology is: on disk a thread mostly waits for pages, and each costs 4 bytes a node"""


class SampledAhead:
    """Samplers over one topology. Memory: the topology or a map of it, and 4 bytes a node for each thread."""

    def __init__(self, options: argparse.Namespace, store: BenchStore) -> None:
        topology = store.topology(options.topology)
        self._num_threads = THREADS[options.topology]
        self._threads = ThreadPoolExecutor(self._num_threads)
        self._samplers: SimpleQueue[NeighborSampler] = SimpleQueue()
        for _ in range(self._num_threads):
            self._samplers.put(NeighborSampler(topology, fanouts=fanouts_of(options), seed=0))
        self._seeds = Seeds(options, num_nodes=store.num_nodes)

    def steps(self, first: int) -> Iterator[Sample]:
        """Steps from `first` on, without end, in order; as many as there are threads are sampled ahead."""
        flying: deque[Future[Sample]] = deque()
        for step in count(first):
            flying.append(self._threads.submit(self._sample, step))
            if len(flying) > self._num_threads:
                yield flying.popleft().result()

    def _sample(self, step: int) -> Sample:
        sampler = self._samplers.get()
        try:
            return sampler.sample(self._seeds.of(step), epoch=0, step=step)
        finally:
            self._samplers.put(sampler)
