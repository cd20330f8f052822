"""The processes of one host in the benchmark `hosts`: a feeder of some ranks, and a rank that only takes its batches.

    python -m tests.benchmarks.hosts_processes feeder '{"data": ..., "ranks": [0, 1], ...}'
    python -m tests.benchmarks.hosts_processes rank '{"address": ..., "rank": 0, ...}'

The feeder says its address, and at the end what the kernel and the feature file have counted since the stream was
open; the rank says a checksum of all features that it was given, and how long that took.
"""

import json
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sampling.fed_loader import FedLoader
from sampling.feeder import Feeder
from sampling.open_stream import StreamSettings, open_stream
from sampling.seeds import SeedOrder
from sampling.shared_memory import SharedMemory
from sampling.stream import Stream
from storage.features import TierCounters
from storage.store import Store
from tests.benchmarks.capped import ROOT
from tests.benchmarks.disk_io import disk_bytes

FANOUTS = (10, 5)
MEMORY_BYTES = 4 << 30
"""far more than is used: the cache is given"""
BATCHES_PER_SUPERBATCH = 32


@dataclass(frozen=True)
class FeederSpec:
    """What a feeder serves, and from what."""

    data: str
    ranks: tuple[int, ...]
    world_size: int
    seeds: int
    cache_bytes: int


@dataclass(frozen=True)
class RankSpec:
    """What a rank takes."""

    address: str
    rank: int
    steps: int


def run_feeder(spec: FeederSpec) -> None:
    feeder = Feeder(ranks=spec.ranks, queue_batches=2)
    say({"address": feeder.address})
    streams: list[tuple[Stream, int, int]] = []

    def open_one(memory: SharedMemory, opened: ExitStack) -> Stream:
        store = Store.open(str(Path(spec.data) / "store"))
        found = open_stream(
            store,
            order=SeedOrder(None, num_nodes=int(store.type_offsets[-1]), seeds_per_step=spec.seeds, seed=0),
            fanouts=FANOUTS,
            seed=0,
            settings=StreamSettings(
                memory_bytes=MEMORY_BYTES,
                process_bytes=0,
                scratch_folder=str(Path(spec.data) / "scratch"),
                topology="memory",
                cache_bytes=spec.cache_bytes,
                batches_per_superbatch=BATCHES_PER_SUPERBATCH,
            ),
            opened=opened,
            ranks=spec.ranks,
            world_size=spec.world_size,
            memory=memory,
        )
        stream = found.stream
        streams.append((stream, disk_bytes("read_bytes"), table_bytes(stream)))
        return stream

    feeder.run(open_one)
    ((stream, disk_before, table_before),) = streams
    (table,) = stream.tables
    assert table is not None
    say(
        {
            "disk_bytes": disk_bytes("read_bytes") - disk_before,
            "table_bytes": table_bytes(stream) - table_before,
            "shared_bytes": feeder.memory.peak_bytes,
            **asdict(table.counters),
        }
    )


def table_bytes(stream: Stream) -> int:
    """Bytes that were read of the feature file, by its own counters."""
    (table,) = stream.tables
    counters = getattr(None if table is None else table.below, "counters", None)
    assert isinstance(counters, TierCounters)
    return counters.bytes


def run_rank(spec: RankSpec) -> None:
    loader = FedLoader(spec.address, rank=spec.rank)
    began = time.perf_counter()
    rows, seeds, checksum = 0, 0, 0
    for batch in loader.batches(first_step=0, last_step=spec.steps):
        (features,) = batch.features
        assert features is not None
        seeds += batch.num_seeds
        rows += features.shape[0]
        # of the seeds' rows, which no two ranks share
        checksum += int(features[: batch.num_seeds].numpy().view(np.uint16).sum(dtype=np.uint64))
    say({"seconds": time.perf_counter() - began, "rows": rows, "seeds": seeds, "checksum": checksum})
    loader.close()


def say(message: dict[str, Any]) -> None:
    print(json.dumps(message), flush=True)


@dataclass(frozen=True)
class Outcome:
    """What the processes of one host have said at their ends."""

    feeders: list[dict[str, Any]]
    ranks: list[dict[str, Any]]

    def total(self, name: str) -> int:
        """Summed over the feeders, or the ranks, whichever says it."""
        return sum(one[name] for one in (*self.feeders, *self.ranks) if name in one)


def run_host(specs: list[FeederSpec], *, steps: int) -> Outcome:
    """Run these feeders and all of their ranks to the end."""
    with ExitStack() as running:
        feeders = [running.enter_context(_start("feeder", asdict(spec))) for spec in specs]
        ranks = []
        for spec, feeder in zip(specs, feeders, strict=True):
            assert feeder.stdout is not None
            address = json.loads(feeder.stdout.readline())["address"]
            for rank in spec.ranks:
                ranks.append(running.enter_context(_start("rank", asdict(RankSpec(address, rank, steps)))))
        said = [[json.loads(line) for line in one.communicate()[0].splitlines()] for one in (*ranks, *feeders)]
        if any(one.returncode for one in (*ranks, *feeders)):
            sys.exit(f"a process has failed: {' '.join(map(str, (one.args for one in (*ranks, *feeders))))}")
        ends = [lines[-1] for lines in said]
        return Outcome(feeders=ends[len(ranks) :], ranks=ends[: len(ranks)])


def _start(role: str, spec: dict[str, Any]) -> "subprocess.Popen[str]":
    words = [sys.executable, "-m", "tests.benchmarks.hosts_processes", role, json.dumps(spec)]
    return subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def main() -> None:
    """Be the process that the command line names."""
    role, spec = sys.argv[1], json.loads(sys.argv[2])
    if role == "feeder":
        run_feeder(FeederSpec(**{**spec, "ranks": tuple(spec["ranks"])}))
    else:
        run_rank(RankSpec(**spec))


if __name__ == "__main__":
    main()
