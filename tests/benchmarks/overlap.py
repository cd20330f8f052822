"""How well the stream hides its reads behind a training step that takes as long as they do.

    python -m tests.benchmarks.overlap [--small] [--data FOLDER] [--json] [--save]

A store of 1 M nodes and 15 M edges (Pareto-1.2 weights at both ends), 128 float32 features read past the page cache, an
eighth of them cached, the topology in memory. The same stream is consumed in three ways, in turn, several times:

    data      batches are taken as fast as they come: the seconds a batch of sampling, planning, reading and serving
    waiting   each batch is computed on for as long as `data` took for one, by a device that takes no time of any core:
              a step starts when its batch is there and the step before it has ended; while a step runs, the next batch
              may be queued behind it, no more, as on a GPU
    burning   after every batch one thread works for as long as that takes on an idle core, without the GIL, as a step
              on the CPU does; where there are few cores it takes time from the stream

| figure | what it is |
| step_over_longer_stage | seconds a step of `waiting` over those of the longer stage alone, `data` or compute |
| trainer_stall_fraction | of the time of `waiting`, what the device spent without a batch |
| step_over_longer_stage_burning, trainer_stall_fraction_burning | the same of `burning` |
| seconds_per_batch | of `data` |
| disk_mb_per_batch | read from the disk and written to it in `data`, as the kernel counts |

All are medians. `data` alone is measured before and after each of the others, and the mean taken. Superbatches are
timed whole, once they have their full size and while others follow.
"""

import argparse
import statistics
import tempfile
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sampling.open_stream import OpenStream, StreamSettings, open_stream
from sampling.seeds import SeedOrder
from storage.ingest import IngestSettings, ingest
from storage.jit import kernel
from storage.store import Store
from tests.benchmarks.disk_io import disk_bytes
from tests.benchmarks.ingest_graph import FEATURE_DIM, write_edge_table, write_node_table
from tests.benchmarks.record import arguments, report, say

CACHED_SHARE = 8
"""one of so many feature bytes is cached"""
ROW_BYTES = FEATURE_DIM * 4
BUDGET_BYTES = 2 << 30
"""more than all parts of the stream take"""
FOLLOWING = 4
"""superbatches behind those that are timed: as many as may be under way, and one"""
CALIBRATION_ROUNDS = 20_000_000
MANY_STEPS = 1 << 12


@dataclass(frozen=True)
class Scale:
    """How large everything is."""

    num_nodes: int
    num_edges: int
    fanouts: tuple[int, ...]
    num_seeds: int
    batches_per_superbatch: int
    timed_superbatches: int
    repeats: int


FULL = Scale(1_000_000, 15_000_000, (10, 5), 1024, 32, 8, 7)
SMALL = Scale(200_000, 3_000_000, (10, 5), 256, 16, 4, 3)


@dataclass(frozen=True)
class Run:
    """One timed run, a batch on average."""

    seconds: float
    stalled: float
    """while there was no batch to compute on"""
    disk_bytes: float


class Nothing:
    """No computation."""

    def step(self) -> float:
        """Take a batch; returns when the computation on it ends, as `time.perf_counter` counts."""
        return time.perf_counter()


class Device:
    """Steps of a given length on a device that needs no core; a step is queued while the one before runs."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._ends = 0.0
        self._never = threading.Event()

    def step(self) -> float:
        """See `Nothing`; returns as soon as this step has started."""
        now = time.perf_counter()
        starts = max(now, self._ends)
        self._ends = starts + self._seconds
        self._never.wait(starts - now)
        return self._ends


class Core:
    """Steps of as many rounds of work on a core."""

    def __init__(self, rounds: int) -> None:
        self._rounds = rounds

    def step(self) -> float:
        """See `Nothing`."""
        burn(self._rounds, np.uint64(1))
        return time.perf_counter()


Compute = Nothing | Device | Core


@kernel
def burn(rounds: int, word: np.uint64) -> np.uint64:
    """Keep one core busy; returns something, so that it is not left out."""
    for _ in range(rounds):
        word ^= word << np.uint64(13)
        word ^= word >> np.uint64(7)
        word ^= word << np.uint64(17)
    return word


def rounds_per_second() -> float:
    """How fast `burn` is on a core of its own: the fastest of three, by the time that it had a core."""
    best = 0.0
    for _ in range(3):
        began = time.thread_time()
        burn(CALIBRATION_ROUNDS, np.uint64(1))
        best = max(best, CALIBRATION_ROUNDS / (time.thread_time() - began))
    return best


def written_store(folder: Path, scale: Scale) -> Store:
    """The store, written once."""
    store = folder / "store"
    if not (store / "manifest.json").exists():
        write_edge_table(folder / "edges.parquet", num_nodes=scale.num_nodes, num_edges=scale.num_edges)
        write_node_table(folder / "nodes.parquet", num_nodes=scale.num_nodes, strings=False, features=True)
        settings = IngestSettings(
            nodes={"node": str(folder / "nodes.parquet")},
            edges={"node:to:node": str(folder / "edges.parquet")},
            feature_dtype="float32",
        )
        ingest(settings, out=str(store))
    return Store.open(str(store))


class Bench:
    """One stream whose steps are consumed in one way after another; the cache stays as it is in between."""

    def __init__(self, store: Store, scale: Scale, *, scratch: Path, opened: ExitStack) -> None:
        self.found: OpenStream = open_stream(
            store,
            order=SeedOrder(None, num_nodes=scale.num_nodes, seeds_per_step=scale.num_seeds, seed=0),
            fanouts=scale.fanouts,
            seed=0,
            settings=StreamSettings(
                memory_bytes=BUDGET_BYTES,
                process_bytes=0,
                scratch_folder=str(scratch),
                topology="memory",
                cache_bytes=scale.num_nodes * ROW_BYTES // CACHED_SHARE,
                batches_per_superbatch=scale.batches_per_superbatch,
            ),
            opened=opened,
        )
        self._scale = scale
        self._next_step = 0

    def run(self, compute: Compute) -> Run:
        """Compute on every batch, and time superbatches of full size."""
        scale, stream = self._scale, self.found.stream
        ends = [last for _, last in stream.superbatches(0, MANY_STEPS)]
        full = next(n for n in range(1, len(ends)) if ends[n] - ends[n - 1] == scale.batches_per_superbatch)
        begin, end = ends[full], ends[full + scale.timed_superbatches]
        last = ends[full + scale.timed_superbatches + FOLLOWING]
        ended = [time.perf_counter()]
        stalled = 0.0
        disk = []
        for number, _ in enumerate(stream.batches(first_step=self._next_step, last_step=self._next_step + last)):
            if number in (begin, end):
                disk.append(disk_bytes("read_bytes", "write_bytes"))
            if number < end:
                stalled += max(0.0, time.perf_counter() - ended[-1]) if number >= begin else 0.0
                ended.append(compute.step())
        self._next_step += last
        num_batches = end - begin
        return Run((ended[end] - ended[begin]) / num_batches, stalled / num_batches, (disk[1] - disk[0]) / num_batches)

    def busy_seconds(self) -> dict[str, float]:
        """What each stage has worked for a batch so far, in all runs."""
        counters = self.found.stream.counters
        stages = {name: getattr(counters, name) for name in ("sample", "plan", "pack", "read", "serve")}
        return {name: stage.seconds / self._next_step for name, stage in stages.items()}


def measure(bench: Bench, scale: Scale, options: argparse.Namespace) -> dict[str, float]:
    """All runs, and their medians."""
    bench.run(Nothing())  # compile, and fill the cache
    found: dict[str, list[float]] = {}
    data = bench.run(Nothing())
    for _ in range(scale.repeats):
        for suffix in ("", "_burning"):
            length = data.seconds
            compute = Core(int(rounds_per_second() * length)) if suffix else Device(length)
            both, after = bench.run(compute), bench.run(Nothing())
            these = {
                f"step_over_longer_stage{suffix}": both.seconds / max(length, (data.seconds + after.seconds) / 2),
                f"trainer_stall_fraction{suffix}": both.stalled / both.seconds,
                "seconds_per_batch": after.seconds,
                "disk_mb_per_batch": after.disk_bytes / 1e6,
            }
            for name, value in these.items():
                found.setdefault(name, []).append(value)
            say(", ".join(f"{name} {value:.3f}" for name, value in these.items()), options)
            data = after
    return {name: statistics.median(values) for name, values in found.items()}


def main() -> None:
    """Measure and report."""
    parser = arguments(__doc__ or "", small="200,000 nodes and 3 M edges")
    parser.add_argument("--data", default=None, help="folder for tables and store, kept; by default a temporary one")
    options = parser.parse_args()
    scale = SMALL if options.small else FULL
    with ExitStack() as opened:
        folder = Path(options.data or opened.enter_context(tempfile.TemporaryDirectory(dir=".")))
        folder = folder / ("overlap-small" if options.small else "overlap")
        folder.mkdir(parents=True, exist_ok=True)
        say(f"writing the store in {folder}", options)
        store = written_store(folder, scale)
        bench = Bench(store, scale, scratch=folder / "scratch", opened=opened)
        figures = measure(bench, scale, options)
        split, table = bench.found.split.tables[0], bench.found.stream.tables[0]
        assert split is not None
        assert table is not None
        config = {
            "num_nodes": scale.num_nodes,
            "num_edges": scale.num_edges,
            "row_bytes": ROW_BYTES,
            "fanouts": list(scale.fanouts),
            "num_seeds": scale.num_seeds,
            "batches_per_superbatch": scale.batches_per_superbatch,
            "timed_batches": scale.batches_per_superbatch * scale.timed_superbatches,
            "repeats": scale.repeats,
            "static_rows": split.num_static,
            "slots": split.num_slots,
            "packed_superbatches": table.counters.packed_superbatches,
            "direct_superbatches": table.counters.direct_superbatches,
            "busy_seconds_per_batch_by_stage": bench.busy_seconds(),
        }
    report("overlap", figures, config, options)


if __name__ == "__main__":
    main()
