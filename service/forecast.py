"""`hopstream plan`: what a run will take, before any of it: from real batches, real reads and real steps on a copy.

a few steps       -> seconds of the step and of every stage of the stream, side by side as in training
a sampled trace   -> hits and disk bytes of this budget, of one with another GiB, and with one hop more
"""

import os
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import torch

from sampling.belady import Residency
from sampling.memory_split import MemorySplit
from sampling.open_stream import OpenStream
from sampling.planned_table import Packing
from sampling.read_cost import ReadCost, read_cost
from service.coordinator import read_status
from service.feeding import OwnLoader
from service.group import Group
from service.preparation import prepare
from service.run_file import RunFile
from service.run_folder import run_place
from service.streaming import BatchSource, FromMemory, FromStream, fits_in_memory
from service.tier_budget import memory_budget, planned_stream
from service.training import build_optimizer, take_step
from storage.disk_speed import DiskSpeed
from storage.progress import Progress

NUM_STEPS = 56
"""real steps: two small superbatches and a larger one, while what follows is sampled as in training"""
NUM_WARM = 24
"""of them, those that are not timed"""
MOST_TRACED = 64
"""batches whose accesses are planned for the forecast"""
GIB = 1 << 30


@dataclass(frozen=True)
class Outlook:
    """One budget on one trace."""

    change: str
    batches_per_superbatch: int
    topology: str
    memory: dict[str, int]
    """bytes of each part"""
    static_hit_rate: float
    dynamic_hit_rate: float
    disk_bytes_per_step: float
    read_seconds_per_step: float


@dataclass(frozen=True)
class MoreHop:
    """Batches with the last fan-out once more."""

    fanout: int | dict[str, int]
    nodes: float
    times_the_nodes: float


@dataclass(frozen=True)
class Forecast:
    """What a run is expected to do."""

    run: str
    memory_bytes: int
    in_memory: bool
    """everything is in memory: nothing is planned"""
    nodes_by_hop: list[float]
    """known before each hop, and behind the last"""
    batch_bytes: int
    stage_seconds: dict[str, float]
    """of a step, each stage beside the others"""
    bottleneck: str
    seconds_per_step: float
    startup_seconds: float
    """until the first batch is there"""
    total_steps: int
    outlooks: list[Outlook] = field(default_factory=list)
    one_more_hop: MoreHop | None = None
    measured_seconds_per_step: float | None = None
    """of the run, where it has been done"""


def forecast(run: RunFile, *, progress: Progress) -> Forecast:
    """Look ahead at a run; nothing of it is written.

    Raises BadInput for what would stop the run.
    """
    # one worker without Ray: it trains on the same batches
    run = run.model_copy(update={"workers": run.workers.model_copy(update={"count": 1, "samplers": 0})})
    prepared = prepare(run, group=Group(), state=None)
    torch.set_num_threads(run.training.num_compute_threads or os.cpu_count() or 1)
    with ExitStack() as opened:
        found = None
        source: BatchSource
        if fits_in_memory(run, prepared.store, memory_bytes=memory_budget(run, num_workers=1)):
            rows = [0] * len(prepared.store.node_types)
            source = FromMemory(run, prepared, Group(), opened, progress, device_rows=rows)
        else:
            found = planned_stream(
                prepared.store,
                run,
                order=prepared.order,
                ranks=(0,),
                world_size=1,
                opened=opened,
                num_steps=prepared.total_steps,
                progress=progress,
            )
            source = FromStream(OwnLoader(found.stream))
        optimizer = build_optimizer(run, prepared.model)
        num_steps = min(NUM_STEPS, prepared.total_steps)
        progress.stage("try steps", total=num_steps, unit="steps")
        began = time.perf_counter()
        startup = 0.0
        computes: list[float] = []
        nodes = np.zeros(0)
        batch_bytes = 0
        num_warm = min(NUM_WARM, num_steps - 1)
        batches = source.batches(first_step=0, last_step=prepared.total_steps)
        for number, batch in enumerate(islice(batches, num_steps)):
            got = time.perf_counter()
            startup = startup or got - began
            take_step(run, batch, forward=prepared.model, model=prepared.model, optimizer=optimizer, group=Group())
            if number >= num_warm:
                computes.append(time.perf_counter() - got)
            known = np.array([*(hop.num_targets for hop in batch.hops), batch.node_id.shape[0]], dtype=np.float64)
            nodes = known if nodes.size == 0 else nodes + known
            batch_bytes = max(batch_bytes, sum(t.numel() * t.element_size() for t in batch.features if t is not None))
            progress.advance(1)
        batches.close()  # what follows samples by itself
        stages = {"compute": float(np.median(computes))}
        outlooks: list[Outlook] = []
        memory_bytes = 0
        more_hop = None
        if found is not None:
            counters = found.stream.counters
            stages["sample"] = counters.sample.seconds / max(1, counters.sample.items)
            stages["serve"] = counters.serve.seconds / max(1, counters.serve.items)
            memory_bytes = found.split.memory_bytes
            outlooks = outlooks_of(found, packing=run.tiers.packing, progress=progress)
            stages["read"] = outlooks[0].read_seconds_per_step
            fanouts = run.sampling.fanouts
            deeper = found.look((*fanouts, fanouts[-1]))
            more_hop = MoreHop(fanouts[-1], deeper.num_nodes, deeper.num_nodes / found.batch.num_nodes)
        else:
            counted = source.counters
            stages["sample"] = counted.sample_seconds / max(1, num_steps)
            stages["fetch"] = counted.fetch_seconds / max(1, num_steps)
    bottleneck = max(stages, key=lambda name: stages[name])
    return Forecast(
        run=run.run.name,
        memory_bytes=memory_bytes,
        in_memory=not outlooks,
        nodes_by_hop=(nodes / num_steps).tolist(),
        batch_bytes=batch_bytes,
        stage_seconds=stages,
        bottleneck=bottleneck,
        seconds_per_step=stages[bottleneck],
        startup_seconds=startup,
        total_steps=prepared.total_steps,
        outlooks=outlooks,
        one_more_hop=more_hop,
        measured_seconds_per_step=measured(run),
    )


def measured(run: RunFile) -> float | None:
    """Seconds a step of the run's last attempt from its first batch on, where it has trained any."""
    status = read_status(run_place(run))
    if status is None or status.summary is None or status.summary.steps == 0:
        return None
    return (status.summary.seconds - status.summary.startup_seconds) / status.summary.steps


def outlooks_of(found: OpenStream, *, packing: Packing, progress: Progress) -> list[Outlook]:
    """The budget as it is, and with a GiB more."""
    steps = min(MOST_TRACED, 2 * found.split.batches_per_superbatch)
    progress.stage("plan ahead", total=2, unit="budgets")
    trace = found.trace(steps)
    outlooks = []
    for change, more in (("as it is", 0), ("one GiB more", GIB)):
        split = found.split if not more else found.split_of(found.split.memory_bytes + more)
        outlooks.append(_outlook(change, split, found, trace, packing))
        progress.advance(1)
    return outlooks


def _outlook(
    change: str, split: MemorySplit, found: OpenStream, trace: list[list[np.ndarray]], packing: Packing
) -> Outlook:
    requests = static = dynamic = 0
    disk_bytes, seconds = 0.0, 0.0
    for table, memory, batches in zip(found.needs.tables, split.tables, trace, strict=True):
        if table is None or memory is None:
            continue
        cold = [rows[rows >= memory.num_static].astype(np.int32) for rows in batches]
        total = sum(rows.shape[0] for rows in batches)
        requests += total
        static += total - sum(rows.shape[0] for rows in cold)
        residency = Residency(num_rows=table.num_rows, num_slots=memory.num_slots)
        half = max(1, len(cold) // 2)
        list(residency.plan(cold[:half], cold[half:]))  # fills the slots
        plans = list(residency.plan(cold[half:]))
        share = len(cold) / max(1, len(cold) - half)
        dynamic += int(share * sum(plan.num_hits for plan in plans))
        missed = [plan.miss_row for plan in plans]
        cost, packed = _swept(missed, split.batches_per_superbatch, table.num_rows, table.row_bytes, found.speed)
        direct = _direct(missed, table.num_rows, table.row_bytes, found.speed)
        swept_seconds = cost.seconds(found.speed) + found.speed.round_trip_seconds(packed)
        if packing == "never" or (packing == "auto" and direct.seconds(found.speed) <= swept_seconds):
            cost, packed, swept_seconds = direct, 0.0, direct.seconds(found.speed)
        disk_bytes += cost.num_bytes + 2 * packed
        seconds += swept_seconds
    return Outlook(
        change=change,
        batches_per_superbatch=split.batches_per_superbatch,
        topology=split.topology,
        memory=parts_of(split),
        static_hit_rate=static / max(1, requests),
        dynamic_hit_rate=dynamic / max(1, requests),
        disk_bytes_per_step=disk_bytes,
        read_seconds_per_step=seconds,
    )


def parts_of(split: MemorySplit) -> dict[str, int]:
    """Bytes of the parts of a budget, by name."""
    return {
        "process and step": split.process_bytes,
        "topology": split.topology_bytes,
        "sampler": split.sampler_bytes,
        "waiting batches": split.waiting_bytes,
        "reads": split.read_bytes,
        "plans": split.plan_bytes,
        "feature rows": split.cache_bytes,
    }


def _direct(missed: list[np.ndarray], num_rows: int, row_bytes: int, speed: DiskSpeed) -> ReadCost:
    """Reads a batch without packs."""
    costs = [read_cost([rows], num_rows=num_rows, row_bytes=row_bytes, gap_bytes=speed.gap_bytes) for rows in missed]
    total, known = sum(costs, start=ReadCost()), max(1, len(missed))
    return ReadCost(total.num_bytes // known, total.num_reads // known)


def _swept(
    missed: list[np.ndarray], batches_per_superbatch: int, num_rows: int, row_bytes: int, speed: DiskSpeed
) -> tuple[ReadCost, float]:
    """Reads and packed bytes a batch, of superbatches of that many; pages of more batches than are known saturate."""
    known = len(missed)
    packed = sum(rows.shape[0] for rows in missed) * row_bytes / max(1, known)
    one = read_cost(missed[: max(1, known // 2)], num_rows=num_rows, row_bytes=row_bytes, gap_bytes=speed.gap_bytes)
    whole = read_cost(missed, num_rows=num_rows, row_bytes=row_bytes, gap_bytes=speed.gap_bytes)
    factor = batches_per_superbatch / max(1, known)
    growth = whole.num_bytes / max(1, one.num_bytes) - 1.0  # 1: twice the batches take twice the bytes; 0: no more
    num_bytes = whole.num_bytes * factor ** max(0.0, min(1.0, growth)) / batches_per_superbatch
    num_reads = whole.num_reads * factor ** max(0.0, min(1.0, growth)) / batches_per_superbatch
    return ReadCost(int(num_bytes), int(num_reads)), packed
