"""Mini-batches for training: from memory where everything fits, else by the planned stream; the same batches.

The budget is `tiers.memory_bytes`: for the process, the training step, the topology, feature rows, and batches that
wait. Where it is not given, it is a share of what the machine has left, divided by its workers.
"""

from collections.abc import Generator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from sampling.batch import MiniBatch
from sampling.device_rows import default_cache_bytes, tables_behind
from sampling.device_rows import device_rows as device_rows_of
from sampling.device_tier import DeviceTier
from sampling.loader import Loader, LoaderCounters
from sampling.open_source import topology_bytes
from service.encoders.id_embedding import table_bytes
from service.feeding import BatchLoader, OwnLoader, open_loader, ranks_of_host, share_address
from service.group import Group
from service.machine_memory import anonymous_bytes
from service.preparation import Preparation
from service.run_file import RunFile
from service.run_status import StreamSummary
from service.sampling_section import sampling_mode
from service.schema import GraphSchema
from service.seed_edges import seed_edges
from service.tier_budget import memory_budget, open_rank_stream, planned_stream
from service.tiers import host_tiers, open_features
from storage.progress import Progress
from storage.store import Store

SURE_SHARE = 0.7
"""of the budget: what takes no more is held in memory without any planning"""
STAGES = ("sample", "plan", "pack", "read", "serve")
"""of the stream, as its counters name them"""
BATCH_BYTES = 64 << 20
"""allowed for batches in flight when everything is in memory"""


@dataclass(frozen=True)
class HostHits:
    """Feature rows that were asked for, and those that host memory had."""

    requests: int
    hits: int


class BatchSource(Protocol):
    """What the training loop takes batches from."""

    @property
    def counters(self) -> LoaderCounters:
        """What was done so far."""

    def batches(self, *, first_step: int, last_step: int) -> Generator[MiniBatch, None, None]:
        """The batches of steps [first_step, last_step), counted from the start of the run."""

    def host_hits(self) -> HostHits:
        """How host memory did so far."""

    def stream_summary(self) -> StreamSummary | None:
        """What the planned stream did so far; None where there is none."""


class FromMemory:
    """Everything is in memory."""

    def __init__(
        self,
        run: RunFile,
        prepared: Preparation,
        group: Group,
        opened: ExitStack,
        progress: Progress,
        *,
        device_rows: Sequence[int],
    ) -> None:
        progress.stage("read topology", total=1, unit="graphs")
        topology = prepared.store.topology()
        progress.advance(1)
        tables = tables_behind(open_features(prepared.store, opened), device_rows)
        cache_bytes = sum(0 if t is None else t.num_rows * t.dim * t.dtype.itemsize for t in tables)
        self._tiers = host_tiers(tables, cache_bytes=cache_bytes, progress=progress)
        self._loader = Loader(
            topology,
            order=prepared.order,
            edges=seed_edges(run, prepared.store, topology, order=prepared.order),
            fanouts=run.sampling.fanouts,
            seed=run.run.seed,
            mode=sampling_mode(run.sampling, prepared.store),
            features=self._tiers,
            rank=group.rank,
            world_size=group.world_size,
            num_threads=run.sampling.num_threads,
            queue_batches=run.sampling.queue_batches,
            device_rows=device_rows,
        )
        opened.callback(self._loader.close)

    @property
    def counters(self) -> LoaderCounters:
        """See `BatchSource`."""
        return self._loader.counters

    def batches(self, *, first_step: int, last_step: int) -> Generator[MiniBatch, None, None]:
        """See `BatchSource`."""
        return self._loader.batches(first_step=first_step, last_step=last_step)

    def host_hits(self) -> HostHits:
        """See `BatchSource`."""
        counters = [tier.counters for tier in self._tiers if tier is not None]
        return HostHits(sum(found.requests for found in counters), sum(found.hits for found in counters))

    def stream_summary(self) -> None:
        """See `BatchSource`."""


class FromStream:
    """The planned stream: of this rank, or of all ranks of its host."""

    def __init__(self, loader: BatchLoader) -> None:
        self._loader = loader
        self._filled_bytes = self._read_bytes()  # the static prefixes were read as the stream opened

    def _read_bytes(self) -> int:
        return sum(found.bytes for found in self._loader.read if found is not None)

    @property
    def counters(self) -> LoaderCounters:
        """See `BatchSource`."""
        counters = self._loader.counters
        return LoaderCounters(
            batches=counters.serve.items,
            sampled_nodes=counters.sampled_nodes,
            sampled_edges=counters.sampled_edges,
            sample_seconds=counters.sample.seconds,
            fetch_seconds=counters.pack.seconds + counters.read.seconds + counters.serve.seconds,
            wait_seconds=counters.wait_seconds,
            idle_seconds=counters.serve.waited_for_room_seconds,
        )

    def batches(self, *, first_step: int, last_step: int) -> Generator[MiniBatch, None, None]:
        """See `BatchSource`."""
        return self._loader.batches(first_step=first_step, last_step=last_step)

    def host_hits(self) -> HostHits:
        """See `BatchSource`."""
        counters = [counters for counters in self._loader.tables if counters is not None]
        return HostHits(
            sum(found.requests for found in counters),
            sum(found.static_hits + found.dynamic_hits for found in counters),
        )

    def stream_summary(self) -> StreamSummary:
        """See `BatchSource`."""
        counters = self._loader.counters
        tables = [found for found in self._loader.tables if found is not None]
        read = self._read_bytes() - self._filled_bytes
        stages = {name: getattr(counters, name) for name in STAGES}
        return StreamSummary(
            batches=counters.serve.items,
            stage_seconds={name: stage.seconds / max(1, counters.serve.items) for name, stage in stages.items()},
            requests=sum(found.requests for found in tables),
            static_hits=sum(found.static_hits for found in tables),
            dynamic_hits=sum(found.dynamic_hits for found in tables),
            disk_bytes=read + 2 * sum(found.packed_bytes for found in tables),
        )


def open_batches(
    run: RunFile,
    prepared: Preparation,
    *,
    group: Group,
    device: torch.device,
    opened: ExitStack,
    progress: Progress,
) -> tuple[BatchSource, DeviceTier | None]:
    """Open what the training loop takes batches from, closed by `opened`; every rank calls it, at the same point.

    Returns it with the rows that the training device keeps; batches then have the others only. Ranks that share a
    feeder have no such rows. Raises BadInput for a budget in which nothing works.
    """
    store = prepared.store
    ranks = ranks_of_host(group, device=device)
    memory_bytes = memory_budget(run, num_workers=len(ranks))
    fits = not run.workers.samplers and fits_in_memory(run, store, memory_bytes=memory_bytes)
    votes = group.sum(torch.tensor([float(fits)], dtype=torch.float64, device=device))
    fits = int(votes.item()) == group.world_size  # memory left differs from host to host; the ranks must agree
    if not fits and len(ranks) > 1:
        progress.stage("start feeder", total=1, unit="feeders")
        loader = open_loader(
            store,
            run,
            order=prepared.order,
            group=group,
            ranks=ranks,
            device=device,
            open_stream=open_rank_stream,
            opened=opened,
        )
        progress.advance(1)
        return FromStream(loader), copying_tier(store, device)
    if not fits:
        share_address("", group=group, owner=group.rank, device=device)  # the ranks of other hosts share theirs now
    tier = open_device_tier(run, store, device)
    device_rows = tier.num_rows if tier is not None else [0] * len(store.node_types)
    if fits:
        return FromMemory(run, prepared, group, opened, progress, device_rows=device_rows), tier
    found = planned_stream(
        store,
        run,
        order=prepared.order,
        ranks=(group.rank,),
        world_size=group.world_size,
        opened=opened,
        num_steps=prepared.total_batches,
        device_rows=device_rows,
        progress=progress,
    )
    return FromStream(OwnLoader(found.stream)), tier


def copying_tier(store: Store, device: torch.device) -> DeviceTier | None:
    """Keeps no rows, and copies batches to a GPU; None where they are on their device already."""
    none = [None] * len(store.node_types)
    return None if device.type == "cpu" else DeviceTier(none, num_rows=[0] * len(none), device=device)


def open_device_tier(run: RunFile, store: Store, device: torch.device) -> DeviceTier | None:
    """The hottest rows on the training device, as many as the run file or a GPU's free memory allow; None for none."""
    given = run.tiers.device_cache_bytes
    cache_bytes = default_cache_bytes(device) if given is None else int(given)
    if device.type == "cpu" and cache_bytes == 0:
        return None
    with ExitStack() as filling:
        tables = open_features(store, filling)
        return DeviceTier(tables, num_rows=device_rows_of(tables, cache_bytes=cache_bytes), device=device)


def fits_in_memory(run: RunFile, store: Store, *, memory_bytes: int) -> bool:
    """Whether a run needs no plan: topology and all feature rows are in memory, and are allowed to be."""
    features = sum(
        kind.num_nodes * kind.feature_dim * np.dtype(kind.feature_dtype).itemsize
        for kind in store.node_types
        if kind.feature_dim is not None and kind.feature_dtype is not None
    )
    allowed = run.tiers.host_cache_bytes
    if run.tiers.topology == "disk" or (allowed is not None and features > int(allowed)):
        return False
    scratch = 4 * int(store.type_offsets[-1]) * run.sampling.num_threads
    checkpoint = table_bytes(run.encoder, GraphSchema.from_store(store))  # of learned rows, which are made already
    needed = anonymous_bytes() + topology_bytes(store) + features + scratch + BATCH_BYTES + checkpoint
    return needed <= SURE_SHARE * memory_bytes
