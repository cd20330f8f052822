"""Runs of the out-of-core benchmark's contenders: cases, ways to be fastest, and the smallest cap that works."""

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass, field
from typing import Any

from storage.store import Store
from tests.benchmarks.capped import run_capped
from tests.benchmarks.community_graph import FEATURE_DIM, CommunityGraph
from tests.benchmarks.contender import NO_MEMORY
from tests.benchmarks.record import say

GIB = 1 << 30
DATA_PATH_BYTES = GIB * 3 // 4
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
    ways_of: int | None = None
    """the case of the same batches in which ways are tried, where that is another one: trying takes minutes"""


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
    Case(2, "15,10,5", 1024, "disk", ways_of=1),
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
        self._tried: dict[tuple[str, int], dict[Way, float]] = {}
        """seconds a batch, by contender and case"""

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

    def uncapped(self, module: str, case: Case, *words: str) -> str:
        """The last line that a look at the case's trace prints, which needs more memory than the contenders have."""
        command = [sys.executable, "-m", f"tests.benchmarks.{module}", "--data", str(self.graph.folder)]
        command += ["--fanouts", case.fanouts, "--seeds", str(case.seeds)]
        command += ["--cache-bytes", str(self.cache_bytes(case)[0])]
        return subprocess.run([*command, *words], stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[-1]

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
        before = {} if case.ways_of is None else self._tried.get((contender.name, case.ways_of), {})
        tried = {way: seconds for way, seconds in before.items() if way in ways}
        if tried:
            return min(tried, key=lambda way: tried[way])
        words = ("--batches", "8", "--warmup", str(PROBE_WARMUP), "--seconds", str(PROBE_SECONDS))
        seconds: dict[Way, float] = {}
        for way in ways:
            found = self.run(contender.name, case, *words, *way, *extra, cap_bytes=cap)
            if found is not None:
                seconds[way] = found.line["seconds_per_batch"]
                say(f"  {contender.name} {' '.join(way)}: {seconds[way]:.3f} s a batch", self.options)
        self._tried[contender.name, case.number] = seconds
        return min(seconds, key=lambda way: seconds[way], default=None)

    def _tell(self, case: Case, contender: Contender, found: Outcome) -> None:
        line = found.line
        say(
            f"case {case.number}: {contender.name} {line['seconds_per_batch']:.4f} s a batch over {line['batches']}; "
            f"{line['rows_per_batch']:,.0f} rows and {line['read_bytes_per_batch'] / 1e6:,.1f} MB read each, "
            f"cap {found.cap_bytes / GIB:.2f} GiB, peak {found.peak_bytes / GIB:.2f} GiB {' '.join(found.way)}",
            self.options,
        )
