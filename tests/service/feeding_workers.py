"""What workers do in the tests of the feeder under Ray Train: ask for batches, and write down what they got."""

import json
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import ray.train
import torch

from sampling.assemble import TopologySurroundings
from sampling.neighbors import NeighborSampler
from sampling.planned_table import PlannedTable
from sampling.sample_space import SampleSpace
from sampling.seeds import SeedOrder
from sampling.shared_memory import FeatureMemory
from sampling.sources import ThreadSource
from sampling.stream import Stream
from service.errors import TrainingFailed
from service.feeding import open_loader, ranks_of_host
from service.group import Group
from service.run_file import RunFile
from service.seed_nodes import seed_order
from storage.disk_speed import UNKNOWN
from storage.errors import BadInput
from storage.read_pool import ReadPool
from storage.store import Store
from tests.sampling.fed_processes import digest


def open_stream(
    store: Store,
    run: RunFile,
    *,
    order: SeedOrder,
    ranks: Sequence[int],
    world_size: int,
    opened: ExitStack,
    memory: FeatureMemory | None,
) -> Stream:
    """A `service.feeding.OpenStream` with a cache of a few rows."""
    if run.tiers.host_cache_bytes == 0:
        raise BadInput("tiers.host_cache_bytes=0", "no memory", rule="there is some", remedy="give more")
    topology = store.topology()
    folder = opened.enter_context(tempfile.TemporaryDirectory())
    space, pool = SampleSpace(memory_bytes=1 << 20, folder=folder), ReadPool(num_threads=2)
    tables = []
    for kind in store.node_types:
        below = store.features(kind.name)
        assert below is not None
        opened.enter_context(closing(below))
        row_bytes = below.dim * below.dtype.itemsize
        tables.append(
            PlannedTable(
                below,
                num_static=10,
                num_slots=20,
                landing_bytes=row_bytes * below.num_rows,
                chunk_bytes=1 << 16,
                folder=folder,
                speed=UNKNOWN,
                pool=pool,
                space=space,
            )
        )
    source = ThreadSource(
        lambda: NeighborSampler(topology, fanouts=run.sampling.fanouts, seed=run.run.seed),
        TopologySurroundings(topology),
        order=order,
        ranks=ranks,
        world_size=world_size,
    )
    stream = Stream(
        source,
        type_offsets=store.type_offsets,
        order=order,
        tables=tables,
        space=space,
        batches_per_superbatch=4,
        ranks=ranks,
        queue_batches=1,
        memory=memory,
    )
    opened.callback(stream.close)
    return stream


def work(config: dict[str, Any]) -> None:
    """What Ray Train runs on every worker."""
    run = RunFile.model_validate(config["run"])
    store = Store.open(run.data.store)
    group = Group.from_torch(local_rank=ray.train.get_context().get_local_rank())
    seen: dict[str, Any] = {"batches": []}
    path = Path(config["folder"]) / f"rank-{group.rank}.json"
    try:
        with ExitStack() as opened:
            loader = open_loader(
                store,
                run,
                order=seed_order(store, run),
                group=group,
                ranks=ranks_of_host(group, device=torch.device("cpu")),
                device=torch.device("cpu"),
                open_stream=open_stream,
                opened=opened,
            )
            seen["loader"] = type(loader).__name__
            for batch in loader.batches(first_step=0, last_step=config["steps"]):
                seen["batches"].append(digest(batch))
                path.with_suffix(".begun").touch()
                time.sleep(config["work_seconds"])
            seen["sampled_nodes"] = loader.counters.sampled_nodes
            seen["rows_read"] = [None if read is None else read.requests for read in loader.read]
            seen["requests"] = [None if table is None else table.requests for table in loader.tables]
            group.barrier()
    except (BadInput, TrainingFailed) as error:
        seen["error"] = type(error).__name__
        seen["text"] = str(error)
    path.write_text(json.dumps(seen))
