"""Seconds a batch of training data larger than memory: the stream beside DGL over maps, an LRU cache, and sweeps.

    python -m tests.benchmarks.out_of_core [--small] [--data FOLDER] [--contenders A,B] [--cases 1,2] [--json] [--save]

A generated graph (`community_graph.py`): 20 M nodes, 300 M edges, 128 float16 features, 26 GB of files in `--data`,
written once and kept. Every contender is a process of its own (`out_of_core_contenders.py`) under a memory cgroup of
0.75 GiB and the cache, its page cache included, which is dropped before it starts.

| case | fan-out | seeds | cache |
| 1 | 15,10,5 | 1024 | the topology and an eighth of the features |
| 2 | 15,10,5 | 1024 | an eighth of both |
| 3 | 10,5 | 256 | as case 1 |

Each contender is tried for a few batches in every way that its list names, then measured in the fastest: 128 batches
after warm-up, fewer where they take longer than `--seconds`. One that the cap kills is tried again with caps that grow
by a quarter GiB, and reported with the first that works. `step_over_longer_stage`: seconds of a step of GraphSAGE-256
fed by the stream, over those of the longer of both alone, all three under 1.5 GiB and the cache. What another order of
cold rows on disk would change is `out_of_core_order.py`.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from storage.store import Store
from tests.benchmarks.capped import run_capped
from tests.benchmarks.community_graph import FEATURE_DIM, CommunityGraph
from tests.benchmarks.contender import NO_MEMORY
from tests.benchmarks.record import arguments, report, say

GIB = 1 << 30
DATA_PATH_BYTES = GIB * 3 // 4
STEP_BYTES = GIB * 3 // 2
CACHED_SHARE = 8
"""one of so many bytes of what is larger than memory is cached"""
CAP_STEP_BYTES = GIB // 4
MOST_CAP_BYTES = 16 * GIB
PROBE_SECONDS = 8
PROBE_WARMUP = 4

Way = tuple[str, ...]
"""further words of a contender's command line"""

SMALL_STREAM: Way = ("--superbatch", "8")
"""of a small graph the budget would allow superbatches that take longer than all the rest"""


@dataclass(frozen=True)
class Case:
    """What is sampled, and what is cached."""

    number: int
    fanouts: str
    seeds: int
    topology: str
    batches: int = 128


@dataclass(frozen=True)
class Contender:
    """A contender, its warm-up, and the ways in which it may be fastest."""

    name: str
    warmup: int
    ways: tuple[Way, ...]
    """for any topology"""
    in_memory: tuple[Way, ...] = ()
    """further ones where the topology may be in memory"""


@dataclass
class Outcome:
    """A measured contender: its JSON line, the cap that it took, and how it was run."""

    line: dict[str, Any] = field(default_factory=dict)
    cap_bytes: int = 0
    peak_bytes: int = 0
    way: Way = ()


CASES = (
    Case(1, "15,10,5", 1024, "memory"),
    Case(2, "15,10,5", 1024, "disk"),
    Case(3, "10,5", 256, "memory"),
)
CONTENDERS = (
    Contender("stream", warmup=16, ways=((),)),
    Contender(
        "dgl_mmap",
        warmup=8,
        ways=tuple(
            ("--threads", threads, "--workers", workers, "--topology", "disk")
            for threads, workers in (("16", "0"), ("32", "0"), ("64", "2"))
        ),
        in_memory=(("--threads", "32", "--workers", "0"),),
    ),
    Contender("direct_lru", warmup=4, ways=tuple(("--threads", threads) for threads in ("16", "32", "64"))),
    Contender("sweep", warmup=1, ways=(("--threads", "4"), ("--threads", "8"))),
)


class Bench:
    """The graph, and runs of contenders over it."""

    def __init__(self, options: argparse.Namespace, graph: CommunityGraph) -> None:
        self.options = options
        self.graph = graph
        say(f"graph of {graph.num_nodes:,} nodes and {graph.num_edges:,} edges in {graph.folder}", options)
        graph.write()
        edges = Store.open(str(graph.store)).relations[0].segments[0]
        self.topology_bytes = edges.indptr.num_bytes + edges.indices.num_bytes
        self.feature_bytes = graph.num_nodes * FEATURE_DIM * 2

    def cache_bytes(self, case: Case) -> tuple[int, int]:
        """Memory for feature rows, and for the topology."""
        topology = self.topology_bytes if case.topology == "memory" else self.topology_bytes // CACHED_SHARE
        return self.feature_bytes // CACHED_SHARE, topology

    def run(self, name: str, case: Case, *words: str, cap_bytes: int) -> Outcome | None:
        """One run; None when the cap has killed it."""
        rows, topology = self.cache_bytes(case)
        command = [sys.executable, "-m", "tests.benchmarks.out_of_core_contenders", name]
        command += ["--data", str(self.graph.folder), "--fanouts", case.fanouts, "--seeds", str(case.seeds)]
        command += ["--cache-bytes", str(rows), "--topology-bytes", str(topology), "--topology", case.topology]
        done = run_capped([*command, *words], limit_bytes=cap_bytes, disk=str(self.graph.folder))
        if not done.capped:
            sys.exit("no cgroup could be made: without a cap nothing here is larger than memory")
        if done.returncode in (-9, NO_MEMORY):
            return None
        if done.returncode:
            sys.exit(f"{name} ended with {done.returncode}: {' '.join(command)} {' '.join(words)}")
        return Outcome(json.loads(done.output.splitlines()[-1]), cap_bytes, done.peak_bytes)

    def best(self, contender: Contender, case: Case, *, own_bytes: int = DATA_PATH_BYTES, extra: Way = ()) -> Outcome:
        """The contender at its fastest, under the smallest cap in which it works."""
        cap_bytes = own_bytes + sum(self.cache_bytes(case))
        ways = contender.ways + (contender.in_memory if case.topology == "memory" else ())
        while cap_bytes <= MOST_CAP_BYTES:
            way = self._fastest(contender, case, ways, extra, cap_bytes)
            words = (
                "--batches",
                str(case.batches),
                "--warmup",
                str(contender.warmup),
                "--seconds",
                str(self.options.seconds),
            )
            found = None if way is None else self.run(contender.name, case, *words, *way, *extra, cap_bytes=cap_bytes)
            if found is not None and way is not None:
                found.way = way
                self._tell(case, contender, found)
                return found
            say(f"case {case.number}: {contender.name} was killed by {cap_bytes / GIB:.2f} GiB", self.options)
            cap_bytes += CAP_STEP_BYTES
        sys.exit(f"{contender.name} works in no cap up to {MOST_CAP_BYTES} bytes")

    def _fastest(self, contender: Contender, case: Case, ways: tuple[Way, ...], extra: Way, cap: int) -> Way | None:
        """The fastest of several ways over a few batches; None when the cap kills all of them."""
        if len(ways) == 1 or self.options.small:
            return ways[0]
        words = ("--batches", "8", "--warmup", str(PROBE_WARMUP), "--seconds", str(PROBE_SECONDS))
        seconds: dict[Way, float] = {}
        for way in ways:
            found = self.run(contender.name, case, *words, *way, *extra, cap_bytes=cap)
            if found is not None:
                seconds[way] = found.line["seconds_per_batch"]
                say(f"  {contender.name} {' '.join(way)}: {seconds[way]:.3f} s a batch", self.options)
        return min(seconds, key=lambda way: seconds[way], default=None)

    def _tell(self, case: Case, contender: Contender, found: Outcome) -> None:
        line = found.line
        say(
            f"case {case.number}: {contender.name} {line['seconds_per_batch']:.4f} s a batch over {line['batches']}; "
            f"{line['rows_per_batch']:,.0f} rows and {line['read_bytes_per_batch'] / 1e6:,.1f} MB read each, "
            f"cap {found.cap_bytes / GIB:.2f} GiB, peak {found.peak_bytes / GIB:.2f} GiB {' '.join(found.way)}",
            self.options,
        )


def figures_of(outcomes: dict[tuple[int, str], Outcome]) -> dict[str, float]:
    """Seconds a batch, caps and speed-ups of what was run."""
    figures: dict[str, float] = {}
    for (number, name), found in outcomes.items():
        ours = outcomes.get((number, "stream"))
        if ours is not None and name != "stream":
            speedup = found.line["seconds_per_batch"] / ours.line["seconds_per_batch"]
            figures[f"case{number}_speedup_over_{name}"] = speedup
    for (number, name), found in outcomes.items():
        prefix = f"case{number}_{name}"
        figures[f"{prefix}_seconds_per_batch"] = found.line["seconds_per_batch"]
        figures[f"{prefix}_batches"] = found.line["batches"]
        figures[f"{prefix}_read_mb_per_batch"] = found.line["read_bytes_per_batch"] / 1e6
        figures[f"{prefix}_cap_gib"] = found.cap_bytes / GIB
        figures[f"{prefix}_peak_gib"] = found.peak_bytes / GIB
    return figures


def stream_figures(bench: Bench, case: Case, line: dict[str, Any]) -> dict[str, float]:
    """How the stream's reads and writes compare with its plan and with the least that the trace allows."""
    superbatches = ",".join(f"{first}-{last}" for first, last in line["superbatches"])
    command = [sys.executable, "-m", "tests.benchmarks.out_of_core_floor", "--data", str(bench.graph.folder)]
    command += ["--fanouts", case.fanouts, "--seeds", str(case.seeds), "--superbatches", superbatches]
    command += ["--cache-bytes", str(bench.cache_bytes(case)[0])]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    floor = int(done.stdout.split()[-1]) + 2 * line["packed_bytes"]
    return {
        "disk_bytes_over_plan": line["disk_bytes_read"] / max(1, line["disk_bytes_planned"]),
        "disk_bytes_over_floor": line["disk_bytes_read"] / max(1, floor),
        "case1_stream_hit_rate": 1 - line["misses"] / line["requests"],
        "case1_stream_batches_per_superbatch": line["batches_per_superbatch"],
    }


def order_figures(bench: Bench, case: Case, line: dict[str, Any]) -> dict[str, float]:
    """Disk bytes with cold rows by community over those with cold rows by hotness, as the store has them."""
    split = line["split"]
    command = [sys.executable, "-m", "tests.benchmarks.out_of_core_order", "--data", str(bench.graph.folder)]
    command += ["--fanouts", case.fanouts, "--seeds", str(case.seeds), "--cache-bytes", "0"]
    command += ["--static", str(split["tables"][0]["num_static"]), "--slots", str(split["tables"][0]["num_slots"])]
    command += ["--batches", str(line["batches_per_superbatch"])]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    orders = json.loads(done.stdout.splitlines()[-1])
    figures = {}
    for name in ("community", "planted"):
        for kind in ("bytes", "direct_bytes"):
            over = orders[name][kind] / max(1, orders["hotness"][kind])
            figures[f"case{case.number}_{name}_order_{kind}_over_hotness"] = over
    return figures


def step_figures(bench: Bench, stream: Contender, case: Case) -> dict[str, float]:
    """Data alone, compute alone and both, each under the memory of both."""
    modes = {"none": ("--step", "none", "--for-step"), "only": ("--step", "only"), "train": ("--step", "train")}
    seconds = {
        name: bench.best(stream, case, own_bytes=STEP_BYTES, extra=words).line["seconds_per_batch"]
        for name, words in modes.items()
    }
    return {
        "step_over_longer_stage": seconds["train"] / max(seconds["none"], seconds["only"]),
        "step_seconds": seconds["train"],
        "step_data_alone_seconds": seconds["none"],
        "step_compute_alone_seconds": seconds["only"],
    }


def main() -> None:
    """Measure and report."""
    parser = arguments(
        __doc__ or "", small="400 k nodes, 6 M edges, an eighth of the seeds, one way for each contender"
    )
    default = os.path.join(tempfile.gettempdir(), "hopstream-bench-out-of-core")
    parser.add_argument("--data", default=default, help=f"folder for tables, arrays and store, kept; default {default}")
    parser.add_argument("--contenders", default=",".join(contender.name for contender in CONTENDERS))
    parser.add_argument("--cases", default="1,2,3")
    parser.add_argument("--seconds", type=float, default=60, help="stop a slow contender after this long on the clock")
    options = parser.parse_args()
    chosen = options.contenders.split(",")
    numbers = [int(word) for word in options.cases.split(",")]
    contenders = [contender for contender in CONTENDERS if contender.name in chosen]
    cases = [case for case in CASES if case.number in numbers]
    size = (400_000, 6_000_000) if options.small else (20_000_000, 300_000_000)
    if options.small:
        contenders = [replace(one, ways=(SMALL_STREAM,)) if one.name == "stream" else one for one in contenders]
        cases = [Case(c.number, c.fanouts, c.seeds // 8, c.topology, batches=24) for c in cases]
    folder = Path(options.data) / "small" if options.small else Path(options.data)
    bench = Bench(options, CommunityGraph(folder, num_nodes=size[0], num_edges=size[1]))
    outcomes = {(case.number, one.name): bench.best(one, case) for case in cases for one in contenders}
    figures = figures_of(outcomes)
    ours = outcomes.get((1, "stream"))
    if ours is not None:
        figures |= stream_figures(bench, cases[0], ours.line) | step_figures(bench, contenders[0], cases[0])
    for case in cases:
        if case.topology == "memory" and (case.number, "stream") in outcomes:
            figures |= order_figures(bench, case, outcomes[case.number, "stream"].line)
    config = {
        "num_nodes": size[0],
        "num_edges": size[1],
        "feature_dim": FEATURE_DIM,
        "topology_bytes": bench.topology_bytes,
        "feature_bytes": bench.feature_bytes,
        "data_path_bytes": DATA_PATH_BYTES,
        "step_bytes": STEP_BYTES,
        "cases": {case.number: [case.fanouts, case.seeds, case.topology] for case in cases},
        "ways": {f"case{number}_{name}": " ".join(found.way) for (number, name), found in outcomes.items()},
    }
    report("out_of_core", figures, config, options)
    if options.small and options.data == default:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
