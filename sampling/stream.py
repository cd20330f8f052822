"""The stream of mini-batches of a graph larger than memory: sampled, planned, read and served, all at once.

Stages, each in a thread of its own, with what each hands on (K steps of a superbatch, W ranks served, T node types):

    1. sample   steps -> samples [K][W], kept; rows behind the prefix, per table          sampling.sources
    2. plan     superbatches i and i + 1 -> where every row of i comes from, best read    sampling.belady
    3. pack     missed rows of a superbatch -> local disk, in batch order, where faster   sampling.packing
    4. read     groups of batches -> landed rows, one group ahead                         sampling.planned_table
    5. serve    -> mini-batches [W] with features [N_t, F_t]; slots filled                sampling.assemble

While superbatch i is read and served, i + 1 is packed, i + 2 is planned and the two behind it are sampled. Channels
between the stages are bounded, so memory is; batches come out in step order, and an error is raised behind the batches
that were finished before it.
"""

import time
from collections.abc import Generator, Iterator, Sequence
from itertools import islice
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
from sampling.kept import KeptArrays, Shelf
from sampling.landings import Landings
from sampling.neighbors import Sample
from sampling.pipeline import Stage, running
from sampling.planned_misses import PlannedMisses
from sampling.planned_table import PlannedTable
from sampling.sample_space import SampleSpace
from sampling.seed_share import SeedShare, SeedShares
from sampling.seeds import SeedOrder
from sampling.shared_memory import FeatureMemory
from sampling.sources import SampleSource, doubling
from sampling.stream_items import Drafted, Planned, ReadBatch, StreamCounters, Superbatch, taken_traces, union_rows
from storage.block_reads import Staging

FIRST_SUPERBATCH = 8
"""batches of the first superbatch; each is twice the one before until the full number, so that the first batch
does not wait for a whole superbatch to be read"""


class Stream:
    """Mini-batches of one or several ranks of a host for consecutive steps.

    Args:
        source: of samples, for as many ranks as are served.
        type_offsets: [T + 1] first global id of each node type.
        order: the seed order.
        tables: one per node type; None where a type has no features.
        space: where samples are kept until they are served.
        batches_per_superbatch: K.
        ranks: which slices of every global batch are served.
        queue_batches: finished batches that may wait.
        memory: what the features of batches are written to; None for memory of the stream's own.
        device_rows: rows of each type that the training device keeps: a batch's features are those of the rows
            behind them, and so are `tables` (`sampling.device_rows`); None for none.
        shares: of seeds, as the source has them; needed where seeds are edges.
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
        queue_batches: int = 2,
        memory: FeatureMemory | None = None,
        device_rows: Sequence[int] | None = None,
        shares: SeedShares | None = None,
    ) -> None:
        self.order = order
        self._shares = shares or SeedShares(order)
        self.counters = StreamCounters()
        self.tables = tuple(tables)
        self.source = source
        self._type_offsets = type_offsets
        self.space = space
        self._batches_per_superbatch = batches_per_superbatch
        self._ranks = tuple(ranks)
        self._queue_batches = queue_batches
        self._device_rows = tuple(device_rows or (0 for _ in self.tables))
        self._left = False
        # what waits, what is being served, and what the consumer holds while it takes the next
        self._memory = memory or BatchMemory(max_idle=(queue_batches + 2) * len(self._ranks) * len(self.tables))

    def batches(self, *, first_step: int, last_step: int) -> Generator[list[MiniBatch], None, None]:
        """The batches of each rank for steps [first_step, last_step), counted from the start of the run."""
        sampled: Channel[Superbatch] = Channel(1)
        drafted: Channel[Drafted] = Channel(1)
        planned: Channel[Planned] = Channel(1)
        # the landings bound what is read: a group waits in one while the next is read into the other
        read: Channel[ReadBatch] = Channel(self._batches_per_superbatch)
        served: Channel[list[MiniBatch]] = Channel(self._queue_batches)
        landings = [None if table is None else Landings(table.landing_rows * table.row_bytes) for table in self.tables]
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
                    free.wake()

        assert not self._left, "left early: its slots do not hold what was planned"
        self._left = True
        with running(stages, wake=wake):
            for batches in served:
                self.counters.wait_seconds = served.get_seconds
                yield batches
        self._left = False

    def close(self) -> None:
        """Stop what samples."""
        self.source.close()

    def superbatches(self, first_step: int, last_step: int) -> Iterator[tuple[int, int]]:
        """The steps [first, last) of each superbatch of a stream of steps [first_step, last_step)."""
        return doubling(first_step, last_step, first_size=FIRST_SUPERBATCH, most=self._batches_per_superbatch)

    def _sample(self, first_step: int, last_step: int, out: Channel[Superbatch]) -> None:
        counters = self.counters.sample
        shelf, traces, shares = (Shelf(self.space) for _ in range(3))
        samples = self.source.samples(first_step, last_step)  # one pass: a source may be several steps ahead
        for first, last in self.superbatches(first_step, last_step):
            out.wait_for_room()
            kept: list[list[KeptBatch]] = []
            cold: list[list[KeptArrays]] = [[] for _ in self.tables]
            unions: list[list[KeptArrays]] = [[] for _ in self.tables]
            began = time.perf_counter()
            for drawn in islice(samples, last - first):
                if out.closed:
                    raise ChannelClosed
                for number, table in enumerate(self.tables):
                    if table is not None:
                        rows = [table.cold_rows(self.rows_of(batch.nodes, number)) for batch in drawn]
                        union, places = union_rows(rows)
                        cold[number].append(traces.keep([union]))
                        if places:
                            unions[number].append(shares.keep(places))
                self.counters.sampled_nodes += sum(batch.nodes.shape[0] for batch in drawn)
                self.counters.sampled_edges += sum(batch.num_edges for batch in drawn)
                kept.append([batch.keep(shelf) for batch in drawn])
                counters.items += 1
                now = time.perf_counter()
                counters.seconds, began = counters.seconds + now - began, now
            out.put(Superbatch(first, kept, cold, unions))
        counters.waited_for_room_seconds = out.put_seconds

    def _plan(self, given: Channel[Superbatch], out: Channel[Drafted]) -> None:
        counters = self.counters.plan
        superbatch = given.get()
        traces = taken_traces(superbatch)
        while superbatch is not None:
            failure: BaseException | None = None
            try:
                ahead = given.get()
            except ChannelClosed:
                raise
            except BaseException as error:  # raised behind what had been sampled before
                ahead, failure = None, error
            began = time.perf_counter()
            following = taken_traces(ahead)
            drafts = [
                None if table is None else table.plan(traces[number], following[number] if ahead else None)
                for number, table in enumerate(self.tables)
            ]
            counters.items += 1
            counters.seconds += time.perf_counter() - began
            out.put(Drafted(superbatch, drafts))
            if failure is not None:
                raise failure
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

    def _read(self, given: Channel[Planned], out: Channel[ReadBatch], landings: list[Landings | None]) -> None:
        counters = self.counters.read
        for planned in given:
            tables = [
                None if table is None or misses is None or free is None else self._landed(table, misses, free)
                for table, misses, free in zip(self.tables, planned.misses, landings, strict=True)
            ]
            for number in range(len(planned.superbatch.samples)):
                found = [(None, None) if batches is None else next(batches) for batches in tables]
                last_of = [(index, landing) for index, (_, landing) in enumerate(found) if landing is not None]
                counters.items += 1
                out.put(ReadBatch(planned, number, [landed for landed, _ in found], last_of))
            counters.waited_for_input_seconds = given.get_seconds

    def _landed(
        self, table: PlannedTable, misses: PlannedMisses, free: Landings
    ) -> Iterator[tuple[NDArray[Any], Staging | None]]:
        """Each batch's landed rows, with the landing that is free once that batch has been served."""
        counters = self.counters.read
        for group in misses.groups:
            began = time.perf_counter()
            landing = free.take()
            waited = time.perf_counter()
            rows = table.fetch(misses, group, landing)
            counters.waited_for_room_seconds += waited - began
            counters.seconds += time.perf_counter() - waited
            for number, landed in enumerate(rows, group.first):
                yield landed, landing if number == group.last - 1 else None

    def _serve(self, given: Channel[ReadBatch], out: Channel[list[MiniBatch]], landings: list[Landings | None]) -> None:
        counters = self.counters.serve
        for item in given:
            out.wait_for_room()  # so that no more batches are in memory than were asked for
            began = time.perf_counter()
            superbatch, number = item.planned.superbatch, item.number
            taken = [kept.take() for kept in superbatch.samples[number]]
            tickets = [[] if misses is None else misses.take_ticket(number) for misses in item.planned.misses]
            unions = [places[number].take() if places else [] for places in superbatch.unions]
            shares = self._shares.of_edges(superbatch.first_step + number, self._ranks)
            batches = [
                self._batch(item, *sample, tickets, [places[rank] if places else None for places in unions], share)
                for rank, (sample, share) in enumerate(zip(taken, shares, strict=True))
            ]
            for table, ticket, landed in zip(self.tables, tickets, item.landed, strict=True):
                if table is not None and landed is not None:
                    table.admit(ticket, landed)
            for index, landing in item.last_of:
                free = landings[index]
                assert free is not None
                free.give_back(landing)
            if number == len(superbatch.samples) - 1:
                item.planned.close()
            counters.items += 1
            counters.seconds += time.perf_counter() - began
            out.put(batches)
            counters.waited_for_input_seconds, counters.waited_for_room_seconds = given.get_seconds, out.put_seconds

    def _batch(
        self,
        item: ReadBatch,
        sample: Sample,
        around: Surroundings,
        tickets: list[list[NDArray[Any]]],
        places: list[NDArray[np.int32] | None],
        share: SeedShare | None,
    ) -> MiniBatch:
        superbatch, number = item.planned.superbatch, item.number
        features: list[torch.Tensor | None] = []
        for index, table in enumerate(self.tables):
            landed = item.landed[index]
            if table is None or landed is None:
                features.append(None)
                continue
            rows = self.rows_of(sample.nodes, index)
            out = self._memory.empty(rows.shape[0], table.below.dim, table.below.dtype)
            table.serve(tickets[index], rows, landed, out.numpy(), accesses=places[index])
            features.append(out)
        epoch, step = self.order.place_of(superbatch.first_step + number)
        return assemble(
            around,
            sample,
            epoch=epoch,
            step=step,
            num_seeds=sample.hops[0].num_targets if sample.hops else sample.nodes.shape[0],
            num_seeds_global=self.order.num_in_step(step=step) if share is None else share.num_global,
            features=tuple(features),
            pairs=None if share is None else share.pairs,
        )

    def rows_of(self, nodes: NDArray[Any], index: int) -> NDArray[Any]:
        """Rows of table `index` among global ids, in batch order."""
        if len(self.tables) == 1:
            return rows_behind(nodes, self._device_rows[index])
        first, last = (int(offset) for offset in self._type_offsets[index : index + 2])
        first += self._device_rows[index]
        return nodes[(nodes >= first) & (nodes < last)] - first
