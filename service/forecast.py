"""`hopstream plan`: what a run will take, before any of it: from real batches, real reads and real steps on a copy.

a few steps       -> seconds of the step and of every stage of the stream, side by side as in training
a sampled trace   -> hits and disk bytes of this budget and of one with another GiB (`service.outlook`)
deeper batches    -> nodes with one hop more
"""

import os
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import torch

from service.feeding import OwnLoader
from service.group import Group
from service.happened import Happened, happened
from service.outlook import Outlook, outlooks_of
from service.partition_file import give_partition
from service.preparation import prepare
from service.run_file import RunFile
from service.step import build_optimizer, take_step
from service.streaming import BatchSource, FromMemory, FromStream, fits_in_memory
from service.tier_budget import memory_budget, planned_stream
from storage.progress import Progress

NUM_STEPS = 56
"""real steps: two small superbatches and a larger one, while what follows is sampled as in training"""
NUM_WARM = 24
"""of them, those that are not timed"""


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
    happened: Happened | None = None
    """the same of the run, where it has been done"""
    compute_range: tuple[float, float] | None = None
    """seconds of a step's computing: the tenth and the ninetieth percentile of the steps that were timed"""


def forecast(run: RunFile, *, progress: Progress) -> Forecast:
    """Look ahead at a run; nothing of it is written.

    Raises BadInput for what would stop the run.
    """
    # one worker without Ray: it trains on the same batches
    run = run.model_copy(update={"workers": run.workers.model_copy(update={"count": 1, "samplers": 0})})
    prepared = prepare(run, group=Group(), state=None)
    torch.set_num_threads(run.training.num_compute_threads or os.cpu_count() or 1)
    give_partition(prepared.model, run, store=prepared.store, group=Group(), progress=progress, is_kept=False)
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
                num_steps=prepared.total_batches,
                progress=progress,
            )
            source = FromStream(OwnLoader(found.stream))
        optimizer = build_optimizer(run, prepared.model)
        num_steps = min(NUM_STEPS, prepared.total_batches)
        progress.stage("try steps", total=num_steps, unit="steps")
        began = time.perf_counter()
        startup = 0.0
        computes: list[float] = []
        nodes = np.zeros(0)
        batch_bytes = 0
        num_warm = min(NUM_WARM, num_steps - 1)
        batches = source.batches(first_step=0, last_step=prepared.total_batches)
        for number, batch in enumerate(islice(batches, num_steps)):
            got = time.perf_counter()
            startup = startup or got - began
            take_step(
                run,
                [batch],
                step=number + 1,
                forward=prepared.model,
                model=prepared.model,
                optimizer=optimizer,
                group=Group(),
            )
            if number >= num_warm:
                computes.append(time.perf_counter() - got)
            known = np.array([*(hop.num_targets for hop in batch.hops), batch.node_id.shape[0]], dtype=np.float64)
            nodes = known if nodes.size == 0 else nodes + known
            batch_bytes = max(batch_bytes, sum(t.numel() * t.element_size() for t in batch.features if t is not None))
            progress.advance(1)
        batches.close()  # what follows samples by itself
        batches_per_step = prepared.total_batches / max(1, prepared.total_steps)
        stages = {"compute": float(np.median(computes)) * batches_per_step}
        outlooks: list[Outlook] = []
        memory_bytes = 0
        more_hop = None
        if found is not None:
            counters = found.stream.counters
            stages["sample"] = counters.sample.seconds / max(1, counters.sample.items) * batches_per_step
            stages["serve"] = counters.serve.seconds / max(1, counters.serve.items) * batches_per_step
            memory_bytes = found.split.memory_bytes
            outlooks = outlooks_of(
                found, packing=run.tiers.packing, batches_per_step=batches_per_step, progress=progress
            )
            stages["read"] = outlooks[0].read_seconds_per_step
            fanouts = run.sampling.fanouts
            if fanouts:  # none where neither encoder nor objective reads neighbours
                deeper = found.look((*fanouts, fanouts[-1]))
                more_hop = MoreHop(fanouts[-1], deeper.num_nodes, deeper.num_nodes / found.batch.num_nodes)
        else:
            counted = source.counters
            stages["sample"] = counted.sample_seconds / max(1, num_steps) * batches_per_step
            stages["fetch"] = counted.fetch_seconds / max(1, num_steps) * batches_per_step
    low, high = np.quantile(computes, (0.1, 0.9)).tolist()
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
        happened=happened(run, batches_per_step=batches_per_step),
        compute_range=(low * batches_per_step, high * batches_per_step),
    )
