"""The stream of mini-batches of a graph larger than memory: sampled, planned, read and served, all at once.

Stages, each in a thread of its own, with what each hands on (K steps of a superbatch, W ranks served, T node types):

    1. sample   steps -> samples [K][W], kept; rows behind the prefix, per table          sampling.sources
    2. plan     superbatches i and i + 1 -> where every row of i comes from               sampling.belady
    3. pack     missed rows of a superbatch -> local disk, in batch order, where faster   sampling.packing
    4. read     groups of batches -> landed rows, one group ahead                         sampling.planned_table
    5. serve    -> mini-batches [W] with features [N_t, F_t]; slots filled                sampling.assemble

While superbatch i is read and served, i + 1 is packed, i + 2 is planned and the two behind it are sampled. Channels
between the stages are bounded, so memory is; batches come out in step order, and an error is raised at the batch that
it stopped.
"""

import time
from collections.abc import Iterator, Sequence
from queue import Queue
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sampling.assemble import Surroundings, assemble
from sampling.batch import MiniBatch
from sampling.batch_memory import BatchMemory
from sampling.channel import Channel, ChannelClosed
from sampling.device_rows import rows_behind
from sampling.drawn import KeptBatch
from sampling.kept import KeptArrays, SampleSpace
from sampling.neighbors import Sample
from sampling.pipeline import Stage, running
from sampling.planned_table import PlannedTable
from sampling.seeds import SeedOrder, rank_slice
from sampling.shared_memory import FeatureMemory
from sampling.sources import SampleSource
from sampling.stream_items import Drafted, Planned, ReadBatch, StreamCounters, Superbatch, taken_traces, union_rows
from storage.block_reads import Staging

FIRST_SUPERBATCH = 8
"""batches of the first superbatch; each is twice the one before until the full number, so that the first batch
does not wait for a whole superbatch to be read"""
NUM_LANDINGS = 2


class Stream:
    """Mini-batches of one or several ranks of a host for consecutive steps.

    Args:
        source: of samples, for as many ranks as are served.
        type_offsets: [T + 1] first global id of each node type.
        order: the seed order.
        tables: one per node type; None where a type has no features.
        space: where samples are kept until they are served.
        batches_per_superbatch: K.
        ranks: which slices of every global batch are served, of `world_size`.
        queue_batches: finished batches that may wait.
        pin_memory: page-locked feature tensors, for copies to a GPU.
        memory: what the features of batches are written to; None for memory of the stream's own.
        device_rows: rows of each type that the training device keeps: a batch's features are those of the rows
            behind them, and so are `tables` (`sampling.device_rows`); None for none.
    """

    def __init__(
        self,
        source: SampleSource,
        *,
        type_offsets: NDArray[np.int64],
        order: SeedOrder,
        tables: Sequence[PlannedTable | None],
        space: SampleSpace,
        batches_per_superbatch: int,
        ranks: Sequence[int] = (0,),
        world_size: int = 1,
        queue_batches: int = 2,
        pin_memory: bool = False,
        memory: FeatureMemory | None = None,
        device_rows: Sequence[int] | None = None,
    ) -> None:
        self.order = order
        self.counters = StreamCounters()
        self.tables = tuple(tables)
        self.source = source
        self._type_offsets = type_offsets
        self.space = space
        self._batches_per_superbatch = batches_per_superbatch
        self._ranks = tuple(ranks)
        self._world_size = world_size
        self._queue_batches = queue_batches
        self._device_rows = tuple(device_rows or (0 for _ in self.tables))
        # what waits, what is being served, and what the consumer holds while it takes the next
        self._memory = memory or BatchMemory(
            max_idle=(queue_batches + 2) * len(self._ranks) * len(self.tables), pin_memory=pin_memory
        )

    def batches(self, *, first_step: int, last_step: int) -> Iterator[list[MiniBatch]]:
        """The batches of each rank for steps [first_step, last_step), counted from the start of the run."""
        sampled: Channel[Superbatch] = Channel(1)
        drafted: Channel[Drafted] = Channel(1)
        planned: Channel[Planned] = Channel(1)
        read: Channel[ReadBatch] = Channel(1)
        served: Channel[list[MiniBatch]] = Channel(self._queue_batches)
        landings: list[Queue[Staging] | None] = [None if table is None else _landings(table) for table in self.tables]
        stages = [
            Stage(lambda: self._sample(first_step, last_step, sampled), None, sampled),
            Stage(lambda: self._plan(sampled, drafted), sampled, drafted),
            Stage(lambda: self._pack(drafted, planned), drafted, planned),
            Stage(lambda: self._read(planned, read, landings), planned, read),
            Stage(lambda: self._serve(read, served, landings), read, served),
        ]

        def wake() -> None:
            for free in landings:
                if free is not None:
                    free.put(_GONE)

        with running(stages, wake=wake):
            for batches in served:
                self.counters.wait_seconds = served.get_seconds
                yield batches

    def close(self) -> None:
        """Stop what samples."""
        self.source.close()

    def superbatches(self, first_step: int, last_step: int) -> Iterator[tuple[int, int]]:
        """The steps [first, last) of each superbatch of a stream of steps [first_step, last_step)."""
        size = min(FIRST_SUPERBATCH, self._batches_per_superbatch)
        while first_step < last_step:
            yield first_step, min(first_step + size, last_step)
            first_step += size
            size = min(2 * size, self._batches_per_superbatch)

    def _sample(self, first_step: int, last_step: int, out: Channel[Superbatch]) -> None:
        counters = self.counters.sample
        for first, last in self.superbatches(first_step, last_step):
            out.wait_for_room()
            began = time.perf_counter()
            kept: list[list[KeptBatch]] = []
            cold: list[list[KeptArrays]] = [[] for _ in self.tables]
            unions: list[list[list[NDArray[np.int32]]]] = [[] for _ in self.tables]
            for drawn in self.source.samples(first, last):
                if out.closed:
                    raise ChannelClosed
                for number, table in enumerate(self.tables):
                    if table is not None:
                        rows = [table.cold_rows(self.rows_of(batch.nodes, number)) for batch in drawn]
                        union, places = union_rows(rows)
                        cold[number].append(KeptArrays([union], self.space))
                        unions[number].append(places)
                self.counters.sampled_nodes += sum(batch.nodes.shape[0] for batch in drawn)
                self.counters.sampled_edges += sum(batch.num_edges for batch in drawn)
                kept.append([batch.keep(self.space) for batch in drawn])
                counters.items += 1
            counters.seconds += time.perf_counter() - began
            several = len(self._ranks) > 1
            out.put(Superbatch(first, kept, cold, [places if several else None for places in unions]))
        counters.waited_for_room_seconds = out.put_seconds

    def _plan(self, given: Channel[Superbatch], out: Channel[Drafted]) -> None:
        counters = self.counters.plan
        superbatch = given.get()
        traces = taken_traces(superbatch)
        while superbatch is not None:
            ahead = given.get()
            began = time.perf_counter()
            following = taken_traces(ahead)
            drafts = [
                None if table is None else table.plan(traces[number], following[number] if ahead else None)
                for number, table in enumerate(self.tables)
            ]
            counters.items += 1
            counters.seconds += time.perf_counter() - began
            out.put(Drafted(superbatch, drafts))
            superbatch, traces = ahead, following
            counters.waited_for_input_seconds, counters.waited_for_room_seconds = given.get_seconds, out.put_seconds

    def _pack(self, given: Channel[Drafted], out: Channel[Planned]) -> None:
        counters = self.counters.pack
        for drafted in given:
            began = time.perf_counter()
            misses = [
                None if table is None or draft is None else table.prepare(draft)
                for table, draft in zip(self.tables, drafted.drafts, strict=True)
            ]
            counters.items += 1
            counters.seconds += time.perf_counter() - began
            out.put(Planned(drafted.superbatch, misses))
            counters.waited_for_input_seconds, counters.waited_for_room_seconds = given.get_seconds, out.put_seconds

    def _read(self, given: Channel[Planned], out: Channel[ReadBatch], landings: list["Queue[Staging] | None"]) -> None:
        counters = self.counters.read
        for planned in given:
            groups = [[] if misses is None else list(misses.groups) for misses in planned.misses]
            held: list[list[NDArray[np.generic]]] = [[] for _ in self.tables]
            lent: list[Staging | None] = [None for _ in self.tables]
            for number in range(len(planned.superbatch.samples)):
                landed: list[NDArray[np.generic] | None] = []
                last_of: list[tuple[int, Staging]] = []
                for index, (table, misses) in enumerate(zip(self.tables, planned.misses, strict=True)):
                    if table is None or misses is None:
                        landed.append(None)
                        continue
                    group = groups[index][0]
                    if number == group.first:
                        free = landings[index]
                        assert free is not None
                        began = time.perf_counter()
                        landing = free.get()
                        if landing is _GONE:
                            raise ChannelClosed
                        counters.waited_for_room_seconds += time.perf_counter() - began
                        began = time.perf_counter()
                        held[index] = table.fetch(misses, group, landing)
                        counters.seconds += time.perf_counter() - began
                        lent[index] = landing
                    landed.append(held[index][number - group.first])
                    if number == group.last - 1:
                        groups[index].pop(0)
                        landing_held = lent[index]
                        assert landing_held is not None
                        last_of.append((index, landing_held))
                counters.items += 1
                out.put(ReadBatch(planned, number, landed, last_of))
            counters.waited_for_input_seconds = given.get_seconds

    def _serve(
        self, given: Channel[ReadBatch], out: Channel[list[MiniBatch]], landings: list["Queue[Staging] | None"]
    ) -> None:
        counters = self.counters.serve
        for item in given:
            out.wait_for_room()  # so that no more batches are in memory than were asked for
            began = time.perf_counter()
            superbatch, number = item.planned.superbatch, item.number
            taken = [kept.take() for kept in superbatch.samples[number]]
            tickets = [[] if misses is None else misses.tickets[number].take() for misses in item.planned.misses]
            batches = [self._batch(item, rank, *sample, tickets) for rank, sample in enumerate(taken)]
            for table, ticket, landed in zip(self.tables, tickets, item.landed, strict=True):
                if table is not None and landed is not None:
                    table.admit(ticket, landed)
            for index, landing in item.last_of:
                free = landings[index]
                assert free is not None
                free.put(landing)
            if number == len(superbatch.samples) - 1:
                item.planned.close()
            counters.items += 1
            counters.seconds += time.perf_counter() - began
            out.put(batches)
            counters.waited_for_input_seconds, counters.waited_for_room_seconds = given.get_seconds, out.put_seconds

    def _batch(
        self, item: ReadBatch, rank: int, sample: Sample, around: Surroundings, tickets: list[list[NDArray[Any]]]
    ) -> MiniBatch:
        superbatch, number = item.planned.superbatch, item.number
        features: list[torch.Tensor | None] = []
        for index, table in enumerate(self.tables):
            landed, union = item.landed[index], superbatch.unions[index]
            if table is None or landed is None:
                features.append(None)
                continue
            rows = self.rows_of(sample.nodes, index)
            out = self._memory.empty(rows.shape[0], table.below.dim, table.below.dtype)
            places = None if union is None else union[number][rank]
            table.serve(tickets[index], rows, landed, out.numpy(), accesses=places)
            features.append(out)
        epoch, step = divmod(superbatch.first_step + number, self.order.steps_per_epoch)
        whole = self.order.global_batch(epoch=epoch, step=step)
        return assemble(
            around,
            sample,
            epoch=epoch,
            step=step,
            num_seeds=rank_slice(whole, rank=self._ranks[rank], world_size=self._world_size).shape[0],
            num_seeds_global=whole.shape[0],
            features=tuple(features),
        )

    def rows_of(self, nodes: NDArray[Any], index: int) -> NDArray[Any]:
        """Rows of table `index` among global ids, in batch order."""
        if len(self.tables) == 1:
            return rows_behind(nodes, self._device_rows[index])
        first, last = (int(offset) for offset in self._type_offsets[index : index + 2])
        first += self._device_rows[index]
        return nodes[(nodes >= first) & (nodes < last)] - first


_GONE = Staging(1)
"""in place of a landing: nobody serves any more"""


def _landings(table: PlannedTable) -> "Queue[Staging]":
    free: Queue[Staging] = Queue()
    for _ in range(NUM_LANDINGS):
        free.put(Staging(max(1, table.landing_rows * table.row_bytes)))
    return free
