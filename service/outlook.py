"""What a budget is expected to do on one sampled trace, before anything is read: hits, disk bytes, seconds of reads.

trace of the first batches -> planned as the stream plans -> priced by bytes, reads and the disk's measured speed
"""

from dataclasses import dataclass

import numpy as np

from sampling.belady import Residency
from sampling.memory_split import MemorySplit
from sampling.open_stream import OpenStream
from sampling.packing import packing_pays
from sampling.planned_table import Packing
from sampling.read_cost import ReadCost, read_cost
from storage.disk_speed import DiskSpeed
from storage.progress import Progress

MOST_TRACED = 64
"""batches whose accesses are planned"""
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


def outlooks_of(found: OpenStream, *, packing: Packing, batches_per_step: float, progress: Progress) -> list[Outlook]:
    """The budget as it is, and with a GiB more; `batches_per_step` is above 1 where gradients are accumulated."""
    steps = min(MOST_TRACED, 2 * found.split.batches_per_superbatch)
    progress.stage("plan ahead", total=2, unit="budgets")
    trace = found.trace(steps)
    outlooks = []
    for change, more in (("as it is", 0), ("one GiB more", GIB)):
        split = found.split if not more else found.split_of(found.split.memory_bytes + more)
        outlooks.append(_outlook(change, split, found, trace, packing, batches_per_step))
        progress.advance(1)
    return outlooks


def _outlook(
    change: str,
    split: MemorySplit,
    found: OpenStream,
    trace: list[list[np.ndarray]],
    packing: Packing,
    batches_per_step: float,
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
        pays = packing_pays(direct, cost, packed_bytes=packed, speed=found.speed)
        if packing == "never" or (packing == "auto" and not pays):
            cost, packed = direct, 0.0
        disk_bytes += cost.num_bytes + 2 * packed
        seconds += cost.seconds(found.speed) + found.speed.round_trip_seconds(packed)
    return Outlook(
        change=change,
        batches_per_superbatch=split.batches_per_superbatch,
        topology=split.topology,
        memory=parts_of(split),
        static_hit_rate=static / max(1, requests),
        dynamic_hit_rate=dynamic / max(1, requests),
        disk_bytes_per_step=disk_bytes * batches_per_step,
        read_seconds_per_step=seconds * batches_per_step,
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
        "feature rows and their slots": split.cache_bytes,
        "left over": split.memory_bytes - split.used_bytes,
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
