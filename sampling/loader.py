"""The stream of mini-batches of one rank: order -> sample -> fetch -> assemble, overlapped, in order.

Stages, with what each hands on (S seeds, N nodes, R relations, E_h edges of hop h, F_t features of type t):

    1. order     (epoch, step) -> seeds of the global batch, this rank's share [S]            sampling.seeds
                 where seeds are edges: their ends and negatives [P, K]                       sampling.edge_seeds
    2. sample    [S] -> nodes [N], hops ([R, n_h + 1], [E_h])                                  sampling.neighbors
    3. fetch     nodes -> features [N_t, F_t] per type, through the tiers                      sampling.host_tier
    4. assemble  -> MiniBatch of tensors with degrees [R, N]                                   sampling.batch

Stages 2 and 3 run in threads of their own. At most `queue_batches` batches are in flight over both, so memory is
bounded; batches come out in step order whatever the threads do, and an error in a thread is raised at the batch it
belongs to.
"""

import queue
import threading
import time
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from sampling.assemble import assemble
from sampling.batch import MiniBatch
from sampling.device_rows import rows_behind
from sampling.edge_seeds import EdgeSampling
from sampling.fanouts import HopFanout
from sampling.modes import UNIFORM, SamplingMode
from sampling.neighbors import NeighborSampler, Sample
from sampling.seed_share import SeedShare, SeedShares
from sampling.seeds import SeedOrder
from storage.features import Features
from storage.graph import Topology


@dataclass
class LoaderCounters:
    """What the stream has done; seconds are summed over threads."""

    batches: int = 0
    sampled_nodes: int = 0
    sampled_edges: int = 0
    sample_seconds: float = 0.0
    fetch_seconds: float = 0.0
    wait_seconds: float = 0.0
    """the consumer waited for a batch: the data stall"""
    idle_seconds: float = 0.0
    """a finished batch waited for the consumer"""


@dataclass(frozen=True)
class Drawn:
    """A batch between stages 2 and 3."""

    epoch: int
    step: int
    share: SeedShare
    sample: Sample


class Loader:
    """Mini-batches of rank `rank` for consecutive steps.

    Args:
        topology: in-neighbours, shared by all threads.
        order: the seed order.
        edges: makes batches of seed edges of what the order gives; None where that is nodes.
        fanouts: neighbours per relation, from the seeds outward.
        seed: the run's seed.
        mode: which neighbours are drawn.
        features: one table per node type, None where a type has none.
        rank, world_size: which slice of every global batch to serve.
        num_threads: sampling threads; as many threads again fetch features.
        queue_batches: batches in flight, at least 1.
        device_rows: rows of each type that the training device keeps: a batch's features are those of the rows
            behind them, and so are the tables in `features` (`sampling.device_rows`); None for none.
    """

    def __init__(
        self,
        topology: Topology,
        *,
        order: SeedOrder,
        edges: EdgeSampling | None = None,
        fanouts: Sequence[HopFanout],
        seed: int,
        mode: SamplingMode = UNIFORM,
        features: Sequence[Features | None],
        rank: int = 0,
        world_size: int = 1,
        num_threads: int = 1,
        queue_batches: int = 4,
        device_rows: Sequence[int] | None = None,
    ) -> None:
        assert 0 <= rank < world_size
        assert num_threads >= 1
        assert queue_batches >= 1
        self.order = order
        self.counters = LoaderCounters()
        self._topology = topology
        self._shares = SeedShares(order, world_size, edges)
        self._features = tuple(features)
        self._rank = rank
        self._queue_batches = queue_batches
        self._device_rows = tuple(device_rows or (0 for _ in self._features))
        self._lock = threading.Lock()
        self._samplers: queue.SimpleQueue[NeighborSampler] = queue.SimpleQueue()
        for _ in range(num_threads):
            self._samplers.put(NeighborSampler(topology, fanouts=fanouts, seed=seed, mode=mode))
        self._sampling = ThreadPoolExecutor(num_threads, thread_name_prefix="hopstream-sample")
        self._fetching = ThreadPoolExecutor(num_threads, thread_name_prefix="hopstream-fetch")

    def batches(self, *, first_step: int, last_step: int) -> Generator[MiniBatch, None, None]:
        """The batches of steps [first_step, last_step), counted from the start of the run over all epochs."""
        flying: deque[Future[tuple[MiniBatch, float]]] = deque()
        next_step = first_step
        try:
            while next_step < last_step or flying:
                while next_step < last_step and len(flying) < self._queue_batches:
                    drawn = self._sampling.submit(self._draw, next_step)
                    flying.append(self._fetching.submit(self._fetch, drawn))
                    next_step += 1
                began = time.perf_counter()
                batch, finished = flying.popleft().result()
                now = time.perf_counter()
                self.counters.wait_seconds += now - began
                self.counters.idle_seconds += max(0.0, began - finished)
                self.counters.batches += 1
                yield batch
        finally:
            for future in flying:
                future.cancel()

    def close(self) -> None:
        """Stop the threads; batches in flight are finished and thrown away."""
        self._sampling.shutdown(wait=True, cancel_futures=True)
        self._fetching.shutdown(wait=True, cancel_futures=True)

    def _draw(self, run_step: int) -> Drawn:
        began = time.perf_counter()
        epoch, step = self.order.place_of(run_step)
        (share,) = self._shares.at(run_step, [self._rank])
        sampler = self._samplers.get()
        try:
            sample = sampler.sample(share.nodes, epoch=epoch, step=step, times=share.times, exclude=share.exclude)
        finally:
            self._samplers.put(sampler)
        with self._lock:
            self.counters.sample_seconds += time.perf_counter() - began
            self.counters.sampled_nodes += sample.nodes.shape[0]
            self.counters.sampled_edges += sum(hop.source.shape[0] for hop in sample.hops)
        return Drawn(epoch, step, share, sample)

    def _fetch(self, drawing: "Future[Drawn]") -> tuple[MiniBatch, float]:
        drawn = drawing.result()
        began = time.perf_counter()
        features = fetch_features(
            drawn.sample.nodes,
            self._topology.type_offsets,
            self._features,
            device_rows=self._device_rows,
        )
        batch = assemble(
            self._topology,
            drawn.sample,
            epoch=drawn.epoch,
            step=drawn.step,
            num_seeds=drawn.share.nodes.shape[0],
            num_seeds_global=drawn.share.num_global,
            features=features,
            pairs=drawn.share.pairs,
        )
        finished = time.perf_counter()
        with self._lock:
            self.counters.fetch_seconds += finished - began
        return batch, finished


def fetch_features(
    nodes: NDArray[np.int64],
    type_offsets: NDArray[np.int64],
    tables: Sequence[Features | None],
    *,
    pin_memory: bool = False,
    device_rows: Sequence[int] | None = None,
) -> tuple[torch.Tensor | None, ...]:
    """Features of `nodes` (int64 [N] global ids): per type [N_t, F_t] in batch order, in the table's dtype.

    Those of the rows behind `device_rows` where given, from tables that begin there.
    """
    fetched: list[torch.Tensor | None] = []
    for index, table in enumerate(tables):
        if table is None:
            fetched.append(None)
            continue
        first, last = int(type_offsets[index]), int(type_offsets[index + 1])
        rows = nodes - first if len(tables) == 1 else nodes[(nodes >= first) & (nodes < last)] - first
        rows = rows_behind(rows, 0 if device_rows is None else device_rows[index])
        dtype = torch.from_numpy(np.empty(0, dtype=table.dtype)).dtype
        out = torch.empty((rows.shape[0], table.dim), dtype=dtype, pin_memory=pin_memory)
        table.gather(rows, out.numpy())
        fetched.append(out)
    return tuple(fetched)
